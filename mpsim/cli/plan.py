"""``mpsim plan``: the best plan of a scenario whose plan is open; capacity; the minimum."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import click
from rich.console import Console
from rich.progress import Progress

from mpsim.cli.outputs import write_text
from mpsim.cli.tracing import traced
from mpsim.errors import ScenarioError
from mpsim.planner.capacity import Capacity, Demand, capacity
from mpsim.planner.capacity_text import capacity_record, show_capacity
from mpsim.planner.executors import executor_options, simulator
from mpsim.planner.finalists import checked, rerun
from mpsim.planner.minimum import infeasible, minimum
from mpsim.planner.search import Evaluate, search
from mpsim.planner.space import Problem, load_problem
from mpsim.planner.text import search_record, show_counts, show_search
from mpsim.planner.verdict import Verdict, explain
from mpsim.planner.written import written
from mpsim.units import parse


@click.command()
@click.argument("file")
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="PATH=VALUE",
    help="Override a field, as in plan.tensor=1..8 or plan.schedule=[1f1b, zb_v]; repeatable.",
)
@click.option("--top", type=click.IntRange(1, 100), default=5, show_default=True, help="Plans.")
@click.option("--explain", "named", metavar="PLAN", help="What becomes of tensor=8,…")
@click.option("--minimum", "least", is_flag=True, help="Fewest devices on which it fits at all.")
@click.option("--tokens", metavar="COUNT", help="Tokens to train on, as in 300e9.")
@click.option("--deadline", metavar="TIME", help="Latest finish, as in 30d or '6 weeks'.")
@click.option("--budget", metavar="USD", help="Most to spend, as in 5e6USD.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
@click.option("--out", type=click.Path(path_type=Path), help="Write the winner as a scenario.")
@executor_options
def plan(
    file: str,
    *,
    overrides: Sequence[str],
    top: int,
    named: str | None,
    least: bool,
    tokens: str | None,
    deadline: str | None,
    budget: str | None,
    as_json: bool,
    out: Path | None,
    executor: str,
    address: str | None,
) -> None:
    """Search the best plan for FILE, whose plan fields may be ranges, lists or auto.

    A plan in which nothing is open is opened altogether. With --tokens, --deadline or --budget
    (any of them) the answer is which cluster to buy or rent, among the scenario's candidates.
    """
    demand = demand_of(tokens, deadline, budget)
    if sum((demand is not None, least, named is not None)) > 1:
        raise ScenarioError(
            "mpsim plan", "--minimum, --explain and --tokens/--deadline/--budget exclude each other"
        )
    problem = load_problem(file, list(overrides))
    problem = replace(problem, base=traced(problem.base, file))
    console = Console(highlight=False, emoji=False)
    with simulator(executor, address) as simulate:
        if demand is not None:
            _show_capacity(_capacity(problem, demand, simulate), console, as_json=as_json)
            return
        if least:
            problem, found = minimum(problem, simulate=simulate)
            if not as_json:
                console.print(f"fits on {problem.devices} devices, and on no fewer")
        else:
            found = search(problem, top=top, simulate=simulate)
        if named is not None:
            verdict = explain(problem, named, found, evaluate_all=simulate)
            _show_verdict(verdict, console, as_json=as_json)
            return
    if not found.best:
        if not as_json:
            show_counts(found, console)
        raise infeasible(found)
    reports = rerun(found.best)
    if out is not None:
        write_text(written(checked(found.best[0].scenario)), out)
    if as_json:
        click.echo(json.dumps(search_record(found, reports), indent=2))
    else:
        show_search(found, reports, console)


def _show_capacity(found: Capacity, console: Console, *, as_json: bool) -> None:
    """The answer to a demand."""
    if as_json:
        click.echo(json.dumps(capacity_record(found), indent=2))
    else:
        show_capacity(found, console)


def _show_verdict(verdict: Verdict, console: Console, *, as_json: bool) -> None:
    """What became of a plan that the user names."""
    if as_json:
        about = {"plan": verdict.plan or None, "matching": verdict.matching}
        record = {"rule": verdict.rule or None, "text": verdict.text, **about}
        click.echo(json.dumps(record, indent=2))
        return
    console.print(f"{verdict.rule}: {verdict.text}" if verdict.rule else verdict.text)
    if verdict.plan:
        console.print(f"the plan: {verdict.plan.replace(',', ', ')}")
    if verdict.matching > 1:
        closest = "the one closest to fitting" if verdict.rule == "memory" else "the best"
        console.print(f"{closest} of {verdict.matching:,} legal plans that match", style="dim")


def demand_of(tokens: str | None, deadline: str | None, budget: str | None) -> Demand | None:
    """What the options ask for; None if they are absent."""
    if tokens is None and deadline is None and budget is None:
        return None
    return Demand(
        None if tokens is None else _count(tokens),
        None if deadline is None else _quantity("--deadline", deadline, "s"),
        None if budget is None else _quantity("--budget", budget, "USD"),
    )


def _count(text: str) -> float:
    """A number of tokens."""
    try:
        return float(text.replace("_", ""))
    except ValueError:
        raise ScenarioError("--tokens", f"'{text}' is not a number, as in 300e9") from None


def _quantity(option: str, text: str, unit: str) -> float:
    """A quantity of an option in SI units."""
    try:
        return parse(text, unit)
    except ValueError as error:
        raise ScenarioError(option, str(error)) from None


def _capacity(problem: Problem, demand: Demand, simulate: Evaluate) -> Capacity:
    """Capacity with a progress bar over the candidates."""
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("clusters")
        return capacity(
            problem,
            demand,
            simulate=simulate,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
