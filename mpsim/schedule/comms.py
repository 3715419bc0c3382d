"""An order with the communication ops of torch.distributed.pipelining 2.13.

The three passes of its runtime: gathering and dropping the weights of sharded stages (UNSHARD,
RESHARD), reducing gradients (REDUCE_GRAD), sends and receives.
"""

from __future__ import annotations

from collections import Counter

from mpsim.schedule.ops import Kind, Op, Order
from mpsim.schedule.text import Cell, Rows, rows_of

_ACTIVE_STAGES = 3  # stages whose weights a device gathers ahead, torch's max_active_stages


def with_comms(order: Order) -> Rows:
    """The rows of an order as torch's runtime lowers them (its ``compute_comms`` format).

    A receive is placed when its send is, right after the op that gives the message, so sends and
    receives of a pair are in step and never wait for each other in a circle.
    """
    rows = rows_of(order)
    rows = [_with_reductions(_with_gathers(row), order) for row in rows]
    return _with_transfers(rows, order)


def _with_gathers(row: list[Cell]) -> list[Cell]:
    """Gather the weights of the next stages that a device runs, drop those of others."""
    active: set[int] = set()
    out: list[Cell] = []
    for cell, coming in zip(row, _coming_stages(row), strict=True):
        for stage in [stage for stage in active if stage not in coming]:
            active.remove(stage)
            out.append((Op(stage, Kind.RESHARD),))
        for stage in [stage for stage in coming if stage not in active]:
            active.add(stage)
            out.append((Op(stage, Kind.UNSHARD),))
        out.append(cell)
    return out + [(Op(stage, Kind.RESHARD),) for stage in active]


def _coming_stages(row: list[Cell]) -> list[list[int]]:
    """The next stages from each cell on, by their first op; a fused pair is not cut."""
    coming: list[list[int]] = []
    groups: list[list[int]] = []  # stages by the cell that first runs them
    for cell in reversed(row):
        here = list(dict.fromkeys(op.stage for op in cell))
        later = ([stage for stage in group if stage not in here] for group in groups)
        groups = [here, *(group for group in later if group)]
        stages: list[int] = []
        for group in groups:
            stages += group
            if len(stages) >= _ACTIVE_STAGES:
                break
        coming.append(stages)
    return coming[::-1]


def _with_reductions(row: list[Cell], order: Order) -> list[Cell]:
    """Reduce the gradients of a stage after its last B or W."""
    left = Counter(op.stage for cell in row for op in cell if op.kind in (Kind.B, Kind.W))
    out: list[Cell] = []
    for cell in row:
        out.append(cell)
        for op in cell:
            if op.kind in (Kind.B, Kind.W):
                left[op.stage] -= 1
                if not left[op.stage]:
                    out.append((Op(op.stage, Kind.REDUCE_GRAD),))
    return out


def _with_transfers(rows: Rows, order: Order) -> Rows:
    """Sends after the ops that give, and receives where the taking device then is."""
    device_of = order.placement.tolist()
    out: Rows = [[] for _ in rows]
    there: list[set[Op]] = [set() for _ in rows]  # inputs that a device has, named as receives
    head = [0] * len(rows)
    progress = True
    while progress:
        progress = False
        for device, row in enumerate(rows):
            if head[device] == len(row):
                continue
            cell = row[head[device]]
            if not all(_has_input(op, there[device], order.num_stages) for op in cell):
                continue
            out[device].append(cell)
            for op in cell:
                receive = _receive(op, order.num_stages)
                if receive is None:
                    continue
                to = device_of[receive.stage][receive.microbatch]
                there[to].add(receive)
                if to != device:
                    send = Kind.SEND_F if op.kind == Kind.F else Kind.SEND_B
                    out[device].append((op._replace(kind=send),))
                    out[to].append((receive,))
            head[device] += 1
            progress = True
    return out


def _has_input(op: Op, there: set[Op], num_stages: int) -> bool:
    """Whether a device has what an op takes from another stage."""
    if op.kind == Kind.F:
        return op.stage == 0 or op._replace(kind=Kind.RECV_F) in there
    if op.kind in (Kind.B, Kind.I):
        return op.stage == num_stages - 1 or op._replace(kind=Kind.RECV_B) in there
    return True


def _receive(op: Op, num_stages: int) -> Op | None:
    """The receive of what an op gives to another stage."""
    if op.kind == Kind.F and op.stage < num_stages - 1:
        return op._replace(stage=op.stage + 1, kind=Kind.RECV_F)
    if op.kind in (Kind.B, Kind.I) and op.stage > 0:
        return op._replace(stage=op.stage - 1, kind=Kind.RECV_B)
    return None
