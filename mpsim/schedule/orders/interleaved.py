"""Orders that deal v stages to a device in a loop: interleaved 1F1B and its kin, looped BFS.

Letters: p devices, m microbatches, v chunks, r index of a device, N microbatches of a group;
f, b, i, w seconds of the ops of one chunk. Placement: stage s on device s mod p. Weights once.
"""

from __future__ import annotations

import numpy as np

from mpsim.errors import ScheduleError
from mpsim.schedule.check import stuck
from mpsim.schedule.ops import Ints, Kind, Order
from mpsim.schedule.orders.build import Family, Shape, devices_of, multiples, place, require
from mpsim.schedule.orders.flat import forwards_and_backwards
from mpsim.schedule.orders.zero_bubble import split_positions
from mpsim.schedule.text import rows_of


def interleaved_1f1b(shape: Shape) -> Order:
    """Interleaved 1F1B: groups of N microbatches go through chunk 0, then chunk 1, ...

    The k-th forward of every device is read from one table: group by group, in it chunk by chunk,
    in it microbatch by microbatch; backwards take the same table with the chunks reversed. Device r
    runs 2 (p - r - 1) + (v - 1) N forwards ahead. Makespan (m v + p - 1)(f + b) if p <= N <= m and
    m mod N is 0 or at least p. Other N that the user names are legal where they end at all, but
    stall; N = p needs m to be a multiple of p, as in Megatron. Device r holds
    min(m v, 2 (p - r - 1) + (v - 1) N + 1) chunks. Torch takes N = m / max(1, m // p).

    Source:
        Narayanan et al., "Efficient Large-Scale Language Model Training on GPU Clusters",
        arXiv:2104.04473; Megatron-LM, ``get_schedule_table``.
    """
    group = _group("interleaved_1f1b", shape)
    warmup = 2 * (shape.num_devices - 1 - devices_of(shape)) + (shape.num_chunks - 1) * group
    return _ending(place("interleaved_1f1b", shape, _by_table(shape, group, warmup)), group)


def combined_1f1b(shape: Shape) -> Order:
    """Interleaved 1F1B in which each steady forward and backward run as one block.

    One more forward ahead than interleaved 1F1B makes the two independent, so that the all-to-all
    of one hides behind the compute of the other. With a block of X seconds the makespan is
    (m v + p - 1)(f + b) - (f + b - X)(m v - (v - 1) p - 1) for N = p. Device r holds one more
    chunk. Legal as interleaved 1F1B, with v >= 2 where p > 1.

    Source:
        Megatron-LM, ``combined_1f1b`` (overlap_moe_expert_parallel_comm).
    """
    require(
        shape.num_chunks >= 2 or shape.num_devices == 1,
        f"combined_1f1b needs 2 or more chunks on p={shape.num_devices} devices, not 1: "
        "use chunks 2, or 1f1b",
    )
    group = _group("combined_1f1b", shape)
    ahead = 2 * (shape.num_devices - 1 - devices_of(shape)) + (shape.num_chunks - 1) * group + 1
    total = shape.num_microbatches * shape.num_chunks
    warmup = np.minimum(ahead, total)
    forward, backward = _by_table(shape, group, warmup)
    k = np.arange(total, dtype=np.int32)
    families = (
        forward._replace(block=np.where(k >= warmup, k - warmup, -1)),
        backward._replace(block=np.where(k < total - warmup, k, -1)),
    )
    return _ending(place("combined_1f1b", shape, families), group)


def looped_bfs(shape: Shape) -> Order:
    """Breadth-first: all forwards of chunk 0, of chunk 1, ..., then all backwards in reverse.

    Makespan (m v + p - 1)(f + b) for m >= p, (p v + m - 1)(f + b) for less. All m v chunks are
    held; each stage's weights are needed once for each pass. Legal for m >= 1.

    Source:
        Lamy-Poirier, "Breadth-First Pipeline Parallelism", arXiv:2211.05953.
    """
    m, v, r = shape.num_microbatches, shape.num_chunks, devices_of(shape)
    k = np.arange(m * v, dtype=np.int32)
    stage = k // m * shape.num_devices + r
    families = (
        Family(Kind.F, stage, k % m, k + 0 * r),
        Family(Kind.B, stage, k % m, 2 * m * v - 1 - k + 0 * r),
    )
    return place("looped_bfs", shape, families)


def interleaved_zb(shape: Shape) -> Order:
    """Interleaved ZB: ZB-H1 over the table of interleaved 1F1B.

    Device r runs (v - 1) N + p - 1 - r forwards ahead. Makespan
    m v (f + i + w) + (p - 1)(f + i - w) for w <= min(f, i). Every device holds p v chunks until W.
    N is m / max(1, m // p). Legal where the max(1, m // p) rounds divide m.

    Source:
        torch.distributed.pipelining, ``ScheduleInterleavedZeroBubble``.
    """
    p, m, v, r = shape.num_devices, shape.num_microbatches, shape.num_chunks, devices_of(shape)
    rounds = max(1, m // p)
    require(
        m % rounds == 0,
        f"interleaved_zb: m={m} must be a multiple of the {rounds} rounds of about p={p} "
        f"microbatches: use {multiples(m, rounds)} microbatches",
    )
    group = m // rounds
    chunk, microbatch = group_table(m, v, group)
    total = m * v
    warmup = np.minimum((v - 1) * group + p - 1 - r, total)
    forward, backward, weight = split_positions(warmup, r, total)
    stage, reverse = chunk * p + r, (v - 1 - chunk) * p + r
    families = (
        Family(Kind.F, stage, microbatch, forward),
        Family(Kind.I, reverse, microbatch, backward),
        Family(Kind.W, reverse, microbatch, weight),
    )
    return place("interleaved_zb", shape, families)


def group_table(num_microbatches: int, num_chunks: int, group: int) -> tuple[Ints, Ints]:
    """Chunk and microbatch of the k-th forward of any device, each (m v,).

    >>> chunk, microbatch = group_table(3, 2, 2)
    >>> chunk.tolist(), microbatch.tolist()
    ([0, 0, 1, 1, 0, 1], [0, 1, 0, 1, 2, 2])
    """
    k = np.arange(num_microbatches * num_chunks, dtype=np.int32)
    first = k // (group * num_chunks) * group
    width = np.minimum(group, num_microbatches - first)
    inside = k - first * num_chunks
    return inside // width, first + inside % width


def _group(name: str, shape: Shape) -> int:
    """The group size asked for, or p."""
    p, m = shape.num_devices, shape.num_microbatches
    if shape.group_size is None:
        legal = legal_group_size(p, m)
        require(
            shape.num_chunks == 1 or m % p == 0,
            f"{name}: m={m} must be a multiple of p={p}, or use group size {legal}",
        )
        return p
    require(
        shape.group_size <= m,
        f"{name}: group size {shape.group_size} exceeds m={m}: use at most {m}",
    )
    return shape.group_size


def legal_group_size(num_devices: int, num_microbatches: int) -> int:
    """The smallest group size without stalls: at least p, leaving no rest or one of at least p.

    >>> legal_group_size(4, 10), legal_group_size(4, 3)
    (5, 3)
    """
    p, m = num_devices, num_microbatches
    fits = (size for size in range(p, m + 1) if m % size == 0 or m % size >= p)
    return next(fits, m)


def _ending(order: Order, group: int) -> Order:
    """The order, unless its groups are so small that devices wait for each other."""
    p, m = order.num_devices, order.num_microbatches
    # A group of p or more always ends; for less it depends on what stands behind the group.
    if group < p and stuck(rows_of(order)):
        legal = legal_group_size(p, m)
        raise ScheduleError(
            f"{order.schedule}: group size {group} is less than p={p} and deadlocks with m={m} "
            f"microbatches: use group size {legal}"
        )
    return order


def _by_table(shape: Shape, group: int, warmup: Ints) -> tuple[Family, Family]:
    chunk, microbatch = group_table(shape.num_microbatches, shape.num_chunks, group)
    total = len(chunk)
    forward, backward = forwards_and_backwards(np.minimum(warmup, total), total)
    p, r = shape.num_devices, devices_of(shape)
    reverse = shape.num_chunks - 1 - chunk
    return (
        Family(Kind.F, chunk * p + r, microbatch, forward),
        Family(Kind.B, reverse * p + r, microbatch, backward),
    )
