"""Grouped interleaved 1F1B: smaller groups than devices, because the backward is split.

Letters: p devices, m microbatches, v chunks, g microbatches of a group, r index of a device.
Placement: stage s on device s mod p.
"""

from __future__ import annotations

from math import gcd

import numpy as np

from mpsim.schedule.ops import Ints, Kind, Order
from mpsim.schedule.orders.build import Ops, Shape, Whole, sort


def grouped_interleaved(shape: Shape) -> Order:
    """Grouped interleaved 1F1B: a building block of 3 g v slots, repeated for every group.

    With forwards one slot apart from device to device and backwards two, group after group, F, I
    and W of all chunks never meet in a slot; a device runs its ops by slot, W right after I. Small
    groups hold fewer chunks and idle more: for p = 4, m = 8, v = 2 and equal times, g = 2 holds 6
    chunks and idles 8, g = 4 holds 8 and idles 6. g is at least (p + 1) / 2 (more where one
    direction takes over two thirds of the time) and at most p; a smaller or larger one asked for
    is taken to the nearest, None to the least. Legal for m >= 1; weights once.

    Source:
        Wan et al., "PipeOffload", arXiv:2503.01328 (group interleaved 1F1B, as in the
        zero-bubble project).
    """
    p, m, v = shape.num_devices, shape.num_microbatches, shape.num_chunks
    least = least_group(shape)
    group = min(max(shape.group_size or least, least), p)
    rounds = -(-least // group)  # groups that a chunk's turn spans
    common = gcd(v, rounds)
    chunk, member = np.divmod(np.arange(group * v, dtype=np.int32), group)
    turn = 3 * rounds * group * chunk + 3 * member + 3 * group * (chunk // (v // common))
    r = np.arange(p, dtype=np.int32)[:, None]
    forward = turn + r
    last_chunk = turn[(v - 1) * group]
    backward = last_chunk + r + 3 * (p - 1 - r) + 1 + turn
    repeats = np.arange(-(-m // group), dtype=np.int32)[:, None, None]
    slot = np.stack([forward, backward, backward + 1])[:, None] + 3 * group * v * repeats
    stage = np.stack([chunk * p + r, (v - 1 - chunk) * p + r, (v - 1 - chunk) * p + r])[:, None]
    return _keep(shape, slot, stage, member + group * repeats)


def least_group(shape: Shape) -> int:
    """The smallest group that leaves room for the round trip, at least (p + 1) / 2."""
    p, times = shape.num_devices, shape.times
    least = (p + 1) // 2
    whole = times.forward + times.input + times.weight
    while whole * least < p * max(times.forward, times.input):
        least += 1
    return least


def _keep(shape: Shape, slot: Ints, stage: Ints, microbatch: Ints) -> Order:
    """The order of arrays (kind, repeat, device, op of the group), without surplus microbatches."""
    kept = np.broadcast_to(microbatch < shape.num_microbatches, slot.shape)
    kinds = np.array([Kind.F, Kind.I, Kind.W], np.int8)[:, None, None, None]
    devices = np.arange(shape.num_devices, dtype=np.int32)[:, None]

    def flat(column: Whole) -> Whole:
        return np.broadcast_to(column, slot.shape)[kept]

    ops = Ops(flat(kinds), flat(stage), flat(microbatch))
    return sort("grouped_interleaved", shape, flat(devices), slot[kept], ops)
