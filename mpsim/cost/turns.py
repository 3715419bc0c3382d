"""Messages that share a core with the compute: when the core turns to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mpsim.cost.work import Floats, Ints
from mpsim.schedule.comms import with_comms
from mpsim.schedule.compiled import compiled, pays
from mpsim.schedule.graph import OpGraph
from mpsim.schedule.ops import COMPUTE_KINDS, Kind, Op, Order

_NEVER = 1e300
"""A moment that does not come, s."""


@dataclass(frozen=True, eq=False)
class Turns:
    """Who does what in which order. Letters: D devices, C ops on the cores, M messages."""

    starts: Ints  # (D + 1,) ops of device d are ops[starts[d] : starts[d + 1]]
    ops: Ints  # (C,) compute ops and updates, by device, in order
    message: Ints  # (M,) op of each message
    sender: Ints  # (M,) device
    need_starts: Ints  # (C + 1,) messages that an op needs are needs[need_starts[c] : ...]
    needs: Ints  # (M,)
    ask_starts: Ints  # (C + 1,) messages that a core asks for when it turns to an op
    asks: Ints  # (M,)
    make_starts: Ints  # (C + 1,)
    makes: Ints  # (M,) messages that an op makes
    final: Ints  # (C,) 1 where the core first waits for its messages to leave: the update


def turns(graph: OpGraph, order: Order | None = None) -> Turns:
    """The turns of a graph whose devices are cores.

    A message is asked for where torch's runtime places the receive in the order, which may be some
    ops before the one that needs it; without an order, when the core turns to that one.
    """
    on_core = np.flatnonzero(np.isin(graph.kind, (*COMPUTE_KINDS, Kind.STEP)))
    place = np.empty(graph.num_ops, np.int64)
    place[graph.topological] = np.arange(graph.num_ops)
    ops = on_core[np.lexsort((place[on_core], graph.device[on_core]))]
    where = np.full(graph.num_ops, -1, np.int32)
    where[ops] = np.arange(len(ops), dtype=np.int32)
    transfer = (graph.kind == Kind.SEND_F) | (graph.kind == Kind.SEND_B)
    message = np.flatnonzero(transfer).astype(np.int32)
    number = np.full(graph.num_ops, -1, np.int32)
    number[message] = np.arange(len(message), dtype=np.int32)
    owner = np.repeat(np.arange(graph.num_ops), np.diff(graph.pred_starts))
    crosses = transfer[graph.pred] & (where[owner] >= 0)
    feeds = transfer[owner] & (where[graph.pred] >= 0)
    need_starts, needs = _grouped(
        where[owner[crosses]], number[graph.pred[crosses]], count=len(ops)
    )
    asker = where[owner[crosses]].copy()
    if order is not None:
        placed = _askers(order, graph, ops.astype(np.int32))
        asker = np.array(
            [
                placed.get(str(graph.op(int(owner[edge]))), int(late))
                for edge, late in zip(np.flatnonzero(crosses), asker, strict=True)
            ],
            np.int32,
        )
    ask_starts, asks = _grouped(asker, number[graph.pred[crosses]], count=len(ops))
    make_starts, makes = _grouped(where[graph.pred[feeds]], number[owner[feeds]], count=len(ops))
    counts = np.bincount(graph.device[ops], minlength=graph.num_devices)
    return Turns(
        starts=np.concatenate([[0], np.cumsum(counts)]).astype(np.int32),
        ops=ops.astype(np.int32),
        message=message,
        sender=graph.device[message].astype(np.int32),
        need_starts=need_starts,
        needs=needs,
        ask_starts=ask_starts,
        asks=asks,
        make_starts=make_starts,
        makes=makes,
        final=(graph.kind[ops] == Kind.STEP).astype(np.int32),
    )


def _askers(order: Order, graph: OpGraph, ops: Ints) -> dict[str, int]:
    """Op, as text, that needs a message → place of the op before which the receive stands."""
    place = {str(graph.op(op)): index for index, op in enumerate(ops.tolist())}
    found: dict[str, int] = {}
    for row in with_comms(order):
        waiting: list[Op] = []
        for op in (op for cell in row for op in cell):
            if op.kind in (Kind.RECV_F, Kind.RECV_B):
                waiting.append(op)
            elif op.kind in COMPUTE_KINDS and str(op) in place:
                for receive in waiting:
                    kinds = (Kind.F,) if receive.kind == Kind.RECV_F else (Kind.B, Kind.I)
                    for kind in kinds:
                        found[str(receive._replace(kind=kind))] = place[str(op)]
                waiting = []
    return found


def _grouped(keys: Ints, values: Ints, *, count: int) -> tuple[Ints, Ints]:
    """Values by key: starts (count + 1,), and the values in order of their keys."""
    order = np.argsort(keys, kind="stable")
    starts = np.searchsorted(keys[order], np.arange(count + 1))
    return starts.astype(np.int32), values[order].astype(np.int32)


def held_times(
    graph: OpGraph, turn: Turns, lengths: Floats, *, tails: Floats, slice_: float, delay: float
) -> tuple[Floats, Floats]:
    """End of each op on a core, and how much later each transfer begins than it is made; (N,) each.

    The core that computes also moves the messages, in a thread of its own. That thread gets the
    core whenever the worker waits for a message itself, which it does unless the message was taken
    in during an earlier wait, or when the scheduler's slice is over. A message leaves as it is
    made, if the sender's thread has heard by then that it is asked for; else at the sender's next
    wait after it is both made and asked for, or a slice later. Since a message is begun before the
    receives that follow its op, it may begin before the op, which counts them, is over: then the
    second value is below zero, and no less than minus the transfer's length.

    Args:
        graph: The ops.
        turn: Its turns.
        lengths: Seconds of the ops; of transfers without the hold.
        tails: Seconds at the end of each op that pass after its messages were begun.
        slice_: Longest that a message waits for a core that computes, s.
        delay: From asking for a message until its sender's core may hear of it, s.
    """
    count, messages = len(turn.ops), len(turn.message)
    fixed = (
        turn.starts, turn.sender, turn.need_starts, turn.needs, turn.ask_starts, turn.asks,
        turn.make_starts, turn.makes, turn.final, lengths[turn.ops].astype(float),
        tails[turn.ops].astype(float), lengths[turn.message].astype(float),
    )  # fmt: skip
    devices = graph.num_devices
    first = turn.starts[:-1].astype(np.int64)
    asked_first = turn.ask_starts[first].astype(np.int64)
    state: Sequence[Any] = (
        np.zeros(count), np.full(messages, _NEVER), np.full(messages, _NEVER),
        np.full(messages, _NEVER), np.zeros(devices), np.full(devices, -1.0),
        np.full(devices, -1.0), first, np.zeros(devices, np.int64), asked_first, asked_first.copy(),
    )  # fmt: skip
    loop: Callable[..., Any] = _play
    if pays(graph.num_ops):
        loop = compiled(_play)
        loop(*fixed, float(slice_), float(delay), *state)
    else:
        lists = [array.tolist() for array in state]
        loop(*(array.tolist() for array in fixed), float(slice_), float(delay), *lists)
        state = [np.array(values) for values in lists]
    return _as_graph(graph, turn, lengths, (state[0], state[1], state[3]))


def _as_graph(
    graph: OpGraph, turn: Turns, lengths: Floats, times: tuple[Floats, Floats, Floats]
) -> tuple[Floats, Floats]:
    """Ends by op, and holds such that a transfer that begins when its op ends ends as it arrives.

    Transfers of one channel follow each other in a graph, so a hold is counted from the end of the
    one before.
    """
    end, held = np.zeros(graph.num_ops), np.zeros(graph.num_ops)
    finished, made, leaves = times
    end[turn.ops] = finished
    maker = np.repeat(np.arange(len(turn.ops)), np.diff(turn.make_starts))
    over = np.zeros(len(turn.message))
    over[turn.makes] = finished[maker]
    order = np.argsort(made, kind="stable")
    free: dict[int, float] = {}
    for index in order.tolist():
        op = int(turn.message[index])
        channel = int(graph.stream[op])
        start = max(float(over[index]), free.get(channel, 0.0))
        held[op] = max(float(leaves[index]) - start, -float(lengths[op]))
        end[op] = free[channel] = start + held[op] + float(lengths[op])
    return end, held


def _play(  # noqa: C901  (one loop that numba compiles: it may call nothing of ours)
    starts: list[int],
    sender: list[int],
    need_starts: list[int],
    needs: list[int],
    ask_starts: list[int],
    asks: list[int],
    make_starts: list[int],
    makes: list[int],
    final: list[int],
    lengths: list[float],
    tails: list[float],
    under_way: list[float],
    slice_: float,
    delay: float,
    end: list[float],
    made: list[float],
    asked: list[float],
    leaves: list[float],
    turned: list[float],
    opened: list[float],
    closed: list[float],
    place: list[int],
    stands: list[int],
    begun: list[int],
    heard: list[int],
) -> None:
    """Play turns and requests, earliest first; plain Python, or compiled.

    ``turned`` is when a device's core turned to its present op, ``opened`` to ``closed`` its last
    wait; ``stands`` is 1 where it is about to run its op, 2 while it waits for messages; of its
    requests those before ``begun`` are made, those before ``heard`` known to their senders.
    """
    never = 1e300
    devices = len(starts) - 1
    while True:
        chosen, when, hears = -1, never, False
        for device in range(devices):
            if place[device] < starts[device + 1] and not stands[device] and turned[device] < when:
                chosen, when, hears = device, turned[device], False
            if heard[device] < begun[device] and asked[asks[heard[device]]] < when:
                chosen, when, hears = device, asked[asks[heard[device]]], True
        if chosen < 0:
            break
        op = place[chosen]
        waits = False
        if hears:  # a request of this device reaches the sender of the message
            message = asks[heard[chosen]]
            heard[chosen] += 1
            other = sender[message]
            over = place[other] >= starts[other + 1]
            if (
                leaves[message] == never
                and made[message] < never
                and (over or when <= closed[other])
            ):
                # its thread runs in this wait, or in the one before the message is made
                leaves[message] = max(when, made[message])
        else:
            for entry in range(ask_starts[op], ask_starts[op + 1]):
                asked[asks[entry]] = when + delay
            begun[chosen] = ask_starts[op + 1]
            # a message that its thread has taken in before is not waited for
            for entry in range(need_starts[op], need_starts[op + 1]):
                if leaves[needs[entry]] + under_way[needs[entry]] > closed[chosen]:
                    waits = True
            if waits or final[op]:
                opened[chosen], closed[chosen] = when, when
                for message in range(len(sender)):
                    ready = max(made[message], asked[message])
                    if sender[message] == chosen and leaves[message] == never and ready <= when:
                        leaves[message] = min(when, ready + slice_)
            stands[chosen] = 2 if waits else 1
            if waits:
                closed[chosen] = never
        for device in range(devices):  # those whose messages have all left go on
            if not stands[device]:
                continue
            mine = place[device]
            begin = turned[device]
            for entry in range(need_starts[mine], need_starts[mine + 1]):
                message = needs[entry]
                arrival = never
                if leaves[message] < never:
                    arrival = leaves[message] + under_way[message]
                begin = max(begin, arrival)
            if begin < never:
                if stands[device] == 2:
                    closed[device] = begin
                stands[device] = 0
                end[mine] = begin + lengths[mine]
                turned[device] = end[mine]
                place[device] += 1
                for entry in range(make_starts[mine], make_starts[mine + 1]):
                    message = makes[entry]
                    made[message] = end[mine] - tails[mine]
                    if asked[message] <= closed[device]:
                        leaves[message] = made[message]
        if place[chosen] >= starts[chosen + 1] and not hears:
            for message in range(len(sender)):
                ready = max(made[message], asked[message])
                if sender[message] == chosen and leaves[message] == never and ready < never:
                    leaves[message] = max(ready, turned[chosen])
