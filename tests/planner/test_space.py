"""What a file may leave open, and what auto means."""

import pytest

from mpsim.errors import ScenarioError
from mpsim.planner.space import AUTO_SCHEDULES, AXES, load_problem, problem_of
from mpsim.schedule.orders import SCHEDULES, make_order
from mpsim.spec.plan import PlanSpec
from mpsim.spec.reader import declared

TREE = {
    "model": "gpt3-175b",
    "cluster": {"base": "dgx-a100-80gb", "nodes": 64},
    "training": {"global_batch": 1536, "sequence": 2048},
}


def problem(plan=None, **training):
    tree = TREE | {"training": TREE["training"] | training}
    return problem_of(declared(tree | ({} if plan is None else {"plan": plan})))


def test_values_lists_and_ranges_are_options():
    one = problem({"tensor": 8, "pipeline": [4, "8..10"], "zero": "0..1", "data": "auto"})
    assert one.options("tensor") == (8,)
    assert one.options("pipeline") == (4, 8, 9, 10)
    assert one.options("zero") == (0, 1)


def test_fields_that_are_not_named_keep_their_defaults_where_others_are_open():
    one = problem({"tensor": [4, 8], "p2p": "batched"})
    assert one.options("schedule") == ("1f1b",)
    assert one.options("pipeline") == (1,)
    assert one.space.data == "auto"
    assert one.base.plan.p2p == "batched"


@pytest.mark.parametrize("plan", ["shipped", None, {"tensor": 8, "pipeline": 8, "data": 8}])
def test_auto_and_a_plan_without_open_fields_open_every_axis(plan):
    one = load_problem("plan_gpt3.yaml") if plan == "shipped" else problem(plan)
    assert all(getattr(one.space, axis) == "auto" for axis in AXES)
    assert one.options("tensor") == (1, 2, 4, 8, 16, 32)
    assert one.options("context") == (1, 2, 4, 8, 16)  # 2048 tokens, 128 at the least
    assert one.options("microbatch") == (1, 2, 4, 8, 16, 32)


def test_overrides_close_fields_of_an_open_plan():
    one = load_problem("plan_gpt3.yaml", ["plan.tensor=8", "plan.schedule=[1f1b, zb_v]"])
    assert one.options("tensor") == (8,)
    assert one.options("schedule") == ("1f1b", "zb_v")
    assert one.space.pipeline == "auto"


def test_partition_counts_are_one_option():
    assert problem({"pipeline": 2, "partition": [40, 56]}).named
    one = problem({"pipeline": [2], "partition": [[40, 56], "time"]})
    assert one.options("partition") == ((40, 56), "time")


def test_auto_schedules_are_synchronous_and_built_by_formula():
    assert all(not SCHEDULES[name].searched and not SCHEDULES[name].slices
               for name in AUTO_SCHEDULES)  # fmt: skip


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_asynchronous_schedules_are_refused_and_no_others(name):
    order = make_order(name, num_devices=2, num_microbatches=4)
    if order.synchronous:
        assert problem({"schedule": [name]}).options("schedule") == (name,)
    else:
        with pytest.raises(ScenarioError, match="is asynchronous"):
            problem({"schedule": [name]})


def test_the_cluster_keeps_its_size():
    assert problem({"tensor": [1]}).devices == 512
    assert problem({"tensor": [1]}).with_nodes(3).devices == 24


def test_every_axis_is_a_field_of_the_plan_or_the_microbatch():
    assert set(AXES) - {"microbatch"} <= set(PlanSpec.model_fields)


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({"pipeline": "8..4"}, "plan.pipeline: the range 8..4 is empty"),
        ({"tensor": []}, "plan.tensor: an empty list leaves no option"),
        ({"tensor": [0, 1]}, "plan.tensor: must be 1 or more, not 0"),
        ({"zero": [1, 4]}, "plan.zero: must be 0 to 3, not 4"),
        ({"tensor": "many"}, "plan.tensor: write a value, a list, a range such as 1..64, or auto"),
        ({"schedule": ["1f1d"]}, "plan.schedule: no schedule '1f1d'; did you mean '1f1b'?"),
        ({"tensor": [8], "pipelin": 4}, "plan.pipelin: unknown field; did you mean 'pipeline'?"),
        (
            {"tensor": "1..99999999"},
            "plan.tensor: the range 1..99999999 has more than 65536 values",
        ),
        ("automatic", "plan: is a mapping, or 'auto', not 'automatic'"),
    ],
)
def test_what_cannot_be_meant_is_said(plan, message):
    with pytest.raises(ScenarioError) as raised:
        problem(plan)
    assert str(raised.value) == message
