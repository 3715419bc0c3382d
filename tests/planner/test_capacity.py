"""Capacity: what is picked, and that more time or money never makes it worse."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpsim.errors import InfeasibleError, ScenarioError
from mpsim.planner.capacity import Demand, best_choice, capacity, choice_of, pick, problems
from mpsim.planner.space import problem_of
from mpsim.simulation import simulate
from mpsim.spec.reader import declared

DAY = 86400.0

TREE = {
    "name": "small",
    "model": "llama2-7b",
    "cluster": {"base": "aws-p4de", "nodes": 1},
    "candidates": [
        {"base": "aws-p4de", "nodes": [1, 2, 4]},
        {"base": "aws-p5", "nodes": "1..2"},
        {"base": "dgx-a100-80gb", "nodes": 2},
    ],
    "plan": {"tensor": [1, 2, 8], "pipeline": [1, 2], "recompute": ["none", "full"], "zero": [1]},
    "training": {"global_batch": 64, "microbatch": [1, 2], "sequence": 4096},
}


@pytest.fixture(scope="module")
def space():
    return problem_of(declared(TREE))


@pytest.fixture(scope="module")
def plans(space):
    """The best plan of every candidate in every size; demands only scale what it takes."""
    return [best_choice(one, Demand()).found for one in problems(space)]


def answer(plans, demand):
    return pick([choice_of(found, demand) for found in plans], demand)


def test_candidates_come_in_their_sizes(space):
    found = [(one.base.cluster.name, one.base.cluster.nodes) for one in problems(space)]
    assert found == [
        *(("aws-p4de", 1), ("aws-p4de", 2), ("aws-p4de", 4)),
        *(("aws-p5", 1), ("aws-p5", 2), ("dgx-a100-80gb", 2)),
    ]


def test_a_deadline_rules_out_what_is_late(plans):
    easy = answer(plans, Demand(tokens=1e9))
    assert easy.fewest.devices == 8
    tight = answer(plans, Demand(tokens=1e9, deadline=easy.earliest.seconds * 1.001))
    assert tight.earliest.seconds == easy.earliest.seconds
    assert tight.fewest.devices >= easy.fewest.devices


def test_a_cluster_without_a_price_meets_no_budget(plans):
    met = answer(plans, Demand(tokens=1e9, budget=1e9))
    assert met.cheapest.usd is not None
    assert met.earliest.usd is not None


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_more_time_is_never_dearer_and_more_money_never_later(plans, data):
    tokens = data.draw(st.floats(1e8, 1e12))
    times = sorted(data.draw(st.lists(st.floats(0.01, 1e4), min_size=2, max_size=2)))
    money = sorted(data.draw(st.lists(st.floats(1, 1e8), min_size=2, max_size=2)))
    for budget in (None, money[1]):
        less, more = (answer(plans, Demand(tokens, days * DAY, budget)) for days in times)
        if less.cheapest:
            assert more.cheapest.usd <= less.cheapest.usd
            assert more.fewest.devices <= less.fewest.devices
    for deadline in (None, times[1] * DAY):
        less, more = (answer(plans, Demand(tokens, deadline, budget)) for budget in money)
        if less.earliest:
            assert more.earliest.seconds <= less.earliest.seconds
            assert more.cheapest.usd <= less.cheapest.usd


def test_without_tokens_the_answer_is_how_many(plans):
    month, two = (answer(plans, Demand(deadline=days * DAY)).most for days in (30, 60))
    assert two.tokens == pytest.approx(2 * month.tokens)
    assert month.seconds == pytest.approx(30 * DAY)
    spent = answer(plans, Demand(budget=1e5)).most
    assert spent.usd == pytest.approx(1e5)


def test_the_cost_of_a_run_is_devices_times_price_times_time(plans):
    choice = choice_of(plans[0], Demand(tokens=1e10))
    report = simulate(plans[0].scenario)
    steps = 1e10 / (64 * 4096)
    assert choice.seconds * choice.machine.goodput == pytest.approx(steps * report.step_time)
    # aws-p4de: 40.965 USD/h for 8 devices
    assert choice.usd == pytest.approx(choice.seconds / 3600 * 40.965, rel=1e-4)
    # 400 W boards, hosts 0.82, PUE 1.56
    assert choice.energy == pytest.approx(8 * 400 * 1.82 * 1.56 * choice.seconds)


def test_the_search_of_all_candidates_says_what_is_missed(space):
    with pytest.raises(InfeasibleError) as raised:
        capacity(space, Demand(tokens=1e15, deadline=DAY))
    first, *rest = str(raised.value).splitlines()
    assert first == "small: no candidate will do:"
    assert len(rest) == 6
    assert all("too late: at the peak of its devices it takes" in line for line in rest)
    with pytest.raises(InfeasibleError, match="nothing meets the demand: the earliest takes"):
        capacity(space, Demand(tokens=1e10, budget=1.0))
    with pytest.raises(ScenarioError, match="--deadline: must be more than zero, not -1"):
        capacity(space, Demand(tokens=1e9, deadline=-1.0))


def test_a_budget_needs_a_price():
    bare = problem_of(declared({**TREE, "cluster": "dgx-a100-80gb", "candidates": []}))
    with pytest.raises(ScenarioError, match=r"the cluster has no price: set cluster\.price"):
        capacity(bare, Demand(tokens=1e9, budget=100.0))


@pytest.mark.parametrize(
    ("candidate", "message"),
    [
        ("aws-p6", "candidates: aws-p6: cluster: no cluster 'aws-p6' in the zoo"),
        ({"base": "aws-p5", "nodes": "few"}, "nodes: write 8, [8, 16] or 8..64, not few"),
        ({"base": "aws-p5", "nods": 4}, "unknown field; did you mean 'nodes'?"),
    ],
)
def test_candidates_that_cannot_be_meant_are_named(candidate, message):
    one = problem_of(declared({**TREE, "candidates": [candidate]}))
    with pytest.raises(ScenarioError) as raised:
        problems(one)
    assert message in str(raised.value)
