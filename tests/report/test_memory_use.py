"""Memory over time against a brute-force walk over the timeline, for schedules of every kind."""

import numpy as np
import pytest

from mpsim.cost.compiled import compile_scenario
from mpsim.cost.memory import ChunkMemory, StageMemory, stage_memory
from mpsim.engine import longest_path
from mpsim.report.memory import memory_use
from mpsim.schedule.ops import Kind
from mpsim.simulation import simulate

SCHEDULES = [
    ("naive", {}),
    ("gpipe", {}),
    ("1f1b", {}),
    ("interleaved_1f1b", {"plan.chunks": 2}),
    ("looped_bfs", {"plan.chunks": 2}),
    ("zb_h1", {"plan.release": "input"}),
    ("zb_h1", {"plan.release": "weight"}),
    ("zb_h2", {"plan.release": "weight"}),
    ("zb_v", {"plan.chunks": 2, "plan.release": "weight"}),
    ("v_min", {"plan.chunks": 2, "plan.release": "input"}),
    ("seq_1f1b", {"plan.slices": 2}),
    ("pipedream", {}),
    ("dualpipe", {}),
    ("1f1b", {"plan.offload": ["activations"], "cluster.node.host_link": "pcie4"}),
]


def walk(compiled, timeline, parts, *, device, stages, versions, release):
    """Bytes on a device at each moment, found anew from all ops at every moment."""
    graph = compiled.graph
    mine = np.flatnonzero(graph.device == device)
    moments = np.unique(np.concatenate([[0.0], timeline.begin[mine], timeline.end[mine]]))
    slices = max(int(graph.slice.max(initial=-1)) + 1, 1)
    base = sum(n * (versions if k == "parameters" else 1) for k, n in parts.static.items())
    totals = []
    for moment in moments:
        total = base
        for stage, chunk in zip(stages, parts.chunks, strict=True):
            ops = [op for op in mine if graph.stage[op] == stage]
            total += held(graph, timeline, chunk, ops, moment, slices=slices, release=release)
        totals.append(total + updating(graph, timeline, parts, mine, moment))
    return moments, np.array(totals)


def held(graph, timeline, chunk, ops, moment, *, slices, release):
    """Bytes of one stage: each microbatch and slice between its events, each running op."""
    total = 0.0
    events = {}
    for op in ops:
        key = int(graph.microbatch[op]), int(graph.slice[op])
        events.setdefault(key, {}).setdefault(Kind(int(graph.kind[op])), []).append(op)
        running = timeline.begin[op] <= moment < timeline.end[op]
        if running and graph.kind[op] == Kind.F:
            total += chunk.forward_transient
        if running and graph.kind[op] in (Kind.B, Kind.I):
            total += chunk.backward_transient
    for kinds in events.values():
        if Kind.F not in kinds:
            continue
        begin = min(timeline.begin[op] for op in kinds[Kind.F])
        freed = max(timeline.end[op] for op in kinds.get(Kind.B, []) + kinds.get(Kind.I, []))
        if begin <= moment < freed:
            total += chunk.nbytes / slices
        if release == "weight" and Kind.W in kinds:
            stored = max(timeline.end[op] for op in kinds[Kind.W])
            if freed <= moment < stored:
                total += chunk.weight_store / slices
    return total


def updating(graph, timeline, parts, ops, moment):
    """Bytes of the update's temporaries."""
    steps = [op for op in ops if graph.kind[op] == Kind.STEP]
    running = any(timeline.begin[op] <= moment < timeline.end[op] for op in steps)
    return parts.update_transient if running else 0.0


def at(use, moments):
    """The total of a memory use at some moments."""
    return use.total[np.searchsorted(use.times, moments, side="right") - 1]


@pytest.mark.parametrize(("schedule", "fields"), SCHEDULES)
def test_memory_over_time_is_what_a_walk_finds(small, schedule, fields):
    scenario = small({"plan.schedule": schedule, "training.framework": "torch", **fields})
    compiled = compile_scenario(scenario)
    timeline = longest_path.run(compiled.graph, compiled.work)
    versions = compiled.order.weight_versions
    for device, stages in enumerate(compiled.held):
        chunks = [compiled.stages[stage] for stage in stages]
        parts = stage_memory(chunks, scenario.plan, scenario.training)
        how = {
            "device": device,
            "stages": stages,
            "versions": versions[device] if versions else 1,
            "release": scenario.plan.release,
        }
        use = memory_use(compiled.graph, timeline, parts, **how)
        moments, totals = walk(compiled, timeline, parts, **how)
        assert at(use, moments) == pytest.approx(totals, rel=1e-9)
        assert use.peak == pytest.approx(totals.max(), rel=1e-9)
        assert at(use, [use.peak_time])[0] == use.peak


@pytest.mark.parametrize(("schedule", "fields"), SCHEDULES)
def test_components_add_up_and_all_activations_are_gone_at_the_end(small, schedule, fields):
    report = simulate(small({"plan.schedule": schedule, **fields}), engine="fast")
    for device in report.devices:
        use = device.memory
        assert sum(use.components.values()) == pytest.approx(use.total)
        assert sum(use.at_peak.values()) == pytest.approx(use.peak)
        assert use.total[-1] == pytest.approx(use.total.min())
        assert use.peak == use.total.max() == at(use, [use.peak_time])[0]


def test_memory_of_one_device_by_hand(small):
    compiled = compile_scenario(small({"plan.schedule": "gpipe", "training.global_batch": 2}))
    timeline = longest_path.run(compiled.graph, compiled.work)
    parts = StageMemory({"parameters": 100.0}, (ChunkMemory({"kept": 10.0}, 1.0, 3.0, 0.0),))
    use = memory_use(compiled.graph, timeline, parts, device=0, stages=(0,))
    # F0 F1 B0 B1: weights, then 11 in F0, 21 in F1, 20 waiting, 23 in B0, 10, 13 in B1, and nothing
    assert use.total.tolist() == [111.0, 121.0, 120.0, 123.0, 110.0, 113.0, 100.0]
    assert (use.peak, use.at_peak) == (
        123.0,
        {"parameters": 100.0, "kept": 20.0, "temporaries": 3.0},
    )


def test_pipedream_keeps_a_version_of_the_weights_for_each_microbatch_under_way(small):
    plain, many = (
        simulate(small({"plan.schedule": schedule}), engine="fast").devices
        for schedule in ("1f1b", "pipedream")
    )
    versions = [4, 3, 2, 1]
    for one, other, count in zip(plain, many, versions, strict=True):
        weights = one.memory.components["parameters"][0]
        assert other.memory.components["parameters"][0] == count * weights


def test_gpipe_holds_all_microbatches_and_1f1b_as_many_as_stages_follow(small):
    gpipe, one = (
        simulate(small({"plan.schedule": schedule}), engine="fast").devices
        for schedule in ("gpipe", "1f1b")
    )
    name = "query_key_value"
    for device in range(3):
        each = gpipe[device].memory.components[name].max() / 16
        assert one[device].memory.components[name].max() == pytest.approx((4 - device) * each)
