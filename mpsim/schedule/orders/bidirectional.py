"""Orders with pipelines in both directions over the same devices: Chimera and BitPipe.

Letters: p devices, m microbatches, r index of a device; f, b seconds of the ops. A unit is p
microbatches, half of them down and half up; m = k p units follow each other directly. Placement: a
microbatch that goes down has stage s on device s, one that goes up on device p - 1 - s.
"""

from __future__ import annotations

import numpy as np

from mpsim.schedule.ops import Ints, Kind, Order
from mpsim.schedule.orders.build import Ops, Shape, Whole, join, multiples, require, sort


def chimera(shape: Shape) -> Order:
    """Chimera: in every unit, p / 2 microbatches go down and p / 2 up.

    In slots of one op, microbatch j of a direction runs stage s forward at 2 j + s and backward at
    2 j + 2 p - 1 - s; units are 2 p slots apart; a device runs its ops in the order of the slots.
    Makespan m (f + b) + (p - 2) max(f, b) + (k - 1)(p - 2) |b - f|. Device r holds between
    p / 2 + 1 (ends) and p (middle) chunks. ``group_size`` is the number of pipelines, 2 (one down,
    one up) or a multiple that divides p: pipeline i starts i p / (pipelines / 2) devices further.
    Each device holds one copy of weights for each pipeline. Legal for p even, and m a multiple of
    p or less than p.

    Source:
        Li and Hoefler, "Chimera", arXiv:2107.06925 (direct concatenation).
    """
    p, m = shape.num_devices, shape.num_microbatches
    pipelines = shape.group_size or 2
    _require_units("chimera", shape)
    require(
        pipelines % 2 == 0 and p % pipelines == 0,
        f"chimera: the number of pipelines (group size), {pipelines}, must be even and divide "
        f"p={p}: use 2",
    )
    microbatch = np.arange(m, dtype=np.int32)
    unit, up, offset, inside = _deal(shape, pipelines)
    stage = np.arange(p, dtype=np.int32)[:, None]
    device = (offset + np.where(up, p - 1 - stage, stage)) % p
    forward = 2 * p * unit + 2 * inside + stage
    backward = 2 * p * unit + 2 * inside + 2 * p - 1 - stage
    ops = Ops(
        kind=np.repeat(np.array([Kind.F, Kind.B], np.int8), m * p),
        stage=np.tile(np.broadcast_to(stage, (p, m)).ravel(), 2),
        microbatch=np.tile(np.broadcast_to(microbatch, (p, m)).ravel(), 2),
    )
    slot = np.concatenate([forward.ravel(), backward.ravel()])
    return sort("chimera", shape, np.tile(device.ravel(), 2), slot, ops, weight_copies=pipelines)


def bitpipe(shape: Shape) -> Order:
    """BitPipe: Chimera's two directions, each an interleaved V of two chunks.

    Microbatches below m / 2 go down (stage s on device s, or 2 p - 1 - s past the turn), the others
    up (mirrored). Per unit a device runs p + p / 2 + min(r, p - 1 - r) forwards, then forward and
    backward in turn, then backwards, the first forwards of the next unit among the last of them.
    Bubble as Chimera's with the times of one chunk; at most 2 p chunks are held; weights twice.
    Legal for v = 2, p even, m a multiple of p.

    Source:
        Wu et al., "BitPipe", arXiv:2410.19367; github.com/wuhouming/BitPipe.
    """
    p, m = shape.num_devices, shape.num_microbatches
    _require_units("bitpipe", shape)
    require(m % p == 0, f"bitpipe: m={m} must be a multiple of p={p}: use {multiples(m, p)}")

    def device(rank: int) -> Ops:
        near = min(rank, p - 1 - rank)
        kind, backward_rank = _bitpipe_kinds(p, p + p // 2 + near, m // p)
        first = _bitpipe_ops(p, m, rank, backward=False)
        second = _bitpipe_ops(p, m, rank, backward=True)
        is_backward = kind == Kind.B
        stage = np.where(is_backward, second[0][backward_rank], first[0][backward_rank])
        microbatch = np.where(is_backward, second[1][backward_rank], first[1][backward_rank])
        return Ops(kind, stage, microbatch)

    return join("bitpipe", shape, [device(rank) for rank in range(p)], weight_copies=2)


def _require_units(name: str, shape: Shape) -> None:
    p, m = shape.num_devices, shape.num_microbatches
    require(p % 2 == 0, f"{name}: p={p} must be even: use {max(2, p - 1)} or {p + 1} devices")
    require(
        m < p or m % p == 0,
        f"{name}: m={m} must be a multiple of p={p}: use {multiples(m, p)}",
    )


def _deal(shape: Shape, pipelines: int) -> tuple[Ints, Ints, Ints, Ints]:
    """Unit, direction, first device and place in its pipeline of every microbatch, each (m,).

    A unit fills its pipelines one after the other, down before up; all down ones come first in
    the numbering.
    """
    p, m, pairs = shape.num_devices, shape.num_microbatches, pipelines // 2
    each = p // pipelines
    k = np.arange(m, dtype=np.int32)
    unit, pushed = k // p, k % p
    pair, up, inside = pushed // (2 * each), pushed // each % 2, pushed % each
    by = np.lexsort((inside, pair, up, unit))
    return unit[by], up[by], (pair * (p // pairs))[by], inside[by]


def _bitpipe_kinds(p: int, warmup: int, units: int) -> tuple[Ints, Ints]:
    """Kind of each op of a device, and how many ops of its kind stand before it."""
    pairs = 2 * p - warmup
    head, tail = [Kind.F] * warmup, [Kind.B] * warmup
    between = (
        [Kind.B] * (warmup - pairs + 1)
        + [Kind.F, Kind.B] * (pairs - 1)
        + [Kind.F] * (warmup - pairs + 1)
    )
    steady = [Kind.F, Kind.B] * pairs
    kind = np.array(head + (steady + between) * (units - 1) + steady + tail, np.int32)
    backward = np.cumsum(kind == Kind.B)
    return kind, np.where(kind == Kind.B, backward - 1, np.arange(len(kind)) - backward)


def _bitpipe_ops(p: int, m: int, rank: int, *, backward: bool) -> tuple[Whole, Whole]:
    """Stage and microbatch of the k-th forward (or backward) of a device, each (2 m,).

    In a unit a device first meets the near direction (which enters at its end), then the far one,
    then the far and the near one past the turn; visits next to each other overlap. Backwards go
    through the visits in reverse.
    """
    half = p // 2
    near = int(rank >= half)
    met = half - min(rank, p - 1 - rank)  # microbatches met before those of the far direction
    rest = half - met
    before, after = np.arange(met, dtype=np.int32), np.arange(rest, dtype=np.int32)
    # Rows (visit, place): visits 0 to 3 are near, far, far past the turn, near past the turn.
    rows: list[Whole] = [
        np.stack([0 * before, before], axis=1),
        _alternate((1, after), (0, after + met)),
        _alternate((1, before + rest), (2, before)),
        _alternate((3, after), (2, after + met)),
        np.stack([3 + 0 * before, before + rest], axis=1),
    ]
    visit, place = np.tile(np.concatenate(rows), (m // p, 1)).T
    if backward:
        visit = 3 - visit
    direction = np.where((visit == 0) | (visit == 3), near, 1 - near)
    low = np.where(direction, p - 1 - rank, rank)
    unit = np.repeat(np.arange(m // p), 2 * p)
    return np.where(visit >= 2, 2 * p - 1 - low, low), direction * (m // 2) + unit * half + place


def _alternate(first: tuple[int, Whole], second: tuple[int, Whole]) -> Whole:
    """Rows (visit, place) of two visits in turn, (2 n, 2)."""
    places = np.stack([first[1], second[1]], axis=1).ravel()
    return np.stack([np.tile([first[0], second[0]], len(first[1])), places], axis=1)
