"""ZB-V searched for given op times: fills every wait with W, within the memory of 2 p chunks.

Placement: device r holds stages r and 2 p - 1 - r.

Source:
    Qi et al., "Pipeline Parallelism with Controllable Memory", arXiv:2405.15362; the rules are
    those of the authors' ZB-V scheduler.
"""

from __future__ import annotations

from collections import deque
from itertools import product

import numpy as np

from mpsim.errors import ScheduleError
from mpsim.schedule.ops import Kind, Order
from mpsim.schedule.orders.build import Ops, Shape, join, require

_ROUNDING = 1e-9  # sums of activation shares are compared up to this
_KINDS = np.array([Kind.F, Kind.I, Kind.W], np.int8)


class _StuckError(Exception):
    """The rules have no op to place: too few microbatches."""


def zb_v_greedy(shape: Shape) -> Order:
    """ZB-V for unequal times: the least idle of four greedy searches.

    After the warm-up of the V, each round places one backward on every device (past the turn where
    its input is there, else before it) and then one forward; W fills waits, or runs early where
    the wait would make its device the most idle. The searches differ in whether such early W are
    allowed before backwards and before forwards of the second visit; each is run again with the
    idle times of its first run in view, as long as that helps. Every device holds at most 2 p
    chunks (or ``memory_limit``). Legal for v = 2, m >= 2 p; weights once.
    """
    p, m = shape.num_devices, shape.num_microbatches
    least = 2 * p
    require(
        shape.memory_limit is None or shape.memory_limit >= least,
        f"zb_v_greedy: a memory limit of {shape.memory_limit} chunks is too small: "
        f"use 2 p = {least} or more",
    )
    best: _Search | None = None
    for before_backward, before_forward in product([True, False], repeat=2):
        try:
            search = _improve(shape, before_forward=before_forward, before_backward=before_backward)
        except _StuckError:
            raise ScheduleError(
                f"zb_v_greedy: m={m} is too few for p={p}: use {least} microbatches, or zb_v"
            ) from None
        if best is None or search.longest_idle < best.longest_idle:
            best = search
    assert best is not None
    return join("zb_v_greedy", shape, [best.ops(device) for device in range(p)])


def _improve(shape: Shape, *, before_forward: bool, before_backward: bool) -> _Search:
    """Search again with the idle times of the run before in view, until it no longer helps."""
    search = _Search(shape, before_forward, before_backward, None)
    known = -1.0
    while True:
        if not (known < 0 or search.longest_idle < known):
            return search
        known = search.longest_idle
        again = _Search(shape, before_forward, before_backward, search.idle)
        if again.longest_idle >= search.longest_idle:
            return search
        search = again


class _Search:
    """One greedy run. Kinds are 0 F, 1 I, 2 W; ``visit`` 0 is the first of F (or of I) to a device.

    The second visit of the backward is to the chunk of the first visit of the forward.
    """

    def __init__(
        self,
        shape: Shape,
        before_forward: bool,
        before_backward: bool,
        approved: list[float] | None,
    ) -> None:
        """Run it."""
        p, m, times = shape.num_devices, shape.num_microbatches, shape.times
        self.p, self.m, self.hop = p, m, times.hop
        self.seconds = (times.forward, times.input, times.weight)
        freed = shape.freed_at_input
        self.change = (1.0, -freed, freed - 1.0)
        self.limit = (shape.memory_limit or 2 * p) + _ROUNDING
        self.before_forward, self.before_backward = before_forward, before_backward
        self.approved = approved or [-1.0] * p
        self.most_approved = max(self.approved)
        self.count = [[0] * 6 for _ in range(p)]  # by device, 2 x kind + visit
        # By 2 x kind + visit, device, microbatch; -1: not yet. The last entry also answers for
        # "no neighbour", index -1, as in the authors' code: it is the very last W.
        self.ends = [-1.0] * (6 * p * m)
        self.now, self.held, self.idle = [0.0] * p, [0.0] * p, [0.0] * p
        self.longest_idle = 0.0
        self.pending: list[deque[int]] = [deque() for _ in range(p)]
        self.lists: list[list[tuple[int, int]]] = [[] for _ in range(p)]
        self._warm_up()
        for _ in range(2 * m):
            self._backwards()
            self._forwards()
        for device in range(p):
            while self.pending[device]:
                self._put_weight(device)

    def _at(self, code: int, device: int, microbatch: int) -> int:
        return (code * self.p + device) * self.m + microbatch

    def _input(self, code: int, device: int, microbatch: int) -> int:
        """Where the end of the op on the neighbour that this one waits for stands; -1: none."""
        if code % 2 == 0:
            return self._at(code, device - 1, microbatch) if device > 0 else -1
        return self._at(code, device + 1, microbatch) if device < self.p - 1 else -1

    def _put(self, code: int, device: int) -> None:
        kind, visit = divmod(code, 2)
        count = self.count[device]
        microbatch = count[code]
        if microbatch >= self.m or self.held[device] + self.change[kind] > self.limit:
            raise _StuckError
        begin = self.now[device]
        if kind < 2:
            if code and self.ends[self._at(code - 1, device, microbatch)] < 0:
                raise _StuckError
            source = self._input(code, device, microbatch)
            if source >= 0:
                if self.ends[source] < 0:
                    raise _StuckError
                begin = max(begin, self.ends[source] + self.hop)
        if count[0]:
            self.idle[device] += begin - self.now[device]
            self.longest_idle = max(self.longest_idle, self.idle[device])
        end = begin + self.seconds[kind]
        self.now[device] = self.ends[self._at(code, device, microbatch)] = end
        self.held[device] += self.change[kind]
        self.lists[device].append((code, microbatch))
        if kind == 1:
            self.pending[device].append(visit)
        count[code] += 1

    def _put_weight(self, device: int) -> None:
        if not self.pending[device]:
            raise _StuckError
        self._put(4 + self.pending[device].popleft(), device)

    def _warm_up(self) -> None:
        """The forwards before the first backward: first visits down, second visits up."""
        p, m, count = self.p, self.m, self.count
        for device in range(p):
            self._put(0, device)
        self._put(1, p - 1)
        for device in reversed(range(p - 1)):
            arrival = self.ends[self._at(1, device + 1, 0)] + self.hop
            while (
                self.held[device] + 2 + 2 * device <= self.limit
                and self.now[device] + self.seconds[0] <= arrival
                and count[device][0] < m
            ):
                for before in range(device + 1):
                    self._put(0, before)
            self._put(1, device)
        visit = 0
        for device in range(1, p):
            ours, theirs = count[device], count[device - 1]
            while ours[0] + ours[1] < theirs[0] + theirs[1] or ours[1] <= theirs[1] < m:
                for other in reversed(range(device, p)):
                    if count[other][visit] < m:
                        self._put(visit, other)
                visit = 1 - visit

    def _backwards(self) -> None:
        """One I on every device, second-half stages first."""
        p, m, count = self.p, self.m, self.count
        for device in range(p):
            while self.held[device] + self.change[1] > self.limit:
                self._put_weight(device)
        second: list[int] = []
        first: list[int] = []
        for device in range(p):
            ready = count[device][3] < count[device][2] and (
                device == p - 1
                or self.ends[self._at(3, device + 1, count[device][3])] >= 0
                or count[device][2] >= m
            )
            (second if ready else first).append(device)
        for device in reversed(second):
            self._fill(3, device, early=True)
            self._put(3, device)
        for device in first:
            self._fill(2, device, early=self.before_backward)
            self._put(2, device)

    def _forwards(self) -> None:
        """One F on every device that has one."""
        for device in range(self.p):
            code = self._next_forward(device)
            if code is None:
                continue
            while self.held[device] + self.change[0] > self.limit:
                self._put_weight(device)
            self._fill(code, device, early=self.before_forward)
            self._put(code, device)

    def _next_forward(self, device: int) -> int | None:
        first, second = self.count[device][:2]
        if second >= self.m:
            return None
        if second >= first:
            return 0
        if device == self.p - 1 or self.ends[self._at(1, device + 1, second)] >= 0:
            return 1
        if first < self.m and (device == 0 or self.ends[self._at(0, device - 1, first)] >= 0):
            return 0
        return None

    def _fill(self, code: int, device: int, *, early: bool) -> None:
        """Run W in the wait for the input of an op; one longer than the wait only if ``early``."""
        pending, w = self.pending[device], self.seconds[2]
        source = self._input(code, device, min(self.count[device][code], self.m - 1))
        while pending and source >= 0 and self.ends[source] + self.hop >= self.now[device] + w:
            self._put_weight(device)
        if not (early and pending):
            return
        wait = self.ends[source] + self.hop - self.now[device]
        allowed = max(self.longest_idle, self.most_approved - self.approved[device])
        if wait > allowed - self.idle[device]:
            self._put_weight(device)

    def ops(self, device: int) -> Ops:
        """The list of a device; a backward's second visit is to chunk 0."""
        code, microbatch = np.array(self.lists[device], np.int32).T
        chunk = np.where(code < 2, code % 2, 1 - code % 2)
        stage = np.where(chunk, 2 * self.p - 1 - device, device)
        return Ops(_KINDS[code // 2], stage, microbatch)
