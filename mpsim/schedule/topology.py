"""What follows from streams and waits: neighbours on a stream, an order to run in, deadlocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mpsim.errors import ScheduleError
from mpsim.schedule.compiled import compiled, pays
from mpsim.schedule.ops import Ints


class Edges(NamedTuple):
    """Waits between ops. Letter: E edges."""

    after: Ints  # (E,) the op that waits
    before: Ints  # (E,) the op that is waited for


def previous_on_stream(stream: Ints, num_streams: int) -> Ints:  # (N,)
    """The op before each op on its stream, by index; -1: none."""
    # numpy sorts 16-bit integers by radix, ten times as fast as wider ones.
    key = stream.astype(np.uint16) if num_streams <= 2**16 else stream
    by_stream = np.argsort(key, kind="stable").astype(np.int32)
    before = np.full(len(stream), -1, np.int32)
    sorted_stream = stream[by_stream]
    same = sorted_stream[1:] == sorted_stream[:-1]
    before[by_stream[1:]] = np.where(same, by_stream[:-1], -1)
    return before


def by_waiting_op(edges: Sequence[Edges], num_ops: int) -> tuple[Ints, Ints]:
    """The edges as ``(pred_starts, pred)`` of an OpGraph."""
    after = np.concatenate([edge.after for edge in edges])
    before = np.concatenate([edge.before for edge in edges])
    if np.any(after[1:] < after[:-1]):
        by_after = np.argsort(after, kind="stable")
        after, before = after[by_after], before[by_after]
    starts = np.zeros(num_ops + 1, np.int32)
    np.cumsum(np.bincount(after, minlength=num_ops), out=starts[1:])
    return starts, before.astype(np.int32, copy=False)


def _advance(
    head: Any,
    following: Any,
    pred_starts: Any,
    pred: Any,
    done: Any,
    waiting: Any,
    next_waiting: Any,
    able: Any,
    topological: Any,
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


def topological_order(
    stream: Ints, previous: Ints, pred_starts: Ints, pred: Ints, *, num_streams: int
) -> Ints:  # (N,)
    """An order of the ops in which each comes after all that it waits for.

    Streams advance one after the other, each as far as it can, without any sorting.

    Raises:
        ScheduleError: If ops wait for each other in a circle; ``ops`` are their indices.
    """
    num_ops = len(stream)
    following = np.full(num_ops, -1, np.int32)
    chained = np.flatnonzero(previous >= 0)
    following[previous[chained]] = chained
    head = np.full(num_streams, -1, np.int32)
    first = np.flatnonzero(previous < 0)
    head[stream[first]] = first
    able = np.arange(num_streams, dtype=np.int32)[::-1].copy()
    none, done = np.full(num_ops, -1, np.int32), np.zeros(num_ops, np.bool_)
    topological = np.empty(num_ops, np.int32)
    arrays: list[NDArray[Any]] = [
        head, following, pred_starts, pred, done, none, np.empty(num_streams, np.int32), able,
        topological,
    ]  # fmt: skip
    if pays(num_ops):
        count = compiled(_advance)(*arrays)
    else:
        lists = [array.tolist() for array in arrays]
        count = _advance(*lists)
        head, done = np.array(lists[0], np.int32), np.array(lists[4], np.bool_)
        topological = np.array(lists[-1], np.int32)
    if count < num_ops:
        raise _deadlock(head, stream, pred_starts, pred, done)
    return topological


def _deadlock(
    head: Ints, stream: Ints, pred_starts: Ints, pred: Ints, done: NDArray[np.bool_]
) -> ScheduleError:
    """The error that names the ops of one circle: what heads each stream, and what it waits for."""
    op = int(head[head >= 0][0])
    seen: dict[int, int] = {}
    path: list[int] = []
    while op not in seen:
        seen[op] = len(path)
        waits = pred[pred_starts[op] : pred_starts[op + 1]]
        missing = int(waits[~done[waits]][0])
        path += [op] if missing == head[stream[missing]] else [op, missing]
        op = int(head[stream[missing]])
    circle = path[seen[op] :]
    return ScheduleError("deadlock: these ops wait for each other in a circle", ops=circle)
