"""``mpsim scenario``: simulate files and report."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from pathlib import Path

import click
from rich.console import Console

from mpsim.cli.outputs import require_picture
from mpsim.cli.tracing import traced
from mpsim.planner.remedies import infeasible
from mpsim.report import text
from mpsim.report.ledger import ledger, ledger_table
from mpsim.report.metrics import Report
from mpsim.report.record import record
from mpsim.simulation import simulate
from mpsim.spec.profile import load_profile
from mpsim.spec.reader import load_variants, shadowed


@click.command()
@click.argument("files", nargs=-1, required=True)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="PATH=VALUE",
    help="Override a field by its dotted path, as in plan.pipeline=4; repeatable.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
@click.option("--trace", type=click.Path(path_type=Path), help="Write a Chrome/Perfetto trace.")
@click.option("--plot", type=click.Path(path_type=Path), help="Write the timeline (svg, png, pdf).")
@click.option("--memory-plot", type=click.Path(path_type=Path), help="Write memory over time.")
@click.option(
    "--ledger", "show_ledger", is_flag=True, help="Say where each number comes from, by share."
)
@click.option("--html", type=click.Path(path_type=Path), help="Write one self-contained page.")
@click.option("--out", type=click.Path(path_type=Path), help="Write all of these into a folder.")
@click.option(
    "--profile",
    metavar="NAME",
    help="Profile of the zoo or a YAML file that mpsim calibrate wrote, in place of the device's.",
)
@click.option("--seed", type=click.IntRange(min=0), help="Seed of the samples.")
@click.option(
    "--engine",
    type=click.Choice(["events", "fast"]),
    default="events",
    show_default=True,
    help="SimPy's events, which share links, or the longest path.",
)
def scenario(
    files: Sequence[str],
    *,
    overrides: Sequence[str],
    as_json: bool,
    trace: Path | None,
    plot: Path | None,
    memory_plot: Path | None,
    show_ledger: bool,
    html: Path | None,
    out: Path | None,
    profile: str | None,
    seed: int | None,
    engine: str,
) -> None:
    """Simulate scenario FILES: does it fit, how long is a step, where does the time go.

    A bare name such as gpt3_fp32.yaml that is not in the current folder is found among the
    scenarios that come with mpsim. Exit code 3 if a scenario does not fit.
    """
    if seed is not None:
        overrides = [*overrides, f"seed={seed}"]
    for picture in filter(None, (plot, memory_plot)):
        require_picture(picture)
    fitted = load_profile(profile) if profile else None
    reports = [
        [
            simulate(traced(one, file), engine=engine, profile=fitted)
            for one in load_variants(file, overrides)
        ]
        for file in files
    ]
    flat = [report for group in reports for report in group]
    for group in reports:
        for text_line in shadowed(group[0].scenario, overrides):
            click.echo(f"note: {text_line}", err=True)
    _write(flat, trace=trace, plot=plot, memory_plot=memory_plot)
    if html is not None:
        _write_page(flat, html)
    if out is not None:
        _write_all(flat, out)
    if as_json:
        records = [record(report) for report in flat]
        click.echo(json.dumps(records[0] if len(records) == 1 else records, indent=2))
    else:
        _print(reports, show_ledger=show_ledger)
    _refuse_what_does_not_fit(flat)


def _print(groups: Sequence[Sequence[Report]], *, show_ledger: bool) -> None:
    """Each file's first scenario in full, and its variants beside it."""
    console = Console(highlight=False, markup=False, emoji=False)
    for reports in groups:
        if len(reports) > 1:
            text.compare(reports, console)
        text.show(reports[0], console)
        if show_ledger:
            console.print(ledger_table(ledger(reports[0])))


def _write(
    reports: Sequence[Report], *, trace: Path | None, plot: Path | None, memory_plot: Path | None
) -> None:
    """The files asked for; of several reports, each gets its variant's name in the file name."""
    for report in reports:
        if trace is not None:
            _write_trace(report, _named(trace, report, reports))
        for target, function in ((plot, "plot_timeline"), (memory_plot, "plot_memory")):
            if target is not None:
                _write_picture(report, _named(target, report, reports), function)


def _write_all(reports: Sequence[Report], folder: Path) -> None:
    """Report, trace and pictures of each scenario into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for report in reports:
        stem = _stem(report, reports)
        values = json.dumps(record(report), indent=2)
        (folder / f"{stem}.json").write_text(values, encoding="utf-8")
        with (folder / f"{stem}.txt").open("w", encoding="utf-8") as file:
            text.show(
                report, Console(file=file, width=120, highlight=False, markup=False, emoji=False)
            )
        _write_trace(report, folder / f"{stem}.trace.json")
        _write_picture(report, folder / f"{stem}.svg", "plot_timeline")
        _write_picture(report, folder / f"{stem}.memory.svg", "plot_memory")
    _write_page(reports, folder / "index.html")
    click.echo(f"wrote {folder}/", err=True)


def _write_page(reports: Sequence[Report], path: Path) -> None:
    """One page of all reports; its pictures need matplotlib, which is loaded when asked for."""
    module = importlib.import_module("mpsim.report.html")
    path.write_text(module.page(reports), encoding="utf-8")


def _write_trace(report: Report, path: Path) -> None:
    """The Chrome trace; the module is loaded when a trace is asked for."""
    module = importlib.import_module("mpsim.report.trace")
    path.write_text(json.dumps(module.trace(report)), encoding="utf-8")


def _write_picture(report: Report, path: Path, function: str) -> None:
    """A picture; matplotlib takes half a second and is loaded when one is asked for."""
    getattr(importlib.import_module("mpsim.report.plot"), function)(report, path)


def _stem(report: Report, reports: Sequence[Report]) -> str:
    """A file name for a report: its scenario, and its variant where there are several."""
    name = report.scenario.name
    if len([one for one in reports if one.scenario.name == name]) > 1:
        name += f"-{report.scenario.variant}"
    stem = _plain(name)
    alike = [one for one in reports if _plain(_full_name(one)) == _plain(_full_name(report))]
    if len(alike) > 1:  # names that differ in punctuation alone
        stem += f"-{1 + next(i for i, one in enumerate(alike) if one is report)}"
    return stem


def _full_name(report: Report) -> str:
    return f"{report.scenario.name}-{report.scenario.variant}"


def _plain(name: str) -> str:
    """A name with underscores for what does not go into a file name."""
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in name)


def _named(path: Path, report: Report, reports: Sequence[Report]) -> Path:
    """The path asked for, with the report's name in it where there are several."""
    if len(reports) == 1:
        return path
    return path.with_name(f"{path.stem}-{_stem(report, reports)}{path.suffix}")


def _refuse_what_does_not_fit(reports: Sequence[Report]) -> None:
    """Raise for the scenarios that do not fit, with the smallest changes that would.

    Of several variants, those that do not fit are part of the comparison: only when none fits is
    the run a failure.
    """
    failed = [report for report in reports if not report.fits]
    if not failed or (len(reports) > 1 and len(failed) < len(reports)):
        return
    raise infeasible(failed[0])
