"""The whole measurement: cells in rounds, appended as they come, until the budget is spent."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from mpsim.errors import CalibrationError

from . import links
from .cells import Cell, plan_cells
from .devices import Machine, Placement, choose_devices, find_devices, parse_devices, place
from .provenance import describe_machine
from .records import append_json, append_rows, read_json_lines
from .timing import relative_mad
from .visits import Rows, milliseconds, visit
from .workers import Workers

BUDGET = 270.0  # s of measuring by default: with start and fit the calibration ends in five minutes
ROUNDS = 2  # every cell is measured this often, far apart, so that drift is seen
MOST_ROUNDS = 6  # on a machine that is too noisy
START = 6.0  # s to start the workers: two imports of torch side by side
PROBE_EVERY = 5.0  # s between probes of the machine's speed
OVERHEAD = 0.35  # share of the budget that set-up and warm-up of cells take


@dataclass(frozen=True)
class Progress:
    """Where a measurement stands."""

    done: int  # cells of all rounds measured
    total: int
    elapsed: float  # s of this call
    message: str  # the cell just measured, or what must be known


@dataclass(frozen=True)
class Measurement:
    """What a call of ``measure`` has left behind.

    Attributes:
        folder: Where the tables are.
        complete: Whether every cell was measured as often as planned.
        cells: Number of cells measured at least once.
        planned: Number of cells planned.
        noise: Relative MAD of the probes.
        stolen: Share of the time in which other processes had the workers' cores.
        seconds: Seconds the call took.
    """

    folder: Path
    complete: bool
    cells: int
    planned: int
    noise: float
    stolen: float
    seconds: float


def choose_placement(
    devices: str | None = None, machine: Machine | None = None, *, count: int | None = None
) -> Placement:
    """The workers for a list of devices such as ``cuda:0,cpu``, or for what there is.

    Args:
        devices: The list; None: the two best.
        machine: What there is; None: it is looked for.
        count: How many the list must name; None: two or more.

    Raises:
        ScenarioError: If the list names what is not there, or too few, or too many.
    """
    machine = machine or find_devices()
    if devices is None:
        return place(choose_devices(machine), machine)
    return place(parse_devices(devices, machine, count=count), machine)


def estimate_seconds(budget: float = BUDGET) -> float:
    """Seconds that ``measure`` takes: its budget and the start of the workers."""
    return budget + START


def measure(
    folder: Path,
    *,
    devices: str | None = None,
    budget: float = BUDGET,
    resume: bool = False,
    precision: float = 0.03,
    only: frozenset[str] | None = None,
    realtime: bool = False,
    progress: Callable[[Progress], None] = lambda progress: None,
) -> Measurement:
    """Measure this machine into tables.

    Cells of all tables are visited in one shuffled order, in two rounds; each is appended as soon
    as it is measured, so that an interruption loses one cell at most. Where the probes scatter by
    more than ``precision``, or other processes take more of the cores than that, this is told and
    further rounds are made while the budget lasts.

    Args:
        folder: Where the tables go; made if it is not there.
        devices: Devices of the workers, as ``cuda:0,cuda:1``; None: the best there are.
        budget: Seconds to spend.
        resume: Whether to go on with what a folder lacks; else it must hold no tables.
        precision: Relative scatter of the probes, and share of stolen time, that is accepted.
        only: Tables to measure; None: all.
        realtime: Whether the workers run ahead of all other work of the machine.
        progress: Called after each cell.

    Raises:
        ScenarioError: If the devices are not there, or are not two.
        CalibrationError: If the folder holds tables of another placement or any tables without
            ``resume``, or a worker fails.
    """
    placement = choose_placement(devices, count=2)
    _check(folder, placement, resume=resume)
    cells = plan_cells(placement, only=only)
    with Workers(placement, timeout=max(120.0, budget), realtime=realtime) as workers:
        folder.mkdir(parents=True, exist_ok=True)  # only now: a failed start leaves no folder
        session = _Session(folder, workers, cells, budget=budget, progress=progress)
        try:
            session.run(precision)
        except CalibrationError as error:
            kept = f"what was measured is in {folder}/: go on with --resume"
            raise CalibrationError(f"{error}\n{kept}") from None
        finally:
            session.describe()
    return session.result()


def _check(folder: Path, placement: Placement, *, resume: bool) -> None:
    """See that what is in the folder, if it is there, may be added to."""
    path = folder / "machine.yaml"
    measured = any(file for kind in ("*.csv", "*.jsonl") for file in folder.glob(kind))
    if not measured and not (resume and path.exists()):
        return
    if not path.exists():
        raise CalibrationError(f"{folder}: holds tables, but no machine.yaml says of what")
    if not resume:
        raise CalibrationError(
            f"{folder}: holds measurements already; resume them (--resume), or choose another"
            " folder"
        )
    before = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    now = describe_machine(placement)
    for field in ("workers", "devices", "torch"):
        if before.get(field) != now[field]:
            raise CalibrationError(
                f"{folder}: was measured with {field} {before.get(field)}, but now it is "
                f"{now[field]}; choose another folder"
            )


class _Session:
    """One call of ``measure`` under way."""

    def __init__(
        self,
        folder: Path,
        workers: Workers,
        cells: Sequence[Cell],
        *,
        budget: float,
        progress: Callable[[Progress], None],
    ) -> None:
        self.folder, self.workers, self.cells = folder, workers, cells
        self.budget, self.progress = budget, progress
        self.begin = time.monotonic()
        visits = read_json_lines(folder / "done.jsonl")
        self.done = {(visit["cell"], visit["round"]) for visit in visits}
        self.before = max((visit["elapsed_s"] for visit in visits), default=0.0)
        self.probes: list[list[float]] = [[] for _ in workers.placement.workers]
        self.thefts: list[float] = []
        self.next_probe = 0.0
        total = sum(cell.weight for cell in cells)
        # s of a cell of weight one: what the budget leaves, within what is worth timing
        self.unit = float(np.clip((1 - OVERHEAD) * budget / ROUNDS / max(total, 1), 0.01, 0.5))
        self.machine = describe_machine(workers.placement)
        self.describe()  # before the first row: a run that is killed can be resumed

    @property
    def elapsed(self) -> float:
        """Seconds since the session began."""
        return time.monotonic() - self.begin

    @property
    def noise(self) -> float:
        """Relative MAD of the probes of the noisiest worker; 0 while there are fewer than three."""
        return max(relative_mad(p) if len(p) > 2 else 0.0 for p in self.probes)

    @property
    def stolen(self) -> float:
        """Mean share of the time in which others had the cores."""
        return sum(self.thefts) / len(self.thefts) if self.thefts else 0.0

    def run(self, precision: float) -> None:
        """Rounds over the cells until all are done or the budget is spent."""
        for number in range(1, MOST_ROUNDS + 1):
            if number > ROUNDS:
                if max(self.noise, self.stolen) <= precision or self.elapsed > self.budget:
                    return
                self._tell(
                    f"noise {self.noise:.1%}, and {self.stolen:.1%} of the cores taken by others: "
                    f"more than {precision:.1%}, measuring longer"
                )
            for cell in self.cells:
                if self.elapsed > self.budget:
                    self._tell("the budget is spent; resume to measure what is missing")
                    return
                if (cell.key, number) not in self.done:
                    self._probe(number)
                    self._visit(cell, number)

    def _tell(self, message: str) -> None:
        planned = max(ROUNDS * len(self.cells), len(self.done))
        self.progress(Progress(len(self.done), planned, self.elapsed, message))

    def _probe(self, number: int) -> None:
        """Time the probe on all workers, now and then."""
        if self.elapsed < self.next_probe:
            return
        probes = self.workers.run(links.probe)
        elapsed = self.before + self.elapsed
        for samples, probe in zip(self.probes, probes, strict=True):
            samples.append(probe.timing.seconds)
            self.thefts.append(probe.stolen)
        rows = [
            {
                "worker": rank,
                "elapsed_s": elapsed,
                "stolen": probe.stolen,
                **milliseconds(probe.timing),
            }
            for rank, probe in enumerate(probes)
        ]
        self._write("drift", rows, number)
        self.next_probe = self.elapsed + PROBE_EVERY

    def _visit(self, cell: Cell, number: int) -> None:
        """Measure a cell, write its rows, and note that it is done."""
        try:
            found = visit(cell, self.workers, self.unit * cell.weight)
        except CalibrationError as error:
            # noted as done, so that resuming goes on beyond a cell that does not fit the device
            self._note(cell, number, failed=str(error).partition("\n")[0])
            raise
        for table, rows in found:
            self._write(table, rows, number)
        self._note(cell, number)
        self._tell(cell.key)

    def _note(self, cell: Cell, number: int, **more: str) -> None:
        """Note that a cell has been visited."""
        self.done.add((cell.key, number))
        note = {"cell": cell.key, "round": number, "elapsed_s": self.before + self.elapsed}
        append_json(self.folder / "done.jsonl", {**note, **more})

    def _write(self, table: str, rows: Rows, number: int) -> None:
        """Append rows, each with the round, the worker's number and its device."""
        if table == "steps":
            for record in rows:
                record = {**record, "id": f"{record['id']} round {number}", "round": number}
                append_json(self.folder / "steps.jsonl", record)
            return
        devices = self.workers.placement.devices
        named = [{**row, "device": devices[row["worker"]], "round": number} for row in rows]
        append_rows(self.folder, table, named)

    def describe(self) -> None:
        """Write ``machine.yaml`` with what is known by now."""
        machine = {**self.machine, "noise": round(self.noise, 5), "probes": len(self.probes[0])}
        machine["stolen"] = round(self.stolen, 5)
        machine |= {"cells": len({key for key, _ in self.done}), "planned_cells": len(self.cells)}
        machine |= {"seconds": round(self.before + self.elapsed, 1)}
        path = self.folder / "machine.yaml"
        path.write_text(yaml.safe_dump(machine, sort_keys=False), encoding="utf-8")

    def result(self) -> Measurement:
        """What has been done."""
        keys = {cell.key for cell in self.cells}
        wanted = {(key, number) for key in keys for number in range(1, ROUNDS + 1)}
        return Measurement(
            self.folder,
            complete=wanted <= self.done,
            cells=len({key for key, _ in self.done} & keys),
            planned=len(keys),
            noise=self.noise,
            stolen=self.stolen,
            seconds=self.elapsed,
        )
