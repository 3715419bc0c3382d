"""Orders that deal v stages to a device in a loop: interleaved 1F1B and its kin, looped BFS.

Letters: p devices, m microbatches, v chunks, r index of a device, N microbatches of a group.
Placement: stage s on device s mod p.
"""

from __future__ import annotations

import numpy as np

from mpsim.schedule.ops import Ints, Kind, Order
from mpsim.schedule.orders.build import Family, Shape, devices_of, place
from mpsim.schedule.orders.flat import forwards_and_backwards


def interleaved_1f1b(shape: Shape) -> Order:
    """Interleaved 1F1B: groups of N microbatches go through chunk 0, then chunk 1, ...

    The k-th forward of every device is read from one table: group by group, in it chunk by chunk,
    in it microbatch by microbatch; backwards take the same table with the chunks reversed. Device r
    runs 2 (p - r - 1) + (v - 1) N forwards ahead. Makespan (m v + p - 1)(f + b), f and b of one
    chunk, if p <= N <= m and m mod N is 0 or at least p; other N stall or never end. Device r holds
    min(m v, 2 (p - r - 1) + (v - 1) N + 1) chunks. Megatron's default is N = p; torch's is
    m / max(1, m // p).

    Source:
        Narayanan et al., "Efficient Large-Scale Language Model Training on GPU Clusters",
        arXiv:2104.04473; Megatron-LM, ``get_schedule_table``.
    """
    group = shape.group_size or shape.num_devices
    warmup = 2 * (shape.num_devices - 1 - devices_of(shape)) + (shape.num_chunks - 1) * group
    return place("interleaved_1f1b", shape, _by_table(shape, group, warmup))


def looped_bfs(shape: Shape) -> Order:
    """Breadth-first: all forwards of chunk 0, of chunk 1, ..., then all backwards in reverse.

    Makespan (m v + p - 1)(f + b) for m >= p, (p v + m - 1)(f + b) for less, f and b of one chunk.
    All m v chunks are held; each stage's weights are needed once for each pass. Legal for m >= 1.

    Source:
        Lamy-Poirier, "Breadth-First Pipeline Parallelism", arXiv:2211.05953.
    """
    m, v, r = shape.num_microbatches, shape.num_chunks, devices_of(shape)
    k = np.arange(m * v, dtype=np.int32)
    stage = k // m * shape.num_devices + r
    forward, backward = k + 0 * r, 2 * m * v - 1 - k + 0 * r
    families = (
        Family(Kind.F, stage, k % m, forward),
        Family(Kind.B, stage, k % m, backward),
    )
    return place("looped_bfs", shape, families)


def group_table(num_microbatches: int, num_chunks: int, group: int) -> tuple[Ints, Ints]:
    """Chunk and microbatch of the k-th forward of any device.  # (m v,), (m v,)

    >>> chunk, microbatch = group_table(3, 2, 2)
    >>> chunk.tolist(), microbatch.tolist()
    ([0, 0, 1, 1, 0, 1], [0, 1, 0, 1, 2, 2])
    """
    k = np.arange(num_microbatches * num_chunks, dtype=np.int32)
    first = k // (group * num_chunks) * group
    width = np.minimum(group, num_microbatches - first)
    inside = k - first * num_chunks
    return inside // width, first + inside % width


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
