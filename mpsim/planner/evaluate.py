"""What a search needs of a plan, exactly and quickly: the step, the fullest device's memory."""

from __future__ import annotations

from dataclasses import dataclass

from mpsim.cost.compiled import Compiled, compile_scenario
from mpsim.cost.peak import device_memory
from mpsim.cost.recompiled import recompiled
from mpsim.engine import events, longest_path
from mpsim.engine.timeline import Timeline
from mpsim.errors import ScenarioError
from mpsim.schedule.orders import SCHEDULES
from mpsim.simulation import steady_step
from mpsim.spec.scenario import Scenario


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


@dataclass(frozen=True)
class Refusal:
    """A plan that cannot be carried out."""

    reason: str


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
        compiled = recompiled(like.compiled, scenario)
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
