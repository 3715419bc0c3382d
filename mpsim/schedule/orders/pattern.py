"""V-Half and V-Min: a building block repeated every six slots, then squeezed.

Letters: p devices, m microbatches, r index of a device. Placement: device r holds stages r and
2 p - 1 - r. Visits of a device are numbered in the order of a microbatch: 0 F of the first chunk,
1 F of the second, 2 I of the second, 3 I of the first; 4 and 5 are their W.

Source:
    Qi et al., "Pipeline Parallelism with Controllable Memory", arXiv:2405.15362; the squeezing
    follows the rules of the authors' ``zbv_greedy`` scheduler.
"""

from __future__ import annotations

from bisect import bisect_left

import numpy as np
from numpy.typing import NDArray

from mpsim.schedule.ops import Kind, Order
from mpsim.schedule.orders.build import Ops, Shape, join, require

_PERIOD = 6  # slots of a microbatch: F, I, W of two chunks
Slots = list[list[int]]
"""Slots of one device: by visit, by microbatch (W by their order)."""


def v_half(shape: Shape) -> Order:
    """V-Half: half of 1F1B's memory, floor((p + 2) / 2) microbatches on every device.

    Device r starts at slots 2 r, 3 p - 2 - r, 3 p + d - 1 + 2 r and 6 p + d - 2 - r, d = 3 for even
    p, else 0. For f = i = w, in those units and for m >= 2 p, its span is 3 p - 7 longer than the
    work (3 p - 4 for odd p, 1 for p = 2). Legal for v = 2, m >= 1; weights once.
    """
    p = shape.num_devices
    delay = 3 if p % 2 == 0 else 0
    block = [
        (2 * r, 3 * p - 2 - r, 3 * p + delay - 1 + 2 * r, 6 * p + delay - 2 - r) for r in range(p)
    ]
    return _from_block("v_half", shape, block)


def v_min(shape: Shape) -> Order:
    """V-Min: a third of 1F1B's memory, floor((p + 4) / 3) microbatches on every device.

    Device r starts at slots r, 2 p - 1 - r, 2 p + d + r and 4 p + d - 1 - r, d = 2 for p a multiple
    of 3, else 0. For f = i = w, in those units and for m >= 2 p, its span is 4 p - 5 longer than
    the work (4 p - 7 for multiples of 3); for unequal times it grows with m. Legal for v = 2,
    m >= 1; weights once.
    """
    p = shape.num_devices
    delay = 2 if p % 3 == 0 else 0
    block = [(r, 2 * p - 1 - r, 2 * p + delay + r, 4 * p + delay - 1 - r) for r in range(p)]
    return _from_block("v_min", shape, block)


def _from_block(name: str, shape: Shape, block: list[tuple[int, int, int, int]]) -> Order:
    p, m = shape.num_devices, shape.num_microbatches
    require(shape.num_chunks == 2, f"{name} places 2 chunks on a device, not {shape.num_chunks}")
    slots = [[[start + _PERIOD * k for k in range(m)] for start in starts] for starts in block]
    slots = _squeeze(slots, with_weights=True)
    slots = _squeeze([device[:4] for device in slots], with_weights=False)
    lists = []
    for rank, device in enumerate(slots):
        by_visit = _add_weights(device[:4], by_chunk=True)
        visit = np.repeat(np.arange(6, dtype=np.int32), m)
        microbatch = np.tile(np.arange(m, dtype=np.int32), 6)
        by = np.argsort(np.concatenate([np.array(each) for each in by_visit]), kind="stable")
        visit, microbatch = visit[by], microbatch[by]
        chunk = np.isin(visit, (1, 2, 4))
        stage = np.where(chunk, 2 * p - 1 - rank, rank)
        kind = np.array([Kind.F, Kind.F, Kind.I, Kind.I, Kind.W, Kind.W], np.int8)[visit]
        lists.append(Ops(kind, stage, microbatch))
    return join(name, shape, lists)


def _add_weights(device: Slots, *, by_chunk: bool) -> Slots:
    """The slots with W put in the first free ones after I, one list, or one a chunk.

    Of two chunks the W of the second chunk (whose backward comes first) goes ahead.
    """
    visit_at = {slot: visit for visit in range(4) for slot in device[visit]}
    weights: Slots = [[], []] if by_chunk else [[]]
    waiting = [0] * len(weights)
    slot = 0
    left = len(device[0]) * 4
    while left or any(waiting):
        visit = visit_at.get(slot)
        if visit is None:
            for chunk, count in enumerate(waiting):
                if count:
                    weights[chunk].append(slot)
                    waiting[chunk] -= 1
                    break
        else:
            left -= 1
            if visit >= 2:
                waiting[visit - 2 if by_chunk else 0] += 1
        slot += 1
    return [*device, *weights]


def _squeeze(slots: list[Slots], *, with_weights: bool) -> list[Slots]:
    """Move ops to earlier free slots as long as no device holds more, then close all gaps.

    Ops between the first backward that reaches the end of device 0 and the last forward stay: they
    are the steady phase. Without weights, ops before it stay as well; W are put in what is free.
    """
    if with_weights:
        slots = [_add_weights(device, by_chunk=False) for device in slots]
    peak = max(_peak(device) for device in slots)
    queue = sorted(
        (slot, rank, visit, k)
        for rank, device in enumerate(slots)
        for visit, times in enumerate(device)
        for k, slot in enumerate(times)
    )
    occupied: list[set[int]] = [set() for _ in slots]
    last = len(slots[0][0]) - 1
    phase = 0
    for slot, rank, visit, k in queue:
        if phase == 0 and visit == 3 and rank == 0:
            phase = 1
        if phase == 1 or (phase == 0 and not with_weights):
            if phase == 1 and visit == 0 and k == last:
                phase = 2
            occupied[rank].add(slot)
            continue
        earliest = _ready(slots, rank, visit, k) + 1
        _move(slots[rank], (visit, k), range(earliest, slot), occupied[rank], peak)
        occupied[rank].add(slots[rank][visit][k])
    if not with_weights:
        slots = [_add_weights(device, by_chunk=False) for device in slots]
    return _close_gaps(slots)


def _ready(slots: list[Slots], rank: int, visit: int, k: int) -> int:
    """Slot of the last op that an op waits for; -1: none."""
    after = -1
    if visit in (0, 2) and rank > 0:
        after = slots[rank - 1][visit][k]
    elif visit in (1, 3) and rank + 1 < len(slots):
        after = slots[rank + 1][visit][k]
    if 0 < visit < 4:
        after = max(after, slots[rank][visit - 1][k])
    elif visit == 4:
        second, first = slots[rank][2:4]
        after = max(after, _kth_of_two(second, first, k))
    if k > 0:
        after = max(after, slots[rank][visit][k - 1])
    return after


def _kth_of_two(first: list[int], second: list[int], k: int) -> int:
    """Entry k of two sorted lists merged."""
    low, high = max(0, k + 1 - len(second)), min(k + 1, len(first))
    taken = bisect_left(range(low, high), True, key=lambda i: first[i] > second[k - i]) + low
    candidates = [*first[max(0, taken - 1) : taken], *second[max(0, k - taken) : k - taken + 1]]
    return max(candidates)


def _move(device: Slots, op: tuple[int, int], to: range, occupied: set[int], peak: int) -> None:
    """Move an op to the first free slot at which the device holds no more than ``peak``."""
    visit, k = op
    old = device[visit][k]
    for slot in to:
        if slot in occupied:
            continue
        device[visit][k] = slot
        if _peak(device) <= peak:
            return
    device[visit][k] = old


def _peak(device: Slots) -> int:
    """Most chunks that a device holds at once; without slots of W, they run where nothing does."""
    end = max(times[-1] for times in device) + 1
    begun = np.zeros(end, np.int64)
    for visit in (0, 1):
        begun[device[visit]] = 1
    if len(device) > 4:
        begun[device[4]] -= 1
        return int(np.cumsum(begun).max())
    step = begun - 1  # free slots take a W off the queue, I add one, F leave it
    for visit in (2, 3):
        step[device[visit]] = 1
    return int((np.cumsum(begun) - _finished(step)).max())


def _finished(step: NDArray[np.int64]) -> NDArray[np.int64]:
    """W done after each slot of a queue that never falls below zero."""
    walk = np.cumsum(step)
    waiting = walk - np.minimum(np.minimum.accumulate(walk), 0)
    return np.cumsum(step == 1) - waiting


def _close_gaps(slots: list[Slots]) -> list[Slots]:
    """Slots of the same order when every op starts as soon as it can, all of one slot's length."""
    queue = sorted(
        (slot, rank, visit, k)
        for rank, device in enumerate(slots)
        for visit, times in enumerate(device)
        for k, slot in enumerate(times)
    )
    closed = [[[0] * len(times) for times in device] for device in slots]
    free = [0] * len(slots)
    for _, rank, visit, k in queue:
        begin = free[rank]
        if visit in (0, 2) and rank > 0:
            begin = max(begin, closed[rank - 1][visit][k] + 1)
        elif visit in (1, 3) and rank + 1 < len(slots):
            begin = max(begin, closed[rank + 1][visit][k] + 1)
        closed[rank][visit][k] = begin
        free[rank] = begin + 1
    return closed
