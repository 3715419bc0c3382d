"""What follows from streams and waits: neighbours on a stream, an order to run in, deadlocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mpsim.errors import ScheduleError
from mpsim.schedule.compiled import compiled, pays
from mpsim.schedule.ops import Ints

Indices = NDArray[np.integer[Any]]


class Edges(NamedTuple):
    """Waits between ops. Letter: E edges."""

    after: Indices  # (E,) the op that waits
    before: Indices  # (E,) the op that is waited for


def by_waiting_op(edges: Sequence[Edges], num_ops: int) -> tuple[Ints, Ints]:
    """The edges as ``(pred_starts, pred)`` of an OpGraph."""
    after = np.concatenate([edge.after for edge in edges], dtype=np.int32)
    before = np.concatenate([edge.before for edge in edges], dtype=np.int32)
    if np.any(after[1:] < after[:-1]):
        by_after = np.argsort(after, kind="stable")
        after, before = after[by_after], before[by_after]
    # Counts from where the waiting op changes: three times as fast as bincount.
    ends = np.append(np.flatnonzero(after[1:] != after[:-1]) + 1, len(after))[: len(after)]
    starts = np.zeros(num_ops + 1, np.int32)
    starts[after[ends - 1] + 1] = np.diff(ends, prepend=0)
    return np.cumsum(starts, dtype=np.int32), before


def _advance(
    head: list[int],
    following: list[int],
    pred_starts: list[int],
    pred: list[int],
    done: list[bool],
    waiting: list[int],
    next_waiting: list[int],
    able: list[int],
    topological: list[int],
) -> int:
    """Lets each stream go on until an op waits for another stream; returns how many ops ran.

    A stream that stops joins the list of those ``waiting`` for the op that stops it, and is woken
    when that op has run: each op is visited once, and once more for each time its stream stops.
    """
    count, top = 0, len(head)
    while top > 0:
        top -= 1
        stream = able[top]
        op = head[stream]
        while op >= 0:
            missing = -1
            for edge in range(pred_starts[op], pred_starts[op + 1]):
                if not done[pred[edge]]:
                    missing = pred[edge]
                    break
            if missing >= 0:
                next_waiting[stream] = waiting[missing]
                waiting[missing] = stream
                break
            done[op] = True
            topological[count] = op
            count += 1
            woken = waiting[op]
            while woken >= 0:
                able[top] = woken
                top += 1
                woken = next_waiting[woken]
            op = following[op]
        head[stream] = op
    return count


def _link(
    stream: list[int],
    head: list[int],
    last: list[int],
    previous: list[int],
    following: list[int],
) -> None:
    """Fills the neighbours of each op on its stream, and the first op of each stream."""
    for op in range(len(stream)):
        before = last[stream[op]]
        last[stream[op]] = op
        previous[op] = before
        if before >= 0:
            following[before] = op
        else:
            head[stream[op]] = op


class Sequenced(NamedTuple):
    """How the ops of a graph follow each other. Letter: N ops."""

    previous: Ints  # (N,) op before it on its stream; -1: none
    topological: Ints  # (N,) the ops, each after all that it waits for


def sequenced(stream: Ints, num_streams: int, *, pred_starts: Ints, pred: Ints) -> Sequenced:
    """An order of the ops in which each comes after all that it waits for.

    Streams advance one after the other, each as far as it can, without any sorting.

    Raises:
        ScheduleError: If ops wait for each other in a circle; ``ops`` are their indices.
    """
    num_ops = len(stream)
    by_op = [np.full(num_ops, -1, np.int32) for _ in range(4)]
    by_stream = [np.full(num_streams, -1, np.int32) for _ in range(3)]
    able = np.arange(num_streams, dtype=np.int32)[::-1].copy()
    arrays: list[Any] = [
        stream,
        *by_op,
        *by_stream,
        able,
        pred_starts,
        pred,
        np.zeros(num_ops, bool),
    ]
    link: Callable[..., Any] = _link
    advance: Callable[..., int] = _advance
    if pays(num_ops):
        link, advance = compiled(_link), compiled(_advance)
    else:
        arrays = [array.tolist() for array in arrays]
    stream_, previous, following, waiting, topological, head, last, asleep, able_, *waits, done = (
        arrays
    )
    link(stream_, head, last, previous, following)
    count = advance(head, following, *waits, done, waiting, asleep, able_, topological)
    if count < num_ops:
        raise _deadlock(head, stream, pred_starts=pred_starts, pred=pred, done=np.asarray(done))
    return Sequenced(np.asarray(previous, np.int32), np.asarray(topological, np.int32))


def _deadlock(
    head: Sequence[int], stream: Ints, *, pred_starts: Ints, pred: Ints, done: NDArray[np.bool_]
) -> ScheduleError:
    """The error that names the ops of one circle: what heads each stream, and what it waits for."""
    op = next(int(op) for op in head if op >= 0)
    seen: dict[int, int] = {}
    path: list[int] = []
    while op not in seen:
        seen[op] = len(path)
        waits = pred[pred_starts[op] : pred_starts[op + 1]]
        missing = int(waits[~done[waits]][0])
        on_head = int(head[stream[missing]])
        path += [op] if missing == on_head else [op, missing]
        op = on_head
    return ScheduleError("these ops wait for each other in a circle", ops=path[seen[op] :])
