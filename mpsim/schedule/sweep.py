"""One pass over ops in topological order: when each begins and ends if ops have given lengths.

begin = max(end of the op before on the stream, ends of all that it waits for)
end = begin + length
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mpsim.schedule.compiled import compiled, pays
from mpsim.schedule.ops import Ints

Floats = NDArray[np.float64]


def begins_and_ends(
    topological: Ints, previous: Ints, pred_starts: Ints, pred: Ints, lengths: Floats
) -> tuple[Floats, Floats]:
    """Begin and end of each op, (N,) each, in the unit of the lengths."""
    count = len(lengths)
    if pays(count):
        begin, end = np.empty(count), np.empty(count)
        contiguous = np.ascontiguousarray(lengths, np.float64)
        compiled(_sweep)(topological, previous, pred_starts, pred, contiguous, begin, end)
        return begin, end
    begins, ends = [0.0] * count, [0.0] * count
    _sweep(
        topological.tolist(), previous.tolist(), pred_starts.tolist(), pred.tolist(),
        lengths.tolist(), begins, ends,
    )  # fmt: skip
    return np.array(begins, np.float64), np.array(ends, np.float64)


def _sweep(
    topological: list[int],
    previous: list[int],
    pred_starts: list[int],
    pred: list[int],
    lengths: list[float],
    begin: list[float],
    end: list[float],
) -> None:
    """Fills ``begin`` and ``end``, (N,) each."""
    for op in topological:
        before = previous[op]
        time = end[before] if before >= 0 else 0.0
        for edge in range(pred_starts[op], pred_starts[op + 1]):
            time = max(time, end[pred[edge]])
        begin[op] = time
        end[op] = time + lengths[op]
