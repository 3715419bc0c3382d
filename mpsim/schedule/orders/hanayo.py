"""Hanayo: waves over the devices, found by list scheduling.

Letters: p devices, m microbatches, W waves.
"""

from __future__ import annotations

from heapq import heappop, heappush

import numpy as np

from mpsim.schedule.ops import Kind, Order
from mpsim.schedule.orders.build import Ops, Shape, join, require


def hanayo(shape: Shape) -> Order:
    """Hanayo: v = 2 W chunks a device, placed as a snake; each device runs what is ready.

    Chunk k of device r is stage k p + r for even k and k p + p - 1 - r for odd k, so turns need no
    transfer; W = 1 is the V. An idle device takes of the ops that are ready a backward first, then
    the oldest microbatch, then the deepest stage, for the op times given. The published bubble,
    (2 p - 2) / (3 p W + p - 1) at b = 2 f, is not reproduced by this rule exactly (the authors'
    lists are not public); it falls with W. Legal for v even, m >= 1; weights once.

    Source:
        Liu et al., "Hanayo", arXiv:2308.15762.
    """
    p, v = shape.num_devices, shape.num_chunks
    require(v % 2 == 0, f"hanayo: chunks={v} must be even, two a wave: use {v - 1 or 2} or {v + 1}")
    owner = [s % p if s // p % 2 == 0 else p - 1 - s % p for s in range(p * v)]
    lists = _list_schedule(shape, owner)
    columns = [np.array(ops, np.int32).reshape(-1, 3).T for ops in lists]
    return join("hanayo", shape, [Ops(kind, stage, mb) for kind, mb, stage in columns])


def _list_schedule(shape: Shape, owner: list[int]) -> list[list[tuple[int, int, int]]]:
    """For each device the (kind, microbatch, stage) that it runs, always the best that is ready."""
    last, times = len(owner) - 1, shape.times
    seconds = {Kind.F: times.forward, Kind.B: times.backward}
    lists: list[list[tuple[int, int, int]]] = [[] for _ in range(shape.num_devices)]
    # Ready ops sort by (forward last, microbatch, -stage).
    ready: list[list[tuple[int, int, int]]] = [[] for _ in lists]
    ready[owner[0]] = [(1, k, 0) for k in range(shape.num_microbatches)]
    busy = [False] * shape.num_devices
    events: list[tuple[float, int, int, tuple[int, int, int]]] = []
    woken = {owner[0]}
    now = 0.0

    def announce(kind: Kind, microbatch: int, stage: int, source: int) -> None:
        device = owner[stage]
        entry = (int(kind == Kind.F), microbatch, -stage)
        heappush(events, (now + (times.hop if device != source else 0.0), 1, device, entry))

    while True:
        for device in sorted(woken):
            if not busy[device] and ready[device]:
                forward, microbatch, negative = heappop(ready[device])
                kind = Kind.F if forward else Kind.B
                lists[device].append((kind, microbatch, -negative))
                busy[device] = True
                entry = (forward, microbatch, negative)
                heappush(events, (now + seconds[kind], 0, device, entry))
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
            forward, microbatch, negative = entry
            stage = -negative
            if forward and stage < last:
                announce(Kind.F, microbatch, stage + 1, device)
            elif forward:
                announce(Kind.B, microbatch, stage, device)
            elif stage > 0:
                announce(Kind.B, microbatch, stage - 1, device)
