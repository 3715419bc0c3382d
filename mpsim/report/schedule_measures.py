"""What an order does when its ops take given times: makespan, bubbles, memory, messages.

The model is that of the closed forms: an op begins when its device is free and its inputs are
there; an input from another device arrives one hop after its producer has ended; links are not
contended and sends never block. A fused block lasts ``OpTimes.fused``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mpsim.cost.work import Floats, Work
from mpsim.engine.longest_path import run
from mpsim.schedule.graph import OpGraph
from mpsim.schedule.lowering import lower
from mpsim.schedule.ops import Ints, Kind, Order
from mpsim.schedule.orders import OpTimes


@dataclass(frozen=True, eq=False)
class ScheduleMeasures:
    """An order timed. Letters: N ops, P devices."""

    order: Order
    begin: Floats  # (N,) s, of the ops of the order
    end: Floats  # (N,) s
    busy: Floats  # (P,) s
    spans: Floats  # (P,) s, from the begin of a device's first op to the end of its last
    peaks_freed_at_input: Ints  # (P,) activations of one stage, microbatch and slice
    peaks_freed_at_weight: Ints  # (P,)
    p2p: dict[str, int]  # messages by directed pair: ``fwd 0->1``, ``bwd 1->0``

    @property
    def makespan(self) -> float:  # s
        """End of the last op."""
        return float(self.end.max())

    @property
    def span(self) -> float:  # s
        """The longest span of a device: what counts if iterations are chained without a barrier."""
        return float(self.spans.max())

    @property
    def work(self) -> float:  # s
        """Busy time of the busiest device: what the makespan would be without bubble."""
        return float(self.busy.max())

    @property
    def makespan_bubble(self) -> float:  # s
        """Makespan less the work."""
        return self.makespan - self.work

    @property
    def span_bubble(self) -> float:  # s
        """Span less the work."""
        return self.span - self.work

    @property
    def idle(self) -> Floats:  # (P,) s
        """Makespan less the busy time of each device."""
        return self.makespan - self.busy


def measure(order: Order, times: OpTimes) -> ScheduleMeasures:
    """Time an order and count what it holds and sends.

    Raises:
        ScheduleError: If the order is incomplete or deadlocks.
    """
    graph = lower(order, p2p="latency", step=False)
    timeline = run(graph, _work(graph, times))
    count = len(order.kind)
    begin, end = timeline.begin[:count], timeline.end[:count]
    first, last = order.starts[:-1], order.starts[1:] - 1
    return ScheduleMeasures(
        order=order,
        begin=begin,
        end=end,
        busy=np.add.reduceat(end - begin, first),
        spans=end[last] - begin[first],
        peaks_freed_at_input=peak_activations(order, freed_at=Kind.I),
        peaks_freed_at_weight=peak_activations(order, freed_at=Kind.W),
        p2p=messages(graph),
    )


def peak_activations(order: Order, *, freed_at: Kind) -> Ints:  # (P,)
    """Most activations that each device holds: F adds one, B and I (or W) free one.

    Counted along the list of the device; in a fused block, F first.

    Args:
        order: The order.
        freed_at: ``Kind.I`` or ``Kind.W``, the part of a split backward that frees.
    """
    share = 1.0 if freed_at == Kind.I else 0.0
    return np.rint(peak_held(order, freed_at_input=share)).astype(np.int32)


def peak_held(order: Order, *, freed_at_input: float) -> Floats:  # (P,)
    """Most activations that each device holds if I frees a share of them and W the rest.

    Counted along the list of the device; in a fused block, F first.
    """
    by_kind = np.zeros(len(Kind))
    by_kind[[Kind.F, Kind.B]] = 1.0, -1.0
    by_kind[[Kind.I, Kind.W]] = -freed_at_input, freed_at_input - 1.0
    change = by_kind[order.kind]
    held = np.cumsum(change)
    first = order.starts[:-1]
    peak: Floats = np.maximum.reduceat(held, first) - (held[first] - change[first])
    return peak


def messages(graph: OpGraph) -> dict[str, int]:
    """Messages of an iteration by directed pair of devices and direction of the model."""
    counts: dict[str, int] = {}
    for kind, word in ((Kind.SEND_F, "fwd"), (Kind.SEND_B, "bwd")):
        sends = np.flatnonzero(graph.kind == kind)
        pairs = graph.device[sends].astype(np.int64) * graph.num_devices + graph.peer[sends]
        for pair, count in zip(*np.unique(pairs, return_counts=True), strict=True):
            source, target = divmod(int(pair), graph.num_devices)
            counts[f"{word} {source}->{target}"] = int(count)
    return counts


def steady_period(make: Callable[[int], Order], times: OpTimes, *, num_devices: int) -> float:  # s
    """Seconds of a microbatch in the long run: the slope of the makespan over microbatches.

    What counts for asynchronous schedules, which fill and drain once in a run. Taken between
    10 p and 20 p microbatches: with p microbatches under way the makespan grows by the same for
    every p of them once the pipeline is full.

    Args:
        make: The order for a number of microbatches.
        times: Seconds of the ops.
        num_devices: Devices, p.
    """
    few, many = 10 * num_devices, 20 * num_devices
    growth = measure(make(many), times).makespan - measure(make(few), times).makespan
    return growth / (many - few)


def _work(graph: OpGraph, times: OpTimes) -> Work:
    """Seconds of each op of a graph; a fused block's are dealt in proportion to its ops'."""
    by_kind = np.zeros(len(Kind))
    by_kind[Kind.F], by_kind[Kind.B] = times.forward, times.backward
    by_kind[Kind.I], by_kind[Kind.W] = times.input, times.weight
    by_kind[[Kind.SEND_F, Kind.SEND_B]] = times.hop
    seconds: NDArray[np.float64] = by_kind[graph.kind]
    if times.fused is not None:
        apart = times.forward + times.backward
        seconds[graph.block >= 0] *= times.fused / apart if apart else 1.0
    none = np.full(graph.num_ops, -1, np.int32)
    return Work(seconds, np.zeros(graph.num_ops), none)
