"""Plans as tables for people, and as plain values for machines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from mpsim.planner.finalists import SHOWN, describe, why_slower
from mpsim.planner.search import Found, Search
from mpsim.report.metrics import Report
from mpsim.units import format_bytes, format_seconds

_RULES = {
    "devices": "degrees do not divide the devices",
    "batch": "the global batch does not divide",
    "layers": "more stages than layers",
    "schedule": "the schedule does not take these numbers",
    "sequence_parallel": "sequence parallelism without tensor parallelism",
    "context": "the sequence does not divide over the context degree",
    "tensor": "heads or widths do not divide over the tensor degree",
    "expert": "experts do not divide",
    "one stage": "one stage: every partition is the same",
    "one device": "one device: every schedule is the same",
    "equal counts": "the partition is that of equal counts",
    "memory": "does not fit",
    "time": "cannot be among the best",
}
"""Rules in words."""


def show_search(found: Search, reports: Sequence[Report], console: Console) -> None:
    """The best plans, why the second loses, the front, and what became of all others."""
    cluster = found.problem.base.cluster
    console.print(
        _plans(
            reports,
            f"{found.problem.base.name}: {cluster.devices} {cluster.device.name} ({cluster.name})",
        )
    )
    for rank, report in enumerate(reports, start=1):
        console.print(f"{rank:>3}  {describe(report.scenario).replace(',', ', ')}")
    if len(reports) > 1:
        console.print(f"the runner-up loses {why_slower(*reports[:2])}")
    if len(found.front) > 1:
        console.print(_front(found.front))
    show_counts(found, console)


def _plans(reports: Sequence[Report], title: str) -> Table:
    """A line for each plan."""
    table = Table(box=box.SIMPLE_HEAVY, title=title, title_justify="left")
    for name in ("", "step", "memory", "MFU", "bubble", "tokens/s", "USD a step"):
        table.add_column(name, justify="right")
    for rank, report in enumerate(reports, start=1):
        use, usd = report.utilisation, report.usd_per_step
        table.add_row(
            str(rank),
            format_seconds(report.step_time, 4),
            format_bytes(report.fullest.reserved),
            f"{use.six_n:.1%}" if use else "–",
            f"{report.bubble_fraction:.1%}",
            f"{report.tokens_per_second:.4g}",
            "–" if usd is None else f"{usd:.4g}",
        )
    return table


def _front(front: Sequence[Found]) -> Table:
    """Plans that no simulated one beats in time, memory and dollars."""
    table = Table(
        box=box.SIMPLE, title="less memory for more time (Pareto front)", title_justify="left"
    )
    for name in ("memory", "step", "USD a step"):
        table.add_column(name, justify="right")
    table.add_column("plan", overflow="fold")
    for one in front:
        table.add_row(
            format_bytes(one.outcome.memory),
            format_seconds(one.outcome.step, 4),
            "–" if one.usd is None else f"{one.usd:.4g}",
            describe(one.scenario).replace(",", ", "),
        )
    return table


def show_counts(found: Search, console: Console) -> None:
    """How many plans there were, were legal, may fit, and were simulated; what removed the rest."""
    tally = found.tally
    console.print(
        f"{tally.considered:,} plans; {tally.legal:,} legal; {tally.fitted:,} may fit; "
        f"{found.evaluated:,} simulated, of which {found.full:,} did not fit"
    )
    removed = ((count, rule) for rule, count in tally.removed.items() if count)
    for count, rule in sorted(removed, reverse=True):
        console.print(f"  {count:>12,}  {_RULES.get(rule, rule)}", style="dim")


def search_record(found: Search, reports: Sequence[Report]) -> dict[str, Any]:
    """A search as plain values."""
    tally = found.tally
    return {
        "devices": found.problem.devices,
        "considered": tally.considered,
        "legal": tally.legal,
        "may_fit": tally.fitted,
        "simulated": found.evaluated,
        "did_not_fit": found.full,
        "removed": dict(tally.removed),
        "plans": [_record(report) for report in reports],
        "front": [
            {
                "step_time_s": one.outcome.step,
                "memory_bytes": one.outcome.memory,
                "usd_per_step": one.usd,
                "plan": describe(one.scenario),
            }
            for one in found.front
        ],
    }


def _record(report: Report) -> dict[str, Any]:
    plan, use = report.scenario.plan, report.utilisation
    return {
        "step_time_s": report.step_time,
        "memory_bytes": report.fullest.reserved,
        "usd_per_step": report.usd_per_step,
        "tokens_per_s": report.tokens_per_second,
        "model_flops_utilisation": use.six_n if use else None,
        "bubble_fraction": report.bubble_fraction,
        "plan": {name: getattr(plan, name) for name in SHOWN},
        "microbatch": report.scenario.training.microbatch,
    }
