"""Hanayo: waves over the devices, found by list scheduling.

Letters: p devices, m microbatches, W waves.
"""

from __future__ import annotations

from heapq import heappop, heappush
from typing import NamedTuple

import numpy as np

from mpsim.schedule.ops import Kind, Order
from mpsim.schedule.orders.build import Ops, Shape, join, require


class _Entry(NamedTuple):
    """An op; the lowest entry goes first: backwards, then old microbatches, then deep stages."""

    forward: bool
    microbatch: int
    negative_stage: int

    def following(self, last: int) -> _Entry | None:
        """The op that this one feeds."""
        stage = -self.negative_stage
        if self.forward and stage < last:
            return self._replace(negative_stage=-(stage + 1))
        if self.forward:
            return self._replace(forward=False)
        return self._replace(negative_stage=-(stage - 1)) if stage else None


def hanayo(shape: Shape) -> Order:
    """Hanayo: v = 2 W chunks a device, placed as a snake; each device runs what is ready.

    Placement: chunk k of device r is stage k p + r for even k and k p + p - 1 - r for odd k, so
    turns need no transfer; W = 1 is the V. An idle device takes of the ops that are ready a
    backward first, then the oldest microbatch, then the deepest stage, for the op times given
    (at most about m v chunks are held in the warm-up). The published bubble,
    (2 p - 2) / (3 p W + p - 1) at b = 2 f, is not reproduced by this rule exactly (the authors'
    lists are not public); it falls with W. Legal for v even, m >= 1; weights once.

    Source:
        Liu et al., "Hanayo", arXiv:2308.15762.
    """
    p, v = shape.num_devices, shape.num_chunks
    require(v % 2 == 0, f"hanayo: chunks={v} must be even, two a wave: use {v + 1}")
    owner = [s % p if s // p % 2 == 0 else p - 1 - s % p for s in range(p * v)]
    lists = _list_schedule(shape, owner)
    columns = [np.array(entries, np.int32).reshape(-1, 3).T for entries in lists]
    devices = [
        Ops(np.where(forward, Kind.F, Kind.B).astype(np.int8), -negative_stage, microbatch)
        for forward, microbatch, negative_stage in columns
    ]
    return join("hanayo", shape, devices)


def _list_schedule(shape: Shape, owner: list[int]) -> list[list[_Entry]]:
    """For each device what it runs, always the best that is ready."""
    last, times = len(owner) - 1, shape.times
    lists: list[list[_Entry]] = [[] for _ in range(shape.num_devices)]
    ready: list[list[_Entry]] = [[] for _ in lists]
    ready[owner[0]] = [_Entry(True, k, 0) for k in range(shape.num_microbatches)]
    busy = [False] * shape.num_devices
    events: list[tuple[float, bool, int, _Entry]] = []  # when, whether an arrival, device, op
    woken, now = {owner[0]}, 0.0
    while True:
        for device in sorted(woken):
            if not busy[device] and ready[device]:
                entry = heappop(ready[device])
                lists[device].append(entry)
                busy[device] = True
                seconds = times.forward if entry.forward else times.backward
                heappush(events, (now + seconds, False, device, entry))
        if not events:
            return lists
        now, woken = events[0][0], set()
        while events and events[0][0] == now:
            _, arrived, device, entry = heappop(events)
            woken.add(device)
            if arrived:
                heappush(ready[device], entry)
                continue
            busy[device] = False
            following = entry.following(last)
            if following is not None:
                to = owner[-following.negative_stage]
                hop = 0.0 if to == device else times.hop
                heappush(events, (now + hop, True, to, following))
