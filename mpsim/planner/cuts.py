"""Where layers are cut into stages, for many rows at once; as ``mpsim.workload.partition`` does."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mpsim.errors import ScenarioError
from mpsim.schedule.compiled import compiled
from mpsim.workload.layers import Layer
from mpsim.workload.partition import partition

Floats = NDArray[np.float64]
Whole = NDArray[np.int64]


def counted_cuts(
    layers: Sequence[Layer], num_stages: int, how: str | Sequence[int]
) -> Whole | None:  # (S + 1,)
    """Cuts that need no seconds: equal or given counts, equal parameters; None if impossible."""
    try:
        slices = partition(layers, num_stages, how=how)  # type: ignore[arg-type]
    except ScenarioError:
        return None
    return np.array([0, *(part.stop for part in slices)], np.int64)


def balanced_cuts(weights: Floats, num_stages: int) -> Whole:  # (K, n) → (K, S + 1)
    """Contiguous non-empty stages with the smallest greatest sum, earlier ones filled first.

    ``mpsim.workload.partition.balanced`` for each row, compiled.
    """
    found = np.zeros((len(weights), num_stages + 1), np.int64)
    compiled(_balance_rows)(np.ascontiguousarray(weights), num_stages, found)
    return found


def _balance_rows(  # noqa: C901  (compiled as one loop nest)
    weights: Floats, num_stages: int, found: Whole
) -> None:
    """Fills ``found``; plain loops, to be compiled."""
    rows, count = weights.shape
    infinite = np.inf
    before = np.zeros(count + 1)
    best, rest = np.zeros(count + 1), np.zeros(count + 1)
    cut = np.zeros((num_stages, count + 1), np.int64)
    for row in range(rows):
        for layer in range(count):
            before[layer + 1] = before[layer] + weights[row, layer]
        for start in range(count):
            best[start] = before[count] - before[start]
        best[count] = infinite
        for stages in range(2, num_stages + 1):
            for start in range(count + 1):
                rest[start] = best[start]
                best[start] = infinite
            last = count - stages + 1
            for start in range(last):
                low, high = start + 1, last + 1
                while low < high:  # first stop at which the stage weighs as much as the rest
                    middle = (low + high) // 2
                    if before[middle] - before[start] >= rest[middle]:
                        high = middle
                    else:
                        low = middle + 1
                value, stop = infinite, count
                for candidate in (low, low - 1):
                    if start < candidate <= last:
                        peak = max(before[candidate] - before[start], rest[candidate])
                        if peak < value:
                            value, stop = peak, candidate
                best[start], cut[stages - 1, start] = value, stop
        start = 0
        for stage in range(num_stages - 1):
            start = cut[num_stages - 1 - stage, start]
            found[row, stage + 1] = start
        found[row, num_stages] = count
