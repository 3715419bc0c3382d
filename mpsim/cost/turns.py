"""Messages that share a core with the compute: when the core turns to them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from mpsim.cost.work import Floats, Ints
from mpsim.schedule.comms import with_comms
from mpsim.schedule.compiled import compiled, pays
from mpsim.schedule.graph import OpGraph
from mpsim.schedule.ops import COMPUTE_KINDS, Kind, Op, Order

_NEVER = 1e300
"""A moment that does not come, s."""

_TURNS, _RUNS, _WAITS = 0, 1, 2
"""A core is to turn to its op; is about to run it; waits for messages that have not left."""


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
    given = _Given(
        turn.starts, turn.sender, turn.need_starts, turn.needs, turn.ask_starts, turn.asks,
        turn.make_starts, turn.makes, turn.final, lengths[turn.ops].astype(float),
        tails[turn.ops].astype(float), lengths[turn.message].astype(float),
        float(slice_), float(delay),
    )  # fmt: skip
    state = _at_first(turn, graph.num_devices)
    if pays(graph.num_ops):
        compiled(_play, _next, _hear, _turn, _send, _go_on, _finish)(given, state)
    else:
        state = _State(*(array.tolist() for array in state))  # plain Python reads lists faster
        _play(_Given(*(np.asarray(value).tolist() for value in given)), state)
    return _as_graph(graph, turn, lengths, state)


def _at_first(turn: Turns, devices: int) -> _State:
    """Before anything: each core turns to its first op at 0."""
    messages = len(turn.message)
    first = turn.starts[:-1]
    asked_first = turn.ask_starts[first]
    return _State(
        end=np.zeros(len(turn.ops)),
        made=np.full(messages, _NEVER),
        asked=np.full(messages, _NEVER),
        leaves=np.full(messages, _NEVER),
        turned=np.zeros(devices),
        waited=np.full(devices, -1.0),
        place=first.copy(),
        stands=np.zeros(devices, np.int32),
        begun=asked_first,
        heard=asked_first.copy(),
    )


def _as_graph(graph: OpGraph, turn: Turns, lengths: Floats, state: _State) -> tuple[Floats, Floats]:
    """Ends by op, and holds such that a transfer that begins when its op ends ends as it arrives.

    Transfers of one channel follow each other in a graph, so a hold is counted from the end of the
    one before.
    """
    end, held = np.zeros(graph.num_ops), np.zeros(graph.num_ops)
    end[turn.ops] = state.end
    maker = np.repeat(np.arange(len(turn.ops)), np.diff(turn.make_starts))
    over = np.zeros(len(turn.message))
    over[turn.makes] = np.asarray(state.end)[maker]
    order = np.argsort(np.asarray(state.made), kind="stable")
    free: dict[int, float] = {}
    for index in order.tolist():
        op = int(turn.message[index])
        channel = int(graph.stream[op])
        start = max(float(over[index]), free.get(channel, 0.0))
        held[op] = max(float(state.leaves[index]) - start, -float(lengths[op]))
        end[op] = free[channel] = start + held[op] + float(lengths[op])
    return end, held


class _Given(NamedTuple):
    """What a play is about: ``Turns`` by the same names, and times. Compiled code takes tuples."""

    starts: Ints
    sender: Ints
    need_starts: Ints
    needs: Ints
    ask_starts: Ints
    asks: Ints
    make_starts: Ints
    makes: Ints
    final: Ints
    lengths: Floats  # (C,) s, of ops
    tails: Floats  # (C,) s at an op's end after its messages are made
    under_way: Floats  # (M,) s
    slice_: float
    delay: float


class _State(NamedTuple):
    """Where a play stands; a moment is ``_NEVER`` until it is known."""

    end: Floats  # (C,) s
    made: Floats  # (M,) s
    asked: Floats  # (M,) s
    leaves: Floats  # (M,) s
    turned: Floats  # (D,) s, when the core turned to its present op
    waited: Floats  # (D,) s, end of its last wait, _NEVER while it lasts
    place: Ints  # (D,) its present op
    stands: Ints  # (D,) _TURNS, _RUNS or _WAITS
    begun: Ints  # (D,) requests before this one are made,
    heard: Ints  # (D,) and those before this one known to their senders


def _play(given: _Given, state: _State) -> None:
    """Play turns and requests, earliest first; plain Python, or compiled."""
    while True:
        chosen, hears = _next(given, state)
        if chosen < 0:
            break
        if hears:
            _hear(given, state, chosen)
        else:
            _turn(given, state, chosen)
        for device in range(len(state.turned)):  # those whose messages have all left go on
            if state.stands[device]:
                _go_on(given, state, device)
        if not hears and state.place[chosen] >= given.starts[chosen + 1]:
            _finish(given, state, chosen)


def _next(given: _Given, state: _State) -> tuple[int, bool]:
    """The device whose turn or request comes next, -1 for none; whether it is a request."""
    chosen, when, hears = -1, _NEVER, False
    for device in range(len(state.turned)):
        more = state.place[device] < given.starts[device + 1]
        if more and not state.stands[device] and state.turned[device] < when:
            chosen, when, hears = device, state.turned[device], False
        if state.heard[device] < state.begun[device]:
            asked = state.asked[given.asks[state.heard[device]]]
            if asked < when:
                chosen, when, hears = device, asked, True
    return chosen, hears


def _hear(given: _Given, state: _State, device: int) -> None:
    """A request of the device reaches the sender of the message, who may send it at once."""
    message = given.asks[state.heard[device]]
    state.heard[device] += 1
    if state.leaves[message] < _NEVER or state.made[message] == _NEVER:
        return
    when, sender = state.asked[message], given.sender[message]
    over = state.place[sender] >= given.starts[sender + 1]
    if over or when <= state.waited[sender]:
        # its thread runs in this wait, or in the one before the message is made
        state.leaves[message] = max(when, state.made[message])


def _turn(given: _Given, state: _State, device: int) -> None:
    """The core turns to its next op: it asks for messages, and waits for those it needs."""
    op, when = state.place[device], state.turned[device]
    for entry in range(given.ask_starts[op], given.ask_starts[op + 1]):
        state.asked[given.asks[entry]] = when + given.delay
    state.begun[device] = given.ask_starts[op + 1]
    state.stands[device] = _RUNS
    for entry in range(given.need_starts[op], given.need_starts[op + 1]):
        message = given.needs[entry]
        # what its thread has taken in during an earlier wait is not waited for
        if state.leaves[message] + given.under_way[message] > state.waited[device]:
            state.stands[device] = _WAITS
    if state.stands[device] == _WAITS or given.final[op]:
        _send(given, state, device)
        state.waited[device] = _NEVER if state.stands[device] == _WAITS else when


def _send(given: _Given, state: _State, device: int) -> None:
    """As the core waits, the device's messages that are made and asked for leave."""
    when = state.turned[device]
    for message in range(len(given.sender)):
        ready = max(state.made[message], state.asked[message])
        here = given.sender[message] == device and state.leaves[message] == _NEVER
        if here and ready <= when:
            state.leaves[message] = min(when, ready + given.slice_)


def _go_on(given: _Given, state: _State, device: int) -> None:
    """The core runs its op, if the messages that it needs have left."""
    op, begin = state.place[device], state.turned[device]
    for entry in range(given.need_starts[op], given.need_starts[op + 1]):
        message = given.needs[entry]
        if state.leaves[message] == _NEVER:
            return
        begin = max(begin, state.leaves[message] + given.under_way[message])
    if state.stands[device] == _WAITS:
        state.waited[device] = begin
    state.stands[device] = _TURNS
    state.end[op] = state.turned[device] = begin + given.lengths[op]
    state.place[device] += 1
    for entry in range(given.make_starts[op], given.make_starts[op + 1]):
        message = given.makes[entry]
        state.made[message] = state.end[op] - given.tails[op]
        if state.asked[message] <= state.waited[device]:
            state.leaves[message] = state.made[message]


def _finish(given: _Given, state: _State, device: int) -> None:
    """A core without further ops is free: its messages leave as soon as they are asked for."""
    for message in range(len(given.sender)):
        ready = max(state.made[message], state.asked[message])
        here = given.sender[message] == device and state.leaves[message] == _NEVER
        if here and ready < _NEVER:
            state.leaves[message] = max(ready, state.turned[device])
