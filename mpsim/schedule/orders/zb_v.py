"""ZB-V: zero bubble within 1F1B's memory on a V of two chunks.

Letters: p devices, m microbatches, r index of a device. Placement: device r holds stages r and
2 p - 1 - r, so that the turn of the V needs no transfer and every device holds as much.
"""

from __future__ import annotations

import numpy as np

from mpsim.schedule.ops import Ints, Order
from mpsim.schedule.orders.build import Ops, Shape, counted, join

_F0, _F1, _I0, _I1, _W0, _W1 = 0, 1, 4, 5, 6, 7  # 2 x Kind + chunk


def zb_v(shape: Shape) -> Order:
    """ZB-V by hand, exact for f = i = w.

    On device r, chunk after the letter: 2 (p - r) - 1 x F0; r x F1 F0; (p - r) x F1 I1 W1; then
    F0 (while there are) I0 W0 F1 I1 W1 until the forwards end; r x I0 I1; (p - r) x I0 W0; the W1
    left, the W0 left. For m < 2 p - 1 it is the order of 2 p - 1 without the surplus. Span
    2 m (f + i + w) for f = i = w, and 2 (p - 1)(i - w) more for w <= f <= i, times of one chunk;
    the makespan is longer by (p - 1) f. Every device holds 2 p chunks until W: 1F1B's device 0.
    Legal for v = 2, m >= 1; weights once.

    Source:
        Qi et al., "Pipeline Parallelism with Controllable Memory", arXiv:2405.15362; the order is
        that of torch's ``ScheduleZBVZeroBubble``.
    """
    p, m = shape.num_devices, shape.num_microbatches

    def device(rank: int) -> Ops:
        codes = _codes(p, rank, max(m, 2 * p - 1))
        microbatch = counted(codes)
        kept = microbatch < m
        codes, microbatch = codes[kept], microbatch[kept]
        stage = np.where(codes % 2, 2 * p - 1 - rank, rank)
        return Ops((codes // 2).astype(np.int8), stage, microbatch)

    return join("zb_v", shape, [device(rank) for rank in range(p)])


def _codes(p: int, rank: int, count: int) -> Ints:
    steady = count - p
    with_forward = count - 2 * p + rank + 1
    phases = (
        [_F0] * (2 * (p - rank) - 1),
        [_F1, _F0] * rank,
        [_F1, _I1, _W1] * (p - rank),
        np.tile([_F0, _I0, _W0, _F1, _I1, _W1], with_forward),
        [_I0, _W0, _F1, _I1, _W1] * (steady - with_forward),
        [_I0, _I1] * rank,
        [_I0, _W0] * (p - rank),
        [_W1] * rank,
        [_W0] * rank,
    )
    return np.concatenate([np.asarray(phase, np.int32) for phase in phases])
