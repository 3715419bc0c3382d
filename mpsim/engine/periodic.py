"""Long runs from short ones, exactly: the steady period of a schedule as a max-plus system.

The times of a fixed periodic order are built from ``max`` and ``+`` alone. Take runs of m, m + c,
m + 2c, … microbatches, and the ops of one class (kind, stage, slice) in them. An op that counts its
microbatch from the beginning (head) moves by some alpha a run, one that counts from the end (tail)
by some gamma, and in between, i periods of c microbatches after the head, it begins at

    t(n, i) = t(0, 0) + n alpha + i beta,    0 <= i <= n,    gamma = alpha + beta

where n counts the runs. Times are maxima of such functions, hence convex. So if this holds at the
six points n <= 2, what an op waits for at the inner point (2, 1) is what it waits for at all of
them, and the rest stays earlier for ever if, along every edge, neither alpha nor gamma is greater
for the op that is waited for. Both are verified on every op and every edge of three short runs;
what then follows for any n is exact. (That the orders of longer runs repeat those of the
short ones in the same way is a property of the schedules, and taken for granted.)

Source: Baccelli, Cohen, Olsder and Quadrat, "Synchronization and Linearity", Wiley 1992, chapter 3
(the cyclicity theorem of max-plus matrices).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from mpsim.cost.work import Work
from mpsim.engine import longest_path
from mpsim.engine.timeline import Floats, Timeline
from mpsim.errors import MpsimError
from mpsim.schedule.graph import OpGraph
from mpsim.schedule.ops import Kind
from mpsim.schedule.topology import Indices

Build = Callable[[int], tuple[OpGraph, Work]]
"""The graph and the work of a run of so many microbatches."""

_TOLERANCE = 1e-12
"""Of a time, relative to the makespan of the short run: what is closer counts as equal."""

_LONGEST_PLAIN = 100_000_000
"""Ops of the longest run that is run plainly where no period is found."""


@dataclass(frozen=True, eq=False)
class _Table:
    """A run as a table of classes by microbatches. Letters: C classes, M microbatches, N ops."""

    timeline: Timeline
    codes: Indices  # (C,) (kind x stages + stage) x slices + slice
    row: Indices  # (N,) class of each op, or C and beyond: one of the ops without microbatch
    begin: Floats  # (C, M) s
    end: Floats  # (C, M) s
    last: Floats  # (L,) s, ends of the ops without microbatch: reductions, barrier, updates


@dataclass(frozen=True, eq=False)
class LongRun:
    """Begin and end of every op of a long run, computed when asked for."""

    num_microbatches: int
    period: int  # microbatches after which the times repeat, c; 0: a plain run, nothing repeats
    seconds_per_microbatch: float  # s, of the steady state; 0: a plain run
    makespan: float  # s
    _table: _Table = field(repr=False)
    _alpha: Floats = field(repr=False)  # (C,) s
    _beta: Floats = field(repr=False)  # (C,) s
    _head: int = field(repr=False)  # microbatches of the head

    @property
    def is_extrapolated(self) -> bool:
        """Whether a period was found; else every op was run."""
        return self.period > 0

    def begin(
        self, kind: Kind, stage: int, microbatch: Indices | int, slice: int = 0
    ) -> Floats:  # s
        """When ops of a kind and stage begin, by microbatch."""
        return self._times(self._table.begin, kind, stage, microbatch=microbatch, slice=slice)

    def end(self, kind: Kind, stage: int, microbatch: Indices | int, slice: int = 0) -> Floats:
        """When ops of a kind and stage end, by microbatch, s."""
        return self._times(self._table.end, kind, stage, microbatch=microbatch, slice=slice)

    def _times(
        self, short: Floats, kind: Kind, stage: int, *, microbatch: Indices | int, slice: int
    ) -> Floats:
        graph = self._table.timeline.graph
        code = int(_code(graph, np.array(kind), np.array(stage), np.array(slice)))
        row = int(np.searchsorted(self._table.codes, code))
        if row == len(self._table.codes) or self._table.codes[row] != code:
            raise KeyError(f"no {kind.name} of stage {stage} in this run")
        return self._at(short, row, np.asarray(microbatch))

    def _at(self, short: Floats, row: int, microbatch: Indices) -> Floats:
        if not self.period:
            return np.asarray(short[row, microbatch])
        runs = (self.num_microbatches - short.shape[1]) // self.period
        return _extrapolated(
            short[row], self._alpha[row], self._beta[row],
            microbatch=microbatch, period=self.period, head=self._head, runs=runs,
        )  # fmt: skip


def run(build: Build, num_microbatches: int, *, window: int = 256, unit: int = 1) -> LongRun:
    """The run of many microbatches, extrapolated from short ones where they are periodic.

    Args:
        build: Graph and work for a number of microbatches; the seconds of an op must not depend on
            the microbatch.
        num_microbatches: Microbatches of the long run.
        window: Microbatches of the first short run, at least four times the number of devices;
            doubled up to three times while no period is found.
        unit: Microbatches that the order deals together (the group size of interleaved schedules).

    Returns:
        The long run. If it is not longer than the short ones, or no period is found, it is run
        plainly, and ``is_extrapolated`` is false.

    Raises:
        MpsimError: If no period is found, and the run is too long to be run plainly.
    """
    for size in (window, 2 * window, 4 * window, 8 * window):
        size += (num_microbatches - size) % unit
        if num_microbatches <= size + 2 * max(unit, size // 4):
            break
        first = _table(build, size)
        period = _period(first, unit)
        if period:
            # ops up to p microbatches apart wait for each other: head and tail must not meet
            period *= -(-first.timeline.graph.num_devices // period)
        found = period and _extrapolate(build, first, period=period, total=num_microbatches)
        if found:
            return found
    graph_ops = build(2 * unit)[0].num_ops // (2 * unit) * num_microbatches
    if graph_ops > _LONGEST_PLAIN:
        raise MpsimError(
            f"no steady period within {size} microbatches; a plain run of {num_microbatches} has "
            f"some {graph_ops:.2g} ops: widen the window"
        )
    table = _table(build, num_microbatches)
    none = np.zeros(len(table.codes))
    span = float(table.timeline.makespan)
    return LongRun(num_microbatches, 0, 0.0, span, table, none, none, num_microbatches)


def _code(graph: OpGraph, kind: Indices, stage: Indices, slice: Indices) -> Indices:
    """Class of ops, as one number."""
    slices = int(graph.slice.max(initial=0)) + 1
    return (kind * graph.num_stages + stage) * slices + np.maximum(slice, 0)


def _table(build: Build, num_microbatches: int) -> _Table:
    """The short run, by class and microbatch; of an op cut into parts, from first to last."""
    graph, work = build(num_microbatches)
    timeline = longest_path.run(graph, work)
    dealt = np.flatnonzero(graph.microbatch >= 0)
    code = _code(graph, graph.kind.astype(np.int64), graph.stage, graph.slice)[dealt]
    codes = np.flatnonzero(np.bincount(code))
    row = np.full(graph.num_ops, -1)
    number = np.zeros(codes[-1] + 1, np.int64)
    number[codes] = np.arange(len(codes))
    row[dealt] = number[code]
    rest = np.flatnonzero(row < 0)
    row[rest] = len(codes) + np.arange(len(rest))
    begin = np.full((len(codes), num_microbatches), np.nan)
    end = begin.copy()
    microbatch = graph.microbatch[dealt]
    begin[row[dealt][::-1], microbatch[::-1]] = timeline.begin[dealt[::-1]]
    end[row[dealt], microbatch] = timeline.end[dealt]
    return _Table(timeline, codes, row, begin, end, timeline.end[rest])


def _period(table: _Table, unit: int) -> int:
    """The shortest period of the middle of all classes; 0: none."""
    size = table.begin.shape[1]
    middle = table.begin[:, size // 4 : size - size // 4]
    tolerance = _TOLERANCE * float(table.timeline.makespan)
    probe = middle[len(middle) // 2]
    for period in range(unit, size // 4 + 1, unit):
        if np.ptp(probe[period:] - probe[:-period]) > tolerance:
            continue
        step = middle[:, period:] - middle[:, :-period]
        if np.all(np.abs(step - step[:, :1]) <= tolerance):
            return period
    return 0


def _extrapolate(build: Build, first: _Table, *, period: int, total: int) -> LongRun | None:
    """The long run if the short ones prove what is said above; else None."""
    size = total - (total - first.begin.shape[1]) // period * period
    tables = [first if size == first.begin.shape[1] else _table(build, size)]
    tables += [_table(build, size + period), _table(build, size + 2 * period)]
    short, _, longest = tables
    head, runs = size // 2, (total - size) // period
    if any(len(table.last) != len(short.last) for table in tables) or any(
        not np.array_equal(table.codes, short.codes) for table in tables
    ):
        return None
    alpha = (longest.begin[:, head - 1] - short.begin[:, head - 1]) / 2
    gamma = (longest.begin[:, head + 2 * period] - short.begin[:, head]) / 2
    delta = (longest.last - short.last) / 2
    rates = _Rates(alpha, gamma, delta, head=head, period=period)
    if not (_agree(tables, rates) and _settled(longest, rates)):
        return None
    ends = [
        short.end[:, :head] + runs * alpha[:, None],
        short.end[:, head:] + runs * gamma[:, None],
        short.last + runs * delta,
    ]
    return LongRun(
        num_microbatches=total,
        period=period,
        seconds_per_microbatch=float((gamma - alpha).max()) / period,
        makespan=max(float(end.max(initial=0.0)) for end in ends),
        _table=short,
        _alpha=alpha,
        _beta=gamma - alpha,
        _head=head,
    )


@dataclass(frozen=True, eq=False)
class _Rates:
    """By how much the ops move from one run to the next. Letters: C classes, L other ops."""

    alpha: Floats  # (C,) s, counted from the beginning
    gamma: Floats  # (C,) s, counted from the end
    delta: Floats  # (L,) s, ops without microbatch
    head: int
    period: int


def _agree(tables: list[_Table], rates: _Rates) -> bool:
    """Whether the second and third run are what the first and the rates say."""
    short = tables[0]
    tolerance = _TOLERANCE * float(short.timeline.makespan)
    alpha, beta = rates.alpha[:, None], (rates.gamma - rates.alpha)[:, None]
    for runs, table in enumerate(tables[1:], start=1):
        microbatch = np.arange(table.begin.shape[1])
        for times, found in ((short.begin, table.begin), (short.end, table.end)):
            said = _extrapolated(
                times, alpha, beta,
                microbatch=microbatch, period=rates.period, head=rates.head, runs=runs,
            )  # fmt: skip
            if not np.all(np.abs(said - found) <= tolerance):
                return False
        if not np.all(np.abs(short.last + runs * rates.delta - table.last) <= tolerance):
            return False
    return True


def _settled(table: _Table, rates: _Rates) -> bool:
    """Whether no op waits for one that moves by more, in the third run.

    Ops of the head move by alpha, those of the tail by gamma, and those between, whose i may be
    anything from 0 to n, have to hold at both.
    """
    graph = table.timeline.graph
    slow = np.concatenate([rates.alpha, rates.delta])[table.row]
    fast = np.concatenate([rates.gamma, rates.delta])[table.row]
    dealt = table.row < len(table.codes)
    head = dealt & (graph.microbatch < rates.head)
    tail = ~dealt | (graph.microbatch >= rates.head + 2 * rates.period)
    middle = ~head & ~tail
    by_head, by_tail = np.where(tail, fast, slow), np.where(head, slow, fast)
    ops = np.arange(graph.num_ops)
    chained = graph.previous >= 0
    after = np.concatenate([np.repeat(ops, np.diff(graph.pred_starts)), ops[chained]])
    before = np.concatenate([graph.pred, graph.previous[chained]])
    tolerance = _TOLERANCE * float(table.timeline.makespan)
    late = by_head[before] > by_head[after] + tolerance
    late &= ~(tail[before] & middle[after] | middle[before] & tail[after])
    early = by_tail[before] > by_tail[after] + tolerance
    early &= ~(head[before] & middle[after] | middle[before] & head[after])
    return not bool(np.any(late | early))


def _extrapolated(
    short: Floats, alpha: Floats, beta: Floats, *, microbatch: Indices, period: int, head: int,
    runs: int,
) -> Floats:  # fmt: skip
    """``t(n, i)`` of microbatches of the run n, from the short run 0."""
    periods = np.clip((microbatch - head) // period + 1, 0, runs)
    return np.asarray(short[..., microbatch - periods * period] + runs * alpha + periods * beta)
