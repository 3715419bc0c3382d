"""Rules that every prediction must obey, whatever the numbers: checked on random scenarios."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from pydantic import BaseModel

from mpsim.bounds import critical_lower_bound
from mpsim.cost.compiled import Compiled, compile_scenario, machine_of, stages_of
from mpsim.cost.derived import profile_of
from mpsim.cost.exchanged import exchanged_nbytes
from mpsim.cost.memory import stage_memory
from mpsim.cost.peak import device_memory
from mpsim.cost.recompiled import recompiled
from mpsim.cost.stages import stage_costs
from mpsim.errors import MpsimError
from mpsim.report.metrics import Report
from mpsim.schedule.ops import Kind
from mpsim.simulation import report_of, step_seconds
from mpsim.spec.model import Network
from mpsim.spec.reader import changed
from mpsim.spec.scenario import Scenario

_ROUNDING = 1e-9
"""Relative difference that sums in another order may make."""

_FASTER = 1.25
"""Higher peak rates are so many times the declared ones: a rate of fp32 much further up would be
taken for that of other silicon, with twice the lanes in a multiprocessor."""

_STATE = ("parameters", "gradients", "optimizer_state", "master_weights")
"""Components of memory that ZeRO shards."""

Complaint = str | None
"""What a rule was broken by; None: it holds."""

_Spec = TypeVar("_Spec", bound=BaseModel)


@dataclass(frozen=True)
class Violation:
    """A rule that a scenario broke."""

    rule: str
    text: str  # the figures
    scenario: Scenario


@dataclass(frozen=True, eq=False)
class Trial:
    """A scenario simulated once; its variants share what follows from the parts left as they are.

    A variant's declarations are copied with the new value, which each rule chooses such that it can
    be meant: nothing is read or checked again.
    """

    compiled: Compiled
    report: Report

    @property
    def scenario(self) -> Scenario:
        """What is simulated."""
        return self.report.scenario

    def with_fields(self, **fields: object) -> Compiled:
        """The scenario compiled with other values, by path with ``__`` for the dots."""
        scenario = self.scenario
        for path, value in fields.items():
            scenario = _replaced(scenario, path.split("__"), value)
        return recompiled(self.compiled, scenario)


def _replaced(spec: _Spec, path: list[str], value: object) -> _Spec:
    """A declaration with the value at a path; nothing is checked."""
    head, *rest = path
    inner = _replaced(getattr(spec, head), rest, value) if rest else value
    return spec.model_copy(update={head: inner})


def _not_slower(trial: Trial, path: str, value: object) -> Complaint:
    """Whether a better figure of the hardware leaves the step as it is or shortens it."""
    before, after = trial.report.step_time, step_seconds(trial.with_fields(**{path: value}))
    if after <= before * (1 + _ROUNDING):
        return None
    return f"{path.replace('__', '.')} {value}: {before!r} s became {after!r} s"


def more_link_bandwidth(trial: Trial) -> Complaint:
    """More bandwidth inside a node never slows a step."""
    value = 2 * trial.scenario.cluster.node.link.bandwidth
    return _not_slower(trial, "cluster__node__link__bandwidth", value)


def more_network_bandwidth(trial: Trial) -> Complaint:
    """More bandwidth between nodes never slows a step."""
    network = trial.scenario.cluster.network
    if network is None:
        return None
    return _not_slower(trial, "cluster__network__bandwidth", 2 * network.bandwidth)


def less_latency(trial: Trial) -> Complaint:
    """Less latency never slows a step."""
    value = trial.scenario.cluster.node.link.latency / 2
    return _not_slower(trial, "cluster__node__link__latency", value)


def more_memory_bandwidth(trial: Trial) -> Complaint:
    """More memory bandwidth never slows a step."""
    value = 2 * trial.scenario.cluster.device.memory_bandwidth
    return _not_slower(trial, "cluster__device__memory_bandwidth", value)


def more_flops(trial: Trial) -> Complaint:
    """A higher peak rate never slows a step.

    The board's power is raised with it: at the same power the clock falls, and with it the rate of
    products too small to be throttled.
    """
    device, precision = trial.scenario.cluster.device, trial.scenario.training.precision
    better: dict[str, object] = {
        "peak": {**device.peak, precision: _FASTER * device.peak[precision]},
        "power": device.power and _FASTER * device.power,
    }
    if precision == "fp32" and device.peak[precision] <= (device.vector_peak or float("inf")):
        # outside the matrix units: one rate under two names
        better["vector_peak"] = device.vector_peak and _FASTER * device.vector_peak
    # a device without a profile takes the nearest one: the nearest to the first rate for both
    nearest, before = profile_of(device).name.partition("@")[0], trial.report.step_time
    if device.profile != nearest:
        before = step_seconds(trial.with_fields(cluster__device__profile=nearest))
    faster = device.model_copy(update={"profile": nearest, **better})
    after = step_seconds(trial.with_fields(cluster__device=faster))
    if after <= before * (1 + _ROUNDING):
        return None
    return f"{precision} peak {faster.peak[precision]:g} FLOP/s: {before!r} s became {after!r} s"


def sharding(trial: Trial) -> Complaint:
    """ZeRO-3 never moves fewer bytes than ZeRO-1, and never keeps more state."""
    plan = trial.scenario.plan
    if plan.data * plan.context == 1 or trial.report.order is None:
        return None
    (moved_by_one, kept_by_one), (moved_by_three, kept_by_three) = (
        _moved_and_kept(trial, zero) for zero in (1, 3)
    )
    if moved_by_three < moved_by_one * (1 - _ROUNDING):
        return f"ZeRO-3 moves {moved_by_three!r} B, ZeRO-1 {moved_by_one!r} B"
    if kept_by_three > kept_by_one * (1 + _ROUNDING):
        return f"ZeRO-3 keeps {kept_by_three!r} B of state, ZeRO-1 {kept_by_one!r} B"
    return None


def _moved_and_kept(trial: Trial, zero: int) -> tuple[float, float]:
    """Bytes of gradients and parameters sent, and of state on the first device, at a ZeRO stage.

    Neither asks when anything runs: nothing is scheduled.
    """
    scenario = _replaced(trial.scenario, ["plan", "zero"], zero)
    machine = machine_of(scenario)
    stages = stages_of(scenario, machine)
    sent = exchanged_nbytes(stages, stage_costs(stages, machine), machine)
    held = [stages[stage] for stage in trial.compiled.held[0]]
    static = stage_memory(held, scenario.plan, scenario.training).static
    return sent.get("gradients and parameters", 0.0), sum(static.get(name, 0.0) for name in _STATE)


def recomputation(trial: Trial) -> Complaint:
    """Recomputation never holds more than none does, and is never faster.

    Selective and full recomputation are not compared: with few layers the former may hold less,
    since it brings back one attention core at a time. Where activations are kept in host memory,
    recomputation leaves less to carry there, and may well be faster; that of a whole network then
    brings back at once what else would come back layer by layer.
    """
    kind, carried = trial.scenario.plan.recompute, "activations" in trial.scenario.plan.offload
    if kind == "none" or (carried and isinstance(trial.scenario.model, Network)):
        return None
    none = trial.with_fields(plan__recompute="none")
    return _saves(trial, none, f"{kind} recomputation", timed=not carried)


def offloading(trial: Trial) -> Complaint:
    """Keeping state or activations in host memory never holds more, and is never faster."""
    offload = trial.scenario.plan.offload
    if not offload:
        return None
    return _saves(trial, trial.with_fields(plan__offload=[]), f"offload of {offload}", timed=True)


def _saves(trial: Trial, none: Compiled, what: str, *, timed: bool) -> Complaint:
    """Whether what saves memory holds no more than without it and, if ``timed``, is no faster."""
    seconds, without = trial.report.step_time, step_seconds(none)
    if timed and seconds < without * (1 - _ROUNDING):
        return f"{what} takes {seconds!r} s, none {without!r} s"
    held, before = (float(device_memory(one).max()) for one in (trial.compiled, none))
    if held > before * (1 + _ROUNDING):
        return f"{what} holds {held!r} B, none {before!r} B"
    return None


def sums(trial: Trial) -> Complaint:
    """Causes sum to the step, busy and idle to devices x step, components to the memory."""
    report = trial.report
    causes = sum(report.waterfall.values())
    if abs(causes - report.step_time) > _ROUNDING * report.step_time:
        return f"the causes sum to {causes!r} s, the step is {report.step_time!r} s"
    for device in report.devices:
        whole = device.compute + device.exchange + device.idle
        if abs(whole - report.step_time) > 1e-6 * report.step_time:
            return f"device {device.index}: busy and idle {whole!r} s of {report.step_time!r} s"
        parts = sum(device.memory.at_peak.values())
        if abs(parts - device.memory.peak) > _ROUNDING * device.memory.peak:
            return f"device {device.index}: components {parts!r} B of {device.memory.peak!r} B"
    return None


def peaks(trial: Trial) -> Complaint:
    """What a device holds at most follows from the order of its ops: searches rely on it."""
    graph, work = trial.compiled.graph, trial.compiled.work
    passes = np.isin(graph.kind, (Kind.F, Kind.B, Kind.I))
    if trial.report.order is None or not work.seconds[passes].all():
        return None  # over time, what an op of no seconds needs for its while is not seen
    found = np.array([device.reserved for device in trial.report.devices])
    ordered = device_memory(trial.compiled)
    if np.allclose(found, ordered, rtol=_ROUNDING, atol=0):
        return None
    return f"devices hold {found.tolist()} B at most, by the order of their ops {ordered.tolist()}"


def lower_bound(trial: Trial) -> Complaint:
    """No step is shorter than the busiest device's work, or one microbatch's way through."""
    report = trial.report
    graph, work = report.graph, report.work
    passes = (Kind.F, Kind.B, Kind.I)
    whole = [d.compute + d.exchange for d in report.devices]
    first = (graph.microbatch == 0) & (graph.slice <= 0)
    chain = float(sum(work.seconds[first & (graph.kind == kind)].sum() for kind in passes))
    if graph.slice.max(initial=-1) >= 0 or not report.order or report.order.weight_copies > 1:
        chain = 0.0
    bound = critical_lower_bound(whole, 1, chain)
    if report.step_time < bound * (1 - _ROUNDING):
        return f"{report.step_time!r} s is below the bound of {bound!r} s"
    return None


def larger_batch(trial: Trial) -> Complaint:
    """A larger batch in microbatches of the same size is never faster."""
    batch, before = trial.scenario.training.global_batch, trial.report.step_time
    after = step_seconds(trial.with_fields(training__global_batch=2 * batch))
    if after < before * (1 - _ROUNDING):
        return f"batch {2 * batch} takes {after!r} s, {batch} {before!r} s"
    return None


def renamed_nodes(trial: Trial) -> Complaint:
    """Dividing equal devices over other nodes with equal links changes no pipeline."""
    plan, cluster = trial.scenario.plan, trial.scenario.cluster
    shared = cluster.node.shared_uplink or "optimizer" in plan.offload  # the memory of a host
    if plan.tensor * plan.data * plan.context > 1 or shared:
        return None
    link = cluster.node.link.model_dump(mode="json", exclude_none=True, exclude={"profile"})
    link["kind"] = "network"  # fitted factors are of the links inside a node
    fields = {
        "cluster.network": link,
        "cluster.node.link": link,
        "cluster.nodes": cluster.devices,
        "cluster.node.devices": 1,
    }
    joined = {**fields, "cluster.nodes": 1, "cluster.node.devices": cluster.devices}
    # without the gradient norm, a collective, which is timed by other means between nodes
    one, other = (
        changed(
            trial.scenario,
            {"cluster": cluster_with(trial.scenario, where), "plan.step_barrier": False},
        )
        for where in (fields, joined)
    )
    spread = compile_scenario(one)
    apart, together = step_seconds(spread), step_seconds(recompiled(spread, other))
    if abs(apart - together) > _ROUNDING * together:
        return f"one node: {together!r} s, a node for each device: {apart!r} s"
    return None


def cluster_with(scenario: Scenario, fields: dict[str, object]) -> dict[str, object]:
    """The cluster as plain values, with some fields replaced by their dotted path."""
    tree: dict[str, object] = scenario.cluster.model_dump(mode="json", exclude_none=True)
    for path, value in fields.items():
        *parents, last = path.removeprefix("cluster.").split(".")
        node = tree
        for key in parents:
            node = node.setdefault(key, {})  # type: ignore[assignment]
        node[last] = value
    return tree


RULES: dict[str, Callable[[Trial], Complaint]] = {
    rule.__name__: rule
    for rule in (
        more_link_bandwidth,
        more_network_bandwidth,
        less_latency,
        more_memory_bandwidth,
        more_flops,
        sharding,
        recomputation,
        offloading,
        sums,
        peaks,
        lower_bound,
        larger_batch,
        renamed_nodes,
    )
}
"""Name → rule; its docstring's first line is the rule in words."""


def broken(scenario: Scenario, rules: tuple[str, ...] = tuple(RULES)) -> Iterator[Violation]:
    """The rules that a scenario breaks; one that cannot be simulated breaks none.

    Numbers that cannot be computed with break the rule at hand (``arithmetic`` before any).
    """
    name = "arithmetic"
    try:
        compiled = compile_scenario(scenario)
        trial = Trial(compiled, report_of(compiled, engine="fast"))
    except MpsimError:
        return
    except ArithmeticError as error:
        yield Violation(name, str(error), scenario)
        return
    if trial.report.steady_step is not None:  # the rules speak of steps that end
        rules = ("sums",)
    for name in rules:
        try:
            complaint = RULES[name](trial)
        except MpsimError:  # the change that the rule makes cannot be meant for this scenario
            continue
        except ArithmeticError as error:
            complaint = str(error)
        if complaint:
            yield Violation(name, complaint, scenario)
