"""The answers of capacity planning for people and for machines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from mpsim.planner.capacity import Capacity, Choice, format_duration, size_of
from mpsim.planner.finalists import describe
from mpsim.units import format_bytes, format_count, format_seconds, format_si

_KWH = 3.6e6
"""J of a kilowatt-hour."""


def show_capacity(found: Capacity, console: Console) -> None:
    """The answers, then every cluster and size."""
    answers = (
        ("fewest devices", found.fewest),
        ("cheapest", found.cheapest),
        ("earliest", found.earliest),
        ("most tokens", found.most),
    )
    for name, choice in answers:
        if choice is not None:
            console.print(f"{name}: {_sentence(choice)}")
            console.print(f"    {describe(choice.found.scenario).replace(',', ', ')}", style="dim")
    console.print(_table(found.choices, found))
    for left in found.left_out:
        console.print(f"left out: {size_of(left.cluster)}: {left.reason}")
    console.print(_assumptions(found), style="dim")


def _sentence(choice: Choice) -> str:
    """A choice in words."""
    cluster = choice.found.scenario.cluster
    low, high = choice.interval
    usd = "no price" if choice.usd is None else f"{choice.usd:,.0f} USD"
    if choice.energy is not None and choice.energy_usd is not None:
        energy = f"{_megawatt_hours(choice.energy)} MWh ({choice.energy_usd:,.0f} USD of energy)"
        usd = f"{usd}, {energy}"
    return (
        f"{choice.devices} {cluster.device.name} "
        f"({format_count(cluster.nodes, 'node')} of {cluster.name}): "
        f"{format_si(choice.tokens, '')} tokens in {format_duration(choice.seconds)} "
        f"({format_duration(low)} to {format_duration(high)}), {usd}"
    )


def _megawatt_hours(energy: float) -> str:
    """Energy in MWh: ``1,013``, or ``0.25`` where it is little."""
    value = energy / _KWH / 1e3
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _table(choices: Sequence[Choice], found: Capacity) -> Table:
    """A line for each cluster and size, in 80 columns.

    ``meets`` where something can be met: a number of tokens by a deadline or within a budget.
    Without a number of tokens the line says how many.
    """
    demand = found.demand
    asked = demand.tokens is not None and (demand.deadline or demand.budget) is not None
    last = ["meets"] if asked else ["tokens"] if demand.tokens is None else []
    table = Table(box=box.SIMPLE_HEAVY, pad_edge=False, collapse_padding=True)
    table.add_column("cluster", overflow="fold")
    for name in ("devices", "step", "time", "USD", "MWh", "goodput", *last):
        table.add_column(name, justify="right", no_wrap=True)
    for one in choices:
        meets = "yes" if one.meets(demand) else "no"
        end = [meets] if asked else [format_si(one.tokens, "")] if last else []
        table.add_row(
            size_of(one.found.scenario.cluster),
            str(one.devices),
            format_seconds(one.found.outcome.step),
            format_duration(one.seconds),
            "–" if one.usd is None else format_si(one.usd, ""),
            "–" if one.energy is None else _megawatt_hours(one.energy),
            f"{one.machine.goodput:.1%}",
            *end,
        )
    return table


def _assumptions(found: Capacity) -> str:
    """What the figures rest on."""
    first = found.choices[0]
    scenario, machine = first.found.scenario, first.machine
    operation = scenario.operation
    failing = "nothing fails"
    if operation.device_mtbf is not None:
        failing = (
            f"a device fails every {operation.device_mtbf / 3600:,.0f} h, a restart takes "
            f"{format_seconds(machine.restart)}; checkpoints every "
            f"{format_seconds(machine.interval)} of {format_seconds(machine.checkpoint)} "
            f"({size_of(scenario.cluster)})"
        )
    prices = {
        choice.found.scenario.cluster.price_source
        for choice in found.choices
        if choice.found.scenario.cluster.price_source
    }
    return "\n".join(
        [
            f"failures: {failing}",
            f"energy: board power x {1 + operation.host_share:.2f} (hosts) x PUE {operation.pue}, "
            f"{operation.energy_price * _KWH:.4f} USD/kWh; not part of the USD of rented devices",
            *(f"price: {price}" for price in sorted(prices)),
        ]
    )


def capacity_record(found: Capacity) -> dict[str, Any]:
    """The answers as plain values."""
    return {
        "tokens": found.demand.tokens,
        "deadline_s": found.demand.deadline,
        "budget_usd": found.demand.budget,
        **{
            name: None if choice is None else _record(choice)
            for name, choice in (
                ("fewest", found.fewest),
                ("cheapest", found.cheapest),
                ("earliest", found.earliest),
                ("most", found.most),
            )
        },
        "choices": [_record(choice) for choice in found.choices],
        "left_out": [
            {
                "cluster": left.cluster.name,
                "nodes": left.cluster.nodes,
                "devices": left.cluster.devices,
                "reason": left.reason,
            }
            for left in found.left_out
        ],
    }


def _record(choice: Choice) -> dict[str, Any]:
    scenario, machine = choice.found.scenario, choice.machine
    finite = machine.mtbf != float("inf")
    return {
        "cluster": scenario.cluster.name,
        "nodes": scenario.cluster.nodes,
        "devices": choice.devices,
        "plan": describe(scenario),
        "step_time_s": choice.found.outcome.step,
        "memory_bytes": choice.found.outcome.memory,
        "memory": format_bytes(choice.found.outcome.memory),
        "tokens": choice.tokens,
        "time_s": choice.seconds,
        "time_interval_s": list(choice.interval),
        "usd": choice.usd,
        "price_source": scenario.cluster.price_source,
        "energy_j": choice.energy,
        "energy_usd": choice.energy_usd,
        "goodput": machine.goodput,
        "mtbf_s": machine.mtbf if finite else None,
        "checkpoint_s": machine.checkpoint,
        "checkpoint_interval_s": machine.interval if finite else None,
    }
