"""Orders with one stage a device: naive, GPipe, 1F1B, eager 1F1B, PipeDream.

Letters: p devices, m microbatches, r index of a device. Placement: stage r on device r.
"""

from __future__ import annotations

import numpy as np

from mpsim.schedule.ops import Ints, Kind, Order
from mpsim.schedule.orders.build import Family, Shape, devices_of, place, require


def naive(shape: Shape) -> Order:
    """Model parallelism without pipelining: ``F0 B0 F1 B1 ...``.

    Each microbatch passes all stages before the next begins.

    Makespan m (p (f + b) + 2 (p - 1) c): one device works at a time. One microbatch is held.
    Legal for any m >= 1.
    """
    k = np.arange(shape.num_microbatches, dtype=np.int32)
    r = devices_of(shape)
    families = (Family(Kind.F, r, k, 2 * k + 0 * r), Family(Kind.B, r, k, 2 * k + 1 + 0 * r))
    return place("naive", shape, families)


def gpipe(shape: Shape) -> Order:
    """All forwards, then all backwards.

    Makespan (m + p - 1)(f + b) + 2 (p - 1) c. All m microbatches are held. ``drain`` says in which
    order they are drained: ascending as torch does, descending as in the paper (the last
    activation is the hot one). Legal for any m >= 1.

    Source:
        Huang et al., "GPipe", arXiv:1811.06965.
    """
    m = shape.num_microbatches
    k = np.arange(m, dtype=np.int32)
    r = devices_of(shape)
    drained = k if shape.drain == "ascending" else m - 1 - k
    families = (Family(Kind.F, r, k, k + 0 * r), Family(Kind.B, r, k, m + drained + 0 * r))
    return place("gpipe", shape, families)


def one_forward_one_backward(shape: Shape) -> Order:
    """1F1B: p - 1 - r forwards, then forward and backward in turn, then the backwards left.

    Makespan (m + p - 1)(f + b) without latency. Device r holds min(m, p - r) microbatches, so
    device 0 bounds the memory. Legal for any m >= 1 (torch's class refuses m < p).

    Source:
        Fan et al., "DAPPLE", arXiv:2007.01045; Narayanan et al., arXiv:2006.09503
        (PipeDream-flush).
    """
    warmup = shape.num_devices - 1 - devices_of(shape)
    return place("1f1b", shape, _alternating(shape, warmup))


def eager_one_forward_one_backward(shape: Shape) -> Order:
    """1F1B with 2 (p - 1 - r) forwards ahead, so that a hop is hidden behind them.

    Makespan (m + p - 1)(f + b) + 2 (p - 1) c as long as 2 c <= f + b. Device r holds
    min(m, 2 (p - r) - 1) microbatches. Legal for any m >= 1.

    Source:
        Zheng et al., "Alpa", arXiv:2201.12023 ("1f1b_overlap_friendly").
    """
    warmup = 2 * (shape.num_devices - 1 - devices_of(shape))
    return place("eager_1f1b", shape, _alternating(shape, warmup))


def pipedream(shape: Shape) -> Order:
    """PipeDream: the local order of 1F1B without a flush, an update after every backward.

    A steady state: its bubble is that of no fill and drain, the slope of the makespan over m.
    Device r keeps p - r versions of its weights, one for each microbatch under way, and holds
    min(m, p - r) activations. Legal for any m >= 1.

    Source:
        Narayanan et al., "PipeDream", arXiv:1806.03377.
    """
    p = shape.num_devices
    warmup = p - 1 - devices_of(shape)
    versions = tuple(range(p, 0, -1))
    families = _alternating(shape, warmup)
    return place("pipedream", shape, families, weight_versions=versions, synchronous=False)


def pipedream_2bw(shape: Shape) -> Order:
    """PipeDream-2BW: as PipeDream, but gradients of m >= p microbatches make one update.

    At most two versions of the weights exist (one on the last device); all stages see weights
    that are one update old. Legal for m >= p.

    Source:
        Narayanan et al., "Memory-Efficient Pipeline-Parallel DNN Training", arXiv:2006.09503.
    """
    p, m = shape.num_devices, shape.num_microbatches
    require(m >= p, f"pipedream_2bw: m={m} must be at least p={p}, for two versions to suffice")
    warmup = p - 1 - devices_of(shape)
    versions = tuple(min(2, p - r) for r in range(p))
    families = _alternating(shape, warmup)
    return place("pipedream_2bw", shape, families, weight_versions=versions, synchronous=False)


def forwards_and_backwards(warmup: Ints, count: int) -> tuple[Ints, Ints]:
    """Positions of ``count`` forwards and backwards when ``warmup`` forwards go ahead.

    Forward k follows k forwards and the max(0, k - w) backwards begun since the warm-up; backward
    k follows k backwards and min(count, w + k + 1) forwards.
    """
    k = np.arange(count, dtype=np.int32)
    return k + np.maximum(0, k - warmup), k + np.minimum(count, warmup + k + 1)


def _alternating(shape: Shape, warmup: Ints) -> tuple[Family, Family]:
    k = np.arange(shape.num_microbatches, dtype=np.int32)
    forward, backward = forwards_and_backwards(warmup, shape.num_microbatches)
    r = devices_of(shape)
    return Family(Kind.F, r, k, forward), Family(Kind.B, r, k, backward)
