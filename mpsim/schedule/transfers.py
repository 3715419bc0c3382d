"""Which op needs what from which device, and the transfers that carry it.

How transfers run (``p2p``): the model of the closed forms, and three ways of real systems.

- ``latency``: a transfer begins when its producer has ended; any number may be under way.
- ``async``: a transfer begins when its producer has ended and its directed channel is free; it
  blocks no compute; the consumer waits for its own input alone (Megatron with overlapped p2p,
  torch's runtime).
- ``batched``: between two compute ops of a device lies one group, the sends of the first and the
  receives of the second. The device waits for the whole group, and a transfer begins when both
  ends have come to it (rendezvous). With one stage on each device a send and a receive of the same
  direction are two groups, the send first, as in Megatron's warm-up and cool-down.
- ``serial``: as batched, but one transfer after the other, the send first; where two devices send
  to each other in one gap, the one with the odd index sends first and the other receives first
  (SimuMax), lest both wait.

When a blocking receive is posted is part of the plan. Orders of whole forwards and backwards with
one stage on each device post it right before the op that needs it (Megatron). In others the sender
may be far ahead (zb_h2, interleaved, V-shaped), and both would wait for ever: they post it at the
time of the send in a run in slots (F, I and W take one, B two, transfers none), as the zero-bubble
runtime places its receives. Then no op waits for one of a later slot, and nothing deadlocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mpsim.errors import ScheduleError
from mpsim.schedule.ops import Ints, Kind, Op, Order
from mpsim.schedule.topology import Edges, Indices

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
P2P = Literal["latency", "async", "batched", "serial"]


@dataclass(frozen=True, eq=False)
class Placed:
    """An order whose entries have become compute ops. Letters: N entries, P devices.

    Inputs are waited for by the first op of an entry, or of the fused block that it is in; outputs
    leave at the end of the last.
    """

    order: Order
    device: Ints  # (N,)
    enter: Ints  # (N,) compute op that waits for the inputs
    leave: Ints  # (N,) compute op at whose end the outputs leave
    starts: Ints  # (P + 1,) compute ops of device d are starts[d] : starts[d + 1]


class Needs(NamedTuple):
    """Which entry takes its input from which. Letter: E pairs of entries."""

    consumer: Indices  # (E,)
    producer: Indices  # (E,)


def _name(order: Order, entry: int) -> str:
    kind = Kind(int(order.kind[entry]))
    return str(
        Op(int(order.stage[entry]), kind, int(order.microbatch[entry]), int(order.slice[entry]))
    )


def _checked(order: Order, what: str, *, consumer: Indices, producer: Indices) -> Needs:
    """The pairs; a producer that no device runs is an error."""
    absent = np.flatnonzero(producer < 0)
    if len(absent):
        entry = int(consumer[absent[0]])
        raise ScheduleError(
            f"{_name(order, entry)} needs {what}, which no device runs", ops=[entry]
        )
    return Needs(consumer, producer)


def _positions(order: Order, key: Ints, entries: Indices) -> Ints:
    """Entry of each (stage, microbatch, slice); -1: none."""
    size = order.num_stages * order.num_microbatches * order.num_slices
    position = np.full(size, -1, np.int32)
    position[key[entries]] = entries
    if np.count_nonzero(position >= 0) < len(entries):
        last = position[key[entries]]
        entry = int(entries[last != entries][0])
        raise ScheduleError(f"{_name(order, entry)} stands twice in the order", ops=[entry])
    return position


def _own(order: Order, kind: str, *, consumer: Indices, producer: Indices) -> Needs:
    """As ``_checked``, and both on one device: their activations do not travel."""
    needs = _checked(order, f"its own {kind}", consumer=consumer, producer=producer)
    device = order.device
    apart = np.flatnonzero(device[consumer] != device[producer])
    if len(apart):
        entry = int(consumer[apart[0]])
        raise ScheduleError(
            f"{_name(order, entry)} is on device {device[entry]}, but its own {kind} is on "
            f"device {device[producer[apart[0]]]}",
            ops=[entry],
        )
    return needs


def data_needs(order: Order) -> list[Needs]:
    """What each compute op needs: the first element crosses stages, the others stay on a device.

    - ``F`` of a stage needs ``F`` of the stage before; ``B`` and ``I`` need those of the stage
      after, and their own ``F``; ``W`` needs its own ``I``;
    - of a sequence in slices, ``F`` needs the slice before and ``B`` the slice after (the
      gradients of its keys and values).

    Raises:
        ScheduleError: If an op is missing, stands twice, or is not where its own forward is.
    """
    slices, per_stage = order.num_slices, order.num_microbatches * order.num_slices
    cut = np.maximum(order.slice, 0) if slices > 1 else 0
    key = (order.stage * order.num_microbatches + order.microbatch) * slices + cut
    forward = np.flatnonzero(order.kind == Kind.F).astype(np.int32)
    backward = np.flatnonzero((order.kind == Kind.B) | (order.kind == Kind.I)).astype(np.int32)
    weight = np.flatnonzero(order.kind == Kind.W)
    at_forward = _positions(order, key, forward)
    at_backward = _positions(order, key, backward)
    fed = forward[order.stage[forward] > 0]
    graded = backward[order.stage[backward] < order.num_stages - 1]
    inputs = _checked(
        order,
        "the forward of the stage before",
        consumer=fed,
        producer=at_forward[key[fed] - per_stage],
    )
    gradients = _checked(
        order,
        "the backward of the stage after",
        consumer=graded,
        producer=at_backward[key[graded] + per_stage],
    )
    needs = [Needs(*(np.concatenate(pair) for pair in zip(inputs, gradients, strict=True)))]
    needs.append(_own(order, "forward", consumer=backward, producer=at_forward[key[backward]]))
    if len(weight):
        _positions(order, key, weight)
        needs.append(_own(order, "backward", consumer=weight, producer=at_backward[key[weight]]))
    if slices > 1:
        later = forward[order.slice[forward] > 0]
        needs.append(
            _own(order, "slice before", consumer=later, producer=at_forward[key[later] - 1])
        )
        earlier = backward[order.slice[backward] < slices - 1]
        needs.append(
            _own(order, "slice after", consumer=earlier, producer=at_backward[key[earlier] + 1])
        )
    return needs


def local_edges(placed: Placed, needs: list[Needs]) -> Edges:
    """Edges of needs within a device: only those that its stream does not keep by itself.

    What is left is a producer that stands after its consumer, hence a deadlock to be reported.
    """
    after, before = [], []
    for consumer, producer in needs:
        waits, ends = placed.enter[consumer], placed.leave[producer]
        late = np.flatnonzero(ends >= waits)
        after.append(waits[late])
        before.append(ends[late])
    return Edges(np.concatenate(after), np.concatenate(before))


def by_device(placed: Placed, needs: Needs) -> tuple[Needs, Needs]:
    """The needs that cross devices, in the order in which their producers stand, and the rest."""
    apart = placed.device[needs.consumer] != placed.device[needs.producer]
    consumer_of = np.full(len(placed.order.kind), -1, np.int32)
    consumer_of[needs.producer[apart]] = needs.consumer[apart]
    producer = np.flatnonzero(consumer_of >= 0).astype(np.int32)
    together = np.flatnonzero(~apart)
    local = Needs(needs.consumer[together], needs.producer[together])
    return Needs(consumer_of[producer], producer), local


def async_edges(placed: Placed, moved: Needs, first: int) -> list[Edges]:
    """Waits of streams: transfers, numbered from ``first``, for producers; consumers for them."""
    transfer_of = np.full(len(placed.order.kind), -1, np.int32)
    transfer_of[moved.consumer] = np.arange(first, first + len(moved.consumer), dtype=np.int32)
    fed = np.flatnonzero(transfer_of >= 0).astype(np.int32)
    ids = transfer_of[moved.consumer]
    return [Edges(placed.enter[fed], transfer_of[fed]), Edges(ids, placed.leave[moved.producer])]


def receives_late(order: Order) -> bool:
    """Whether blocking receives are posted right before the op that needs them."""
    single = order.num_stages == order.num_devices and order.weight_copies == 1
    return single and bool(np.all(order.kind <= Kind.B)) and bool(np.all(order.block < 0))


def posted_early(placed: Placed, moved: Needs, *, begin: Floats, end: Floats) -> Indices:
    """First entry of the receiver that begins when the message has been sent, or the consumer.

    Args:
        placed: The order.
        moved: The transfers.
        begin: First slot of each entry, of fused ones that of their block.
        end: Slot after the last of each entry.
    """
    span = float(end.max(initial=0.0)) + 1.0
    by_time = placed.device * span + begin
    sent = placed.device[moved.consumer] * span + end[moved.producer]
    return np.minimum(np.searchsorted(by_time, sent), moved.consumer)


def rendezvous_edges(
    placed: Placed, moved: Needs, first: int, *, posted: Indices, turn: Indices, p2p: P2P
) -> list[Edges]:
    """Waits of blocking transfers (``batched``, ``serial``), numbered from ``first``.

    Gap g of device d lies before its compute op g - d and after op g - d - 1. Each transfer takes
    part in two gaps, in that of its sender and in that of its receiver, in one of their phases: it
    waits for the phase before it in both, or for the op before the gap. The op after the gap waits
    for all, and the consumer for its own input.

    Args:
        placed: The order, as compute ops.
        moved: The transfers.
        first: Number of the first.
        posted: Entry before which each is received.
        turn: Rank of each transfer among those sent one after the other; empty: the odd device
            of two sends first.
        p2p: Whether in groups or one after the other.
    """
    order, count = placed.order, len(moved.consumer)
    sender, receiver = placed.device[moved.producer], placed.device[moved.consumer]
    sending = placed.leave[moved.producer] + 1 + sender
    receiving = placed.enter[posted] + receiver
    gap = np.concatenate([sending, receiving])
    device = np.concatenate([sender, receiver])
    transfer = np.tile(np.arange(first, first + count, dtype=np.int32), 2)
    receives = np.repeat([False, True], count)
    if p2p == "batched":
        is_forward: Bools = np.tile(order.kind[moved.producer] == Kind.F, 2)
        groups = _groups(gap, receives=receives, is_forward=is_forward)
        phase: Indices = groups if receives_late(order) else np.zeros_like(groups)
    elif len(turn):
        phase = _turns(gap, np.tile(turn, 2))
    else:
        there, back = _pair(sending, receiving), _pair(receiving, sending)
        mutual = np.tile(np.isin(there, back), 2)
        phase = _turns(gap, receives != (mutual & (device % 2 == 0)))
    by_gap = np.lexsort((transfer, phase, gap))
    gap, phase, device, transfer = gap[by_gap], phase[by_gap], device[by_gap], transfer[by_gap]
    has_before = gap > placed.starts[device] + device
    has_after = gap < placed.starts[device + 1] + device
    opens = has_before & (phase == 0)
    early = np.flatnonzero(posted < moved.consumer)
    edges = [
        Edges(placed.enter[moved.consumer[early]], first + early.astype(np.int32)),
        Edges(gap[has_after] - device[has_after], transfer[has_after]),
        Edges(transfer[opens], gap[opens] - device[opens] - 1),
    ]
    # One op a phase but in a first of groups, where few meet: neighbours suffice.
    for shift in range(1, 4):
        same = (gap[shift:] == gap[:-shift]) & (phase[shift:] == phase[:-shift] + 1)
        edges.append(Edges(transfer[shift:][same], transfer[:-shift][same]))
    return edges


def _pair(first: Indices, second: Indices) -> NDArray[np.int64]:
    """Two indices as one number."""
    return first.astype(np.int64) * 2**32 + second


def _groups(gap: Indices, *, receives: Bools, is_forward: Bools) -> Indices:
    """1 for the receives of a gap that has a send of the same direction, else 0."""
    present = np.zeros((2, 2, int(gap.max(initial=0)) + 1), np.bool_)
    direction, side = is_forward.astype(np.int8), receives.astype(np.int8)
    present[direction, side, gap] = True
    return np.where(receives & present[direction, 0, gap], 1, 0)


def _turns(gap: Indices, rank: NDArray[Any]) -> Indices:
    """When in its gap each transfer has its turn, counted from 0, by rank."""
    by_turn = np.lexsort((rank, gap))
    index = np.arange(len(gap))
    opens = np.concatenate([[True], gap[by_turn][1:] != gap[by_turn][:-1]])
    turn = np.empty(len(gap), np.int64)
    turn[by_turn] = index - np.maximum.accumulate(np.where(opens, index, 0)[: len(gap)])
    return turn
