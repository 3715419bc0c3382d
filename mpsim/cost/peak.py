"""The most that each device holds, from the order of its ops alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mpsim.cost.compiled import Compiled
from mpsim.cost.memory import StageMemory, stage_memory
from mpsim.schedule.ops import Kind

Floats = NDArray[np.float64]


def device_memory(compiled: Compiled) -> Floats:  # (P,) B
    """What the driver reports at the peak of each device.

    Compute ops of a device run one after the other, so what it holds follows from their order
    alone: a forward brings its stage's activations; the backward frees them at its end (I of a
    split one, when what W still needs takes their place until W's end, where the plan releases at
    "weight"); temporaries stand while an op runs.
    """
    scenario, graph = compiled.scenario, compiled.graph
    parts = _device_parts(compiled)
    per_stage = np.zeros((4, graph.num_stages))  # B: kept, temporaries of F and of B, kept for W
    for stages, memory in zip(compiled.held, parts, strict=True):
        for held_stage, chunk in zip(stages, memory.chunks, strict=True):
            store = chunk.weight_store if scenario.plan.release == "weight" else 0.0
            transient = chunk.forward_transient, chunk.backward_transient
            per_stage[:, held_stage] = (chunk.nbytes, *transient, store)
    ops = np.flatnonzero(np.isin(graph.kind, (Kind.F, Kind.B, Kind.I, Kind.W)))
    ops = ops[np.argsort(graph.device[ops], kind="stable")]
    kind, stage = graph.kind[ops], graph.stage[ops]
    part, num_parts = graph.part[ops], graph.num_parts[ops]
    slices = int(graph.slice.max(initial=-1)) + 1 or 1
    kept, store = per_stage[0, stage] / slices, per_stage[3, stage] / slices
    backward = (kind == Kind.B) | (kind == Kind.I)
    comes = np.where((kind == Kind.F) & (part <= 0), kept, 0.0)
    goes = np.where(backward, kept, 0.0)
    goes += np.where(kind == Kind.W, store, 0.0) - np.where(kind == Kind.I, store, 0.0)
    goes = np.where((num_parts <= 1) | (part == num_parts - 1), goes, 0.0)
    held = np.cumsum(comes) - (np.cumsum(goes) - goes)
    held += np.where(kind == Kind.F, per_stage[1, stage], 0.0)
    held += np.where(backward, per_stage[2, stage], 0.0)
    starts = np.searchsorted(graph.device[ops], np.arange(graph.num_devices))
    peaks = np.maximum.reduceat(held, starts)
    versions = compiled.order.weight_versions if compiled.order else None
    return np.array(
        [
            memory.shown(
                memory.static_nbytes
                + memory.static.get("parameters", 0.0) * (versions[device] - 1 if versions else 0)
                + max(float(peak), memory.update_transient)
            )
            for device, (memory, peak) in enumerate(zip(parts, peaks, strict=True))
        ]
    )


def _device_parts(compiled: Compiled) -> list[StageMemory]:
    """Memory of each device in its parts; devices that hold the same layers share one."""
    scenario, found = compiled.scenario, {}
    parts = []
    for stages in compiled.held:
        layers = [compiled.stages[stage] for stage in stages]
        key = tuple(tuple(map(id, stage)) for stage in layers)
        if key not in found:
            found[key] = stage_memory(
                layers,
                scenario.plan,
                scenario.training,
                context=scenario.cluster.device.reserved,
            )
        parts.append(found[key])
    return parts
