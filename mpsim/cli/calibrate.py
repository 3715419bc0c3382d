"""``mpsim calibrate``: a profile from measurement tables."""

from __future__ import annotations

import datetime
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from mpsim.calibration.fit import fit_profile
from mpsim.calibration.target import target
from mpsim.errors import CalibrationError
from mpsim.report.residuals import residual_grid
from mpsim.spec.profile import Profile, dump_profile
from mpsim.spec.tables import read_folder, read_machine

_PIPE_WIDTH = 120
"""Columns of a table that goes into a pipe or a file."""


@click.command()
@click.option(
    "--from",
    "folder",
    required=True,
    type=click.Path(path_type=Path),
    help="Folder with gemm.csv, collectives.csv, ... (or NAME.gemm.csv.gz, ...).",
)
@click.option(
    "--device", "name", required=True, help="Device of the zoo, or a new name: names the profile."
)
@click.option("--link", help="Link of the zoo that the collectives ran over.")
@click.option("--source", help="Where the tables come from, with their licence.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Default: NAME.yaml.")
def calibrate(
    folder: Path, *, name: str, link: str | None, source: str | None, out: Path | None
) -> None:
    """Fit a profile to tables of measurements, judge it on rows held out, write NAME.yaml."""
    tables = read_folder(folder, device=name)
    machine = read_machine(folder)
    goal = target(name, tables, machine, link=link)
    profile = fit_profile(
        tables,
        goal.base,
        name=name,
        device=goal.device,
        sheet=goal.sheet,
        link=goal.link,
        kind="measured" if machine else "fitted",
        source=source or _provenance(folder, machine),
        date=_date(machine),
    )
    path = out or Path(f"{name}.yaml")
    _write(profile, path)
    _show(profile, path)
    if "collectives" in tables and goal.link is None:
        click.echo("collectives were not fitted: name their link with --link", err=True)


def _provenance(folder: Path, machine: Mapping[str, Any]) -> str:
    """Where the tables come from, from ``machine.yaml``, or the name of the folder."""
    plain = [f"{k} {v}" for k, v in machine.items() if isinstance(v, str | int | float)]
    return "; ".join(plain) if plain else f"tables of the folder {folder.resolve().name}"


def _date(machine: Mapping[str, Any]) -> datetime.date:
    """Day of the measurement, or today."""
    given = machine.get("date", datetime.date.today())
    if isinstance(given, str):
        try:
            given = datetime.date.fromisoformat(given[:10])
        except ValueError:
            raise CalibrationError(
                f"machine.yaml: date: '{given}' is no day; write it as 2026-01-31"
            ) from None
    return given if type(given) is datetime.date else datetime.date.fromisoformat(str(given)[:10])


def _write(profile: Profile, path: Path) -> None:
    """The profile to its file, which is replaced in one step: a failure leaves the old one."""
    beside = path.with_name(path.name + ".part")
    beside.write_text(dump_profile(profile), encoding="utf-8")
    beside.replace(path)


def _show(profile: Profile, path: Path) -> None:
    """The errors on the rows held out, and where the profile is."""
    console = Console() if sys.stdout.isatty() else Console(width=_PIPE_WIDTH)
    rows = ", ".join(f"{count} of {name}" for name, count in profile.tables.items())
    if profile.residuals:
        title = f"{profile.name}: errors on rows held out (fitted on {rows})"
        console.print(residual_grid(profile.residuals, title))
    else:
        console.print(f"{profile.name}: fitted on {rows}; too few rows to hold any out")
    console.print(f"wrote {path}")
