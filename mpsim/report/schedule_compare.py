"""All schedules side by side for the same work: which is quickest, which fits, which cannot be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from mpsim.errors import ScheduleError
from mpsim.report.schedule_measures import ScheduleMeasures, measure, peak_held, steady_period
from mpsim.schedule.ops import Order
from mpsim.schedule.orders import SCHEDULES, OpTimes, make_order


@dataclass(frozen=True)
class Wanted:
    """What all schedules are asked for.

    ``times`` are those of a device: of all its stages for one whole microbatch. Each schedule's
    ops take their share, divided by its chunks and slices, so that all do the same work.
    """

    num_devices: int
    num_microbatches: int
    times: OpTimes
    num_chunks: int | None = None
    group_size: int | None = None
    num_slices: int = 1
    memory_limit: float | None = None  # microbatches of a device's stages
    freed_at_input: float = 0.5


@dataclass(frozen=True)
class Row:
    """One schedule of a comparison."""

    name: str
    num_chunks: int
    makespan: float  # s; of an asynchronous schedule m times the steady period
    span: float  # s
    work: float  # s
    peak: float  # microbatches of a device's stages, as the memory model counts
    weight_copies: int
    weight_versions: int
    num_messages: int

    @property
    def bubble_fraction(self) -> float:
        """Share of the makespan in which the busiest device idles."""
        return 1 - self.work / self.makespan

    @property
    def span_bubble_fraction(self) -> float:
        """Share of the span in which the busiest device idles."""
        return 1 - self.work / self.span


@dataclass(frozen=True)
class Comparison:
    """Schedules by rising makespan, and why the others are out."""

    rows: list[Row]
    refused: dict[str, str]


def compare(wanted: Wanted, names: Sequence[str] = tuple(SCHEDULES)) -> Comparison:
    """Rank schedules; those that cannot be had or exceed the memory limit are refused."""
    rows, refused = [], {}
    for name in names:
        try:
            row = _row(name, wanted)
        except ScheduleError as error:
            refused[name] = error.what.removeprefix(f"{name}: ")
            continue
        if wanted.memory_limit is not None and row.peak > wanted.memory_limit + 1e-9:
            refused[name] = f"holds {row.peak:g} microbatches, over {wanted.memory_limit:g}"
            continue
        rows.append(row)
    return Comparison(sorted(rows, key=lambda row: (row.makespan, row.span, row.peak)), refused)


def _row(name: str, wanted: Wanted) -> Row:
    schedule = SCHEDULES.get(name)
    chunks = wanted.num_chunks if schedule and schedule.chunks == "many" else None
    slices = wanted.num_slices if schedule and schedule.slices else 1
    chunks = chunks or (schedule.default_chunks if schedule else 1)
    times = _share(wanted.times, chunks * slices)
    limit = wanted.memory_limit

    def make(num_microbatches: int) -> Order:
        return make_order(
            name,
            num_devices=wanted.num_devices,
            num_microbatches=num_microbatches,
            num_chunks=chunks,
            group_size=wanted.group_size,
            num_slices=slices,
            times=times,
            memory_limit=None if limit is None else limit * chunks,
            freed_at_input=wanted.freed_at_input,
        )

    order = make(wanted.num_microbatches)
    measures = measure(order, times)
    makespan, span = _long_run(measures, times, wanted, make)
    held = peak_held(order, freed_at_input=wanted.freed_at_input).max()
    return Row(
        name=name,
        num_chunks=chunks,
        makespan=makespan,
        span=span,
        work=measures.work,
        peak=float(held) / (chunks * slices),
        weight_copies=order.weight_copies,
        weight_versions=max(order.weight_versions or (1,)),
        num_messages=sum(measures.p2p.values()),
    )


def _long_run(
    measures: ScheduleMeasures, times: OpTimes, wanted: Wanted, make: Callable[[int], Order]
) -> tuple[float, float]:  # s, s
    """Makespan and span; of an asynchronous schedule those of its steady state."""
    if measures.order.synchronous:
        return measures.makespan, measures.span
    period = steady_period(make, times, num_devices=wanted.num_devices)
    return period * wanted.num_microbatches, period * wanted.num_microbatches


def _share(times: OpTimes, parts: int) -> OpTimes:
    """Times of one of the equal parts that a device's work is cut into."""
    return replace(
        times,
        forward=times.forward / parts,
        input=times.input / parts,
        weight=times.weight / parts,
        fused=None if times.fused is None else times.fused / parts,
    )
