"""1F1B-V: 1F1B on a V, from a pattern repeated every six slots.

Letters: p devices, m microbatches, r index of a device. Placement: device r holds stages r and
2 p - 1 - r. Visits of a device: 0 F and 1 F of its chunks, 2 backward of the second chunk, 3 of the
first; a backward takes two slots.

Source:
    Qi et al., "Pipeline Parallelism with Controllable Memory", arXiv:2405.15362; the rules are
    those of the authors' ``v1f1b`` scheduler.
"""

from __future__ import annotations

import numpy as np

from mpsim.schedule.ops import Kind, Order
from mpsim.schedule.orders.build import Ops, Shape, counted, join

_PERIOD = 6
_FREE = -1
# Visits of the pattern; 4 and 5 are the second slot (W) of the backwards 2 and 3.
_F, _F2, _B, _B2, _W, _W2 = range(6)


def v_1f1b(shape: Shape) -> Order:
    """1F1B-V: whole backwards on a V, at about two thirds of 1F1B's memory.

    Devices hold at most 2, 3, 3, 4, 5, 5, 6 microbatches for p = 2 to 8; for b = 2 f and m >= p the
    span is 4, 8, 15, 18, 22, 30, 33 f of one chunk longer than the work (1F1B: 6 (p - 1)). Legal
    for v = 2, m >= 1; weights once.
    """
    p, m = shape.num_devices, shape.num_microbatches
    grid = _repeat(_pattern(p), p, m)
    _keep_valid(grid, m)
    _advance(grid, m)
    lists = []
    for rank, row in enumerate(grid):
        visit = np.array(row, np.int32)
        visit = visit[(visit >= 0) & (visit < _W)]
        microbatch = counted(visit)
        visit, microbatch = visit[microbatch < m], microbatch[microbatch < m]
        stage = np.where((visit == _F2) | (visit == _B), 2 * p - 1 - rank, rank)
        kind = np.where(visit < _B, Kind.F, Kind.B).astype(np.int8)
        lists.append(Ops(kind, stage, microbatch))
    return join("1f1b_v", shape, lists)


def _pattern(p: int) -> list[list[int]]:
    """Slot modulo six of every visit of every device.

    Forwards follow each other slot by slot down and up the V; backwards take two slots, with three
    more after every third so that no two ops of a device fall together.
    """
    slots = [[0] * 6 for _ in range(p)]
    for r in range(p):
        slots[r][_F] = r + 1
        slots[r][_F2] = 2 * p - r
    now = 2 * p + 1 + (3 if p % 3 == 0 else 0)
    cycle = (3 - (p + 2) % 3) % 3
    for first, second, devices in ((_B, _W, range(p)), (_B2, _W2, range(p - 1, -1, -1))):
        for r in devices:
            slots[r][first], slots[r][second] = now, now + 1
            now, cycle = now + 2, cycle + 1
            if cycle == 3:
                now, cycle = now + 3, 0
    return [[slot % _PERIOD for slot in device] for device in slots]


def _repeat(pattern: list[list[int]], p: int, m: int) -> list[list[int]]:
    grid = []
    for slots in pattern:
        row = [_FREE] * _PERIOD
        for visit, slot in enumerate(slots):
            row[slot] = visit
        grid.append(row * (4 * p + m + 1))
    return grid


def _keep_valid(grid: list[list[int]], m: int) -> None:
    """Clear what stands before the first or after the last microbatch of each visit."""
    p = len(grid)

    def clear(rank: int, slot: int, step: int) -> None:
        while 0 <= slot < len(grid[rank]):
            grid[rank][slot] = _FREE
            slot += step

    index = _PERIOD
    for visit in (_F, _F2, _B, _B2):
        for rank in range(p) if visit in (_F, _B) else range(p - 1, -1, -1):
            while grid[rank][index] != visit:
                index += 1
            clear(rank, index - _PERIOD, -_PERIOD)
            clear(rank, index + _PERIOD * m, _PERIOD)
            index += 1
            if visit in (_B, _B2):
                weight = grid[rank].index(visit + 2, index)
                clear(rank, weight - _PERIOD, -_PERIOD)
                clear(rank, weight + _PERIOD * m, _PERIOD)


def _advance(grid: list[list[int]], m: int) -> None:
    """Move ops to earlier free slots as far as their inputs and the peak memory allow.

    Backwards move as early as they can; a forward moves only over slots before which its device
    holds less than the peak of the repeated pattern.
    """
    held = [_held(row) for row in grid]
    peak = max(max(row) for row in held)
    at = [[[-1] * m for _ in range(6)] for _ in grid]  # slot by device, visit, microbatch
    seen = [[0] * 6 for _ in grid]
    for slot in range(len(grid[0])):
        for rank, row in enumerate(grid):
            visit = row[slot]
            if visit == _FREE:
                continue
            k = seen[rank][visit]
            seen[rank][visit] += 1
            to = _after(at, rank, visit, k) + 1
            while to < slot and row[to] != _FREE:
                to += 1
            if visit in (_B, _B2):
                while to < slot and (row[to] != _FREE or row[to + 1] != _FREE):
                    to += 1
            if visit in (_F, _F2):
                to = _early_forward(row, held[rank], range(to, slot), peak)
            if to < slot:
                row[to], row[slot] = visit, _FREE
                change = {_F: 1, _F2: 1, _W: -1, _W2: -1}.get(visit, 0)
                for between in range(to, slot):
                    held[rank][between] += change
            at[rank][visit][k] = to


def _held(row: list[int]) -> list[int]:
    """Chunks held after each slot."""
    change = {_F: 1, _F2: 1, _W: -1, _W2: -1}
    return np.cumsum([change.get(visit, 0) for visit in row]).tolist()  # type: ignore[no-any-return]


def _after(at: list[list[list[int]]], rank: int, visit: int, k: int) -> int:
    """Slot of the last op that an op waits for; -1: none. A backward ends with its second slot."""
    last = len(at) - 1
    here = at[rank]
    after = here[visit][k - 1] if k else -1
    if visit in (_W, _W2):
        return max(after, here[visit - 2][k])
    if visit == _F:
        return max(after, at[rank - 1][_F][k]) if rank else after
    if visit == _F2:
        return max(after, at[rank + 1][_F2][k] if rank < last else here[_F][k])
    if visit == _B:
        return max(after, at[rank - 1][_W][k] if rank else here[_F2][k])
    return max(after, at[rank + 1][_W2][k] if rank < last else here[_W][k])


def _early_forward(row: list[int], held: list[int], between: range, peak: int) -> int:
    """The first free slot that a forward reaches without raising the peak."""
    to = between.stop
    while to > between.start and held[to - 1] < peak:
        to -= 1
    while to < between.stop and row[to] != _FREE:
        to += 1
    return to
