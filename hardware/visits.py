"""What measuring a cell yields: the rows of its table, by the kind of cell."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from . import kernels, links
from .cells import Cell
from .pipeline import run_pipeline
from .provenance import describe_machine
from .records import step_record
from .runtime_costs import runtime_costs
from .timing import Timing
from .workers import Workers

Rows = Sequence[dict[str, Any]]
Visit = Callable[[Cell, Workers, float], list[tuple[str, Rows]]]


def visit(cell: Cell, workers: Workers, budget: float) -> list[tuple[str, Rows]]:
    """Measure a cell for about ``budget`` seconds: rows by table, each with its worker."""
    return _VISITS[cell.table](cell, workers, budget)


def milliseconds(timing: Timing) -> dict[str, Any]:
    """Columns of a timing in milliseconds."""
    return {"ms": timing.seconds * 1e3, "spread": timing.spread, "samples": timing.samples}


def _microseconds(timing: Timing) -> dict[str, Any]:
    """Columns of a timing in microseconds."""
    return {"us": timing.seconds * 1e6, "spread": timing.spread, "samples": timing.samples}


def _by_worker(fixed: dict[str, Any], timings: Sequence[Timing | None]) -> Rows:
    """A row for each worker that has a timing."""
    return [
        {**fixed, "worker": rank, **milliseconds(timing)}
        for rank, timing in enumerate(timings)
        if timing is not None
    ]


def _gemm(cell: Cell, workers: Workers, budget: float) -> list[tuple[str, Rows]]:
    """One matrix product."""
    dtype, m, n, k = cell.arguments
    timings = workers.run(kernels.gemm, budget, dtype, m, n, k)
    return [("gemm", _by_worker({"dtype": dtype, "m": m, "n": n, "k": k}, timings))]


def _memory_bound(cell: Cell, workers: Workers, budget: float) -> list[tuple[str, Rows]]:
    """One memory-bound op."""
    op, nbytes = cell.arguments
    timings = workers.run(kernels.memory_bound, budget, op, nbytes)
    return [("memory_bound", _by_worker({"op": op, "bytes": nbytes}, timings))]


def _host_copy(cell: Cell, workers: Workers, budget: float) -> list[tuple[str, Rows]]:
    """One copy between host and GPU."""
    op, nbytes = cell.arguments
    timings = workers.run(kernels.host_copy, budget, op, nbytes)
    fixed = {"op": op, "gpus": 1, "bytes": nbytes, "link": "pcie"}
    return [("collectives", _by_worker(fixed, timings))]


def _launch(cell: Cell, workers: Workers, budget: float) -> list[tuple[str, Rows]]:
    """Host overheads."""
    results = workers.run(kernels.launch, budget)
    rows = [
        {"what": what, "worker": rank, **_microseconds(timing)}
        for rank, result in enumerate(results)
        for what, timing in result.items()
    ]
    return [("launch", rows)]


def _runtime(cell: Cell, workers: Workers, budget: float) -> list[tuple[str, Rows]]:
    """Overheads of the pipeline runtime, of all workers together."""
    costs = runtime_costs(workers, budget)
    rows = [{"what": what, "worker": 0, **_microseconds(cost)} for what, cost in costs.items()]
    return [("launch", rows)]


def _layers(cell: Cell, workers: Workers, budget: float) -> list[tuple[str, Rows]]:
    """Passes of one layer."""
    network, batch = cell.arguments
    rows = [
        {
            "layer": network.name,
            "batch": batch,
            **{f"{what}_ms": timing.seconds * 1e3 for what, timing in times.items()},
            "spec": network.model_dump_json(exclude_defaults=True),
            "spread": times["fwd"].spread,
            "samples": times["fwd"].samples,
            "worker": rank,
        }
        for rank, times in enumerate(workers.run(kernels.layer, budget, network, batch))
    ]
    return [("layers", rows)]


def _collectives(cell: Cell, workers: Workers, budget: float) -> list[tuple[str, Rows]]:
    """One message or collective; the slowest worker's time counts."""
    op, nbytes = cell.arguments
    if op == "sendrecv":
        timings = workers.run(links.sendrecv, budget, nbytes)
    elif op == "sendrecv_both":
        timings = workers.run(links.sendrecv_both, budget, nbytes)
    else:
        timings = workers.run(links.collective, budget, op, nbytes)
    slowest = max(range(len(timings)), key=lambda rank: timings[rank].seconds)
    fixed = {"op": op, "gpus": len(timings), "bytes": nbytes, "link": workers.placement.link}
    return [("collectives", [{**fixed, "worker": slowest, **milliseconds(timings[slowest])}])]


def _overlap(cell: Cell, workers: Workers, budget: float) -> list[tuple[str, Rows]]:
    """Compute and a message at once."""
    width, nbytes = cell.arguments
    rows = [
        {
            "bytes": nbytes,
            "worker": rank,
            **{f"{what}_ms": value * 1e3 for what, value in result.items()},
        }
        for rank, result in enumerate(workers.run(links.overlap, budget, width, nbytes))
    ]
    return [("overlap", rows)]


def _steps(cell: Cell, workers: Workers, budget: float) -> list[tuple[str, Rows]]:
    """Whole pipeline steps: one record."""
    schedule, job = cell.arguments
    run = run_pipeline(workers, replace(job, budget=budget, steps=3, memory=True))
    machine = describe_machine(workers.placement)
    return [("steps", [step_record(schedule, job, run, identity=cell.key, machine=machine)])]


_VISITS: dict[str, Visit] = {
    "gemm": _gemm,
    "memory_bound": _memory_bound,
    "host_copy": _host_copy,
    "launch": _launch,
    "runtime": _runtime,
    "layers": _layers,
    "collectives": _collectives,
    "overlap": _overlap,
    "steps": _steps,
}
