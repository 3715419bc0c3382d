"""The plan that a file has already is the winner, or is said beside it."""

import json
import re

import pytest
from click.testing import CliRunner

from mpsim.cli import main
from mpsim.errors import InfeasibleError, ScenarioError
from mpsim.planner.evaluate import Outcome, Refusal, evaluate
from mpsim.planner.minimum import infeasible, minimum
from mpsim.planner.search import search
from mpsim.planner.space import load_problem, problem_of
from mpsim.simulation import simulate
from mpsim.spec.reader import build, declared, load

TREE = {
    "name": "small",
    "model": {"layers": 6, "hidden": 256, "heads": 8, "vocab": 4096},
    "cluster": {
        "device": {
            "memory": "8 GiB", "memory_bandwidth": "1 TB/s",
            "peak": {"bf16": "20 TFLOP/s"}, "reserved": "0.1 GiB",
        },
        "node": {"devices": 8, "link": {"bandwidth": "100 GB/s", "latency": "3 us"}},
    },
    "training": {"global_batch": 16, "sequence": 256},
}  # fmt: skip


def closed(plan, **training):
    """The search of a file with a plan, and the scenario that the file is."""
    tree = TREE | {"plan": plan, "training": TREE["training"] | training}
    return problem_of(declared(tree)), build(tree)


def refuse(scenarios):
    """Stands for a simulator that can carry nothing out."""
    return [Refusal("plan.split: is not for networks") for _ in scenarios]


def test_the_winner_of_the_small_network_is_no_slower_than_its_file():
    own = simulate(load("cnn_data_parallel.yaml", ["plan.data_parallel=ddp"]))
    space = load_problem("cnn_data_parallel.yaml", ["plan.data_parallel=ddp"])
    found = search(space)
    assert found.own.outcome.step == pytest.approx(own.step_time, rel=1e-9)
    assert found.best[0].outcome.step <= own.step_time
    assert space.options("microbatch") == (1, 2, 4, 5, 10, 20, 25, 50, 100)


@pytest.mark.parametrize(
    ("batch", "sequence", "options"),
    [
        (1536, 2048, (1, 2, 4, 8, 16, 32)),
        (256, 512, (1, 2, 4, 8, 16, 32, 64, 128)),  # 65,536 tokens
        (100, 2048, (1, 2, 4, 5, 10, 20, 25)),  # few powers of two: all divisors
    ],
)
def test_auto_microbatches_divide_the_batch(batch, sequence, options):
    training = {"training": {"global_batch": batch, "sequence": sequence}}
    space = problem_of(declared(TREE | training))
    assert space.options("microbatch") == options


def test_the_microbatch_of_the_file_is_always_an_option():
    space, _ = closed({"data": 8}, global_batch=1536, sequence=2048, microbatch=48)
    assert 48 in space.options("microbatch")


OWN = [
    {"pipeline": 2, "data": 4, "partition": [2, 4]},
    {"pipeline": 4, "data": 2, "schedule": "eager_1f1b"},
    {"pipeline": 2, "data": 4, "schedule": "v_half", "chunks": 2},
    {"pipeline": 2, "data": 4, "schedule": "hanayo", "chunks": 2},
    {"tensor": 2, "data": 4},
]


@pytest.mark.parametrize("plan", OWN)
def test_the_best_is_never_slower_than_the_file(plan):
    space, scenario = closed(plan, microbatch=2)
    found = search(space, top=2)
    own = evaluate(scenario)
    assert found.own.outcome == own
    assert found.best[0].outcome.step <= own.step
    assert found.tally.considered == sum(found.tally.removed.values()) + found.evaluated


def test_a_file_with_a_plan_that_auto_does_not_try_wins_where_it_is_the_fastest():
    space, scenario = closed({"data": 8}, microbatch=2)

    def slow(scenarios):
        """The file's plan as it is, all others ten times slower."""
        for one in scenarios:
            done = evaluate(one)
            own = (one.plan, one.training) == (scenario.plan, scenario.training)
            yield Outcome(done.step * (1 if own else 10), done.memory, done.capacity)

    found = search(space, top=1, simulate=slow)
    assert found.best[0].scenario.training.microbatch == 2
    assert found.best[0].outcome == evaluate(scenario)


@pytest.mark.parametrize(
    "plan",
    [
        None,  # nothing is stated
        {"data": 4},  # of 8 devices
        {"pipeline": 4, "data": 2, "schedule": "pipedream"},  # trains other weights
        {"tensor": [1, 2]},  # open
    ],
)
def test_what_is_no_plan_for_the_cluster_is_not_held_against_the_best(plan):
    tree = TREE | ({} if plan is None else {"plan": plan})
    assert problem_of(declared(tree)).own is None


def run(*arguments):
    done = CliRunner().invoke(main, ["plan", *arguments])
    return done, " ".join(done.output.split())


DDP = ("cnn_data_parallel.yaml", "--set", "plan.data_parallel=ddp")


def test_the_file_s_own_plan_is_said_with_its_step():
    done, text = run(*DDP, "--top", "1")
    assert done.exit_code == 0, done.output
    said = re.search(r"the file's own plan, data=2, microbatch=50: ([\d.]+) ms a step, ", text)
    own = simulate(load("cnn_data_parallel.yaml", ["plan.data_parallel=ddp"]))
    assert float(said[1]) == pytest.approx(own.step_time * 1e3, rel=1e-3)
    record = json.loads(run(*DDP, "--json")[0].stdout)
    assert record["own"]["step_time_s"] >= record["plans"][0]["step_time_s"]
    assert record["own"]["fits"]


def test_a_network_counts_samples_and_a_transformer_tokens_with_a_prefix():
    assert "samples/s" in run(*DDP, "--top", "1")[1]
    axes = ["--set", "plan.tensor=8", "--set", "plan.pipeline=8", "--set", "plan.schedule=1f1b"]
    axes += ["--set", "plan.context=1", "--set", "training.microbatch=[1, 2]"]
    _, text = run("plan_gpt3.yaml", *axes, "--set", "plan.chunks=1", "--top", "1")
    assert "tokens/s" in text
    assert "e+0" not in text


@pytest.mark.parametrize("option", [[], ["--minimum"], ["--explain", "data=2"]])
def test_a_plan_of_data_parallel_says_that_it_leaves_nothing_to_search(option):
    done, text = run("cnn_data_parallel.yaml", *option)
    assert done.exit_code == 2
    assert "--set plan.data_parallel=ddp" in text
    assert "no plan fits" not in text


def test_plans_that_cannot_be_carried_out_are_not_said_to_lack_memory():
    space, _ = closed({"tensor": 2, "data": 4})
    found = search(space, simulate=refuse)
    assert not found.best
    assert found.refused == found.evaluated == found.tally.legal
    error = infeasible(found)
    assert isinstance(error, ScenarioError)
    assert "legal plans can be carried out: plan.split: is not for networks" in str(error)
    with pytest.raises(ScenarioError, match=r"plan\.split: is not for networks"):
        minimum(space, simulate=refuse)


def test_both_reasons_are_told_where_some_lack_memory_and_some_cannot_be_carried_out():
    tree = TREE | {"plan": {"tensor": [1, 4], "zero": [0, 1]}}
    space = problem_of(declared(tree, {"cluster.device.memory": "0.4 GiB"}))
    found = search(space, simulate=refuse)
    assert found.tally.removed["memory"]
    assert found.refused
    error = infeasible(found)
    assert isinstance(error, InfeasibleError)
    assert "needs more than 409.6 MiB" in str(error)
    assert "cannot be carried out: plan.split" in str(error)


def test_the_minimum_names_the_rule_where_no_plan_is_legal():
    space = problem_of(declared(TREE | {"plan": {"tensor": [16]}}))
    with pytest.raises(ScenarioError, match="plans is legal; most fall to the rule"):
        minimum(space)
