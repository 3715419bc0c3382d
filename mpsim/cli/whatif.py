"""``mpsim whatif`` and ``mpsim compare``: grids, sensitivities, two scenarios side by side."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import Progress

from mpsim.cli.outputs import require_picture
from mpsim.cli.tracing import traced
from mpsim.errors import ScenarioError, did_you_mean
from mpsim.planner import tables
from mpsim.planner.comparison import Comparison, compare_reports
from mpsim.planner.executors import executor_options, mapper
from mpsim.planner.grid import Grid, make_grid
from mpsim.planner.results import cache_folder, open_results
from mpsim.planner.sensitivity import neighbours, sensitivities
from mpsim.planner.sweep import sweep
from mpsim.simulation import simulate
from mpsim.spec.reader import load, load_variants
from mpsim.spec.scenario import Scenario

_FEW = 400
"""Points for which starting processes takes longer than simulating."""
_INTERRUPTED = 130
"""Exit code of a program that Ctrl-C ended (128 + SIGINT)."""


@click.command()
@click.argument("file")
@click.option(
    "--vary",
    "axes",
    multiple=True,
    metavar="PATH=VALUES",
    help="Values a,b,c or a range a:b:n, a:b:n:log; repeat for a grid of all combinations.",
)
@click.option("--set", "overrides", multiple=True, metavar="PATH=VALUE", help="Override a field.")
@click.option("--variant", metavar="NAME", help="Variant of FILE; default: the file itself.")
@click.option("--sensitivity", is_flag=True, help="Elasticity of the step to each parameter.")
@click.option("--csv", "csv_file", type=click.Path(path_type=Path), help="Write a CSV table.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write JSON; - prints.")
@click.option("--parquet", "parquet_file", type=click.Path(path_type=Path), help="Write Parquet.")
@click.option("--plot", type=click.Path(path_type=Path), help="Write a picture (svg, png, pdf).")
@click.option(
    "--results",
    type=click.Path(path_type=Path),
    help="Result file to resume and read; default: one for each grid in the user's cache.",
)
@click.option(
    "--fill",
    type=click.Choice(["auto", "data", "nodes", "none"]),
    default="auto",
    show_default=True,
    help="What follows a varied degree so that the plan makes up the devices; auto: plan.data.",
)
@click.option("--jobs", type=click.IntRange(min=1), help="Processes; default: one a core.")
@executor_options
def whatif(
    file: str,
    *,
    axes: Sequence[str],
    overrides: Sequence[str],
    variant: str | None,
    sensitivity: bool,
    csv_file: Path | None,
    json_file: Path | None,
    parquet_file: Path | None,
    plot: Path | None,
    results: Path | None,
    fill: str,
    jobs: int | None,
    executor: str,
    address: str | None,
) -> None:
    """Vary fields of the scenario in FILE over a grid, or say what its step depends on.

    \b
    mpsim whatif gpt3_fp32.yaml --vary training.microbatch=1,2,4
    mpsim whatif gpt3_fp32.yaml --vary cluster.node.link.bandwidth=50GB/s:900GB/s:8
    mpsim whatif gpt3_fp32.yaml --sensitivity

    Interrupted, the same command goes on where it was; done, it reads its result file.
    """
    scenario = traced(_chosen(file, overrides, variant), file)
    if sensitivity:
        _sensitivity(scenario, json_file)
        return
    if not axes:
        raise ScenarioError("--vary", "give at least one, as in --vary plan.pipeline=1,2,4")
    grid = make_grid(scenario, axes, fill=fill)
    if grid.fill != "none":
        stated = scenario.plan.data if grid.fill == "data" else scenario.cluster.nodes
        click.echo(
            f"{grid.fill} follows, so that the plan makes up the devices: it is {stated} in the "
            "scenario, where --fill none keeps it",
            err=True,
        )
    if plot is not None:
        tables.check_plot(grid, plot)
        require_picture(plot)
    rows = _run(grid, results, executor=executor, address=address, jobs=jobs)
    for path, kind in ((csv_file, "csv"), (json_file, "json"), (parquet_file, "parquet")):
        if path is not None and str(path) != "-":
            tables.write_rows(rows, path, kind)
            click.echo(f"wrote {path}", err=True)
    if plot is not None:
        tables.plot_rows(grid, rows, plot)
        click.echo(f"wrote {plot}", err=True)
    if json_file is not None and str(json_file) == "-":
        click.echo(json.dumps(list(rows), indent=1))
    else:
        Console(highlight=False, emoji=False).print(tables.rows_table(grid, rows))
    if all(row["status"] == "invalid" for row in rows):
        raise ScenarioError("--vary", f"none of the {len(rows)} points can be simulated")


def _chosen(file: str, overrides: Sequence[str], variant: str | None) -> Scenario:
    """The scenario of a file, or one of its variants; says which where there are several.

    Raises:
        ScenarioError: If there is no variant of this name.
    """
    first = load(file, overrides)
    names = [first.variant, *first.variants]
    if variant is None and len(names) > 1:
        others = ", ".join(f"'{name}'" for name in names[1:])
        click.echo(
            f"this is '{first.variant}', the first of {len(names)} variants; --variant chooses "
            f"another: {others}",
            err=True,
        )
    if variant is None or variant == first.variant:
        return first
    if variant not in names:
        hint = did_you_mean(variant, names) or f"; there are {', '.join(map(repr, names))}"
        raise ScenarioError(f"--variant {variant}", f"no such variant in {file}{hint}")
    return load_variants(file, overrides)[names.index(variant)]


def _run(
    grid: Grid, path: Path | None, *, executor: str, address: str | None, jobs: int | None
) -> list[Mapping[str, Any]]:
    """The rows of a grid; an interruption says how to go on."""
    found = open_results(path or cache_folder() / f"{grid.key}.jsonl", grid.key)
    # a point that failed is tried again: it costs little, and its cause may be gone
    found.rows = {place: row for place, row in found.rows.items() if row["status"] != "invalid"}
    left = len(grid) - len(found.rows)
    if found.rows:
        click.echo(f"{len(found.rows)} of {len(grid)} points read from {found.path}", err=True)
    if executor == "local" and left <= _FEW:
        jobs = 1
    console = Console(stderr=True)
    try:
        with (
            mapper(executor, address, jobs=jobs) as run_map,
            Progress(console=console, disable=not console.is_terminal) as bar,
        ):
            task = bar.add_task("simulating", total=len(grid))
            return sweep(grid, found, run_map, progress=lambda n: bar.advance(task, n))
    except KeyboardInterrupt:
        click.echo(
            f"interrupted: {len(found.rows)} of {len(grid)} points are kept in {found.path}; "
            "the same command goes on from there",
            err=True,
        )
        sys.exit(_INTERRUPTED)


def _sensitivity(scenario: Scenario, json_file: Path | None) -> None:
    """Elasticities, what each parameter is worth, neighbouring plans."""
    found, plans = sensitivities(scenario), list(neighbours(scenario))
    if json_file is not None:
        values = {
            "parameters": [
                {
                    "parameter": one.parameter.path,
                    "elasticity": one.elasticity,
                    "saved_fraction_doubled": one.doubled,
                    "saved_fraction_infinite": one.infinite,
                    "then_binds": one.then_binds,
                }
                for one in found
            ],
            "plans": [
                {"change": one.change, "step_time_s": one.step, "fits": one.fits} for one in plans
            ],
        }
        text = json.dumps(values, indent=1)
        if str(json_file) == "-":
            click.echo(text)
        else:
            json_file.write_text(text + "\n", encoding="utf-8")
        return
    console = Console(highlight=False, emoji=False)
    console.print(tables.sensitivity_table(found))
    for one in found[:3]:
        console.print(tables.sensitivity_sentence(one))
    step = simulate(scenario, engine="fast").step_time
    console.print(tables.neighbours_table(plans, step))


@click.command()
@click.argument("first")
@click.argument("second")
@click.option("--set", "overrides", multiple=True, metavar="PATH=VALUE", help="In both.")
@click.option("--variant", metavar="NAME", help="Variant of FIRST; default: the file itself.")
@click.option("--other", metavar="NAME", help="Variant of SECOND; default: the file itself.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def compare(
    first: str,
    second: str,
    *,
    overrides: Sequence[str],
    variant: str | None,
    other: str | None,
    as_json: bool,
) -> None:
    """Put the scenarios in FIRST and SECOND side by side, and what makes the difference.

    FIRST and SECOND may be one file with two of its variants.
    """
    names = (variant, other)
    scenarios = [
        traced(_chosen(file, overrides, name), file)
        for file, name in zip((first, second), names, strict=True)
    ]
    reports = [simulate(one) for one in scenarios]
    found = compare_reports(*reports)
    if as_json:
        click.echo(json.dumps(_record(found), indent=1))
        return
    console = Console(highlight=False, emoji=False)
    titles = (variant or Path(first).stem, other or Path(second).stem)
    for table in tables.comparison_tables(found, titles):
        console.print(table)


def _record(found: Comparison) -> dict[str, Any]:
    """A comparison as plain values."""
    return {
        "fields": {path: [one, other] for path, one, other in found.fields},
        "numbers": {
            one.name: {"first": one.first, "second": one.second, "difference": one.change}
            for one in found.numbers
        },
        "step_by_cause_s": {
            one.name: {"first": one.first, "second": one.second, "difference": one.change}
            for one in found.causes
        },
    }
