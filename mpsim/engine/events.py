"""The event engine, on SimPy: what only events can model, shared links and failing devices.

It keeps the contract of both engines: an op begins when the op before it on its stream, and all
that it waits for, have ended. Without shared links and failures it gives the times of the fast
engine to the last bit, because each end is computed from the ends before it and the clock of SimPy
only says in which order they are handled.

Events are few: one a compute op, its completion, scheduled as soon as the ends of all that it waits
for are known. What runs on a link of its own needs none, for its end is known as soon as its begin
is. A transfer on a shared link joins it when its latency has passed, and each change of a shared
link plans its next departure anew.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from simpy import Environment, Event

from mpsim.cost.work import Work
from mpsim.engine.links import SharedLink
from mpsim.engine.timeline import Timeline
from mpsim.schedule.graph import OpGraph
from mpsim.schedule.ops import COMPUTE_KINDS, Ints
from mpsim.schedule.topology import Edges, by_waiting_op

_EVENT, _DIRECT, _SHARE, _FAIL = range(4)
"""How the end of an op comes about: by an event of its own; known with its begin; decided by the
link that it shares; by an event, and through the outages of its device."""


@dataclass(frozen=True)
class Failure:
    """A device that stops, and works again after its repair.

    No op begins on the device while it is down. An op under way is lost and starts over after the
    repair, or pauses until then. Transfers go on: they are under way on the network.
    """

    device: int
    begin: float  # s
    seconds: float  # s, until it works again
    loses_work: bool = True  # whether the op under way starts over


def run(graph: OpGraph, work: Work, *, failures: Sequence[Failure] = ()) -> Timeline:
    """The timeline of a graph, event by event, for one sample.

    Args:
        graph: What waits for what.
        work: Seconds and bytes, (N,).
        failures: Times at which devices stop, known before the run.

    Raises:
        ValueError: If ``work`` holds samples.
    """
    if work.seconds.ndim != 1:
        raise ValueError("the event engine runs one sample at a time: work.seconds must be (N,)")
    simulation = _Simulation(graph, work, failures)
    simulation.run()
    return Timeline(graph, np.array(simulation.begin), np.array(simulation.end))


class _Due(Event):
    """A timeout that carries an op and the exact time; events of a sort share their callbacks."""

    def __init__(
        self, env: Environment, callbacks: list[Callable[[Any], None]], op: int, time: float
    ) -> None:
        self.env, self.callbacks, self._value, self._ok = env, callbacks, op, True
        self.time = time
        delay = time - env.now
        env.schedule(self, delay=delay if delay > 0.0 else 0.0)  # rounding: one ulp too early


class _Simulation:
    """One run: the ends that each op still waits for, and the begins and ends known so far."""

    def __init__(self, graph: OpGraph, work: Work, failures: Sequence[Failure]) -> None:
        self.env = Environment()
        self.begin = [0.0] * graph.num_ops
        self.end = [0.0] * graph.num_ops
        starts, successors, waits = _successors(graph)
        self._starts: list[int] = starts.tolist()
        self._successors: list[int] = successors.tolist()
        self._waits: list[int] = waits.tolist()
        self._first: list[int] = np.flatnonzero(waits == 0).tolist()
        shared = np.array([link.shared for link in work.links] + [False])
        way = np.where(np.isin(graph.kind, COMPUTE_KINDS), _EVENT, _DIRECT)
        way = np.where(shared[work.link], _SHARE, way)
        self._outages = _outages(failures)
        down = np.isin(graph.device, list(self._outages)) & (graph.peer < 0)
        self._way: list[int] = np.where(down, _FAIL, way).tolist()
        self._device: list[int] = graph.device.tolist()
        self._seconds: list[float] = work.durations().tolist()
        self._latency: list[float] = work.seconds.tolist()
        self._nbytes: list[float] = work.nbytes.tolist()
        self._link: list[int] = work.link.tolist()
        self._links = [SharedLink(link.bandwidth) for link in work.links]
        self._plans = [0] * len(work.links)
        self._on_end: list[Callable[[Any], None]] = [self._ended]
        self._on_join: list[Callable[[Any], None]] = [self._joined]

    def run(self) -> None:
        """Runs to the end of the last op."""
        for op in self._first:
            self._start(op)
        self.env.run()

    def _start(self, op: int) -> None:
        """Plans the end of an op whose begin is known, and of those that it lets begin at once."""
        if self._plan(op):
            self._tell(op)

    def _tell(self, op: int) -> None:
        """Tells all that wait for an op when it ended; those that wait for nothing else begin."""
        begin, end, waits, starts = self.begin, self.end, self._waits, self._starts
        told = [op]
        while told:
            op = told.pop()
            time = end[op]
            for waiting in self._successors[starts[op] : starts[op + 1]]:
                if begin[waiting] < time:
                    begin[waiting] = time
                waits[waiting] -= 1
                if not waits[waiting] and self._plan(waiting):
                    told.append(waiting)

    def _plan(self, op: int) -> bool:
        """Computes or schedules the end of an op; returns whether it is known without an event."""
        way, time = self._way[op], self.begin[op]
        if way == _SHARE:
            _Due(self.env, self._on_join, op, time + self._latency[op])
            return False
        if way == _FAIL:
            outages = self._outages[self._device[op]]
            self.begin[op], self.end[op] = _through(outages, time, self._seconds[op])
        else:
            self.end[op] = time + self._seconds[op]
        if way == _DIRECT:
            return True
        _Due(self.env, self._on_end, op, self.end[op])
        return False

    def _ended(self, event: _Due) -> None:
        self._tell(event._value)

    def _joined(self, event: _Due) -> None:
        """The latency of a transfer has passed: it takes its share of the link."""
        op = event._value
        link = self._link[op]
        self._links[link].join(op, nbytes=self._nbytes[op], now=event.time)
        self._plan_departure(link)

    def _plan_departure(self, link: int) -> None:
        """Schedules the next departure from a link; the one planned before counts no more."""
        self._plans[link] += 1
        end, plan = self._links[link].next_end(), self._plans[link]
        if end < float("inf"):
            _Due(self.env, [partial(self._departed, link=link, plan=plan)], -1, end)

    def _departed(self, event: _Due, *, link: int, plan: int) -> None:
        if plan != self._plans[link]:
            return
        op = self._links[link].leave(event.time)
        self.end[op] = event.time
        self._plan_departure(link)
        self._tell(op)


def _successors(graph: OpGraph) -> tuple[Ints, Ints, Ints]:
    """Ops that wait for each op, its stream's next included, and how many each waits for.

    Returns:
        ``starts`` (N + 1,), ``successors`` (E,) and ``waits`` (N,).
    """
    counts = np.diff(graph.pred_starts)
    chained = np.flatnonzero(graph.previous >= 0).astype(np.int32)
    after = np.concatenate([chained, np.repeat(np.arange(graph.num_ops, dtype=np.int32), counts)])
    before = np.concatenate([graph.previous[chained], graph.pred])
    starts, successors = by_waiting_op([Edges(before, after)], graph.num_ops)
    return starts, successors, (counts + (graph.previous >= 0)).astype(np.int32)


def _outages(failures: Sequence[Failure]) -> dict[int, list[Failure]]:
    """Failures of each device, by time."""
    outages: dict[int, list[Failure]] = {}
    for failure in sorted(failures, key=lambda failure: failure.begin):
        outages.setdefault(failure.device, []).append(failure)
    return outages


def _through(outages: Sequence[Failure], begin: float, seconds: float) -> tuple[float, float]:
    """Begin and end of an op on a device with outages; of work that is lost, of the last try."""
    end = begin + seconds
    for outage in outages:
        repaired = outage.begin + outage.seconds
        if outage.begin <= begin < repaired:
            begin, end = repaired, repaired + (end - begin)
        elif begin < outage.begin < end and outage.loses_work:
            begin, end = repaired, repaired + seconds
        elif begin < outage.begin < end:
            end += outage.seconds
    return begin, end
