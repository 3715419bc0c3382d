"""A scenario that does not fit: what it needs, and the smallest single changes that would fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mpsim.errors import InfeasibleError, MpsimError
from mpsim.report.metrics import Report
from mpsim.simulation import simulate
from mpsim.spec.reader import changed
from mpsim.spec.scenario import Scenario
from mpsim.units import format_bytes, format_seconds

_SHOWN = 4
"""Remedies offered."""

Change = tuple[str, Mapping[str, Any]]
"""What a change is called, and the fields that it sets."""


def infeasible(report: Report) -> InfeasibleError:
    """The error of a report that does not fit: need, have, stage, components and remedies.

    Every remedy has been simulated, and fits.
    """
    fullest, capacity = report.fullest, report.scenario.cluster.device.memory
    stages = f"stage{'s' * (len(fullest.stages) > 1)} {', '.join(map(str, fullest.stages))}"
    where = f"{report.device_names[fullest.index]}, {stages}"
    remedies = remedies_for(report.scenario)
    components = dict(sorted(fullest.memory.at_peak.items(), key=lambda item: -item[1]))
    made_of = ", ".join(f"{name} {format_bytes(size)}" for name, size in components.items())
    lines = [
        f"{report.scenario.name}: does not fit: {where} needs {format_bytes(fullest.reserved)}, "
        f"has {format_bytes(capacity)}",
        f"  at its peak ({format_seconds(fullest.memory.peak_time)} into the step): {made_of}",
    ]
    if remedies:
        lines += ["  smallest single changes that fit:", *(f"    {text}" for text in remedies)]
    else:
        lines.append("  no single change fits; try several, or `mpsim plan --minimum`")
    return InfeasibleError(
        "\n".join(lines),
        need=fullest.reserved,
        have=capacity,
        where=where,
        components=components,
        remedies=remedies,
    )


def remedies_for(scenario: Scenario) -> list[str]:
    """Single changes after which the scenario fits, smallest first, each simulated.

    Changes on the same devices come before those that add devices.
    """
    found: list[tuple[int, float, str]] = []
    for name, fields in _changes(scenario):
        try:
            report = simulate(changed(scenario, fields), engine="fast")
        except MpsimError:
            continue
        if report.fits:
            devices, step = report.scenario.cluster.devices, report.step_time
            peak = format_bytes(report.fullest.reserved)
            text = f"{name}: {peak} a device, {format_seconds(step)} a step"
            found.append((devices, step, text))
    return [text for _, _, text in sorted(found)[:_SHOWN]]


def _changes(scenario: Scenario) -> Iterator[Change]:
    """Single changes that lower memory, from the plan, the training, the number of devices."""
    plan, training = scenario.plan, scenario.training
    for kind in ("selective", "full"):
        if plan.recompute == "none" or (plan.recompute == "selective" and kind == "full"):
            yield f"plan.recompute={kind}", {"plan.recompute": kind}
    for stage in range(plan.zero + 1, 4):
        if plan.data * plan.context > 1:
            yield f"plan.zero={stage}", {"plan.zero": stage}
    if plan.tensor > 1 and not plan.sequence_parallel:
        yield "plan.sequence_parallel=true", {"plan.sequence_parallel": True}
    if plan.attention == "math":
        yield "plan.attention=flash", {"plan.attention": "flash"}
    half = training.microbatch
    while half % 2 == 0:
        half //= 2
        yield f"training.microbatch={half}", {"training.microbatch": half}
    if "optimizer" not in plan.offload:
        yield "plan.offload=[optimizer]", {"plan.offload": [*plan.offload, "optimizer"]}
    yield from _regrouped(scenario)
    yield from _grown(scenario)


def _regrouped(scenario: Scenario) -> Iterator[Change]:
    """The same devices in other degrees: replicas given up for tensor or pipeline."""
    plan = scenario.plan
    for axis in ("tensor", "pipeline"):
        factor = 2
        while plan.data % factor == 0:
            degree, data = getattr(plan, axis) * factor, plan.data // factor
            fields = {f"plan.{axis}": degree, "plan.data": data}
            yield f"plan.{axis}={degree}, plan.data={data}", fields
            factor *= 2


def _grown(scenario: Scenario) -> Iterator[Change]:
    """More nodes, given to the pipeline or, sharded, to the replicas."""
    plan, nodes = scenario.plan, scenario.cluster.nodes
    for factor in (2, 3, 4, 8):
        more = {"cluster.nodes": nodes * factor}
        if scenario.cluster.network is None:
            more = {"cluster.node.devices": scenario.cluster.node.devices * factor}
        name = ", ".join(f"{path}={value}" for path, value in more.items())
        degree = plan.pipeline * factor
        yield f"plan.pipeline={degree}, {name}", {"plan.pipeline": degree, **more}
        if plan.zero:
            yield (
                f"plan.data={plan.data * factor}, {name}",
                {
                    "plan.data": plan.data * factor,
                    **more,
                },
            )
