"""Measuring this machine for ``mpsim calibrate``: progress, interruption, drift."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from mpsim.calibration.cells import read_cells
from mpsim.calibration.machine import step_errors
from mpsim.calibration.machine_fit import step_seconds
from mpsim.errors import CalibrationError, ScenarioError
from mpsim.spec.profile import Profile, load_profile
from mpsim.units import format_seconds, format_si, parse

if TYPE_CHECKING:
    from mpsim.hardware.measure import Progress as Measured

STEPS_SHARE = 0.75
"""Share of the budget that whole steps get: they tell the most of what is predicted."""

_INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 and the number of the signal, as shells have it."""

REST = frozenset({"launch", "runtime", "collectives", "memory_bound", "overlap", "host_copy"})
"""Other tables, kept beside the steps for whoever fits more."""


def measure_machine(
    folder: Path,
    *,
    devices: str | None,
    budget: float,
    resume: bool,
    realtime: bool,
    rest: bool = True,
) -> None:
    """Measure into a folder, and say what goes on. Ctrl-C keeps what was measured.

    Args:
        folder: Where the tables go.
        devices: Devices of the workers; None: the best there are.
        budget: Seconds to spend.
        resume: Whether to go on with what is in the folder.
        realtime: Whether the workers run ahead of all other work.
        rest: Whether to measure more than whole steps.

    Raises:
        ScenarioError: If the devices are not there, or are not two.
        CalibrationError: If a worker fails.
        Exit: With code 130, after Ctrl-C.
    """
    from mpsim.hardware import measure

    placement = measure.choose_placement(devices, count=2)
    seconds = measure.estimate_seconds(budget) + measure.START
    click.echo(f"measuring {placement.describes}, about {format_seconds(seconds, 2)}")
    if placement.warning:
        click.secho(f"warning: {placement.warning}", fg="yellow", err=True)
    begin = time.monotonic()
    parts = ((frozenset({"steps"}), STEPS_SHARE), (REST, 1 - STEPS_SHARE))
    for only, share in parts if rest else ((parts[0][0], 1.0),):
        with _bar() as bar:
            kind = "steps" if "steps" in only else "messages and overheads"
            task = bar.add_task(kind, total=1, cell="")
            try:
                done = measure.measure(
                    folder,
                    devices=devices,
                    budget=budget * share,
                    resume=resume or only is REST,
                    only=only,
                    realtime=realtime,
                    progress=_teller(bar, task),
                )
            except KeyboardInterrupt:
                if not rest or not (folder / "done.jsonl").exists():
                    raise  # a drift check, whose folder goes with it, or nothing measured yet
                bar.stop()
                kept = f"stopped; what was measured is in {folder}/: go on with --resume"
                click.echo(f"error: {kept}", err=True)
                raise click.exceptions.Exit(_INTERRUPTED) from None
    click.echo(
        f"measured {done.cells} of {done.planned} cells of the last kind, noise "
        f"{done.noise:.1%}, in {format_seconds(time.monotonic() - begin, 3)}; raw: {folder}/"
    )


def _bar() -> Progress:
    """A line of progress on the error stream."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    return Progress(*columns, TextColumn("{task.fields[cell]}"), console=Console(stderr=True))


def _teller(bar: Progress, task: TaskID) -> Callable[[Measured], None]:
    """What shows the progress of a measurement."""

    def tell(progress: Measured) -> None:
        bar.update(task, total=progress.total, completed=progress.done, cell=progress.message)

    return tell


def check_place(path: Path, option: str) -> None:
    """See that a file can be written, before hours go into what it is to hold.

    Raises:
        ScenarioError: If its folder is not there, or it is a folder itself.
    """
    if path.is_dir():
        raise ScenarioError(option, f"{path} is a folder; name a file")
    if not path.parent.is_dir():
        raise ScenarioError(option, f"{path}: there is no folder {path.parent}")


def parse_seconds(text: str, where: str = "--budget") -> float:
    """A duration with its unit, as ``60s``.

    Raises:
        ScenarioError: If it is none.
    """
    try:
        seconds = parse(text, "s")
    except ValueError as error:
        raise ScenarioError(where, str(error)) from None
    if seconds <= 0:
        raise ScenarioError(where, f"must be more than zero, not '{text}'")
    return seconds


def show_machine(profile: Profile, path: Path, seconds: float) -> None:
    """The fitted parameters with their standard errors, and the errors on held-out steps."""
    workers = profile.workers
    assert workers is not None
    console = Console(emoji=False)
    table = Table(title=f"{profile.name}: {profile.device}", title_justify="left")
    for column in ("parameter", "value", "standard error"):
        table.add_column(column, justify="left" if column == "parameter" else "right")
    deviations = np.sqrt(np.maximum(np.diag(workers.matrix), 0.0))
    for name, deviation in zip(workers.names, deviations, strict=True):
        value = shown_value(name, getattr(workers.fit, name))
        cells = (value, f"{deviation:.0%}") if deviation < 1 else (f"({value})", "not determined")
        table.add_row(name.replace("_", " "), *cells)
    console.print(table)
    loose = int((deviations >= 1).sum())
    if loose:
        console.print(
            f"too short to determine {loose} of {len(deviations)} parameters: measure longer "
            "(--budget, --resume); those in parentheses hardly show in the measured steps"
        )
    errors = workers.errors
    if errors is not None:
        console.print(
            f"held-out steps ({errors.cells}, by fits without them): off by {errors.median:.1%} at "
            f"the median, {errors.p90:.1%} at the ninetieth percentile, {errors.within_15:.0%} "
            f"within 15 %; {errors.covered:.0%} inside the 90 % interval"
        )
    console.print(f"fitted in {format_seconds(seconds)}, wrote {path}")


def shown_value(name: str, value: float) -> str:
    """A parameter with its unit."""
    if name in ("rate", "attention"):
        return format_si(value, "FLOP/s")
    if name in ("operands", "stream", "copying", "bandwidth", "fresh"):
        return format_si(value, "B/s")
    if name == "functions":
        return f"{format_si(value, '')} elements/s"
    return f"{value:.3g}" if name.startswith("half_") else format_seconds(value)


def check_drift(name: str, *, devices: str | None, budget: float, realtime: bool) -> None:
    """Measure steps again and hold them against a profile.

    Raises:
        CalibrationError: If the profile has no workers, or the machine has drifted from it: its
            predictions are off by more than the profile says they are, in the median step.
    """
    profile = load_profile(name)
    workers = profile.workers
    if workers is None:
        raise CalibrationError(f"{name}: is not the profile of a measured machine")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "again"
        measure_machine(
            folder, devices=devices, budget=budget, resume=False, realtime=realtime, rest=False
        )
        cells = read_cells(folder / "steps.jsonl")
    again = np.array([np.log(cell.seconds / step_seconds(cell, workers.fit)) for cell in cells])
    before = np.array(workers.residuals)
    drift = float(np.median(again) - np.median(before))
    # the standard error of a median of normals is 1.25 deviations over the root of their number
    tolerance = 3 * 1.25 * float(np.std(before)) / math.sqrt(len(again)) + 0.02
    errors = step_errors(again)
    click.echo(
        f"{len(cells)} steps of {profile.device}, profile of {profile.date}: off by "
        f"{errors.median:.1%} at the median; drift {math.expm1(drift):+.1%} "
        f"(up to {tolerance:.1%} is chance)"
    )
    if abs(drift) > tolerance:
        raise CalibrationError(
            f"steps take {math.expm1(drift):+.1%} of what they took when {name} was measured: "
            "calibrate again"
        )
