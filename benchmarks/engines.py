"""Speed of orders, lowering and engines: ``python benchmarks/engines.py [--json]``.

Each figure is the median and the best of several runs after a warm-up, in one process; the event
engine is measured beside a plain SimPy model, in turn, and given as a ratio.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Generator
from typing import Any

import numpy as np
import simpy

from mpsim.cost.work import Work
from mpsim.engine import events, longest_path, periodic
from mpsim.schedule.graph import OpGraph
from mpsim.schedule.lowering import lower
from mpsim.schedule.ops import Kind, Order
from mpsim.schedule.orders import make_order

FORWARD, BACKWARD, HOP = 1.0, 2.0, 0.25
"""Seconds of a forward, of a whole backward, and of a transfer."""


def work_of(graph: OpGraph) -> Work:
    """Seconds of the ops by kind."""
    table = np.zeros(len(Kind))
    table[[Kind.F, Kind.B, Kind.I, Kind.W]] = FORWARD, BACKWARD, BACKWARD / 2, BACKWARD / 2
    table[[Kind.SEND_F, Kind.SEND_B]] = HOP
    none = np.full(graph.num_ops, -1, np.int32)
    return Work(table[graph.kind], np.zeros(graph.num_ops), none)


def plain_simpy(order: Order) -> float:
    """Makespan of a loop-placed F/B order: a process a device, a store a directed link.

    A message holds its arrival; the receiver takes the next message and waits for it to arrive.
    """
    env = simpy.Environment()
    last = order.num_devices - 1
    forward = [simpy.Store(env) for _ in range(last + 1)]
    backward = [simpy.Store(env) for _ in range(last + 1)]

    def device(index: int) -> Generator[Any, Any, None]:
        ops = slice(order.starts[index], order.starts[index + 1])
        for kind in order.kind[ops].tolist():
            is_forward = kind == Kind.F
            inbox = forward[index] if is_forward else backward[index]
            if index != (0 if is_forward else last):
                arrival = yield inbox.get()
                if arrival > env.now:
                    yield env.timeout(arrival - env.now)
            yield env.timeout(FORWARD if is_forward else BACKWARD)
            if is_forward and index < last:
                forward[index + 1].put(env.now + HOP)
            elif not is_forward and index:
                backward[index - 1].put(env.now + HOP)

    for index in range(order.num_devices):
        env.process(device(index))
    env.run()
    return float(env.now)


def seconds_of(task: Callable[[], object], runs: int = 9) -> list[float]:  # s
    """Wall-clock seconds of runs of a task, after one that does not count."""
    task()
    found = []
    for _ in range(runs):
        begin = time.perf_counter()
        task()
        found.append(time.perf_counter() - begin)
    return found


def everything(name: str, devices: int, microbatches: int, chunks: int = 1) -> OpGraph:
    """Order, graph and timing."""
    order = make_order(name, num_devices=devices, num_microbatches=microbatches, num_chunks=chunks)
    graph = lower(order)
    longest_path.run(graph, work_of(graph))
    return graph


def build(microbatches: int) -> tuple[OpGraph, Work]:
    """1F1B on 64 devices."""
    graph = lower(make_order("1f1b", num_devices=64, num_microbatches=microbatches))
    return graph, work_of(graph)


def measure() -> dict[str, float]:
    """All figures, by name with unit."""
    figures: dict[str, float] = {}

    def record(name: str, found: list[float]) -> float:
        figures[f"{name}_median_s"], figures[f"{name}_best_s"] = (
            statistics.median(found),
            min(found),
        )
        return statistics.median(found)

    begin = time.perf_counter()
    everything("1f1b", 64, 1024)
    figures["first_run_with_numba_s"] = time.perf_counter() - begin
    record("1f1b_64x1024_order_graph_timing", seconds_of(lambda: everything("1f1b", 64, 1024), 15))
    graph = lower(make_order("1f1b", num_devices=64, num_microbatches=1024))
    work = work_of(graph)
    timing = record("1f1b_64x1024_timing", seconds_of(lambda: longest_path.run(graph, work), 15))
    figures["timing_ops_per_s"] = graph.num_ops / timing
    record("zb_v_64x1024_order_graph_timing", seconds_of(lambda: everything("zb_v", 64, 1024, 2)))
    record("1f1b_64x1e6_periodic", seconds_of(lambda: periodic.run(build, 10**6)))
    order = make_order("1f1b", num_devices=64, num_microbatches=512)
    graph, computes = lower(order), len(order.kind)
    work = work_of(graph)
    if events.run(graph, work).makespan != plain_simpy(order):
        raise SystemExit("the plain SimPy model and the event engine disagree")
    ours, plain = [], []
    for _ in range(5):  # in turn, so that both meet the same machine
        ours += seconds_of(lambda: events.run(graph, work), 1)
        plain += seconds_of(lambda: plain_simpy(order), 1)
    figures["events_compute_ops_per_s"] = computes / record("events_1f1b_64x512", ours)
    figures["plain_simpy_compute_ops_per_s"] = computes / record("plain_simpy_1f1b_64x512", plain)
    figures["events_over_plain_simpy"] = statistics.median(plain) / statistics.median(ours)
    return figures


if __name__ == "__main__":
    found = measure()
    if "--json" in sys.argv[1:]:
        print(json.dumps(found, indent=1))
    else:
        for name, value in found.items():
            print(f"{name:45} {value:14,.4f}")
