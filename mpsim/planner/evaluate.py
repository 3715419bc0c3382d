"""What a search needs of a plan, exactly and quickly: the step, the fullest device's memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mpsim.cost.compiled import Compiled, compile_scenario
from mpsim.cost.memory import StageMemory, stage_memory
from mpsim.engine import events, longest_path
from mpsim.schedule.ops import Kind
from mpsim.spec.scenario import Scenario

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Outcome:
    """A plan, simulated."""

    step: float  # s
    memory: float  # B that the driver reports on the fullest device
    capacity: float  # B

    @property
    def fits(self) -> bool:
        """Whether each device holds what it must."""
        return self.memory <= self.capacity


def evaluate(scenario: Scenario) -> Outcome:
    """The step and memory of a scenario; equal to those of its report.

    The fast engine runs it, or the event engine where transfers share a link.

    Raises:
        ScenarioError, ScheduleError: If the plan cannot be carried out.
    """
    compiled = compile_scenario(scenario)
    shared = any(link.shared for link in compiled.work.links)
    timeline = (events if shared else longest_path).run(compiled.graph, compiled.work)
    if compiled.order is None:
        raise ValueError("torch's DataParallel has no plan to search")
    memory = float(device_memory(compiled).max())
    return Outcome(float(timeline.end.max()), memory, scenario.cluster.device.memory)


def device_memory(compiled: Compiled) -> Floats:  # (P,) B
    """What the driver reports at the peak of each device.

    Compute ops of a device run one after the other, so what it holds follows from their order
    alone: a forward brings its stage's activations, the backward (W of a split one, or I where the
    plan releases there) frees them at its end, and temporaries stand while an op runs.
    """
    scenario, graph = compiled.scenario, compiled.graph
    parts = _device_parts(compiled)
    per_stage = np.zeros((3, graph.num_stages))  # kept, forward and backward temporaries, B
    for stages, memory in zip(compiled.held, parts, strict=True):
        for stage, chunk in zip(stages, memory.chunks, strict=True):
            per_stage[:, stage] = (chunk.nbytes, chunk.forward_transient, chunk.backward_transient)
    ops = np.flatnonzero(np.isin(graph.kind, (Kind.F, Kind.B, Kind.I, Kind.W)))
    ops = ops[np.argsort(graph.device[ops], kind="stable")]
    kind, stage = graph.kind[ops], graph.stage[ops]
    splits = np.zeros(graph.num_stages, np.bool_)
    splits[stage[kind == Kind.I]] = True
    freeing = np.int8(Kind.W if scenario.plan.release == "weight" else Kind.I)
    part, whole = graph.part[ops], graph.num_parts[ops]
    comes = (kind == Kind.F) & (part <= 0)
    goes = (kind == np.where(splits[stage], freeing, np.int8(Kind.B))) | (kind == Kind.B)
    goes &= (whole <= 1) | (part == whole - 1)
    slices = int(graph.slice.max(initial=-1)) + 1 or 1
    kept = per_stage[0, stage] / slices
    freed = np.where(goes, kept, 0.0)
    held = np.cumsum(np.where(comes, kept, 0.0)) - (np.cumsum(freed) - freed)
    held += np.where(kind == Kind.F, per_stage[1, stage], 0.0)
    held += np.where((kind == Kind.B) | (kind == Kind.I), per_stage[2, stage], 0.0)
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
