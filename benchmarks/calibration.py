"""How far predictions for measured workers are off, on steps that no fit has seen.

    python benchmarks/calibration.py measure FOLDER [--realtime] [--budget 180] [--held-out 100]
                                                    [--seed 7]
    python benchmarks/calibration.py judge FOLDER...

``measure`` calibrates into FOLDER/measured and runs a grid of other steps into FOLDER/held_out:
other widths, splits, batches, schedules, microbatch counts 1 to 64. ``judge`` fits the first,
predicts the second, and prints the bars.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from mpsim.calibration.cells import Cell, read_cells
from mpsim.calibration.machine import fit_machine
from mpsim.cost.worker import worker_step_seconds
from mpsim.report.interval import demand_interval
from mpsim.spec.workers import WorkerFit, Workers

WIDTHS = (96, 192, 320, 448)
SCHEDULES = ("gpipe", "1f1b", "interleaved_1f1b", "looped_bfs", "zb_h1", "interleaved_zb", "zb_v")
SERIES = ((192, "1f1b"), (448, "1f1b"), (320, "gpipe"))
HOST = (
    "forward", "backward", "input_gradient", "weight_gradient", "loss", "views", "kernel",
    "backward_kernel", "split_kernel", "send", "receive", "wake", "gap", "setup", "update",
    "tensor", "latency",
)  # fmt: skip
"""Parameters that a model without launch overhead does not have."""


def grid(seed: int) -> Iterator[tuple[str, object]]:
    """The held-out steps: series over microbatch counts, and a draw of all else by `seed`."""
    from mpsim.hardware.cells import MICROBATCHES, step_job
    from mpsim.hardware.models import block_stack, layer_stack

    for (width, schedule), count in itertools.product(SERIES, MICROBATCHES):
        job = step_job(layer_stack(width, 8), schedule, count, batch=192)
        if job is not None:
            yield schedule, job
    generator = np.random.default_rng(seed)
    for schedule, count, _ in itertools.product(SCHEDULES, MICROBATCHES, range(2)):
        if generator.random() < 0.2:
            model, batch, sequence = block_stack(int(generator.choice((48, 96))), 6), 64, 16
        else:
            model, sequence = layer_stack(int(generator.choice(WIDTHS)), 8), 1
            batch = int(generator.choice((64, 192, 256)))
        shift = int(generator.integers(-1, 2))
        job = step_job(model, schedule, count, batch=batch, sequence=sequence, shift=shift)
        if job is not None:
            yield schedule, job


def measure(folder: Path, *, budget: float, held_out: float, realtime: bool, seed: int) -> None:
    """Calibrate, then run the held-out steps."""
    from mpsim.cli.measuring import measure_machine
    from mpsim.hardware.measure import choose_placement
    from mpsim.hardware.pipeline import run_pipeline
    from mpsim.hardware.provenance import describe_machine
    from mpsim.hardware.records import append_json, step_record
    from mpsim.hardware.workers import Workers

    if not (folder / "seconds.txt").exists():
        begin = time.monotonic()
        measure_machine(
            folder / "measured", devices=None, budget=budget, resume=False, realtime=realtime
        )
        (folder / "seconds.txt").write_text(f"{time.monotonic() - begin:.1f}\n", encoding="utf-8")
    cells = list({str(job): (job, schedule) for schedule, job in grid(seed)}.values())
    cells = [cells[place] for place in np.random.default_rng(0).permutation(len(cells))]
    placement = choose_placement("cpu,cpu")
    machine = describe_machine(placement)
    (folder / "held_out").mkdir(parents=True, exist_ok=True)
    with Workers(placement, realtime=realtime) as workers:
        for job, schedule in cells:
            run = run_pipeline(workers, replace(job, budget=held_out / len(cells) / 2, steps=5))
            counts = "-".join(map(str, job.counts))
            name = f"{job.model.name} {schedule} m{job.microbatches} b{job.batch} {counts}"
            record = step_record(schedule, job, run, identity=name, machine=machine)
            append_json(folder / "held_out" / "steps.jsonl", record)


def judge(folders: Sequence[Path]) -> None:
    """Print the bars of each folder."""
    for folder in folders:
        begin = time.monotonic()
        profile = fit_machine(folder / "measured", name=folder.name)
        seconds = time.monotonic() - begin
        workers = profile.workers
        assert workers is not None
        cells = read_cells(folder / "held_out" / "steps.jsonl")
        measured = float((folder / "seconds.txt").read_text(encoding="utf-8"))
        print(f"{folder.name}: measured {measured:.0f} s, fitted in {seconds:.0f} s")
        _errors(cells, workers, "all")
        inside = [cell for cell in cells if not workers.outside(cell.facts)]
        _errors(inside, workers, "inside the fitted range")
        _best(cells, workers.fit)


def _errors(cells: Sequence[Cell], workers: Workers, which: str) -> None:
    """Errors and coverage of the held-out cells."""
    predicted = np.array([worker_step_seconds(cell.asked, workers.fit) for cell in cells])
    measured = np.array([cell.seconds for cell in cells])
    errors = np.abs(predicted / measured - 1)
    bounds = [demand_interval(cell.asked, cell.facts, workers, seed=0).bounds for cell in cells]
    inside = [low <= cell.seconds <= high for cell, (low, high) in zip(cells, bounds, strict=True)]
    width = np.median([high / low for low, high in bounds])
    print(
        f"  {len(cells)} cells, {which}: median {np.median(errors):.1%}, p90 "
        f"{np.quantile(errors, 0.9):.1%},"
        f" within 15 % {np.mean(errors <= 0.15):.0%}; in the 90 % interval {np.mean(inside):.0%},"
        f" whose ends are a factor {width:.2f} apart"
    )
    for index in np.argsort(-errors)[:6]:
        print(f"    {predicted[index] / measured[index] - 1:+.0%}  {cells[index].name}")


def _best(cells: Sequence[Cell], fit: WorkerFit) -> None:
    """Best microbatch counts: measured, predicted, and without launch overhead."""
    bare = WorkerFit.of(fit.values | dict.fromkeys(HOST, 1e-12))
    for width, schedule in SERIES:
        start = f"stack 8 x {width} {schedule} m"
        series = [c for c in cells if c.name.startswith(start) and "b192 8-8" in c.name]
        if not series:
            continue
        counts = [int(cell.facts["microbatches"]) for cell in series]
        real = [cell.seconds for cell in series]
        with_host = [worker_step_seconds(cell.asked, fit) for cell in series]
        without = [worker_step_seconds(cell.asked, bare) for cell in series]
        best = [counts[int(np.argmin(seconds))] for seconds in (real, with_host, without)]
        print(
            f"  best microbatches, width {width}, {schedule}: measured {best[0]}, predicted "
            f"{best[1]}, without launch overhead {best[2]}"
        )


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("measure", "judge"))
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--budget", type=float, default=180.0)
    parser.add_argument("--held-out", type=float, default=100.0)
    parser.add_argument("--seed", type=int, default=7, help="of the draw of held-out steps")
    parser.add_argument("--realtime", action="store_true")
    given = parser.parse_args()
    if given.what == "judge":
        judge(given.folders)
        return
    for folder in given.folders:
        measure(
            folder,
            budget=given.budget,
            held_out=given.held_out,
            realtime=given.realtime,
            seed=given.seed,
        )


if __name__ == "__main__":
    main()
