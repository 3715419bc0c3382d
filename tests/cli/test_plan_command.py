"""``mpsim plan`` as its user sees it."""

import json

import pytest
from click.testing import CliRunner

from mpsim.cli import main
from mpsim.simulation import simulate
from mpsim.spec.reader import load

CLOSED = [
    *("--set", "plan.tensor=8", "--set", "plan.pipeline=[8, 16]", "--set", "plan.chunks=1"),
    *("--set", "plan.schedule=[1f1b, zb_h1]", "--set", "plan.context=1"),
    *("--set", "training.microbatch=[1, 2]", "--set", "plan.partition=layers"),
]


def run(*arguments):
    return CliRunner().invoke(main, ["plan", *arguments])


def test_the_best_plans_are_printed_with_the_reason_why_the_second_loses():
    done = run("plan_gpt3.yaml", *CLOSED, "--top", "2")
    assert done.exit_code == 0, done.output
    text = " ".join(done.output.split())
    assert "tensor=8, pipeline=8, data=8" in text
    assert "the runner-up loses" in text
    assert "plans;" in text
    assert "Pareto front" in text


def test_json_has_counts_plans_and_front():
    done = run("plan_gpt3.yaml", *CLOSED, "--top", "2", "--json")
    found = json.loads(done.stdout)
    assert found["considered"] == sum(found["removed"].values()) + found["simulated"] or (
        found["considered"] >= found["legal"] >= found["may_fit"]
    )
    assert len(found["plans"]) == 2
    assert found["plans"][0]["step_time_s"] <= found["plans"][1]["step_time_s"]


def test_the_winner_is_written_as_a_scenario_that_gives_the_same_step(tmp_path):
    out = tmp_path / "best.yaml"
    done = run("plan_gpt3.yaml", *CLOSED, "--json", "--out", str(out))
    best = json.loads(done.stdout)["plans"][0]
    assert simulate(load(out)).step_time == pytest.approx(best["step_time_s"], rel=1e-12)


def test_explain_names_the_rule_that_removed_a_plan():
    done = run("plan_gpt3.yaml", *CLOSED, "--explain", "tensor=8,pipeline=16,schedule=1f1b")
    assert done.exit_code == 0
    assert done.output.startswith("time: fits")
    done = run("plan_gpt3.yaml", *CLOSED, "--explain", "tensor=4", "--json")
    assert json.loads(done.stdout)["rule"] == "space"


def test_the_minimum_says_how_many_devices():
    done = run("plan_gpt3.yaml", *CLOSED[:2], "--set", "plan.pipeline=auto", "--set",
               "plan.schedule=1f1b", "--set", "plan.recompute=full", "--minimum")  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "devices, and on no fewer" in done.output


def test_capacity_answers_the_purchasing_question():
    demand = ["--tokens", "1e11", "--deadline", "60d", "--budget", "5e6USD"]
    small = ["--set", "candidates=[{base: aws-p5, nodes: 16}, {base: aws-p4de, nodes: 32}]"]
    done = run("plan_capacity.yaml", *small, *demand)
    assert done.exit_code == 0, done.output
    for word in ("fewest devices:", "cheapest:", "earliest:", "price: AWS EC2", "failures:"):
        assert word in done.output
    found = json.loads(run("plan_capacity.yaml", *small, *demand, "--json").stdout)
    assert found["cheapest"]["usd"] <= 5e6
    assert found["earliest"]["time_s"] <= found["cheapest"]["time_s"]
    assert len(found["choices"]) == 2


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["plan_gpt3.yaml", "--set", "cluster.nodes=2"], 3, "no plan fits"),
        (["plan_gpt3.yaml", "--set", "plan.tensor=[5, 7]"], 2, "plans is legal"),
        (["plan_gpt3.yaml", "--set", "plan.tensor=8..2"], 2, "the range 8..2 is empty"),
        (["plan_gpt3.yaml", "--tokens", "many"], 2, "--tokens: 'many' is not a number"),
        (["plan_gpt3.yaml", "--deadline", "30"], 2, "--deadline: '30' has no unit"),
        (["plan_gpt3.yaml", "--budget", "5 GB"], 2, "--budget: '5 GB' is not in units of USD"),
        (["plan_gpt3.yaml", "--budget", "5e6 USD"], 2, "the cluster has no price"),
        (["plan_gpt3.yaml", "--executor", "dask"], 2, "--address: is needed"),
        (["plan_gpt3.yaml", "--minimum", "--tokens", "1e9"], 2, "exclude each other"),
        (["plan_gpt4.yaml"], 2, "no such file; did you mean 'plan_gpt3.yaml'?"),
        (["plan_gpt3.yaml", *CLOSED, "--explain", "tensr=8"], 2, "is no axis of the search"),
    ],
)
def test_what_cannot_be_answered_is_said(arguments, code, message):
    done = run(*arguments)
    assert done.exit_code == code, done.output
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.output
