"""Rules that every prediction must obey, whatever the numbers: checked on random scenarios."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from mpsim.bounds import critical_lower_bound
from mpsim.cost.derived import profile_of
from mpsim.errors import MpsimError
from mpsim.report.metrics import Report
from mpsim.schedule.ops import Kind
from mpsim.simulation import simulate, step_seconds
from mpsim.spec.reader import changed
from mpsim.spec.scenario import Scenario

_ROUNDING = 1e-9
"""Relative difference that sums in another order may make."""

Complaint = str | None
"""What a rule was broken by; None: it holds."""


@dataclass(frozen=True)
class Violation:
    """A rule that a scenario broke."""

    rule: str
    text: str  # the figures
    scenario: Scenario


def _not_slower(report: Report, path: str, value: float, unit: str) -> Complaint:
    """Whether a better figure of the hardware leaves the step as it is or shortens it."""
    better = changed(report.scenario, {path: f"{value!r} {unit}"})
    after = step_seconds(better)
    if after <= report.step_time * (1 + _ROUNDING):
        return None
    return f"{path} {value:g} {unit}: {report.step_time!r} s became {after!r} s"


def more_link_bandwidth(report: Report) -> Complaint:
    """More bandwidth inside a node never slows a step."""
    value = 2 * report.scenario.cluster.node.link.bandwidth
    return _not_slower(report, "cluster.node.link.bandwidth", value, "B/s")


def more_network_bandwidth(report: Report) -> Complaint:
    """More bandwidth between nodes never slows a step."""
    network = report.scenario.cluster.network
    if network is None:
        return None
    return _not_slower(report, "cluster.network.bandwidth", 2 * network.bandwidth, "B/s")


def less_latency(report: Report) -> Complaint:
    """Less latency never slows a step."""
    value = report.scenario.cluster.node.link.latency / 2
    return _not_slower(report, "cluster.node.link.latency", value, "s")


def more_memory_bandwidth(report: Report) -> Complaint:
    """More memory bandwidth never slows a step."""
    value = 2 * report.scenario.cluster.device.memory_bandwidth
    return _not_slower(report, "cluster.device.memory_bandwidth", value, "B/s")


def more_flops(report: Report) -> Complaint:
    """A higher peak rate never slows a step."""
    device, precision = report.scenario.cluster.device, report.scenario.training.precision
    value = 1.5 * device.peak[precision]
    # a device without a profile takes the nearest one: the nearest to the first rate for both
    nearest = profile_of(device).name.partition("@")[0]
    pinned = changed(report.scenario, {"cluster.device.profile": nearest})
    faster = changed(pinned, {f"cluster.device.peak.{precision}": f"{value!r} FLOP/s"})
    before, after = step_seconds(pinned), step_seconds(faster)
    if after <= before * (1 + _ROUNDING):
        return None
    return f"{precision} peak {value:g} FLOP/s: {before!r} s became {after!r} s"


def sharding(report: Report) -> Complaint:
    """ZeRO-3 never moves fewer bytes than ZeRO-1, and never keeps more state."""
    plan = report.scenario.plan
    if plan.data * plan.context == 1:
        return None
    one, three = (
        simulate(changed(report.scenario, {"plan.zero": stage}), engine="fast") for stage in (1, 3)
    )
    name = "gradients and parameters"
    moved = [r.traffic.exchanges.get(name, 0.0) for r in (one, three)]
    if moved[1] < moved[0] * (1 - _ROUNDING):
        return f"ZeRO-3 moves {moved[1]!r} B, ZeRO-1 {moved[0]!r} B"
    state = ("parameters", "gradients", "optimizer_state", "master_weights")
    held = [
        sum(
            r.devices[0].memory.components[n][0]
            for n in state
            if n in r.devices[0].memory.components
        )
        for r in (one, three)
    ]
    if held[1] > held[0] * (1 + _ROUNDING):
        return f"ZeRO-3 keeps {held[1]!r} B of state, ZeRO-1 {held[0]!r} B"
    return None


def recomputation(report: Report) -> Complaint:
    """Recomputation never holds more than none does, and is never faster.

    Selective and full recomputation are not compared: with few layers the former may hold less,
    since it brings back one attention core at a time. Where activations are kept in host memory,
    recomputation leaves less to carry there, and may well be faster.
    """
    kind, carried = report.scenario.plan.recompute, "activations" in report.scenario.plan.offload
    if kind == "none":
        return None
    none = simulate(changed(report.scenario, {"plan.recompute": "none"}), engine="fast")
    if not carried and report.step_time < none.step_time * (1 - _ROUNDING):
        return f"{kind} recomputation takes {report.step_time!r} s, none {none.step_time!r} s"
    if report.peak_memory > none.peak_memory * (1 + _ROUNDING):
        return f"{kind} recomputation holds {report.peak_memory!r} B, none {none.peak_memory!r} B"
    return None


def offloading(report: Report) -> Complaint:
    """Keeping state or activations in host memory never holds more, and is never faster."""
    offload = report.scenario.plan.offload
    if not offload:
        return None
    none = simulate(changed(report.scenario, {"plan.offload": []}), engine="fast")
    if report.step_time < none.step_time * (1 - _ROUNDING):
        return f"offload of {offload} takes {report.step_time!r} s, none {none.step_time!r} s"
    if report.peak_memory > none.peak_memory * (1 + _ROUNDING):
        return f"offload of {offload} holds {report.peak_memory!r} B, none {none.peak_memory!r} B"
    return None


def sums(report: Report) -> Complaint:
    """Causes sum to the step, busy and idle to devices x step, components to the memory."""
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


def lower_bound(report: Report) -> Complaint:
    """No step is shorter than the busiest device's work, or one microbatch's way through."""
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


def larger_batch(report: Report) -> Complaint:
    """A larger batch in microbatches of the same size is never faster."""
    batch = report.scenario.training.global_batch
    twice = changed(report.scenario, {"training.global_batch": 2 * batch})
    after = step_seconds(twice)
    if after < report.step_time * (1 - _ROUNDING):
        return f"batch {2 * batch} takes {after!r} s, {batch} {report.step_time!r} s"
    return None


def renamed_nodes(report: Report) -> Complaint:
    """Dividing equal devices over other nodes with equal links changes no pipeline."""
    plan, cluster = report.scenario.plan, report.scenario.cluster
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
    apart, together = (
        step_seconds(
            changed(
                report.scenario,
                {"cluster": cluster_with(report.scenario, where), "plan.step_barrier": False},
            )
        )
        for where in (fields, joined)
    )
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


RULES: dict[str, Callable[[Report], Complaint]] = {
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
        lower_bound,
        larger_batch,
        renamed_nodes,
    )
}
"""Name → rule; its docstring's first line is the rule in words."""


def broken(scenario: Scenario, rules: tuple[str, ...] = tuple(RULES)) -> Iterator[Violation]:
    """The rules that a scenario breaks; one that cannot be simulated breaks none."""
    try:
        report = simulate(scenario, engine="fast")
    except MpsimError:
        return
    if report.steady_step is not None:  # the rules speak of steps that end
        rules = ("sums",)
    for name in rules:
        try:
            complaint = RULES[name](report)
        except MpsimError:  # the change that the rule makes cannot be meant for this scenario
            continue
        if complaint:
            yield Violation(name, complaint, scenario)
