"""Plans as tables for people, and as plain values for machines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from mpsim.planner.evaluate import Refusal
from mpsim.planner.finalists import SHOWN, describe, why_slower
from mpsim.planner.rules import in_words
from mpsim.planner.search import Found, Own, Search
from mpsim.report.metrics import Report
from mpsim.spec.model import Transformer
from mpsim.spec.scenario import Scenario
from mpsim.units import format_bytes, format_seconds, format_si


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
    if found.own is not None:
        console.print(_own_line(found.own, found))
    if len(found.front) > 1:
        console.print(_front(found.front))
    show_counts(found, console)


def _plans(reports: Sequence[Report], title: str) -> Table:
    """A line for each plan."""
    table = Table(box=box.SIMPLE_HEAVY, title=title, title_justify="left")
    rate = rate_name(reports[0].scenario)
    for name in ("", "step", "memory", "MFU", "bubble", rate, "USD a step"):
        table.add_column(name, justify="right")
    for rank, report in enumerate(reports, start=1):
        use, usd = report.utilisation, report.usd_per_step
        table.add_row(
            str(rank),
            format_seconds(report.step_time, 4),
            format_bytes(report.fullest.reserved),
            f"{use.six_n:.1%}" if use else "–",
            f"{report.bubble_fraction:.1%}",
            format_si(
                report.tokens_per_second if rate == "tokens/s" else report.samples_per_second, ""
            ),
            "–" if usd is None else f"{usd:.4g}",
        )
    return table


def counts_tokens(scenario: Scenario) -> bool:
    """Whether a model is fed tokens: a network without a sequence is not."""
    return isinstance(scenario.model, Transformer) or scenario.training.sequence > 1


def rate_name(scenario: Scenario) -> str:
    """Unit of what is trained in a second."""
    return "tokens/s" if counts_tokens(scenario) else "samples/s"


def _own_line(own: Own, found: Search) -> str:
    """What became of the file's own plan."""
    text, outcome = f"the file's own plan, {describe(own.scenario).replace(',', ', ')}", own.outcome
    if isinstance(outcome, Refusal):
        return f"{text}: cannot be carried out: {outcome.reason}"
    if not outcome.fits:
        need, have = format_bytes(outcome.memory), format_bytes(outcome.capacity)
        return f"{text}: does not fit: needs {need}, has {have}"
    ratio = outcome.step / found.best[0].outcome.step
    best = "as short as the best" if ratio < 1 + 1e-9 else f"{ratio:.4g} times the best"
    return f"{text}: {format_seconds(outcome.step, 4)} a step, {best}"


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
    """How many plans there were, were legal, may fit, and were simulated; what removed the rest.

    The plans simulated and those of the lines below sum to all plans.
    """
    tally = found.tally
    console.print(
        f"{tally.considered:,} plans; {tally.legal:,} legal; {tally.fitted:,} may fit; "
        f"{found.evaluated:,} simulated, of which {found.full:,} did not fit"
        + (f" and {found.refused:,} could not be carried out" if found.refused else "")
    )
    removed = ((count, rule) for rule, count in tally.removed.items() if count)
    for count, rule in sorted(removed, reverse=True):
        console.print(f"  {count:>12,}  {in_words(rule, found.problem)}", style="dim")


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
        "could_not_be_carried_out": found.refused,
        "removed": dict(tally.removed),
        "own": None if found.own is None else _own_record(found.own),
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


def _own_record(own: Own) -> dict[str, Any]:
    outcome = own.outcome
    if isinstance(outcome, Refusal):
        return {"plan": describe(own.scenario), "refused": outcome.reason}
    return {
        "plan": describe(own.scenario),
        "step_time_s": outcome.step,
        "memory_bytes": outcome.memory,
        "fits": outcome.fits,
    }


def _record(report: Report) -> dict[str, Any]:
    plan, use = report.scenario.plan, report.utilisation
    return {
        "step_time_s": report.step_time,
        "memory_bytes": report.fullest.reserved,
        "usd_per_step": report.usd_per_step,
        "tokens_per_s": report.tokens_per_second,
        "samples_per_s": report.samples_per_second,
        "model_flops_utilisation": use.six_n if use else None,
        "bubble_fraction": report.bubble_fraction,
        "plan": {name: getattr(plan, name) for name in SHOWN},
        "microbatch": report.scenario.training.microbatch,
    }
