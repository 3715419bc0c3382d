"""Costs of stages as differences of prefix sums, for all rows at once.

Letters: K rows, S stages, n layers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mpsim.planner.keys import KeyTable

Floats = NDArray[np.float64]
Whole = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Stages:
    """What the stages of a cut take for a microbatch, in each row."""

    forward: Floats  # (K, S) s
    backward_input: Floats  # (K, S) s
    backward_weight: Floats  # (K, S) s

    @property
    def backward(self) -> Floats:  # (K, S) s
        """A whole backward op."""
        return self.backward_input + self.backward_weight

    def at_least(self, gather: Floats, scatter: Floats) -> Stages:
        """Stages whose parameters are gathered for each pass, gradients scattered after (ZeRO-3).

        Exchanges run beside kernels, so no pass is shorter than its exchanges. What they slow each
        other down by is not counted: this is a bound.

        Args:
            gather: Seconds of gathering each stage's parameters, (K, S).
            scatter: Seconds of scattering its gradients, (K, S).
        """
        backward = np.maximum(self.backward, gather + scatter)
        return Stages(
            np.maximum(self.forward, gather),
            backward - self.backward_weight,
            self.backward_weight,
        )


def differences(sums: Floats, cuts: Whole) -> Floats:
    """Sums over the stages of a cut.

    Args:
        sums: Prefix sums, (K, n + 1).
        cuts: Bounds of the stages, (S + 1,), or (K, S + 1) where each row has its own.
    """
    return np.diff(at(sums, cuts), axis=-1)


def at(values: Floats, places: Whole) -> Floats:
    """Values of each row at the places, which are the same for all rows or each row's own."""
    return values[:, places] if places.ndim == 1 else np.take_along_axis(values, places, axis=1)


def plain_stages(table: KeyTable, rows: Whole, cuts: Whole) -> Stages:
    """Stages whose parameters are at hand."""
    return Stages(
        *(
            differences(sums[rows], cuts)
            for sums in (table.forward, table.backward_input, table.backward_weight)
        )
    )
