"""From an order to a graph: which transfers, exchanges and updates there are, and what waits.

The compute ops come first, as they stand in the order (an op that is cut for gradient buckets as
several), then the transfers by producer, the reductions, the gathers, the barrier, the updates.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpsim.errors import ScheduleError
from mpsim.schedule.draft import Draft
from mpsim.schedule.exchanges import (
    Gathers,
    Reductions,
    gathered_entries,
    num_parts,
    reduced_entries,
)
from mpsim.schedule.graph import COLLECTIVE, COMPUTE, RECEIVE, STREAMS, OpGraph
from mpsim.schedule.ops import Ints, Kind, Order
from mpsim.schedule.sweep import begins_and_ends
from mpsim.schedule.topology import Edges
from mpsim.schedule.transfers import (
    P2P,
    Needs,
    Placed,
    async_edges,
    by_device,
    data_needs,
    local_edges,
    posted_early,
    receives_late,
    rendezvous_edges,
)


def lower(
    order: Order,
    *,
    p2p: P2P = "async",
    reductions: Reductions = "none",
    gathers: Gathers = "none",
    buckets: Sequence[int] | int = 1,
    step: bool = True,
    barrier: bool = True,
) -> OpGraph:
    """The op graph of an order.

    A fused block stays two ops, one after the other: the first waits for the inputs of both, and
    the outputs of both leave at the end of the second, so that the block lasts the sum of their
    seconds. The estimate divides the duration X of a block between them.

    An op cut into parts (``num_parts`` > 1) takes its inputs at the first and gives its output at
    the end of the last; the estimate divides its seconds among them.

    Args:
        order: The compute ops.
        p2p: How transfers between stages run; see ``transfers``.
        reductions: When gradients are reduced; see ``exchanges``. Where devices hold copies of a
            stage (bidirectional schedules), each waits for all of them.
        gathers: When parameters of a sharded model are gathered; see ``exchanges``.
        buckets: Buckets of each stage, or of all alike.
        step: Whether each device ends with an update, after its reductions.
        barrier: Whether all updates wait for one op that waits for all gradients (their norm).
            Asynchronous orders have none.

    Raises:
        ScheduleError: If an op is missing, stands twice or apart from its forward, or if ops wait
            for each other in a circle. Its ``ops`` are the entries of the order to blame.
    """
    draft = Draft(STREAMS * order.num_devices, capacity=4 * len(order.kind) + 1024)
    parts = num_parts(order, buckets=buckets, reductions=reductions, gathers=gathers)
    placed = _place(draft, order, parts)
    needs = data_needs(order)
    _add_transfers(draft, placed, needs, p2p=p2p)
    reduced = _add_reductions(draft, placed, parts, reductions=reductions)
    if gathers in ("start", "use"):
        _add_gathers(draft, placed, parts, gathers=gathers)
    if step:
        steps = _add_steps(draft, placed, reduced, barrier=barrier and order.synchronous)
        if gathers == "end":
            _add_gathers_after(draft, order, steps)
    try:
        return draft.graph(
            num_devices=order.num_devices,
            num_stages=order.num_stages,
            num_microbatches=order.num_microbatches,
        )
    except ScheduleError as error:
        if p2p in ("latency", "async"):
            raise
        hint = f"; transfers block each other here (p2p '{p2p}'): use 'async'"
        raise ScheduleError(error.what + hint, ops=error.ops) from None


def _place(draft: Draft, order: Order, parts: Ints) -> Placed:
    """Adds the compute ops."""
    count, device = len(order.kind), order.device
    entry = np.arange(count, dtype=np.int32)
    columns: dict[str, NDArray[Any]] = {
        "kind": order.kind, "stage": order.stage, "microbatch": order.microbatch,
        "slice": order.slice, "block": order.block, "device": device, "entry": entry,
        "stream": device * STREAMS + COMPUTE,
    }  # fmt: skip
    enter, leave, starts = entry, entry, order.starts
    if count and parts.max() > 1:
        ends = np.cumsum(parts, dtype=np.int32)
        enter, leave = ends - parts, ends - 1
        starts = np.concatenate([[0], ends]).astype(np.int32)[order.starts]
        columns = {name: np.repeat(column, parts) for name, column in columns.items()}
        whole = parts[columns["entry"]]
        part = np.arange(len(whole), dtype=np.int32) - enter[columns["entry"]]
        columns |= {"part": np.where(whole > 1, part, -1), "num_parts": whole}
    draft.add(len(columns["kind"]), **columns)
    if count and order.block.max() >= 0:
        enter, leave = _whole_blocks(order, enter, leave)
    return Placed(order, device, enter, leave, starts)


def _whole_blocks(order: Order, enter: Ints, leave: Ints) -> tuple[Ints, Ints]:
    """First and last op of the block that each entry is in."""
    count, device = len(order.kind), order.device
    joined = (order.block[1:] == order.block[:-1]) & (order.block[1:] >= 0)
    joined &= device[1:] == device[:-1]
    index = np.arange(count)
    first = np.maximum.accumulate(np.where(np.concatenate([[False], joined]), 0, index))
    ends = np.where(np.concatenate([joined, [False]]), count, index)
    last = np.minimum.accumulate(ends[::-1])[::-1]
    return enter[first], leave[last]


def _add_transfers(draft: Draft, placed: Placed, needs: list[Needs], *, p2p: P2P) -> None:
    """Adds one op for each input that comes from another device, on a stream of its channel."""
    order = placed.order
    moved, local = by_device(placed, needs[0])
    sender, receiver = placed.device[moved.producer], placed.device[moved.consumer]
    if p2p == "latency":
        channel, num_channels = np.arange(len(sender), dtype=np.int32), len(sender)
    else:
        channel, num_channels = _channels(sender, receiver, order.num_devices)
    stream, first = draft.num_streams + channel, draft.num_ops
    draft.num_streams += num_channels
    draft.add(
        len(stream),
        kind=np.where(order.kind[moved.producer] == Kind.F, Kind.SEND_F, Kind.SEND_B),
        stage=order.stage[moved.producer],
        microbatch=order.microbatch[moved.producer],
        slice=order.slice[moved.producer],
        entry=moved.producer,
        device=sender,
        peer=receiver,
        stream=stream,
    )
    if p2p in ("latency", "async"):
        draft.edges += async_edges(placed, moved, first)
    else:
        draft.edges += _blocking(placed, moved, first, p2p)
    draft.edges.append(local_edges(placed, [local, *needs[1:]]))


def _blocking(placed: Placed, moved: Needs, first: int, p2p: P2P) -> list[Edges]:
    """Waits of blocking transfers: late receives as they are, early ones from a run in slots."""
    order = placed.order
    posted, turn = moved.consumer, np.empty(0, np.int64)
    if not receives_late(order):
        graph = lower(order, p2p="latency", step=False)
        slots = np.zeros(graph.num_ops)
        slots[: len(order.kind)] = np.where(order.kind == Kind.B, 2.0, 1.0)
        waits = (graph.topological, graph.previous, graph.pred_starts, graph.pred)
        begin, end = begins_and_ends(*waits, slots)
        entry = np.arange(len(order.kind), dtype=np.int32)
        opens, closes = _whole_blocks(order, entry, entry)
        begin, end = begin[opens], end[closes]
        posted = posted_early(placed, moved, begin=begin, end=end)
        turn = np.argsort(np.argsort(end[moved.producer], kind="stable"))
    return rendezvous_edges(placed, moved, first, posted=posted, turn=turn, p2p=p2p)


def _channels(sender: Ints, receiver: Ints, num_devices: int) -> tuple[Ints, int]:
    """The directed pair of each transfer, numbered from 0, and how many pairs there are."""
    pair = sender * num_devices + receiver
    used = np.zeros(num_devices**2, np.bool_)
    used[pair] = True
    number = np.cumsum(used, dtype=np.int32) - 1
    return number[pair], int(np.count_nonzero(used))


def _parts_of(entries: Ints, parts: Ints) -> tuple[Ints, Ints]:
    """Each entry as often as it has parts, and the number of the part."""
    repeated = np.repeat(entries, parts[entries])
    begins = np.cumsum(parts[entries]) - parts[entries]
    part = np.arange(len(repeated)) - np.repeat(begins, parts[entries])
    return repeated, part.astype(np.int32)


def _first_op(parts: Ints) -> Ints:
    """Compute op that is the first part of each entry."""
    return (np.cumsum(parts) - parts).astype(np.int32)


def _add_reductions(
    draft: Draft, placed: Placed, parts: Ints, *, reductions: Reductions
) -> Ints:  # ops
    """Adds the reductions of gradients on the collective streams."""
    order = placed.order
    entries = reduced_entries(order, reductions)
    cut = np.ones_like(parts) if reductions == "end" else parts
    entry, part = _parts_of(entries, cut)
    device, stage = placed.device[entry], order.stage[entry]
    ops = draft.add(
        len(entry),
        kind=Kind.REDUCE_GRAD,
        stage=stage,
        part=part,
        num_parts=cut[entry],
        entry=entry,
        device=device,
        stream=device * STREAMS + COLLECTIVE,
    )
    under = _first_op(parts)[entry] + part
    ready = placed.starts[device + 1] - 1 if reductions == "end" else under
    draft.wait(ops, ready)
    if order.weight_copies > 1:
        # The copies of a stage are reduced together: bucket by bucket, in the order of each device.
        rank = part if reductions != "each" else order.microbatch[entry] * (part.max() + 1) + part
        twin = (stage[:, None] == stage) & (rank[:, None] == rank) & (device[:, None] != device)
        mine, other = np.nonzero(twin)
        draft.wait(ops[mine], ready[other])
    return ops


def _add_gathers(draft: Draft, placed: Placed, parts: Ints, *, gathers: Gathers) -> None:
    """Adds the gathers of parameters ahead of compute, on the receive streams."""
    order = placed.order
    entries = gathered_entries(order, gathers)
    entry, part = _parts_of(entries, parts)
    device = placed.device[entry]
    ops = draft.add(
        len(entry),
        kind=Kind.UNSHARD,
        stage=order.stage[entry],
        part=part,
        num_parts=parts[entry],
        entry=entry,
        device=device,
        stream=device * STREAMS + RECEIVE,
    )
    user = _first_op(parts)[entry] + part
    draft.wait(user, ops)
    if gathers == "use":
        ahead = user - 2  # while the op before runs, and no sooner: memory for one bucket more
        held = ahead >= placed.starts[device]
        draft.wait(ops[held], ahead[held])


def _add_steps(draft: Draft, placed: Placed, reduced: Ints, *, barrier: bool) -> Ints:  # ops
    """Adds the update of each device, after the barrier if there is one."""
    devices = np.arange(placed.order.num_devices, dtype=np.int32)
    last = placed.starts[1:] - 1
    last = last[np.diff(placed.starts) > 0]
    reducing = draft.column("device")[reduced]
    if barrier:
        ops = draft.add(1, kind=Kind.BARRIER, stream=COLLECTIVE)
        draft.wait(ops, last)
        draft.wait(ops, reduced)
    steps = draft.add(
        len(devices), kind=Kind.STEP, device=devices, stream=devices * STREAMS + COMPUTE
    )
    if barrier:
        draft.wait(steps, ops)
    else:
        draft.wait(steps[reducing], reduced)
    return steps


def _add_gathers_after(draft: Draft, order: Order, steps: Ints) -> None:
    """Adds the gathers of updated parameters, one a stage, after the update of the device."""
    entry = gathered_entries(order, "end")
    device = order.device[entry]
    ops = draft.add(
        len(entry),
        kind=Kind.UNSHARD,
        stage=order.stage[entry],
        part=0,
        entry=entry,
        device=device,
        stream=device * STREAMS + RECEIVE,
    )
    draft.wait(ops, steps[device])
