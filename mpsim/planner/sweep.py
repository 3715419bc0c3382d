"""Runs a grid: every point simulated by the fast engine, resumed where it was interrupted."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mpsim.errors import MpsimError
from mpsim.planner.evaluate import Runner
from mpsim.planner.executors import Map
from mpsim.planner.grid import Grid, filled
from mpsim.planner.results import Results
from mpsim.report.metrics import busy_seconds
from mpsim.spec.model import Transformer
from mpsim.spec.reader import changed
from mpsim.spec.scenario import Scenario
from mpsim.units import format_bytes
from mpsim.workload.flops import model_flops

_CHUNK = 128
"""Points that travel together to a process; results come back as soon as a chunk is done."""

COLUMNS = (
    *("status", "reason", "devices", "step_time_s", "tokens_per_s", "memory_bytes"),
    *("capacity_bytes", "idle_fraction", "model_flops_utilisation", "usd_per_step"),
)
"""What each row holds beside the values of the axes."""


@dataclass(frozen=True)
class Task:
    """Some points of a grid; everything that a worker needs."""

    scenario: Scenario
    points: tuple[tuple[int, Mapping[str, Any]], ...]  # place and fields
    fill: str  # what follows so that degrees make up the devices


def tasks(grid: Grid, done: Mapping[int, Any]) -> Iterator[Task]:
    """The points that are not done, in chunks."""
    scenario = grid.scenario.model_copy(update={"variants": {}})
    left = (entry for entry in enumerate(grid.points()) if entry[0] not in done)
    while chunk := tuple(itertools.islice(left, _CHUNK)):
        yield Task(scenario, chunk, grid.fill)


def run_task(task: Task) -> list[tuple[int, dict[str, Any]]]:
    """The rows of some points."""
    runner = Runner()
    load_compiled()
    return [
        (place, row(task.scenario, fields, runner, fill=task.fill)) for place, fields in task.points
    ]


def load_compiled() -> None:
    """Load the compiled loops of the fast engine, which pay when many graphs follow."""
    importlib.import_module("numba")


def row(
    scenario: Scenario, fields: Mapping[str, Any], runner: Runner, *, fill: str = "none"
) -> dict[str, Any]:
    """One point: its figures; ``status`` is ok, infeasible (with what it needs) or invalid."""
    listed = {path: _listed(value) for path, value in fields.items()}
    blank: dict[str, Any] = dict.fromkeys(COLUMNS)
    try:
        point = changed(scenario, filled(scenario, listed, fill))
        done = runner.run(point)
    except MpsimError as error:
        return listed | blank | {"status": "invalid", "reason": str(error).split("\n")[0]}
    step, memory = done.step, done.memory
    capacity = point.cluster.device.memory
    compute, exchange = busy_seconds(done.compiled.graph, done.compiled.work)
    fits = memory <= capacity
    reason = None if fits else f"needs {format_bytes(memory)}, has {format_bytes(capacity)}"
    devices, price = point.cluster.devices, point.cluster.price
    return listed | {
        "status": "ok" if fits else "infeasible",
        "reason": reason,
        "devices": devices,
        "step_time_s": step,
        "tokens_per_s": point.training.global_batch * point.training.sequence / step,
        "memory_bytes": memory,
        "capacity_bytes": capacity,
        "idle_fraction": max(0.0, 1 - float((compute + exchange).mean()) / step),
        "model_flops_utilisation": _utilisation(point, step),
        "usd_per_step": None if price is None else price * devices * step,
    }


def _listed(value: Any) -> Any:  # noqa: ANN401
    return list(value) if isinstance(value, tuple) else value


def _utilisation(scenario: Scenario, step: float) -> float | None:
    """Model FLOP/s (6 N a token) over the peak; transformers only."""
    if not isinstance(scenario.model, Transformer):
        return None
    flops = model_flops(scenario.model, scenario.plan, scenario.training)
    peak = scenario.cluster.device.peak[scenario.training.precision] * scenario.cluster.devices
    return scenario.training.global_batch * flops.six_n / (step * peak)


def sweep(
    grid: Grid, results: Results, run_map: Map, *, progress: Callable[[int], None] = lambda _: None
) -> list[Mapping[str, Any]]:
    """Run what is not done of a grid.

    Every chunk is on disk before ``progress`` hears of it, so an interruption loses no more than
    the chunks under way.

    Returns:
        The rows of all points, in the order of the grid.
    """
    progress(len(results.rows))
    left = list(tasks(grid, results.rows))
    if left:
        with results.appending() as file:
            for _, rows in run_map(run_task, left):
                for place, values in rows:
                    results.add(file, place, values)
                file.flush()
                progress(len(rows))
    return [results.rows[place] for place in range(len(grid))]
