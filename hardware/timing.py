"""Repeated timing of a piece of work: warm-up, repeats, medians, a figure for the noise."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from .worker import Context

SHORTEST = 20e-6  # s of one sample: below it the clock's own 0.1 us would count for over 0.5 %
SHORTEST_CUDA = 200e-6  # s; events tell 0.5 us apart, and a queue must form behind the launches
WARMUP = 3  # calls before the first sample: caches, allocators, lazily loaded kernels
NORMAL = 1.4826  # MAD of a normal distribution → its standard deviation


@dataclass(frozen=True)
class Timing:
    """Samples of one piece of work."""

    seconds: float  # s, median
    spread: float  # relative MAD
    samples: int


def relative_mad(samples: Sequence[float]) -> float:
    """Median distance from the median, over the median, scaled to a normal's deviation.

    >>> relative_mad([1.0, 1.0, 1.0]), round(relative_mad([0.9, 1.0, 1.1]), 4)
    (0.0, 0.1483)
    """
    middle = statistics.median(samples)
    distance = statistics.median(abs(sample - middle) for sample in samples)
    return NORMAL * distance / middle if middle else 0.0


def summarise(samples: Sequence[float]) -> Timing:
    """Median, spread and number of samples."""
    return Timing(statistics.median(samples), relative_mad(samples), len(samples))


def time_alone(
    context: Context,
    work: Callable[[], object],
    budget: float,
    *,
    least: int = 5,
    on_host: bool = False,
) -> Timing:
    """Time a piece of work of one worker.

    Args:
        context: Whose device it runs on; on CUDA each sample lies between two events.
        work: What is timed; called more than once a sample if it is shorter than 20 us.
        budget: Seconds to spend.
        least: Samples to take even when the budget is used up.
        on_host: Whether the host's time to queue the work is wanted, not the device's to do it.
    """
    for _ in range(WARMUP):
        work()
    context.synchronize()
    begin = time.perf_counter()
    work()
    context.synchronize()
    once = time.perf_counter() - begin
    device = context.device.type == "cuda" and not on_host
    sample, shortest = (_sample_cuda, SHORTEST_CUDA) if device else (_sample_host, SHORTEST)
    calls = max(1, round(shortest / max(once, 1e-9)))
    samples: list[float] = []
    end = time.perf_counter() + budget
    while len(samples) < least or (time.perf_counter() < end and len(samples) < 10_000):
        samples.append(sample(work, calls))
        if on_host:
            context.synchronize()  # or the queue fills, and its device is what is timed
    return summarise(samples)


def _sample_host(work: Callable[[], object], calls: int) -> float:
    """Seconds of one call on the host."""
    begin = time.perf_counter()
    for _ in range(calls):
        work()
    return (time.perf_counter() - begin) / calls


def _sample_cuda(work: Callable[[], object], calls: int) -> float:
    """Seconds of one call on the device, between two events of the current stream."""
    begin = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    begin.record()
    for _ in range(calls):
        work()
    end.record()
    end.synchronize()
    milliseconds: float = begin.elapsed_time(end)
    return milliseconds / 1e3 / calls


def agree(value: float) -> float:
    """The first worker's number, on all workers."""
    shared = torch.tensor(value, dtype=torch.float64)
    dist.broadcast(shared, src=0)
    return float(shared.item())


def time_together(
    context: Context, work: Callable[[], object], budget: float, *, least: int = 5
) -> Timing:
    """Time a piece of work that all workers do in step, such as a collective.

    All do it equally often, as often as the first worker finds that the budget allows. The host's
    clock is read when the device is done.
    """
    for _ in range(WARMUP):
        work()
    context.synchronize()
    dist.barrier()
    once = min(_sample_synchronized(context, work) for _ in range(5))  # the quickest: undisturbed
    count = int(agree(max(least, min(5_000, budget / max(once, 1e-7)))))
    return summarise([_sample_synchronized(context, work) for _ in range(count)])


def _sample_synchronized(context: Context, work: Callable[[], object]) -> float:
    """Seconds of one call by the host's clock, until the device is done."""
    begin = time.perf_counter()
    work()
    context.synchronize()
    return time.perf_counter() - begin
