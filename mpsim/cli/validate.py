"""``mpsim validate``: predictions against measured training runs."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console

import mpsim
from mpsim.cli.outputs import require_picture
from mpsim.errors import ScenarioError
from mpsim.report.residuals import residual_grid, residual_rows
from mpsim.spec.profile import load_profile
from mpsim.validation import text
from mpsim.validation.comparison import Comparison
from mpsim.validation.fit import calibrate, choose
from mpsim.validation.plot import plot_scatter
from mpsim.validation.predict import compare_all, compare_each
from mpsim.validation.records import Problem, Record, read_records, value_at
from mpsim.validation.series import read_series, score_series
from mpsim.validation.statistics import by_source, over_sources, summarise
from mpsim.validation.tables import fitted_rows, score_tables

_SERIES = "series.jsonl"

_SHOWN_VALUES = 12
"""Values of a field that are listed where none was met."""

_INTERRUPTED = 130
"""Exit code of a program that Ctrl-C ended (128 + SIGINT)."""


@click.command()
@click.argument("files", nargs=-1, type=click.Path(path_type=Path))
@click.option("--profile", help="Profile, by name or file, instead of each device's own.")
@click.option(
    "--where",
    "conditions",
    multiple=True,
    metavar="PATH=VALUE",
    help="Only records with this value: gpu=a100-sxm-80gb, plan.zero=3, source=...; repeatable.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
@click.option("--plot", type=click.Path(path_type=Path), help="Write predicted against measured.")
@click.option("--strict", is_flag=True, help="Fail (exit code 2) if any record is left out.")
@click.option(
    "--fit-on",
    metavar="FILE|N",
    help="Calibrate on these records, or on N drawn at random, and score the rest.",
)
@click.option("--series", is_flag=True, help="Also ratios within series.jsonl beside the records.")
@click.option("--worst", type=click.IntRange(min=0), default=10, help="How many worst rows.")
@click.option(
    "--tables",
    type=click.Path(path_type=Path),
    help="Score --profile on the kernel and collective tables of this folder instead.",
)
@click.option("--processes", type=click.IntRange(min=1), help="Workers; default: all cores.")
def validate(
    files: Sequence[Path],
    *,
    profile: str | None,
    conditions: Sequence[str],
    as_json: bool,
    plot: Path | None,
    strict: bool,
    fit_on: str | None,
    series: bool,
    worst: int,
    tables: Path | None,
    processes: int | None,
) -> None:
    """Predict the measured runs in FILES (JSON lines, or folders of them) and say how far off.

    Without FILES: the published runs in $MPSIM_DATA/data/measured, or in shared/data/measured
    beside the project. docs/record-format.md describes the records; own runs go the same way.
    """
    if tables is not None:
        _score_tables(tables, profile, as_json=as_json)
        return
    _check(plot, profile)
    paths = list(files) or [_published()]
    kept, problems = _read(paths, conditions)
    rows, stopped = _compared(kept, profile, processes)
    if stopped:
        fit_on, series = None, False  # what is calibrated or put in series is not complete
    factors, fitted, rows = _calibrated(rows, fit_on, profile, processes)
    scores = score_series(_series(paths), rows) if series else {}
    if plot is not None:
        plot_scatter(rows, plot)
    if as_json:
        click.echo(json.dumps(as_tree(rows, problems, factors=factors, series=scores), indent=2))
    else:
        console = Console(highlight=False, emoji=False)
        if factors:
            text.show_factors(factors, fitted, console)
        text.show(rows, problems, console, shown=worst)
        if scores:
            text.show_series(scores, console)
    if stopped:
        click.echo(f"interrupted: {len(rows)} of {len(kept)} records were predicted", err=True)
        raise click.exceptions.Exit(_INTERRUPTED)
    _refuse(rows, problems, strict=strict)


def _check(plot: Path | None, profile: str | None) -> None:
    """Refuse what could not be written or found, before records are predicted for it."""
    if plot is not None:
        require_picture(plot)
    if profile is not None:
        load_profile(profile)


def _read(paths: Sequence[Path], conditions: Sequence[str]) -> tuple[list[Record], list[Problem]]:
    """The records that meet the conditions, and the lines that are none.

    Raises:
        ScenarioError: If there is nothing to predict.
    """
    records, problems = read_records(paths)
    if not records and not problems:
        raise ScenarioError(", ".join(map(str, paths)), "holds no measured-run record")
    kept = select(records, conditions)
    if records and not kept:
        raise ScenarioError("--where", _without_match(records, conditions))
    return kept, problems


def _refuse(rows: Sequence[Comparison], problems: Sequence[Problem], *, strict: bool) -> None:
    """Exit code 2 where nothing was predicted, or, if strict, where anything was left out."""
    left_out = sum(row.skipped is not None for row in rows)
    if left_out == len(rows) or (strict and (problems or left_out)):
        raise click.exceptions.Exit(2)


def _compared(
    records: Sequence[Record], profile: str | None, processes: int | None
) -> tuple[list[Comparison], bool]:
    """Each record beside its prediction, and whether Ctrl-C ended it before all were there."""
    found: dict[int, Comparison] = {}
    try:
        # row by row: what came before Ctrl-C stays
        found.update(compare_each(records, profile=profile, processes=processes))
    except KeyboardInterrupt:
        if not found:
            raise
    return [found[place] for place in sorted(found)], len(found) < len(records)


def _score_tables(folder: Path, profile: str | None, *, as_json: bool) -> None:
    """How far off a profile is on tables of kernels and collectives."""
    if profile is None:
        raise ScenarioError("--tables", "needs --profile, a profile or device by name or a file")
    found = score_tables(folder, profile)
    seen = fitted_rows(profile, found)
    if as_json:
        tree = {"profile": profile, "tables": residual_rows(found), "fitted_rows": seen}
        click.echo(json.dumps(tree, indent=2))
        return
    console = Console(highlight=False, emoji=False)
    console.print(residual_grid(found, f"{profile} on {folder}"))
    if seen:
        rows = ", ".join(f"{count} rows of {table}" for table, count in seen.items())
        console.print(
            f"{profile} was fitted on {rows}: where these are its own tables, the rows above "
            "include those. What it does on rows held out stands in docs/profiles.md.",
            soft_wrap=True,
        )


def select(records: Iterable[Record], conditions: Sequence[str]) -> list[Record]:
    """The records that meet all conditions ``path=value``.

    Raises:
        ScenarioError: If a condition is not of that form, or records have no such field.
    """
    wanted = [_condition(text) for text in conditions]
    if not wanted:
        return list(records)
    return [record for record in records if _meets(record.model_dump(), wanted)]


def _condition(text: str) -> tuple[str, str]:
    """Path and value of one condition."""
    path, equals, value = text.partition("=")
    if not equals:
        raise ScenarioError(f"--where {text}", "write it as path=value, as in plan.zero=3")
    return path.strip(), value.strip().lower()


def _without_match(records: Sequence[Record], conditions: Sequence[str]) -> str:
    """Why no record meets the conditions: the first that none meets, and the values there are."""
    trees = [record.model_dump() for record in records]
    for path, value in map(_condition, conditions):
        if not any(_meets(tree, [(path, value)]) for tree in trees):
            there = sorted({_as_text(value_at(tree, path)) for tree in trees})
            shown = there[:_SHOWN_VALUES] + ["…"] * (len(there) > _SHOWN_VALUES)
            return f"no record has {path}={value} (values: {', '.join(shown)})"
    return f"no record meets all of {', '.join(conditions)}, though each is met by some"


def as_tree(
    rows: Sequence[Comparison],
    problems: Sequence[Problem] = (),
    *,
    factors: dict[str, float] | None = None,
    series: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The scoreboard as plain values."""
    sources = by_source(rows)
    tree: dict[str, Any] = {
        "records": [row.as_json() for row in rows],
        "problems": [vars(problem) for problem in problems],
        "sources": {name: summary.as_json() for name, summary in sources.items()},
        "total": summarise(rows).as_json() | {"over_sources": vars(over_sources(sources))},
    }
    if factors:
        tree["factors"] = factors
    if series:
        tree["series"] = {variable: vars(score) for variable, score in series.items()}
    return tree


def _meets(tree: dict[str, Any], wanted: Sequence[tuple[str, str]]) -> bool:
    """Whether a record's values are, as text, those wanted; ``null`` is no value."""
    return all(_as_text(value_at(tree, path)).lower() == value for path, value in wanted)


def _as_text(value: object) -> str:
    """A value of a record as a condition writes it."""
    return "null" if value is None else json.dumps(value, ensure_ascii=False).strip('"')


def _calibrated(
    rows: list[Comparison], fit_on: str | None, profile: str | None, processes: int | None
) -> tuple[dict[str, float], int, list[Comparison]]:
    """Factors fitted on some rows, how many they were, and the other rows with the factors."""
    if fit_on is None:
        return {}, 0, rows
    if fit_on.isdigit():
        chosen = choose(rows, int(fit_on))
    else:
        records, _ = read_records([Path(fit_on)])
        chosen = compare_all(records, profile=profile, processes=processes)
    calibration = calibrate(chosen)
    used = {row.record.id for row in chosen}
    rest = [calibration.apply(row) for row in rows if row.record.id not in used]
    if not rest:
        raise ScenarioError(f"--fit-on {fit_on}", "leaves no record to score")
    return dict(calibration.factors), len(chosen), rest


def _published() -> Path:
    """The folder of published runs.

    Raises:
        ScenarioError: If it is not there.
    """
    beside = Path(mpsim.__file__).resolve().parents[2] / "shared"
    shared = Path(os.environ.get("MPSIM_DATA", beside if beside.is_dir() else "../shared"))
    folder = shared / "data" / "measured"
    if not folder.is_dir():
        raise ScenarioError(
            str(folder), "no measured runs there; name a file, or set MPSIM_DATA to their folder"
        )
    return folder


def _series(paths: Iterable[Path]) -> list[Any]:
    """The series beside the records."""
    folders = dict.fromkeys(path if path.is_dir() else path.parent for path in paths)
    files = [folder / _SERIES for folder in folders if (folder / _SERIES).is_file()]
    if not files:
        raise ScenarioError("--series", f"no {_SERIES} beside the records")
    return [item for file in files for item in read_series(file)]
