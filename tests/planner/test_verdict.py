"""What is said of plans that the user names, and of what makes one slower than another."""

import json
import re

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from mpsim.cli import main
from mpsim.planner.evaluate import Outcome
from mpsim.planner.finalists import describe, gaps, spelled, why_slower
from mpsim.planner.search import one_by_one, search
from mpsim.planner.space import AXES, problem_of
from mpsim.planner.verdict import explain
from mpsim.simulation import simulate
from mpsim.spec.reader import declared, load
from mpsim.units import format_seconds

TREE = {
    "name": "small",
    "model": {"layers": 6, "hidden": 256, "heads": 8, "vocab": 4096},
    "cluster": {
        "device": {
            "memory": "8 GiB", "memory_bandwidth": "1 TB/s",
            "peak": {"bf16": "20 TFLOP/s"}, "reserved": "0.1 GiB",
        },
        "nodes": 2,
        "node": {"devices": 4, "link": {"bandwidth": "100 GB/s", "latency": "3 us"}},
        "network": {"bandwidth": "10 GB/s", "latency": "8 us"},
    },
    "training": {"global_batch": 16, "sequence": 256},
}  # fmt: skip


def space_of(memory="8 GiB", batch=16, **plan):
    tree = TREE | {"plan": plan, "training": TREE["training"] | {"global_batch": batch}}
    return problem_of(declared(tree, {"cluster.device.memory": memory}))


@pytest.mark.parametrize(
    ("plan", "rule", "text"),
    [
        ("tensor=8", "space", "tensor=8 is not among the options: 1, 2"),
        ("tensor=2,pipeline=3", "space", "pipeline=3 is not among the options"),
        ("tensor=1,data=3", "space", "data=3 is not among the options: 1, 2, 4, 8"),
        ("tensor=1,pipeline=4,schedule=dualpipe", "legality", "must be even and at least 2 p"),
        ("tensor=2,pipeline=4,data=2", "legality", "16 devices, but the cluster has 8"),
        ("tensor=2,pipeline=4", "time", "fits"),
    ],
)
def test_explain_names_the_rule(plan, rule, text):
    space = space_of(
        tensor=[1, 2], pipeline=[1, 2, 4], schedule=["1f1b", "gpipe", "dualpipe"], batch=8
    )
    verdict = explain(space, plan, search(space))
    assert (verdict.rule, text in verdict.text) == (rule, True), verdict


def test_explain_names_the_twin_of_a_schedule_with_one_chunk():
    space = space_of(
        pipeline=[1, 2, 3, 4, 5, 6], chunks=[1, 2], schedule=["1f1b", "interleaved_1f1b"],
        partition="auto",
    )  # fmt: skip
    verdict = explain(space, "schedule=interleaved_1f1b,chunks=1", search(space))
    assert verdict.rule == "space"
    assert verdict.text.startswith("one chunk")


def test_a_schedule_that_is_named_means_a_pipeline():
    space = space_of(pipeline=[1, 2, 4], schedule=["1f1b", "gpipe"])
    found = search(space)
    assert "pipeline=1," in spelled(found.best[0].scenario)
    assert "pipeline=1," not in explain(space, "schedule=gpipe", found).plan


NO_PIPELINE = "one device has no pipeline: its schedules and chunks are not searched"


@pytest.mark.parametrize(
    "named",
    [
        "pipeline=1,schedule=gpipe",
        "pipeline=1,chunks=2",
        "pipeline=1,schedule=looped_bfs,chunks=2",
        "pipeline=1,schedule=1f1b,chunks=2,data=8",
        "pipeline=1,schedule=zb_h1,zero=1",
    ],
)
def test_a_schedule_of_one_device_is_not_searched_and_not_simulated(named):
    names = ["1f1b", "gpipe", "looped_bfs", "zb_h1"]
    space = space_of(pipeline=[1, 2], chunks=[1, 2], schedule=names, zero=[1, 2])
    simulated = []

    def watched(scenarios):
        simulated.extend(scenarios)
        return one_by_one(scenarios)

    verdict = explain(space, named, search(space), evaluate_all=watched)
    assert (verdict.rule, verdict.text) == ("space", NO_PIPELINE)
    assert not simulated


def test_chunks_that_are_named_where_there_is_no_pipeline_are_not_searched():
    space = space_of(pipeline=1, chunks=[1, 2], schedule=["1f1b", "looped_bfs"])
    assert explain(space, "chunks=2", search(space)).text == NO_PIPELINE


def test_where_no_plain_schedule_is_an_option_one_device_has_what_is():
    space = space_of(pipeline=[1, 2], schedule=["gpipe", "zb_h1"])
    found = search(space)
    assert "pipeline=1,data=8" in spelled(found.best[0].scenario)
    verdict = explain(space, "pipeline=1", found)
    assert verdict.text.startswith("is the best")


def test_the_file_s_own_plan_is_explained_where_a_rule_leaves_out_its_like():
    space = space_of(data=8, schedule="looped_bfs", chunks=2, zero=2)
    named = "pipeline=1,schedule=looped_bfs,chunks=2"
    found = search(space)
    verdict = explain(space, f"{named},data=8", found)
    assert verdict.plan == spelled(found.own.scenario)
    assert format_seconds(found.own.outcome.step, 4) in verdict.text
    assert explain(space, f"{named},zero=1", found).text == NO_PIPELINE


def test_a_plan_as_short_as_the_best_is_not_the_best():
    space = space_of(pipeline=[2], zero=[1, 2, 3])
    found = search(space, top=1)
    best = found.best[0].scenario.plan.zero
    for zero in (1, 2, 3):
        verdict = explain(space, f"zero={zero}", found)
        how = "is the best" if zero == best else "takes as long as the best"
        assert (verdict.rule, verdict.text.startswith(how)) == ("", True)


def test_a_plan_shorter_than_the_best_is_not_called_the_best():
    space = space_of(pipeline=[1, 2, 4], tensor=[1, 2])

    def slow(scenarios):
        """Stands for a search that misses the best plan."""
        for one in one_by_one(scenarios):
            yield Outcome(2 * one.step, one.memory, one.capacity)

    truth, missed = search(space), search(space, top=1, simulate=slow)
    named = describe(truth.best[0].scenario)
    verdict = explain(space, named, missed)
    step, best = truth.best[0].outcome.step, missed.best[0].outcome.step
    assert verdict.rule == "time"
    less = f"takes {format_seconds(step, 4)}, shorter than the best of the search by "
    assert less + format_seconds(best - step) in verdict.text
    assert "it was left out by the rule 'bounds: cannot be among the best'" in verdict.text
    missed.best.clear()
    assert "the search found no plan that fits" in explain(space, named, missed).text


def test_explain_says_that_the_best_is_the_best():
    space = space_of(tensor=[1, 2], pipeline=[1, 2, 4])
    found = search(space)
    verdict = explain(space, describe(found.best[0].scenario), found)
    assert verdict.rule == ""
    assert verdict.text.startswith("is the best")
    assert verdict.plan == spelled(found.best[0].scenario)


def test_explain_says_what_memory_a_plan_lacks():
    space = space_of(tensor=[1, 4], zero=[0, 1], memory="0.4 GiB")
    verdict = explain(space, "tensor=1,zero=0", search(space))
    assert verdict.rule == "memory"
    assert "which has 409.6 MiB" in verdict.text
    assert verdict.plan.startswith("tensor=1,pipeline=1,data=8,")


def test_explain_is_about_the_best_plan_that_matches_and_spells_it():
    axes = dict.fromkeys(("tensor", "pipeline", "data", "schedule", "zero", "chunks"), "auto")
    space = space_of(**axes)
    verdict = explain(space, "pipeline=2,tensor=2", search(space))
    part = search(space_of(**axes | {"pipeline": [2], "tensor": [2]}), top=1)
    assert verdict.plan == spelled(part.best[0].scenario)
    assert verdict.matching == part.tally.legal > 1
    assert all(f"{axis}=" in verdict.plan for axis in AXES)
    assert format_seconds(part.best[0].outcome.step, 4) in verdict.text


CLOSED = [
    *("--set", "plan.tensor=8", "--set", "plan.pipeline=[8, 16]", "--set", "plan.chunks=1"),
    *("--set", "plan.schedule=[1f1b, zb_h1]", "--set", "plan.partition=layers"),
    *("--set", "plan.context=[1, 2]", "--set", "training.microbatch=[1, 2]"),
]


def test_the_command_says_which_plan_it_explained():
    arguments = ["plan", "plan_gpt3.yaml", *CLOSED, "--explain", "pipeline=16,context=2"]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    text = " ".join(done.output.split())
    assert text.startswith("time: fits")
    assert "the plan: tensor=8, pipeline=16, data=2, context=2, expert=1, chunks=1" in text
    assert "legal plans that match" in text
    record = json.loads(CliRunner().invoke(main, [*arguments, "--json"]).stdout)
    assert record["plan"].startswith("tensor=8,pipeline=16,data=2,context=2")
    assert record["matching"] > 1


BASE = "gpt3_bf16.yaml"
OTHERS = [
    {"plan.schedule": "zb_h1"},
    {"plan.tensor": 4, "plan.data": 4},
    {"cluster.network.bandwidth": "5 GB/s"},
    {"plan.data": 1, "plan.context": 2},
    {"plan.recompute": "full", "plan.zero": 1},
]


@pytest.fixture(scope="module")
def base():
    return simulate(load(BASE, {"training.global_batch": 32}), engine="fast")


def terms_of(text):
    """The seconds of each term of an explanation."""
    units = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
    _, _, listed = text.partition("more a step: ")
    found = [re.fullmatch(r"(.+) ([+-])([\d.]+) (\w+)", term) for term in listed.split(", ")]
    return {m[1]: float(m[2] + m[3]) * units[m[4]] for m in found}


@pytest.mark.parametrize("fields", OTHERS)
def test_the_terms_of_a_difference_sum_to_it(base, fields):
    other = simulate(load(BASE, {"training.global_batch": 32, **fields}), engine="fast")
    first, second = sorted([base, other], key=lambda report: report.step_time)
    gap = second.step_time - first.step_time
    # a rest that three digits do not show is left out
    assert sum(value for _, value in gaps(first, second)) == pytest.approx(gap, rel=5e-4)
    terms = terms_of(why_slower(first, second))
    assert all(terms.values())  # none is zero
    # three digits are printed of each term
    assert sum(terms.values()) == pytest.approx(
        gap, abs=0.005 * sum(abs(value) for value in terms.values())
    )


def test_an_exchange_that_only_the_slower_plan_has_is_a_term(base):
    ring = {"plan.data": 1, "plan.context": 2, "training.global_batch": 32}
    other = simulate(load(BASE, ring), engine="fast")
    first, second = sorted([base, other], key=lambda report: report.step_time)
    assert "context exchange" in dict(gaps(first, second))


def test_a_plan_that_takes_as_long_loses_nothing(base):
    assert why_slower(base, base) == "nothing: it takes as long"


class Fake:
    """A report of causes alone."""

    def __init__(self, waterfall):
        self.waterfall = waterfall
        self.step_time = sum(waterfall.values())


causes = st.dictionaries(
    st.sampled_from(["compute", "bubble", "transfers", "update", "tensor exchange"]),
    st.floats(0, 10).filter(lambda value: value == 0 or value > 1e-6),
    min_size=1,
)


@given(causes, causes)
def test_terms_sum_and_none_is_zero_whatever_the_causes(first, second):
    first, second = sorted([Fake(first), Fake(second)], key=lambda one: one.step_time)
    found = gaps(first, second)
    gap = second.step_time - first.step_time
    assert sum(value for _, value in found) == pytest.approx(gap, rel=5e-4, abs=1e-11)
    assert all(format_seconds(abs(value)) != "0 s" for _, value in found)
    sizes = [abs(value) for _, value in found]
    assert sizes == sorted(sizes, reverse=True)
