"""The fast engine: begin and end of every op by one sweep in topological order.

    begin = max(end of the op before on the stream, ends of all that it waits for)
    end = begin + seconds

Links are not shared here: every transfer has its link to itself.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpsim.cost.work import Work
from mpsim.engine.timeline import Floats, Timeline
from mpsim.schedule.compiled import compiled, pays
from mpsim.schedule.graph import OpGraph
from mpsim.schedule.sweep import begins_and_ends


def run(graph: OpGraph, work: Work) -> Timeline:
    """The timeline of a graph, of one or of S samples.

    Ops above ``schedule.compiled.THRESHOLD`` (samples counted) run in a compiled loop, fewer in
    plain Python; the results are equal bit for bit.
    """
    seconds = work.durations()
    if seconds.ndim == 2:
        return _run_samples(graph, seconds)
    waits = (graph.topological, graph.previous, graph.pred_starts, graph.pred)
    begin, end = begins_and_ends(*waits, seconds)
    return Timeline(graph, begin, end)


def _run_samples(graph: OpGraph, seconds: Floats) -> Timeline:
    """As ``run``, all samples of an op at once: (N, S)."""
    begin, end = np.zeros(seconds.shape), np.empty(seconds.shape)
    arrays: list[NDArray[Any]] = [
        graph.topological, graph.previous, graph.pred_starts, graph.pred,
        np.ascontiguousarray(seconds), begin, end,
    ]  # fmt: skip
    if pays(seconds.size):
        compiled(_sweep_samples)(*arrays)
    else:
        lists = [array.tolist() for array in arrays[:4]]
        _sweep_rows(*lists, *arrays[4:])
    return Timeline(graph, begin, end)


def _sweep_samples(
    topological: list[int],
    previous: list[int],
    pred_starts: list[int],
    pred: list[int],
    seconds: Floats,
    begin: Floats,
    end: Floats,
) -> None:
    """As ``schedule.sweep`` for (N, S), sample by sample; to be compiled."""
    samples = seconds.shape[1]
    for op in topological:
        before = previous[op]
        if before >= 0:
            for sample in range(samples):
                begin[op, sample] = end[before, sample]
        for edge in range(pred_starts[op], pred_starts[op + 1]):
            source = pred[edge]
            for sample in range(samples):
                begin[op, sample] = max(begin[op, sample], end[source, sample])
        for sample in range(samples):
            end[op, sample] = begin[op, sample] + seconds[op, sample]


def _sweep_rows(
    topological: list[int],
    previous: list[int],
    pred_starts: list[int],
    pred: list[int],
    seconds: Floats,
    begin: Floats,
    end: Floats,
) -> None:
    """As ``_sweep_samples``, a row of samples at a time by numpy."""
    for op in topological:
        before = previous[op]
        if before >= 0:
            begin[op] = end[before]
        for edge in range(pred_starts[op], pred_starts[op + 1]):
            np.maximum(begin[op], end[pred[edge]], out=begin[op])
        np.add(begin[op], seconds[op], out=end[op])
