"""Whether rows of ops can run: complete, each after its input, transfers in step, no deadlock.

Made for orders of one's own, read from CSV. Every complaint shows the grid with a mark on an op.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from mpsim.errors import ScheduleError
from mpsim.schedule.ops import Kind, Op, Order
from mpsim.schedule.text import Rows, all_ops, grid, has_transfers, order_of, read_csv

Place = tuple[int, int]
"""Device and cell."""

_RECEIVES = {Kind.SEND_F: (Kind.RECV_F, 1), Kind.SEND_B: (Kind.RECV_B, -1)}
_BACKWARDS = (Kind.B, Kind.I)


@dataclass(frozen=True, eq=False)
class _Listing:
    """Rows, and where each op stands."""

    rows: Rows
    place: dict[Op, Place]
    num_stages: int
    num_microbatches: int
    num_slices: int
    name: str
    partner: dict[Op, Op]  # the receive of each send, the send of each receive

    def refuse(self, what: str, mark: Place | None = None) -> ScheduleError:
        """The complaint with its grid."""
        return ScheduleError(f"{self.name}: {what}", grid(self.rows, mark=mark))

    def backward(self, stage: int, microbatch: int, cut: int) -> Op:
        """The op that gives the gradient of a stage's input: B, or I where it is split."""
        whole = Op(stage, Kind.B, microbatch, cut)
        return whole if whole in self.place else whole._replace(kind=Kind.I)

    def inputs(self, op: Op) -> list[Op]:
        """What a compute op needs."""
        stage, kind, microbatch, cut = op
        if kind == Kind.W:
            return [op._replace(kind=Kind.I)]
        needs = []
        if kind == Kind.F:
            if cut > 0:
                needs.append(op._replace(slice=cut - 1))
            if stage > 0:
                needs.append(op._replace(stage=stage - 1))
        elif kind in _BACKWARDS:
            needs.append(op._replace(kind=Kind.F))
            if 0 <= cut < self.num_slices - 1:
                needs.append(self.backward(stage, microbatch, cut + 1))
            if stage < self.num_stages - 1:
                needs.append(self.backward(stage + 1, microbatch, cut))
        return needs

    def waits(self, op: Op) -> list[Op]:
        """What an op waits for: inputs, or what it sends; a receive for nothing here."""
        if op.kind == Kind.SEND_F:
            return [op._replace(kind=Kind.F)]
        if op.kind == Kind.SEND_B:
            return [self.backward(op.stage, op.microbatch, op.slice)]
        return self.inputs(op)


def read_order(text: str, *, name: str = "schedule") -> Order:
    """The order of a CSV, checked.

    Args:
        text: The CSV; see ``text.read_csv``.
        name: What complaints call it.

    Raises:
        ScheduleError: If a cell is no op, or the order cannot run.
    """
    rows = read_csv(text, name=name)
    check(rows, name=name)
    return order_of(rows, name=name)


def check(rows: Rows, *, name: str = "schedule") -> None:
    """Refuse rows that cannot run.

    Every stage and microbatch needs one F and either one B or one I and one W, all on one device;
    an op must stand after those of its inputs that are on its device; no devices may wait for each
    other in a circle. Where there are sends and receives, every input from another device needs
    one of each, those of a directed pair of devices in one order, and the circle is looked for
    with each send meeting its receive (no buffers).

    Raises:
        ScheduleError: With the grid and a mark on an op that is to blame.
    """
    listing = _listing(rows, name)
    _require_complete(listing)
    _require_together(listing)
    _require_inputs_before(listing)
    if has_transfers(rows):
        _require_transfers(listing)
        _require_in_step(listing)
    stuck = _run(listing)
    if stuck:
        raise _deadlock(listing, stuck)


def stuck(rows: Rows) -> list[Place]:
    """Where the devices stop that wait for each other in a circle; empty if all ops run."""
    return _run(_listing(rows, "schedule"))


def _listing(rows: Rows, name: str) -> _Listing:
    place: dict[Op, Place] = {}
    ops = list(all_ops(rows))
    if not ops:
        raise ScheduleError(f"{name} holds no op such as 2F0")
    repeatable = (Kind.UNSHARD, Kind.RESHARD, Kind.REDUCE_GRAD)
    for device, row in enumerate(rows):
        for column, cell in enumerate(row):
            for op in cell:
                if op in place and op.kind not in repeatable:
                    what = f"{name}: {op} stands twice, first on device {place[op][0]}"
                    raise ScheduleError(what, grid(rows, mark=(device, column)))
                place[op] = (device, column)
    partner: dict[Op, Op] = {}
    for op in place:
        if op.kind in _RECEIVES:
            partner[op], partner[_receive_of(op)] = _receive_of(op), op
    return _Listing(
        rows,
        place,
        num_stages=max(op.stage for op in ops) + 1,
        num_microbatches=max(op.microbatch for op in ops) + 1,
        num_slices=max(op.slice for op in ops) + 1,
        name=name,
        partner=partner,
    )


def _require_complete(listing: _Listing) -> None:
    place = listing.place
    cuts = range(listing.num_slices) if listing.num_slices else [-1]
    for stage in range(listing.num_stages):
        for microbatch in range(listing.num_microbatches):
            for cut in cuts:
                forward = Op(stage, Kind.F, microbatch, cut)
                ops = {kind: forward._replace(kind=kind) for kind in (Kind.B, Kind.I, Kind.W)}
                there = {kind for kind, op in ops.items() if op in place}
                if forward not in place:
                    mark = place[ops[min(there)]] if there else None
                    raise listing.refuse(f"{forward} is missing", mark)
                if there == {Kind.B} or there == {Kind.I, Kind.W}:
                    continue
                if Kind.B in there:
                    extra = ops[(there - {Kind.B}).pop()]
                    what = f"{extra} stands beside {ops[Kind.B]}, which holds it"
                    raise listing.refuse(what, place[extra])
                if not there:
                    what = f"{ops[Kind.B]} is missing (or {ops[Kind.I]} and {ops[Kind.W]})"
                    raise listing.refuse(what, place[forward])
                absent = ops[({Kind.I, Kind.W} - there).pop()]
                present = ops[there.pop()]
                raise listing.refuse(f"{absent} is missing for {present}", place[present])


def _require_together(listing: _Listing) -> None:
    """Each microbatch of a stage on one device, each stage on as many devices as the others."""
    holders: dict[int, dict[int, Place]] = defaultdict(dict)
    for op, (device, column) in listing.place.items():
        if op.kind == Kind.F:
            holders[op.stage].setdefault(device, (device, column))
        elif op.kind in (*_BACKWARDS, Kind.W):
            home = listing.place[op._replace(kind=Kind.F)][0]
            if home != device:
                what = f"{op} is on device {device}, but its forward is on device {home}"
                raise listing.refuse(what, (device, column))
    copies = min(len(devices) for devices in holders.values())
    for stage, devices in holders.items():
        if len(devices) > copies:
            names = ", ".join(map(str, sorted(devices)))
            what = f"stage {stage} is on devices {names}, other stages on {copies}"
            raise listing.refuse(what, list(devices.values())[-1])


def _require_inputs_before(listing: _Listing) -> None:
    for op, (device, column) in listing.place.items():
        for need in listing.waits(op):
            at = listing.place.get(need)
            if at is None:
                raise listing.refuse(f"{op} needs {need}, which is missing", (device, column))
            if at[0] == device and at[1] >= column:
                raise listing.refuse(f"{op} stands before its input {need}", (device, column))


def _require_transfers(listing: _Listing) -> None:
    """A send and a receive, before it is needed, for every input from another device."""
    place = listing.place
    for op, (device, _) in place.items():
        if op.kind in (Kind.F, *_BACKWARDS):
            for need in listing.inputs(op):
                if place[need][0] != device:
                    _require_transfer(listing, op, need)
    for send, at in place.items():
        if send.kind not in _RECEIVES or _receive_of(send) in place:
            continue
        if not 0 <= _receive_of(send).stage < listing.num_stages:
            raise listing.refuse(f"{send} goes to no stage", at)
        raise listing.refuse(f"{send} has no {_receive_of(send)}", at)


def _require_transfer(listing: _Listing, op: Op, need: Op) -> None:
    """A send and a receive of one input."""
    place = listing.place
    device, column = place[op]
    send = need._replace(kind=Kind.SEND_F if op.kind == Kind.F else Kind.SEND_B)
    receive = op._replace(kind=_RECEIVES[send.kind][0])
    if receive not in place or place[receive][0] != device:
        what = f"{op} needs {need} of device {place[need][0]}, but {receive} is missing"
        raise listing.refuse(what, (device, column))
    if place[receive][1] >= column:
        raise listing.refuse(f"{op} stands before its input {receive}", (device, column))
    if send not in place:
        raise listing.refuse(f"{receive} has no {send}", place[receive])


def _receive_of(send: Op) -> Op:
    kind, step = _RECEIVES[send.kind]
    return send._replace(kind=kind, stage=send.stage + step)


def _require_in_step(listing: _Listing) -> None:
    """Messages of a directed pair carry no name: they are received in the order they are sent."""
    sent: dict[Place, list[Op]] = defaultdict(list)
    received: dict[Place, list[Op]] = defaultdict(list)
    source = {_receive_of(op): at[0] for op, at in listing.place.items() if op.kind in _RECEIVES}
    for device, row in enumerate(listing.rows):
        for op in (op for cell in row for op in cell):
            if op.kind in _RECEIVES:
                sent[device, listing.place[_receive_of(op)][0]].append(_receive_of(op))
            elif op in source:
                received[source[op], device].append(op)
            elif op.kind in (Kind.RECV_F, Kind.RECV_B):
                raise listing.refuse(f"nothing is sent to {op}", listing.place[op])
    for (first, second), receives in received.items():
        for expected, found in zip(sent[first, second], receives, strict=True):
            if expected != found:
                what = (
                    f"device {second} receives {found} from device {first}, which sends what is "
                    f"meant for {expected} first"
                )
                raise listing.refuse(what, listing.place[found])


def _run(listing: _Listing) -> list[Place]:
    """Let every device run as far as it can; where those stand that cannot go on.

    A send and its receive run together. Each cell is tried once, and again when what stopped it
    has run.
    """
    rows, partner = listing.rows, listing.partner
    head = [0] * len(rows)
    done: set[Op] = set()
    arrived: set[Op] = set()  # sends and receives that their device has come to
    waiting: dict[Op, list[int]] = defaultdict(list)
    able = list(range(len(rows)))
    while able:
        device = able.pop()
        row = rows[device]
        while head[device] < len(row):
            cell = row[head[device]]
            for op in cell:
                if op in partner and op not in arrived:
                    arrived.add(op)
                    able += waiting.pop(op, [])
            missing = _missing(listing, cell, device, done, arrived)
            if missing is not None:
                waiting[missing].append(device)
                break
            done.update(cell)
            for op in cell:
                able += waiting.pop(op, [])
            head[device] += 1
    return [(device, at) for device, at in enumerate(head) if at < len(rows[device])]


def _missing(
    listing: _Listing,
    cell: Iterable[Op],
    device: int,
    done: set[Op],
    arrived: set[Op],
) -> Op | None:
    """The op that a cell has to wait for; None: it can run."""
    partner = listing.partner
    for op in cell:
        if op in partner and partner[op] not in arrived:
            return partner[op]
        for need in listing.waits(op):
            here = listing.place.get(need, (device, 0))[0] == device
            # With transfers, what comes from other devices is waited for at its receive.
            if need not in done and (here or not partner):
                return need
    return None


def _deadlock(listing: _Listing, heads: list[Place]) -> ScheduleError:
    """The complaint that names what each device in a circle waits for."""
    at = dict(heads)
    cells = {device: listing.rows[device][column] for device, column in heads}
    waits: dict[int, tuple[Op, Op]] = {}
    for device, cell in cells.items():
        for op in cell:
            meet = listing.partner.get(op)
            for need in [*([meet] if meet else []), *listing.waits(op)]:
                home, column = listing.place.get(need, (device, 0))
                if home in at and column >= at[home] and home != device:
                    waits[device] = (op, need)
    device = next(iter(waits), heads[0][0])
    circle: list[int] = []
    while device not in circle and device in waits:
        circle.append(device)
        device = listing.place[waits[device][1]][0]
    circle = circle[circle.index(device) :] if device in circle else circle
    links = "; ".join(
        f"device {each} at {waits[each][0]} waits for {waits[each][1]} of device "
        f"{listing.place[waits[each][1]][0]}"
        for each in circle
    )
    mark = (circle[0], at[circle[0]]) if circle else heads[0]
    return listing.refuse(f"deadlock: {links}", mark)
