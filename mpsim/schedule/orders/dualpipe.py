"""DualPipe and DualPipeV: forward of one direction overlapped with backward of the other.

Both run one list of eight phases, written in letters of the direction: F0 is a forward of the
direction (DualPipe) or chunk (DualPipeV) that enters at the device's near end, F1 one of the other.
``ahead`` and ``behind`` count what lies between the device and the turn, and behind it:

1. 2 ahead x F0                        5. ahead x B1, (F1 + B0)
2. behind x F0 F1                      6. behind x B1 B0, the second half as I1 I0
3. ahead x I1 W F1                     7. ahead x W I0
4. main x (F0 + B1), (F1 + B0)         8. behind x W

W runs in the order of the I, over both directions.

Source:
    DeepSeek-AI, "DeepSeek-V3 Technical Report", arXiv:2412.19437; github.com/deepseek-ai/DualPipe.
"""

from __future__ import annotations

import numpy as np

from mpsim.schedule.ops import Ints, Kind, Order
from mpsim.schedule.orders.build import Ops, Shape, counted, join, require

_F0, _F1, _B0, _B1, _I0, _I1, _W = range(7)  # 2 x Kind + direction
_FUSED = 8


def dualpipe(shape: Shape) -> Order:
    """DualPipe: microbatches enter at both ends; each device holds a stage of either direction.

    Microbatches below m / 2 go down (stage s on device s), the others up (stage s on device
    p - 1 - s). The most idle device idles (p / 2 - 1)(X + b - 3 w), X the seconds of a fused block,
    if f = i and w <= f. Every device holds p + 1 chunks until W and two copies of weights, whose
    gradients are summed between devices r and p - 1 - r. Legal for p and m even, m >= 2 p.
    """
    p, m = shape.num_devices, shape.num_microbatches
    require(p % 2 == 0, f"dualpipe: p={p} must be even: use {max(2, p - 1)} or {p + 1}")
    require(
        m % 2 == 0 and m >= 2 * p,
        f"dualpipe: m={m} must be even and at least 2 p = {2 * p}: use {max(2 * p, m + m % 2)}",
    )
    half = p // 2

    def device(rank: int) -> Ops:
        near = min(rank, p - 1 - rank)
        main = m // 2 - p + near + 1
        codes = _phases(half - near - 1, near + 1, main, fuse_first=near != half - 1)
        kind, direction, microbatch, block = _read(codes)
        up = direction ^ (rank >= half)
        stage = np.where(up, p - 1 - rank, rank)
        return Ops(kind, stage, microbatch + up * (m // 2), block)

    return join("dualpipe", shape, [device(rank) for rank in range(p)], weight_copies=2)


def dualpipe_v(shape: Shape) -> Order:
    """DualPipeV: half of DualPipe, its two directions joined to a V of 2 p stages on p devices.

    Device r holds stages r and 2 p - 1 - r. The most idle device idles (p - 1)(X + b - 3 w), times
    of one chunk, X of a fused block, if f = i and w <= f. Every device holds 2 p + 1 chunks until
    W; weights once. Legal for v = 2, m >= 2 p.

    Source:
        Qi et al., "DualPipe could be better without the Dual" (the cut-in-half schedule).
    """
    p, m = shape.num_devices, shape.num_microbatches
    require(m >= 2 * p, f"dualpipe_v: m={m} must be at least 2 p = {2 * p}: use {2 * p}")

    def device(rank: int) -> Ops:
        codes = _phases(p - rank - 1, rank + 1, m - 2 * p + rank + 1, fuse_first=rank != p - 1)
        kind, chunk, microbatch, block = _read(codes)
        return Ops(kind, np.where(chunk, 2 * p - 1 - rank, rank), microbatch, block)

    return join("dualpipe_v", shape, [device(rank) for rank in range(p)])


def _phases(ahead: int, behind: int, main: int, *, fuse_first: bool) -> Ints:
    """The eight phases as codes.

    On the device at the turn the first pair is not fused: its backward needs that very forward.
    """
    fused = [_F0 + _FUSED, _B1 + _FUSED, _F1 + _FUSED, _B0 + _FUSED]
    first = fused if fuse_first else [_F0, _B1, *fused[2:]]
    whole = behind - behind // 2 if behind % 2 else behind // 2  # turns that begin with B1
    turns = [_B1, _B0] * (whole - behind % 2) + [_B1, _I0] * (behind % 2)
    turns += [_I1, _I0] * (behind - whole)
    phases = (
        [_F0] * (2 * ahead),
        [_F0, _F1] * behind,
        [_I1, _W, _F1] * ahead,
        first if main else [],
        np.tile(fused, max(0, main - 1)),
        [_B1, *fused[2:]] * ahead,
        turns,
        [_W, _I0] * ahead,
        [_W] * behind,
    )
    return np.concatenate([np.asarray(phase, np.int32) for phase in phases])


def _read(codes: Ints) -> tuple[Ints, Ints, Ints, Ints]:
    """Kind, direction, microbatch within the direction and block of each code."""
    fused, code = codes >= _FUSED, codes % _FUSED
    kind, direction = code // 2, code % 2
    backward = (kind == Kind.B) | (kind == Kind.I)
    microbatch = counted(direction + 2 * backward + 4 * (kind == Kind.W))
    first_in = kind == Kind.I
    direction[kind == Kind.W] = direction[first_in]
    microbatch[kind == Kind.W] = microbatch[first_in]
    block = np.where(fused, (np.cumsum(fused) - 1) // 2, -1)
    return kind, direction, microbatch, block
