"""How much the step depends on each parameter: elasticity, what infinity is worth, what binds next.

The elasticity of the step T to a parameter x is (dT / T) / (dx / x): -0.3 means that 1 % more of x
shortens the step by 0.3 %. The step is the length of the critical path, so

    dT/dx = Σ over ops on the critical path of d seconds / dx

where the derivative of an op comes from the cost model alone. As long as the path stays the same,
this is what a finite difference of whole simulations gives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpsim.cost.compiled import Compiled, compile_scenario, machine_of
from mpsim.cost.estimate import estimate
from mpsim.cost.passes import Machine
from mpsim.cost.stages import stage_costs
from mpsim.cost.work import Work
from mpsim.engine import longest_path
from mpsim.engine.timeline import Timeline
from mpsim.errors import MpsimError, ScenarioError
from mpsim.planner.evaluate import evaluate
from mpsim.report import explain
from mpsim.schedule.graph import OpGraph
from mpsim.spec.cluster import ClusterSpec, LinkSpec
from mpsim.spec.reader import changed
from mpsim.spec.scenario import Scenario

Floats = NDArray[np.float64]

_STEP = 1e-5
"""Relative step of a derivative: far above rounding, far below any bend of the cost model."""
_INFINITE = 1e9
"""Factor that stands for an infinite rate; a latency or an overhead is divided by it."""

Scaled = Callable[[Machine, float], Machine]


@dataclass(frozen=True)
class Parameter:
    """A number of the hardware that can be scaled."""

    path: str
    name: str
    scaled: Scaled
    smaller_is_better: bool = False


@dataclass(frozen=True)
class Sensitivity:
    """What one parameter means for the step."""

    parameter: Parameter
    elasticity: float  # (dT / T) / (dx / x)
    doubled: float  # share of the step saved by twice the rate (half the latency)
    infinite: float  # share of the step saved at the very most
    then_binds: str  # largest cause of lost time after the doubling


@dataclass(frozen=True)
class Neighbour:
    """A neighbouring plan."""

    change: str
    step: float | None  # s; None where it cannot be carried out
    fits: bool
    reason: str = ""


def _link(which: str, field: str) -> Scaled:
    def scaled(machine: Machine, factor: float) -> Machine:
        cluster = machine.cluster
        link: LinkSpec | None = cluster.network if which == "network" else cluster.node.link
        if link is None:
            return machine
        link = link.model_copy(update={field: getattr(link, field) * factor})
        if which == "network":
            return _with(machine, cluster.model_copy(update={"network": link}))
        node = cluster.node.model_copy(update={"link": link})
        return _with(machine, cluster.model_copy(update={"node": node}))

    return scaled


def _with(machine: Machine, cluster: ClusterSpec) -> Machine:
    return replace(machine, cluster=cluster)


def _device(field: str) -> Scaled:
    def scaled(machine: Machine, factor: float) -> Machine:
        device = machine.cluster.device
        if field == "peak":
            update: dict[str, Any] = {
                "peak": {kind: rate * factor for kind, rate in device.peak.items()},
                "vector_peak": device.vector_peak and device.vector_peak * factor,
            }
        else:
            update = {field: getattr(device, field) * factor}
        return _with(
            machine,
            machine.cluster.model_copy(update={"device": device.model_copy(update=update)}),
        )

    return scaled


def _launch(machine: Machine, factor: float) -> Machine:
    launch = machine.profile.launch
    update = {"host": launch.host * factor, "dispatch": launch.dispatch * factor}
    profile = machine.profile.model_copy(update={"launch": launch.model_copy(update=update)})
    return replace(machine, profile=profile)


def parameters(scenario: Scenario) -> list[Parameter]:
    """The parameters of a scenario's hardware."""
    found = [
        Parameter("cluster.device.peak", "device peak rate", _device("peak")),
        Parameter(
            "cluster.device.memory_bandwidth", "memory bandwidth", _device("memory_bandwidth")
        ),
        Parameter(
            "cluster.node.link.bandwidth", "bandwidth inside a node", _link("node", "bandwidth")
        ),
        Parameter(
            "cluster.node.link.latency", "latency inside a node", _link("node", "latency"), True
        ),
    ]
    if scenario.cluster.network is not None:
        found += [
            Parameter(
                "cluster.network.bandwidth", "inter-node bandwidth", _link("network", "bandwidth")
            ),
            Parameter(
                "cluster.network.latency", "inter-node latency", _link("network", "latency"), True
            ),
        ]
    return [*found, Parameter("launch", "launch overhead", _launch, True)]


def critical_path(graph: OpGraph, timeline: Timeline) -> NDArray[np.int64]:
    """Ops of a longest path, first to last: each begins when the one before it ends."""
    op = int(np.argmax(timeline.end))
    path = [op]
    while True:
        waited = graph.pred[graph.pred_starts[op] : graph.pred_starts[op + 1]].tolist()
        if graph.previous[op] >= 0:
            waited.append(int(graph.previous[op]))
        if not waited:
            return np.array(path[::-1], np.int64)
        op = max(waited, key=lambda one: float(timeline.end[one]))
        path.append(op)


def _work(compiled: Compiled, machine: Machine) -> Work:
    """The same ops on a changed machine."""
    return estimate(compiled.graph, stage_costs(compiled.stages, machine), machine)


def sensitivities(scenario: Scenario) -> list[Sensitivity]:
    """The sensitivity of the step to each parameter, the largest elasticity first.

    Where links are shared (PCIe behind one uplink) every transfer is taken to have its own.
    """
    compiled = compile_scenario(scenario)
    if compiled.order is None or compiled.machine.workers is not None:
        raise ScenarioError("--sensitivity", "is for scenarios whose ops the cost model times")
    timeline = longest_path.run(compiled.graph, compiled.work)
    path = critical_path(compiled.graph, timeline)
    step = float(timeline.end.max())
    found = [_sensitivity(compiled, parameter, path, step) for parameter in parameters(scenario)]
    return sorted(found, key=lambda one: -abs(one.elasticity))


def _sensitivity(
    compiled: Compiled, parameter: Parameter, path: NDArray[np.int64], step: float
) -> Sensitivity:
    scaled, machine = parameter.scaled, compiled.machine
    more = _work(compiled, scaled(machine, 1 + _STEP)).durations()[path].sum()
    less = _work(compiled, scaled(machine, 1 - _STEP)).durations()[path].sum()
    better = 0.5 if parameter.smaller_is_better else 2.0
    endless = 1 / _INFINITE if parameter.smaller_is_better else _INFINITE
    doubled = _work(compiled, scaled(machine, better))
    causes = explain.waterfall(
        compiled.graph, doubled, _step(compiled, doubled), run=longest_path.run
    )
    return Sensitivity(
        parameter,
        elasticity=float(more - less) / (2 * _STEP * step),
        doubled=1 - _step(compiled, doubled) / step,
        infinite=1 - _step(compiled, _work(compiled, scaled(machine, endless))) / step,
        then_binds=_largest(causes),
    )


def _step(compiled: Compiled, work: Work) -> float:
    return float(longest_path.run(compiled.graph, work).end.max())


def _largest(causes: Mapping[str, float]) -> str:
    """The cause of most lost time; compute where nothing is lost."""
    lost = {cause: seconds for cause, seconds in causes.items() if cause != "compute"}
    worst = max(lost, key=lambda cause: lost[cause], default="compute")
    return worst if lost.get(worst, 0.0) > 0 else "compute"


def finite_difference(scenario: Scenario, parameter: Parameter, *, step: float = 1e-3) -> float:
    """The elasticity from two whole simulations, the path free to change."""
    compiled = compile_scenario(scenario)
    machine = machine_of(scenario)
    ends = [
        _step(compiled, _work(compiled, parameter.scaled(machine, factor)))
        for factor in (1 - step, 1.0, 1 + step)
    ]
    return (ends[2] - ends[0]) / (2 * step * ends[1])


def neighbours(scenario: Scenario) -> Iterator[Neighbour]:
    """The step of plans that differ in one choice; shortest first is up to the caller."""
    for change, fields in _changes(scenario):
        try:
            outcome = evaluate(changed(scenario, fields))
        except MpsimError as error:
            yield Neighbour(change, None, False, str(error).split("\n")[0])
        else:
            yield Neighbour(change, outcome.step, outcome.fits)


def _changes(scenario: Scenario) -> Iterator[tuple[str, dict[str, Any]]]:
    """Neighbouring values of the plan, on the same devices."""
    plan, micro = scenario.plan, scenario.training.microbatch
    yield from _degrees(scenario)
    yield f"microbatch={micro * 2}", {"training.microbatch": micro * 2}
    if micro % 2 == 0:
        yield f"microbatch={micro // 2}", {"training.microbatch": micro // 2}
    yield from (
        _named({"recompute": kind})
        for kind in ("none", "selective", "full")
        if kind != plan.recompute
    )
    if plan.data * plan.context > 1:
        yield from (_named({"zero": stage}) for stage in range(4) if stage != plan.zero)
    if plan.tensor > 1:
        yield _named({"sequence_parallel": not plan.sequence_parallel})
    if plan.pipeline > 1 and plan.schedule == "1f1b":
        yield _named({"schedule": "interleaved_1f1b", "chunks": 2})
        yield _named({"schedule": "zb_h1"})


def _degrees(scenario: Scenario) -> Iterator[tuple[str, dict[str, Any]]]:
    """Twice and half of each degree, the replicas taking what is left."""
    plan = scenario.plan
    for axis in ("tensor", "pipeline", "context"):
        value = getattr(plan, axis)
        if plan.data % 2 == 0:
            yield _named({axis: value * 2, "data": plan.data // 2})
        if value % 2 == 0:
            fields: dict[str, Any] = {axis: value // 2, "data": plan.data * 2}
            if axis == "tensor" and value == 2:
                fields["sequence_parallel"] = False
            yield _named(fields)


def _named(fields: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    text = ", ".join(f"{name}={str(value).lower()}" for name, value in fields.items())
    return text, {f"plan.{name}": value for name, value in fields.items()}
