"""``mpsim calibrate``: a profile from this machine, or from measurement tables."""

from __future__ import annotations

import datetime
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from mpsim.calibration.fit import fit_profile
from mpsim.calibration.machine import fit_machine
from mpsim.calibration.target import target
from mpsim.cli.measuring import (
    check_drift,
    check_place,
    measure_machine,
    parse_seconds,
    show_machine,
)
from mpsim.errors import CalibrationError, ScenarioError
from mpsim.report.residuals import residual_grid
from mpsim.spec.profile import Profile, dump_profile
from mpsim.spec.tables import read_folder, read_machine

_PIPE_WIDTH = 120
"""Columns of a table that goes into a pipe or a file."""


@click.command()
@click.option(
    "--from",
    "folder",
    type=click.Path(path_type=Path),
    help="Folder of measurements (steps.jsonl, or gemm.csv, collectives.csv, ...): only fit.",
)
@click.option("--device", "name", help="Device of the zoo, or a new name: names the profile.")
@click.option("--devices", help="Devices of the two workers, as cuda:0,cuda:1; default: the best.")
@click.option("--budget", default="180 s", show_default=True, help="Time to measure for.")
@click.option("--measure-only", is_flag=True, help="Measure, and leave the fit for --from.")
@click.option("--resume", is_flag=True, help="Go on with what a measurement lacks.")
@click.option(
    "--check", metavar="PROFILE", help="Measure again and tell how far the machine has drifted."
)
@click.option(
    "--realtime", is_flag=True, help="Run the workers ahead of all other work (needs the right to)."
)
@click.option("--link", help="Link of the zoo that the collectives of --from ran over.")
@click.option("--source", help="Where the tables of --from come from, with their licence.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Default: NAME.yaml.")
def calibrate(
    *,
    folder: Path | None,
    name: str | None,
    devices: str | None,
    budget: str,
    measure_only: bool,
    resume: bool,
    check: str | None,
    realtime: bool,
    link: str | None,
    source: str | None,
    out: Path | None,
) -> None:
    """Measure this machine, fit a profile, judge it on what it has not seen, write NAME.yaml.

    Without --from the devices are found (two GPUs, a GPU and the CPU, or two CPU processes) and
    measured; the raw measurements stay in the folder NAME.measured beside the profile.
    """
    _check_name(name)
    stem = name or (out.stem if out else "machine")
    path = out or Path(f"{stem}.yaml")
    if check is None:
        check_place(path, "--out")
    if folder is not None and not (folder / "steps.jsonl").is_file():
        if name is None:
            raise click.UsageError("--from needs --device, the name of the device")
        _fit_tables(folder, name=name, link=link, source=source, path=path)
        return
    seconds = parse_seconds(budget)
    if check is not None:
        check_drift(check, devices=devices, budget=seconds, realtime=realtime)
        return
    if folder is None:
        folder = path.with_name(f"{path.stem}.measured")
        measure_machine(folder, devices=devices, budget=seconds, resume=resume, realtime=realtime)
        if measure_only:
            return
    begin = time.monotonic()
    profile = fit_machine(folder, name=path.stem)
    _write(profile, path)
    show_machine(profile, path, time.monotonic() - begin)


def _check_name(name: str | None) -> None:
    """See that the name of a profile can be one of a file."""
    if name is not None and (not name.strip() or set(name) & set("/\\\0")):
        raise ScenarioError(
            "--device", f"'{name}' is no name: a word without slashes; where it goes is for --out"
        )


def _fit_tables(
    folder: Path, *, name: str, link: str | None, source: str | None, path: Path
) -> None:
    """Fit a profile to tables of kernels and collectives."""
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
    console = Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH, emoji=False)
    rows = ", ".join(f"{count} of {name}" for name, count in profile.tables.items())
    if profile.residuals:
        title = f"{profile.name}: errors on rows held out (fitted on {rows})"
        console.print(residual_grid(profile.residuals, title))
    else:
        console.print(f"{profile.name}: fitted on {rows}; too few rows to hold any out")
    console.print(f"wrote {path}")
