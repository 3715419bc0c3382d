"""Messages that share a core with the compute: when the core turns to them."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

from mpsim.cost.work import Floats, Ints
from mpsim.schedule.compiled import compiled, pays
from mpsim.schedule.graph import OpGraph
from mpsim.schedule.ops import Kind


@dataclass(frozen=True, eq=False)
class Turns:
    """When cores turn to the messages of a graph. N ops; -1: none."""

    order: Ints  # (N,) ops, each after all that its time depends on
    producer: Ints  # (N,) of a transfer: the op that makes it
    before: Ints  # (N,) of a transfer: the op before its consumer, at whose end it is asked for
    release: Ints  # (N,) of a transfer: the last op before its sender next waits for a message
    waited: Ints  # (N,) of a transfer: the last op up to its producer that waited for a message


def turns(graph: OpGraph) -> Turns:
    """The turns of a graph's transfers."""
    count = graph.num_ops
    transfer = (graph.kind == Kind.SEND_F) | (graph.kind == Kind.SEND_B)
    owner = np.repeat(np.arange(count), np.diff(graph.pred_starts))
    crosses, feeds = transfer[graph.pred], transfer[owner]
    waits = np.zeros(count, bool)
    waits[owner[crosses]] = True
    producer, before, release, waited = (np.full(count, -1, np.int32) for _ in range(4))
    producer[owner[feeds]] = graph.pred[feeds]
    before[graph.pred[crosses]] = graph.previous[owner[crosses]]
    _in_channel_order(graph, before, np.flatnonzero(transfer))
    made = np.flatnonzero(producer >= 0)
    release[made] = _last_before_wait(graph, waits)[producer[made]]
    waited[made] = _last_that_waited(graph, waits)[producer[made]]
    return Turns(_order(graph, (before, release)), producer, before, release, waited)


def _in_channel_order(graph: OpGraph, before: Ints, transfers: Ints) -> None:
    """Ask for a message no later than for those behind it on its channel, which it would hold up."""
    place = np.empty(graph.num_ops, np.int64)
    place[graph.topological] = np.arange(graph.num_ops)
    following: dict[int, int] = {}
    for op in transfers[np.argsort(place[transfers])][::-1].tolist():
        behind = following.get(int(graph.stream[op]))
        if behind is not None:
            first = before[behind]
            if first < 0 or (before[op] >= 0 and place[first] < place[before[op]]):
                before[op] = first
        following[int(graph.stream[op])] = op


def _last_before_wait(graph: OpGraph, waits: np.ndarray) -> Ints:
    """Of each op: the op on its stream after which the core next waits for a message, (N,).

    After the last compute op of a step it waits for its last messages to leave.
    """
    last = np.arange(graph.num_ops, dtype=np.int32)
    following = np.full(graph.num_ops, -1, np.int32)
    later = np.flatnonzero(graph.previous >= 0)
    following[graph.previous[later]] = later
    for op in graph.topological[::-1].tolist():
        after = following[op]
        if after >= 0 and not waits[after] and graph.kind[after] != Kind.STEP:
            last[op] = last[after]
    return last


def _last_that_waited(graph: OpGraph, waits: np.ndarray) -> Ints:
    """Of each op: itself or the latest op before it on its stream that waits, (N,); -1: none."""
    last = np.full(graph.num_ops, -1, np.int32)
    for op in graph.topological.tolist():
        last[op] = op if waits[op] else last[graph.previous[op]] if graph.previous[op] >= 0 else -1
    return last


def _order(graph: OpGraph, also: tuple[Ints, ...]) -> Ints:
    """A topological order in which transfers come after the ops of ``also`` as well.

    Both lie before the consumer in any case: the op before it, and an op of the sender that waits
    for nothing since the producer.
    """
    count = graph.num_ops
    owner = np.repeat(np.arange(count), np.diff(graph.pred_starts))
    pairs = [(graph.pred, owner)]
    for before in (graph.previous, *also):
        later = np.flatnonzero(before >= 0)
        pairs.append((before[later], later))
    source = np.concatenate([a for a, _ in pairs])
    target = np.concatenate([b for _, b in pairs])
    by_source = np.argsort(source, kind="stable")
    starts = np.searchsorted(source[by_source], np.arange(count + 1)).tolist()
    after = target[by_source].tolist()
    missing = np.bincount(target, minlength=count).tolist()
    ready = deque(op for op in range(count) if not missing[op])
    order = []
    while ready:
        op = ready.popleft()
        order.append(op)
        for later in after[starts[op] : starts[op + 1]]:
            missing[later] -= 1
            if not missing[later]:
                ready.append(later)
    assert len(order) == count, "a message waits for what waits for it"
    return np.array(order, np.int32)


def held_times(
    graph: OpGraph, turn: Turns, lengths: Floats, slice_: float
) -> tuple[Floats, Floats, Floats]:
    """Begin and end of each op, and how long each transfer waits for its sender's core; (N,) each.

    The core that computes also moves the messages, in a thread of its own. That thread gets the
    core whenever the worker waits for a message itself, or when the scheduler's slice is over. A
    message leaves at once if the receiver has asked for it and that thread has run since; else

        leaves = min(max(next wait of the sender, asked for), made + slice)

    where the receiver asks when it turns to the op that needs the message. That the sender computes
    again when it is asked late is not counted.

    Args:
        graph: The ops.
        turn: Its turns.
        lengths: Seconds of the ops; of transfers without the hold.
        slice_: Longest that a message waits for a core that computes, s.
    """
    count = graph.num_ops
    arrays = (
        turn.order, turn.producer, turn.before, turn.release, turn.waited,
        graph.previous, graph.pred_starts, graph.pred, np.ascontiguousarray(lengths, float),
    )  # fmt: skip
    begin, end, held = np.zeros(count), np.zeros(count), np.zeros(count)
    if pays(count):
        compiled(_sweep)(*arrays, float(slice_), begin, end, held)
        return begin, end, held
    lists = [array.tolist() for array in (*arrays, begin, end, held)]
    _sweep(*lists[:9], float(slice_), *lists[9:])
    return np.array(lists[9]), np.array(lists[10]), np.array(lists[11])


def _sweep(
    order: list[int],
    producer: list[int],
    before: list[int],
    release: list[int],
    waited: list[int],
    previous: list[int],
    pred_starts: list[int],
    pred: list[int],
    lengths: list[float],
    slice_: float,
    begin: list[float],
    end: list[float],
    held: list[float],
) -> None:
    """Fill the times, op by op; plain Python, or compiled."""
    for op in order:
        start = 0.0
        if previous[op] >= 0:
            start = end[previous[op]]
        for edge in range(pred_starts[op], pred_starts[op + 1]):
            if end[pred[edge]] > start:
                start = end[pred[edge]]
        hold = 0.0
        if producer[op] >= 0:
            made = end[producer[op]]
            asked = end[before[op]] if before[op] >= 0 else 0.0
            direct = waited[op] >= 0 and begin[waited[op]] >= asked and asked <= made
            if not direct:
                leaves = max(end[release[op]], asked)
                hold = max(min(leaves, made + slice_) - start, 0.0)
        begin[op] = start
        held[op] = hold
        end[op] = start + lengths[op] + hold
