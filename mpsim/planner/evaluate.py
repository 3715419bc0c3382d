"""What a search needs of a plan, exactly and quickly: the step, the fullest device's memory."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mpsim.cost.compiled import Compiled, compile_scenario, machine_of
from mpsim.cost.estimate import estimate
from mpsim.cost.memory import StageMemory, stage_memory
from mpsim.cost.stages import stage_costs
from mpsim.engine import events, longest_path
from mpsim.engine.timeline import Timeline
from mpsim.errors import ScenarioError
from mpsim.schedule.ops import Kind
from mpsim.schedule.orders import SCHEDULES
from mpsim.simulation import steady_step
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
    found = _run(scenario)
    return Outcome(found.step, found.memory, scenario.cluster.device.memory)


def run(scenario: Scenario) -> tuple[Compiled, Timeline]:
    """A scenario compiled and run, by events only where they differ from the longest path."""
    compiled = compile_scenario(scenario)
    if compiled.order is None:
        raise ScenarioError(
            "plan.data_parallel", "torch's DataParallel has no plan to search or to vary; use ddp"
        )
    return compiled, _timeline(compiled)


@dataclass(frozen=True, eq=False)
class Run:
    """A scenario, run."""

    compiled: Compiled
    timeline: Timeline
    step: float  # s; in the steady state where the schedule is never flushed
    memory: float  # B that the driver reports on the fullest device


class Runner:
    """Runs many scenarios; those that differ in hardware alone share layers, order and graph.

    The structure of a scenario follows from model, plan and training, except where an order or a
    partition is searched by its times.
    """

    def __init__(self, size: int = 256) -> None:
        """Remember at most ``size`` structures."""
        self._known: dict[tuple[str, ...], Run] = {}
        self._size = size

    def run(self, scenario: Scenario) -> Run:
        """A scenario compiled and run.

        Raises:
            ScenarioError, ScheduleError: If the plan cannot be carried out.
        """
        plan = scenario.plan
        entry = SCHEDULES.get(plan.schedule)
        if entry is None or entry.searched or plan.partition == "time":
            return _run(scenario)
        parts = (scenario.model, plan, scenario.training)
        name = (*(part.model_dump_json() for part in parts), str(scenario.cluster.device.reserved))
        if name not in self._known:
            if len(self._known) >= self._size:
                self._known.pop(next(iter(self._known)))
            self._known[name] = _run(scenario)
            return self._known[name]
        like = self._known[name]
        machine = machine_of(scenario)
        if machine.workers is not None:
            return _run(scenario)
        costs = tuple(stage_costs(like.compiled.stages, machine))
        work = estimate(like.compiled.graph, costs, machine)
        compiled = replace(
            like.compiled, scenario=scenario, machine=machine, costs=costs, work=work
        )
        return _done(compiled, _timeline(compiled), like.memory)


def _run(scenario: Scenario) -> Run:
    compiled, timeline = run(scenario)
    return _done(compiled, timeline, float(device_memory(compiled).max()))


def _done(compiled: Compiled, timeline: Timeline, memory: float) -> Run:
    steady = steady_step(compiled)
    return Run(compiled, timeline, float(timeline.end.max()) if steady is None else steady, memory)


def _timeline(compiled: Compiled) -> Timeline:
    shared = any(link.shared for link in compiled.work.links)
    if shared:
        return events.run(compiled.graph, compiled.work)
    return longest_path.run(compiled.graph, compiled.work)


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
        for held_stage, chunk in zip(stages, memory.chunks, strict=True):
            per_stage[:, held_stage] = (
                chunk.nbytes,
                chunk.forward_transient,
                chunk.backward_transient,
            )
    ops = np.flatnonzero(np.isin(graph.kind, (Kind.F, Kind.B, Kind.I, Kind.W)))
    ops = ops[np.argsort(graph.device[ops], kind="stable")]
    kind, stage = graph.kind[ops], graph.stage[ops]
    splits = np.zeros(graph.num_stages, np.bool_)
    splits[stage[kind == Kind.I]] = True
    freeing = np.int8(Kind.W if scenario.plan.release == "weight" else Kind.I)
    part, num_parts = graph.part[ops], graph.num_parts[ops]
    comes = (kind == Kind.F) & (part <= 0)
    goes = (kind == np.where(splits[stage], freeing, np.int8(Kind.B))) | (kind == Kind.B)
    goes &= (num_parts <= 1) | (part == num_parts - 1)
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
