"""ZB-auto: the zero-bubble order searched for given op times under a memory limit.

Letters: p devices, m microbatches; f, i, w seconds of the ops, c of a hop. Placement: stage r on
device r.

Source:
    Qi et al., "Zero Bubble Pipeline Parallelism", arXiv:2401.10241, section 3.1; the rules are
    those of the authors' scheduler.
"""

from __future__ import annotations

from itertools import product

import numpy as np

from mpsim.errors import ScheduleError
from mpsim.schedule.ops import Kind, Order
from mpsim.schedule.orders.build import Ops, Shape, join, require

_ROUNDING = 1e-9  # sums of activation shares are compared up to this


class _OverflowError(Exception):
    """No W is left that would free memory for the next op."""


def zb_auto(shape: Shape) -> Order:
    """ZB-1p, ZB-2p and beyond: the best of eight greedy searches, by the longest span of a device.

    Microbatch by microbatch, every device places one F, then every device from the last to the
    first one I; W fills waits, or frees memory before an op that would exceed the limit. The eight
    searches differ in whether forwards may delay the first I, whether a device drops its F when
    the next one lags, and whether W may be longer than the wait it fills. With no limit as many
    forwards run ahead as pay. Never above ``memory_limit`` activations on a device, of which an
    F adds 1, an I frees ``freed_at_input`` and a W the rest. Legal for m >= 1 and a limit of at
    least 1; weights once.
    """
    require(
        shape.memory_limit is None or shape.memory_limit >= 1,
        f"zb_auto: a memory limit of {shape.memory_limit} holds no microbatch: use at least 1",
    )
    best: _Search | None = None
    for early, prefer_backward, greedy in product([True, False], repeat=3):
        search = _Search(shape)
        try:
            search.run(early=early, prefer_backward=prefer_backward, greedy=greedy)
        except _OverflowError:
            continue
        if best is None or search.span() < best.span():
            best = search
    if best is None:
        raise ScheduleError(
            f"zb_auto: no order fits memory_limit={shape.memory_limit}: "
            f"use {shape.num_devices} (as 1F1B's first device) or more"
        )
    return join("zb_auto", shape, [best.ops(device) for device in range(shape.num_devices)])


class _Search:
    """One greedy search: what each device has run so far, when, and what it holds.

    Letters of the attributes: by device, ``done[kind]`` counts ops; ``ends[kind]`` has when each
    ended, by microbatch; ``idle`` counts seconds waited since the first F.
    """

    def __init__(self, shape: Shape) -> None:
        """An empty schedule."""
        p, m, times = shape.num_devices, shape.num_microbatches, shape.times
        freed = shape.freed_at_input
        self.p, self.m, self.hop = p, m, times.hop
        self.seconds = {Kind.F: times.forward, Kind.I: times.input, Kind.W: times.weight}
        self.change = {Kind.F: 1.0, Kind.I: -freed, Kind.W: freed - 1.0}
        self.limit = 3.0 * m if shape.memory_limit is None else shape.memory_limit + _ROUNDING
        self.done = {kind: [0] * p for kind in self.seconds}
        self.ends = {kind: [[0.0] * m for _ in range(p)] for kind in self.seconds}
        self.now, self.held, self.idle = [0.0] * p, [0.0] * p, [0.0] * p
        self.lists: list[list[Kind]] = [[] for _ in range(p)]
        self.longest_idle = 0.0

    def run(self, *, early: bool, prefer_backward: bool, greedy: bool) -> None:
        """Place all ops.

        Raises:
            _OverflowError: If the limit cannot be kept.
        """
        p, m = self.p, self.m
        for device in range(p):
            self.put(device, Kind.F)
        self.run_ahead(early=early)
        for device in reversed(range(p)):
            self.put(device, Kind.I)
        for microbatch in range(1, m):
            for device in self.forwards_due(prefer_backward=prefer_backward):
                self.fill(device, Kind.F, self.done[Kind.F][device], greedy=greedy)
                self.put(device, Kind.F)
            for device in reversed(range(p)):
                self.fill(device, Kind.I, microbatch, greedy=greedy)
                if device == 0 and self.done[Kind.F][0] == m:
                    self.flush(0)
                self.put(device, Kind.I)
        for device in range(p):
            self.flush(device)

    def put(self, device: int, kind: Kind) -> None:
        """Run the next op of a kind on a device as soon as it can."""
        microbatch = self.done[kind][device]
        begin = max(self.now[device], self.arrival(device, kind, microbatch))
        if self.done[Kind.F][device]:
            self.idle[device] += begin - self.now[device]
            self.longest_idle = max(self.longest_idle, self.idle[device])
        self.now[device] = self.ends[kind][device][microbatch] = begin + self.seconds[kind]
        self.held[device] += self.change[kind]
        self.done[kind][device] += 1
        self.lists[device].append(kind)

    def arrival(self, device: int, kind: Kind, microbatch: int) -> float:  # s
        """When the input of an op is there; 0 if it comes from no other device."""
        if kind == Kind.F and device > 0:
            return self.ends[kind][device - 1][microbatch] + self.hop
        if kind == Kind.I and device < self.p - 1:
            return self.ends[kind][device + 1][microbatch] + self.hop
        return 0.0

    def pending(self, device: int) -> bool:
        """Whether a device has a W to run."""
        return self.done[Kind.W][device] < self.done[Kind.I][device]

    def flush(self, device: int) -> None:
        """Run all W that a device can."""
        while self.pending(device):
            self.put(device, Kind.W)

    def run_ahead(self, *, early: bool) -> None:
        """Place the forwards that fit before the first I of each device."""
        p, m, f, i = self.p, self.m, self.seconds[Kind.F], self.seconds[Kind.I]
        extra = [0] * p
        first_end = self.ends[Kind.F][p - 1][0] + i  # of the first I of the device after
        for device in reversed(range(p - 1)):
            held, now = self.held[device], self.now[device]
            while self.done[Kind.F][device] + extra[device] < m and held + 1 <= self.limit:
                if (now + f > first_end + self.hop) if early else (now >= first_end + self.hop):
                    break
                held, now, extra[device] = held + 1, now + f, extra[device] + 1
            first_end = max(now, first_end + self.hop) + i
        for device in range(1, p):
            placed = self.done[Kind.F][device]
            while 0 < extra[device] >= extra[device - 1] and placed + extra[device] < m:
                extra[device] -= 1
        for device in range(p):
            for _ in range(extra[device]):
                self.put(device, Kind.F)

    def forwards_due(self, *, prefer_backward: bool) -> list[int]:
        """Devices that place an F now: each that should, if all after it do as well."""
        due: list[int] = []
        for device in reversed(range(self.p)):
            if self.done[Kind.F][device] >= self.m:
                break
            if prefer_backward and self.should_wait(device):
                break
            due.append(device)
        return due[::-1]

    def should_wait(self, device: int) -> bool:
        """Whether an F would only delay I, the next device being two forwards behind."""
        done, f, i = self.done, self.seconds[Kind.F], self.seconds[Kind.I]
        if device + 1 >= self.p or done[Kind.F][device] < done[Kind.F][device + 1] + 2:
            return False
        arrival = self.now[device + 1] + f + i + self.hop  # of the next I
        if self.now[device] >= arrival:
            return True
        held, freeing, first = self.held[device] + 1, 0.0, done[Kind.W][device]
        while held > self.limit and first < done[Kind.I][device]:
            held += self.change[Kind.W]
            freeing += self.seconds[Kind.W]
            first += 1
        if self.now[device] + f + freeing <= arrival:
            return False
        return arrival - self.now[device] <= self.longest_idle - self.idle[device]

    def fill(self, device: int, kind: Kind, microbatch: int, *, greedy: bool) -> None:
        """Run W to make room for an op, and in the wait for its input.

        A W longer than the wait runs if the wait would make this device the most idle, or if the
        search is ``greedy``.
        """
        while self.held[device] + self.change[kind] > self.limit:
            if not self.pending(device):
                raise _OverflowError
            self.put(device, Kind.W)
        arrival, w = self.arrival(device, kind, microbatch), self.seconds[Kind.W]
        while self.pending(device) and self.now[device] + w <= arrival:
            self.put(device, Kind.W)
        wait = arrival - self.now[device]
        if self.pending(device) and wait > 0:
            spare = self.longest_idle - self.idle[device]
            if greedy or wait > spare:
                self.put(device, Kind.W)

    def span(self) -> float:  # s
        """Longest time of a device from the begin of its first F to the end of its last W."""
        f = self.seconds[Kind.F]
        return max(
            self.ends[Kind.W][device][-1] - (self.ends[Kind.F][device][0] - f)
            for device in range(self.p)
        )

    def ops(self, device: int) -> Ops:
        """The list of a device."""
        kind = np.array(self.lists[device], np.int8)
        microbatch = np.empty(len(kind), np.int32)
        for each in self.seconds:
            microbatch[kind == each] = np.arange(self.m)
        return Ops(kind, np.full(len(kind), device), microbatch)
