"""Orders of mpsim as text that torch's pipeline runtime runs."""

from __future__ import annotations

from mpsim.errors import MpsimError, ScheduleError
from mpsim.schedule.ops import Kind, Op, Order
from mpsim.schedule.orders import SCHEDULES, make_order


def torch_text(order: Order) -> str:
    """A compute-only order as torch reads it: a row a device, overlapped ops as one block.

    Raises:
        ScheduleError: If torch's runtime cannot run it: asynchronous, with a cut sequence, or with
            a stage on two devices.
    """
    if not order.synchronous:
        raise ScheduleError(f"{order.schedule}: torch's runtime runs synchronous schedules only")
    if order.num_slices > 1:
        raise ScheduleError(f"{order.schedule}: torch's runtime does not cut the sequence")
    if order.weight_copies > 1:
        raise ScheduleError(
            f"{order.schedule}: torch's runtime holds each stage once (no bidirectional schedules)"
        )
    ends = zip(order.starts[:-1], order.starts[1:], strict=True)
    return "\n".join(",".join(_cells(order, int(begin), int(end))) for begin, end in ends)


def _cells(order: Order, begin: int, end: int) -> list[str]:
    """Cells of one device's row."""
    cells: list[list[str]] = []
    last = -1
    for entry in range(begin, end):
        kind = Kind(int(order.kind[entry]))
        op = str(Op(int(order.stage[entry]), kind, int(order.microbatch[entry])))
        block = int(order.block[entry])
        if block >= 0 and block == last:
            cells[-1].append(op)
        else:
            cells.append([op])
        last = block
    return [c[0] if len(c) == 1 else f"({';'.join(c)})OVERLAP_F_B" for c in cells]


def runnable(num_devices: int, num_microbatches: int) -> dict[str, Order]:
    """Every schedule of mpsim that torch's runtime can run at these counts, by name."""
    orders = {}
    for name in SCHEDULES:
        try:
            order = make_order(name, num_devices=num_devices, num_microbatches=num_microbatches)
            torch_text(order)
        except MpsimError:  # illegal at these counts, or not for torch
            continue
        orders[name] = order
    return orders
