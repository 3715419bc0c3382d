"""Hand-made zero-bubble orders: ZB-H1 and ZB-H2.

The backward is split into I (for the input, which the stage before waits for) and W (for the
weights, which nobody waits for), so that W fills what would be idle. The papers write B for I.

Letters: p devices, m microbatches, r index of a device; f, i, w seconds of the ops.
Placement: stage r on device r.

Source:
    Qi et al., "Zero Bubble Pipeline Parallelism", arXiv:2401.10241.
"""

from __future__ import annotations

import numpy as np

from mpsim.schedule.ops import Ints, Kind, Order
from mpsim.schedule.orders.build import Family, Shape, devices_of, place


def zb_h1(shape: Shape) -> Order:
    """ZB-H1: 1F1B with the backward split, W running r microbatches behind I.

    p - 1 - r forwards; then a forward (while there are), I and, from the r-th I on, the oldest W;
    then the W left. Makespan m (f + i + w) + (p - 1)(f + i - w) for m >= p and w <= min(f, i).
    Every device holds p microbatches until W (p - r until I): the memory of 1F1B's device 0.
    Legal for any m >= 1; weights once.
    """
    r = devices_of(shape)
    return place("zb_h1", shape, _split(shape, shape.num_devices - 1 - r, r))


def zb_h2(shape: Shape) -> Order:
    """ZB-H2: twice the warm-up of ZB-H1 and W 2 r behind, for no bubble within the span.

    Span m (f + i + w) + (p - 1)(f + i - 2 w), makespan m (f + i + w) + (p - 1) max(f + i - 2 w, f),
    for m >= 2 p - 1, w <= min(f, i) and 2 w <= f + i. Every device holds 2 p - 1 microbatches until
    W. Legal for any m >= 1; weights once.
    """
    r = devices_of(shape)
    return place("zb_h2", shape, _split(shape, 2 * (shape.num_devices - 1 - r), 2 * r))


def split_positions(warmup: Ints, lag: Ints, count: int) -> tuple[Ints, Ints, Ints]:
    """Positions of ``count`` F, I and W when forwards run ahead and W runs behind.

    After ``warmup`` forwards, step k runs a forward while there are, I k and, once k >= lag, W
    k - lag; the W left come last.

    Args:
        warmup: Forwards ahead, (P, 1).
        lag: Steps that W runs behind I, (P, 1).
        count: Ops of each kind, K.

    Returns:
        Places in the device's list of F, I and W, each (P, K).
    """
    k = np.arange(count, dtype=np.int32)
    forward = k + np.maximum(0, k - warmup) + np.maximum(0, k - warmup - lag)
    backward = k + np.minimum(count, warmup + k + 1) + np.maximum(0, k - lag)
    done = np.minimum(count, k + lag + 1)  # I before W k
    return forward, backward, k + done + np.minimum(count, warmup + done)


def _split(shape: Shape, warmup: Ints, lag: Ints) -> tuple[Family, Family, Family]:
    k, r = np.arange(shape.num_microbatches, dtype=np.int32), devices_of(shape)
    forward, backward, weight = split_positions(warmup, lag, shape.num_microbatches)
    return (
        Family(Kind.F, r, k, forward),
        Family(Kind.I, r, k, backward),
        Family(Kind.W, r, k, weight),
    )
