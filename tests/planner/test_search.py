"""The search finds what brute force finds, and its bounds are bounds."""

import contextlib
import itertools

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mpsim.errors import InfeasibleError, MpsimError, ScenarioError
from mpsim.planner.candidates import SLACK, Enumeration, Tally
from mpsim.planner.evaluate import evaluate
from mpsim.planner.finalists import checked, rerun
from mpsim.planner.keys import all_keys, key_table
from mpsim.planner.minimum import minimum
from mpsim.planner.search import search
from mpsim.planner.space import AXES, problem_of
from mpsim.schedule.orders import SCHEDULES
from mpsim.simulation import simulate
from mpsim.spec.reader import build, declared

PEAK = "20 TFLOP/s"


def tree(**changes):
    """A small transformer on a small cluster, with some fields changed."""
    base = {
        "name": "small",
        "model": {
            "layers": 6, "hidden": 256, "heads": 8, "vocab": 4096,
        },
        "cluster": {
            "device": {
                "memory": "8 GiB", "memory_bandwidth": "1 TB/s",
                "peak": {"bf16": PEAK}, "reserved": "0.1 GiB",
            },
            "nodes": 2,
            "node": {"devices": 4, "link": {"bandwidth": "100 GB/s", "latency": "3 us"}},
            "network": {"bandwidth": "10 GB/s", "latency": "8 us"},
        },
        "plan": {},
        "training": {"global_batch": 16, "sequence": 256},
    }  # fmt: skip
    for path, value in changes.items():
        node = base
        *parents, last = path.split("__")
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return base


def problem(**changes):
    return problem_of(declared(tree(**changes)))


def every_plan(one):
    """All plans of a space as scenarios that pass every check, by plain loops."""
    axes = [axis for axis in AXES if axis != "data"]
    for values in itertools.product(*(one.options(axis) for axis in axes)):
        fields = dict(zip(axes, values, strict=True))
        across = fields["tensor"] * fields["pipeline"] * fields["context"]
        if one.devices % across:
            continue
        data = one.devices // across
        if one.space.data != "auto" and data not in one.options("data"):
            continue
        micro = fields.pop("microbatch")
        whole = one.base.model_dump(mode="json", exclude={"variants"})
        whole["plan"] |= fields | {"data": data}
        whole["training"] |= {"microbatch": micro}
        try:
            yield build(whole)
        except MpsimError:
            continue


def brute_force(one):
    """The shortest step of all plans that fit, and how many can be carried out."""
    outcomes = []
    plain = "1f1b" in one.options("schedule") and 1 in one.options("chunks")
    for scenario in every_plan(one):
        plan = scenario.plan
        if plain and plan.pipeline == 1 and (plan.chunks, plan.schedule) != (1, "1f1b"):
            continue  # one device has no pipeline
        if plan.pipeline > 1 and plan.chunks == 1 and SCHEDULES[plan.schedule].chunks == "many":
            continue  # one chunk interleaves with nothing
        try:
            outcomes.append(evaluate(scenario))
        except MpsimError:
            continue
    return min((o.step for o in outcomes if o.fits), default=None), len(outcomes)


NAMES = [
    *("1f1b", "gpipe", "eager_1f1b", "interleaved_1f1b", "looped_bfs", "zb_h1", "zb_h2"),
    *("interleaved_zb", "zb_v", "dualpipe", "dualpipe_v", "chimera", "bitpipe", "naive"),
    *("1f1b_v", "hanayo"),
]


def some(options, most):
    return st.lists(st.sampled_from(options), min_size=1, max_size=most, unique=True)


@st.composite
def spaces(draw):
    """A random model, cluster and space, small enough to enumerate."""
    experts = draw(st.sampled_from([None, None, {"count": 4, "per_token": 2, "ffn": 512}]))
    changes = {
        "model__layers": draw(st.integers(2, 8)),
        "cluster__device__memory": draw(st.sampled_from(["0.6 GiB", "1 GiB", "8 GiB"])),
        "cluster__nodes": draw(st.sampled_from([1, 2, 3])),
        "cluster__network__bandwidth": draw(st.sampled_from(["1 GB/s", "40 GB/s"])),
        "training__global_batch": draw(st.sampled_from([8, 12, 16, 48])),
        "training__gradient_clipping": draw(st.booleans()),
        "training__microbatch": draw(some([1, 2, 4], 2)),
        "plan__tensor": draw(some([1, 2, 4], 2)),
        "plan__pipeline": draw(some([1, 2, 3, 4, 6], 3)),
        "plan__context": draw(some([1, 2, 3], 1)),
        "plan__chunks": draw(some([1, 2, 3], 2)),
        "plan__schedule": draw(some(NAMES, 3)),
        "plan__zero": draw(some([0, 1, 2, 3], 3)),
        "plan__recompute": draw(some(["none", "selective", "full"], 2)),
        "plan__partition": draw(some(["layers", "parameters", "time"], 2)),
        "plan__sequence_parallel": draw(st.sampled_from([False, "auto"])),
        "plan__overlap_data": draw(st.booleans()),
        "plan__release": draw(st.sampled_from(["input", "weight"])),
        "plan__bucket": draw(st.sampled_from(["1 MiB", "25 MiB"])),
    }
    if experts:
        changes |= {"model__experts": experts, "plan__expert": draw(some([1, 2, 4], 2))}
    return problem(**changes)


def test_sharded_gradients_are_no_twin_of_sharded_state():
    """Without a pipeline ZeRO-2 scatters after each of two microbatches, ZeRO-1 once."""
    space = problem(
        training__global_batch=8, training__microbatch=[1], plan__tensor=[1], plan__pipeline=[1],
        plan__context=[1], plan__chunks=[1], plan__schedule=["1f1b"], plan__zero=[0, 1, 2],
        plan__recompute=["none"], plan__partition=["layers"], plan__overlap_data=False,
        plan__bucket="1 MiB", cluster__nodes=1,
    )  # fmt: skip
    best, _ = brute_force(space)
    found = search(space, top=2)
    assert found.best[0].outcome.step == pytest.approx(best, rel=1e-8)
    assert found.best[0].scenario.plan.zero == 1


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(spaces())
def test_the_winner_is_that_of_brute_force(space):
    best, count = brute_force(space)
    try:
        found = search(space, top=2)
    except ScenarioError:
        assert best is None
        return
    if best is None:
        assert not found.best
    else:
        assert found.best[0].outcome.step == pytest.approx(best, rel=1e-8)
        assert evaluate(checked(found.best[0].scenario)) == found.best[0].outcome
    assert found.evaluated <= count + found.refused
    assert found.tally.considered == sum(found.tally.removed.values()) + found.evaluated


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(spaces(), st.randoms(use_true_random=False))
def test_no_bound_is_above_its_simulation(space, random):
    capacity = space.base.cluster.device.model_copy(update={"memory": 1e15})
    roomy = space.base.cluster.model_copy(update={"device": capacity})
    space = type(space)(space.base.model_copy(update={"cluster": roomy}), space.space, {})
    table = key_table(space, list(all_keys(space)))
    if not table.keys:
        return
    listing = Enumeration(space, table, Tally())
    for plans in (listing.simple(), listing.balanced()):
        places = range(len(plans))
        for place in random.sample(places, min(len(plans), 12)):
            try:
                outcome = evaluate(plans.scenario(space, place))
            except MpsimError:
                continue
            assert plans.bound[place] <= outcome.step
            assert plans.memory[place] <= outcome.memory


def test_bidirectional_bounds_hold_where_all_microbatches_go_one_way():
    space = problem(
        model__layers=8, plan__pipeline=[8], plan__data="auto", plan__schedule=["chimera"],
        plan__recompute=["none", "full"], training__global_batch=3, cluster__device__memory="8 GiB",
    )  # fmt: skip
    table = key_table(space, list(all_keys(space)))
    plans = Enumeration(space, table, Tally()).simple()
    assert len(plans)
    for place in range(len(plans)):
        outcome = evaluate(plans.scenario(space, place))
        assert plans.bound[place] <= outcome.step
        assert plans.memory[place] <= outcome.memory


def test_balanced_partitions_as_counts_are_the_same_plan():
    space = problem(
        plan__partition="time", plan__pipeline=[2, 4], plan__chunks=[1], plan__data="auto",
        model__vocab=50000,
    )  # fmt: skip
    table = key_table(space, list(all_keys(space)))
    plans = Enumeration(space, table, Tally()).balanced()
    assert len(plans)
    for place in range(len(plans)):
        scenario = plans.scenario(space, place)
        counted = plans.counted(scenario, place)
        assert counted.plan.partition != "time"
        assert evaluate(counted) == evaluate(scenario)


def test_plans_are_counted_once_each():
    space = problem(plan__tensor="1..4", plan__pipeline=[1, 2, 4], plan__zero=[0, 1])
    found = search(space, top=3)
    tally = found.tally
    assert tally.considered == 4 * 3 * 2
    assert tally.considered == sum(tally.removed.values()) + found.evaluated
    assert tally.fitted == tally.removed["time"] + tally.removed["alike"] + found.evaluated
    assert tally.legal == sum(1 for _ in every_plan(space))


@pytest.mark.parametrize("top", [1, 5])
def test_the_counts_of_a_search_with_twins_and_a_front_sum_to_all_plans(top):
    axes = {"pipeline": [2, 4], "recompute": "auto", "zero": "auto", "schedule": ["1f1b", "gpipe"]}
    tight = tree(plan=axes, cluster__device__memory="0.5 GiB")
    found = search(problem_of(declared(tight)), top=top)
    tally = found.tally
    assert all(tally.removed[rule] > 0 for rule in ("memory", "time", "alike"))
    assert len(found.front) > 1
    assert tally.considered == sum(tally.removed.values()) + found.evaluated


def test_a_schedule_of_many_chunks_is_not_searched_with_one():
    names = ["1f1b", "gpipe", "interleaved_1f1b", "looped_bfs", "interleaved_zb"]
    found = search(problem(plan__pipeline=[4], plan__chunks=[1, 2], plan__schedule=names), top=9)
    assert found.tally.removed["one chunk"] == 3
    for one in found.best:
        plan = one.scenario.plan
        assert (plan.chunks == 1) == (plan.schedule in ("1f1b", "gpipe"))
    with pytest.raises(ScenarioError, match=r"--set plan\.chunks=auto opens chunks"):
        search(problem(plan__pipeline=[4], plan__schedule=["interleaved_1f1b"]))


def test_plans_that_take_as_long_and_hold_as_much_are_shown_once():
    twins = search(problem(cluster__nodes=1, cluster__node__devices=1, plan__zero=[3, 2, 0, 1]))
    assert [one.scenario.plan.zero for one in twins.best] == [0]


def test_the_top_plans_are_rerun_by_events():
    found = search(problem(plan__tensor=[1, 2], plan__pipeline=[1, 2, 4]), top=3)
    reports = rerun(found.best)
    assert [report.engine for report in reports] == ["events"] * len(reports)
    assert reports == sorted(reports, key=lambda report: report.step_time)


def test_the_front_needs_less_memory_for_more_time():
    found = search(problem(plan__tensor=[1, 2, 4], plan__pipeline=[1, 2], plan__zero=[0, 1, 3]))
    memory = [one.outcome.memory for one in found.front]
    steps = [one.outcome.step for one in found.front]
    assert memory == sorted(memory)
    assert steps == sorted(steps, reverse=True)
    assert found.front[-1].outcome.step == found.best[0].outcome.step


def test_a_space_without_legal_plans_says_so():
    with pytest.raises(ScenarioError, match="none of 2 plans is legal; most fall to the rule"):
        search(problem(plan__tensor=[3, 5]))


def test_the_minimum_fits_and_one_device_less_does_not():
    space = problem(plan__tensor=[1, 2, 4], plan__pipeline=[1, 2, 3, 4, 6], plan__recompute="full",
                    cluster__device__memory="0.5 GiB")  # fmt: skip
    smallest, found = minimum(space)
    report = simulate(checked(found.best[0].scenario))
    assert report.fits
    assert smallest.devices >= 1
    if smallest.devices > 1:
        node = smallest.base.cluster.node.model_copy(update={"devices": smallest.devices - 1})
        less = smallest.base.cluster.model_copy(update={"nodes": 1, "node": node})
        fewer = type(space)(space.base.model_copy(update={"cluster": less}), space.space, {})
        with contextlib.suppress(ScenarioError):  # where no degrees divide them
            assert not search(fewer, top=1).best


def test_a_model_that_fits_nowhere_is_infeasible():
    space = problem(plan__tensor=[1, 2], cluster__device__memory="0.2 GiB", cluster__network=None,
                    cluster__nodes=1)  # fmt: skip
    with pytest.raises(InfeasibleError, match="no plan fits"):
        minimum(space)


def test_bounds_are_lowered_against_rounding():
    assert np.isclose(SLACK, 1, rtol=1e-8)
    assert SLACK < 1


def test_without_a_pipeline_only_the_plain_schedule_is_searched():
    axes = dict.fromkeys(("pipeline", "data", "chunks", "schedule"), "auto")
    found = search(problem_of(declared(tree(plan=axes))), top=5)
    alone = [one.scenario.plan for one in found.best if one.scenario.plan.pipeline == 1]
    assert all((plan.chunks, plan.schedule) == (1, "1f1b") for plan in alone)
    plans = [one.scenario.model_dump_json() for one in found.best]
    assert len(set(plans)) == len(plans)


def test_chunks_on_one_device_may_take_another_time_and_are_left_out_as_such():
    """Chunks cut the exchange of gradients in parts that overlap otherwise: no relabelling."""
    axes = {"plan__chunks": [1, 6], "plan__schedule": ["1f1b", "looped_bfs"], "plan__zero": [2]}
    given = axes | {"plan__pipeline": [1], "training__microbatch": [1]}
    found = search(problem(**given))
    assert found.tally.removed["one device"] == 3
    assert found.evaluated == 1
    plan = found.best[0].scenario.plan
    assert (plan.chunks, plan.schedule) == (1, "1f1b")
    # where nothing plain is among the options, what is there is searched
    chunked = search(problem(**given | {"plan__chunks": [6], "plan__schedule": ["looped_bfs"]}))
    assert chunked.best[0].scenario.plan.chunks == 6
    assert chunked.best[0].outcome.step != pytest.approx(found.best[0].outcome.step, rel=1e-4)
