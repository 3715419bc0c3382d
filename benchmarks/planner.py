"""The bars of the planner: full searches, what brute force would take, a large what-if grid.

Run with ``python benchmarks/planner.py [--json FILE]``; takes about a minute on two cores.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

from mpsim.planner.candidates import Enumeration, Tally
from mpsim.planner.evaluate import evaluate
from mpsim.planner.executors import mapper
from mpsim.planner.grid import make_grid
from mpsim.planner.keys import all_keys, key_table
from mpsim.planner.results import open_results
from mpsim.planner.search import search
from mpsim.planner.space import load_problem
from mpsim.planner.sweep import sweep
from mpsim.schedule.compiled import warm
from mpsim.spec.reader import load

BARS = {"search_s": 5.0, "plans_per_s": 200_000, "memory_mib": 1024, "grid_s": 20.0}


def searches() -> dict[str, Any]:
    """GPT-3 175B over every axis on 512 and on 4096 devices, after one search to warm up."""
    search(load_problem("plan_gpt3.yaml"), top=1)
    found = {}
    for nodes in (64, 512):
        problem = load_problem("plan_gpt3.yaml", {"cluster.nodes": nodes})
        begin, cpu = time.perf_counter(), time.process_time()
        done = search(problem)
        seconds = time.perf_counter() - begin
        found[str(problem.devices)] = {
            "seconds": seconds,
            "cpu_seconds": time.process_time() - cpu,
            "plans": done.tally.considered,
            "legal": done.tally.legal,
            "simulated": done.evaluated,
            "plans_per_s": done.tally.considered / seconds,
            "legal_plans_per_s": done.tally.legal / seconds,
            "best_step_s": done.best[0].outcome.step,
        }
    return found


def one_plan() -> float:
    """Seconds to simulate one plan of the space, the mean over a spread of them."""
    problem = load_problem("plan_gpt3.yaml")
    table = key_table(problem, list(itertools.islice(all_keys(problem), 0, None, 40)))
    plans = Enumeration(problem, table, Tally()).simple()
    places = range(0, len(plans), max(1, len(plans) // 60))
    begin = time.perf_counter()
    for place in places:
        evaluate(plans.scenario(problem, place))
    return (time.perf_counter() - begin) / len(places)


def _cpu() -> float:
    """CPU seconds of this process and of those that it has ended."""
    own, ended = (
        resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return own.ru_utime + own.ru_stime + ended.ru_utime + ended.ru_stime


def grid() -> dict[str, float]:
    """10,000 points of a pipeline scenario, with the time to read them again."""
    scenario = load("gpt3_bf16.yaml")
    points = make_grid(
        scenario,
        [
            "cluster.node.link.bandwidth=50GB/s:900GB/s:25",
            "cluster.network.bandwidth=5GB/s:50GB/s:20:log",
            "plan.schedule=1f1b,gpipe,zb_h1,eager_1f1b",
            "plan.pipeline=3,6,12,24,4",
        ],
        fill="data",
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "grid.jsonl"
        begin, cpu = time.perf_counter(), _cpu()
        with mapper("local", None) as run:
            sweep(points, open_results(path, points.key), run)
        middle, done = time.perf_counter(), _cpu()
        with mapper("local", None, jobs=1) as run:
            sweep(points, open_results(path, points.key), run)
        return {
            "points": len(points),
            "seconds": middle - begin,
            "cpu_seconds": done - cpu,
            "again_s": time.perf_counter() - middle,
        }


def main() -> None:
    """Measure, print, compare with the bars."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    warm()
    values: dict[str, Any] = {"searches": searches()}
    values["memory_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    single = one_plan()
    values["one_plan_s"] = single
    values["grid"] = grid()
    for devices, one in values["searches"].items():
        brute = one["legal"] * single
        print(
            f"GPT-3 175B on {devices} A100: {one['plans']:,} plans in {one['seconds']:.2f} s "
            f"({one['cpu_seconds']:.2f} s of one core), {one['plans_per_s']:,.0f} plans/s "
            f"({one['legal_plans_per_s']:,.0f} legal ones/s), {one['simulated']} simulated; "
            f"brute force {brute / 3600:.1f} h, {brute / one['seconds']:,.0f} times as long"
        )
    points = values["grid"]
    print(f"peak memory of the search: {values['memory_mib']:.0f} MiB")
    print(
        f"what-if grid of {points['points']:,.0f} points: {points['seconds']:.1f} s "
        f"({points['cpu_seconds']:.1f} s of all processes), "
        f"read again in {points['again_s'] * 1e3:.0f} ms"
    )
    met = {
        "search": all(one["seconds"] < BARS["search_s"] for one in values["searches"].values()),
        "rate": all(
            one["plans_per_s"] > BARS["plans_per_s"] for one in values["searches"].values()
        ),
        "memory": values["memory_mib"] < BARS["memory_mib"],
        "grid": points["seconds"] < BARS["grid_s"],
    }
    print("bars:", ", ".join(f"{name} {'met' if ok else 'MISSED'}" for name, ok in met.items()))
    if arguments.json:
        arguments.json.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
