"""Memory of each device over the step: what stands all the time, and what ops bring and free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mpsim.cost.memory import ChunkMemory, StageMemory
from mpsim.engine.timeline import Timeline
from mpsim.report.metrics import MemoryUse
from mpsim.schedule.graph import OpGraph
from mpsim.schedule.ops import Kind

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class _Change:
    """Bytes that come or go at some moments."""

    name: str
    times: Floats  # (K,) s
    nbytes: Floats  # (K,) B, negative where freed


def memory_use(
    graph: OpGraph,
    timeline: Timeline,
    memory: StageMemory,
    *,
    device: int,
    stages: Sequence[int],
    versions: int = 1,
    release: str = "weight",
) -> MemoryUse:
    """Memory of one device over the step.

    A forward brings its stage's activations; its backward frees them: a whole backward at its end,
    a split one at the end of I, when what W still needs takes their place until its end (with
    ``release`` "weight"). Temporaries stand while an op runs. At
    one moment, what is freed goes before what comes.

    Args:
        graph: The ops.
        timeline: When they run.
        memory: The device's parts; its chunks are the stages.
        device: The device.
        stages: Stages that it holds, in the order of the chunks.
        versions: Versions of the weights that an asynchronous schedule keeps.
        release: ``input`` or ``weight``.
    """
    static = {
        name: nbytes * (versions if name == "parameters" else 1)
        for name, nbytes in memory.static.items()
    }
    changes = [
        change
        for stage, chunk in zip(stages, memory.chunks, strict=True)
        for change in _changes(graph, timeline, chunk, (device, stage), release)
    ]
    update = np.flatnonzero((graph.device == device) & (graph.kind == Kind.STEP))
    if memory.update_transient:
        changes.append(_while(update, timeline, memory.update_transient))
    return _add_up(static, changes)


def _while(ops: NDArray[np.intp], timeline: Timeline, nbytes: float) -> _Change:
    """Temporaries that stand while some ops run."""
    come, go = timeline.begin[ops], timeline.end[ops]
    change = np.concatenate([np.full(len(come), nbytes), np.full(len(go), -nbytes)])
    return _Change("temporaries", np.concatenate([come, go]), change)


def _changes(
    graph: OpGraph,
    timeline: Timeline,
    memory: ChunkMemory,
    place: tuple[int, int],
    release: str,
) -> list[_Change]:
    """What the ops of one stage on one device bring and free."""
    device, stage = place
    mine = np.flatnonzero((graph.device == device) & (graph.stage == stage))
    kinds, parts = graph.kind[mine], graph.part[mine]
    final = (graph.num_parts[mine] <= 1) | (parts == graph.num_parts[mine] - 1)
    first = mine[(kinds == Kind.F) & (parts <= 0)]
    last = mine[((kinds == Kind.B) | (kinds == Kind.I)) & final]
    share = 1.0 / (int(graph.slice.max(initial=-1)) + 1 or 1)
    found = []
    for name, nbytes in memory.activations.items():
        come, go = timeline.begin[first], timeline.end[last]
        change = np.repeat((nbytes, -nbytes), (len(come), len(go)))
        found.append(_Change(name, np.concatenate([come, go]), change * share))
    if release == "weight" and memory.weight_store:
        come, go = (timeline.end[mine[(kinds == kind) & final]] for kind in (Kind.I, Kind.W))
        change = np.repeat((memory.weight_store, -memory.weight_store), (len(come), len(go)))
        found.append(_Change("weight_store", np.concatenate([come, go]), change * share))
    passes = ((Kind.F, memory.forward_transient), (Kind.B, memory.backward_transient))
    for kind, nbytes in (*passes, (Kind.I, memory.backward_transient)):
        ops = mine[kinds == kind]
        if len(ops) and nbytes:
            found.append(_while(ops, timeline, nbytes))
    return found


def _add_up(static: Mapping[str, float], changes: Sequence[_Change]) -> MemoryUse:
    """Total and components over time, and the peak."""
    times = np.unique(np.concatenate([np.zeros(1), *(change.times for change in changes)]))
    components = {name: np.full(len(times), nbytes) for name, nbytes in static.items()}
    moving: dict[str, Floats] = {}
    for change in changes:
        place = np.searchsorted(times, change.times)
        steps = np.bincount(place, weights=change.nbytes, minlength=len(times))
        moving[change.name] = moving.get(change.name, np.zeros(len(times))) + steps
    # differences of equal sizes leave rounding below zero: nothing can be negative
    components |= {name: np.maximum(np.cumsum(steps), 0.0) for name, steps in moving.items()}
    total = sum(components.values(), start=np.zeros(len(times)))
    at = int(np.argmax(total))
    return MemoryUse(
        times=times,
        total=total,
        peak=float(total[at]),
        peak_time=float(times[at]),
        at_peak={name: float(nbytes[at]) for name, nbytes in components.items() if nbytes[at] > 0},
        components=components,
    )
