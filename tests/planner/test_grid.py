"""Axes of a grid, its key, its points."""

import pytest

from mpsim.errors import ScenarioError
from mpsim.planner.grid import filled, make_grid, parse_axis
from mpsim.spec.reader import load


@pytest.fixture(scope="module")
def scenario():
    return load("gpt3_bf16.yaml")


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("plan.pipeline=1,2,4", (1, 2, 4)),
        ("plan.schedule=1f1b,zb_h1", ("1f1b", "zb_h1")),
        ("plan.partition=[48,48],layers", ((48, 48), "layers")),
        ("plan.sequence_parallel=true,false", (True, False)),
        ("plan.pipeline=2:8:4", (2, 4, 6, 8)),
        ("training.global_batch=1:100:3:log", (1, 10, 100)),
        ("plan.fragmentation=0:0.1:3", (0.0, 0.05, 0.1)),
        ("cluster.network.bandwidth=10GB/s:20GB/s:2", ("10000000000.0 B/s", "20000000000.0 B/s")),
        ("cluster.network.latency=1us", ("1us",)),
        ("plan.pipeline=4,4", (4,)),
    ],
)
def test_values_of_an_axis(text, values):
    assert parse_axis(text).values == values


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("plan.pipeline", "--vary plan.pipeline: write path=1,2,4 or path=50GB/s:900GB/s:8"),
        ("plan.pipelin=1", "--vary plan.pipelin: 'pipelin' is no field; did you mean 'pipeline'?"),
        ("plam.pipeline=1", "--vary plam.pipeline: 'plam' is no field; did you mean 'plan'?"),
        ("plan.tensor.x=1", "--vary plan.tensor.x: plan.tensor has no parts"),
        ("seed=0s:1B:2", "--vary seed: '0s' and '1B' are not of one unit"),
        ("seed=0:1:2:log", "--vary seed: a range with even ratios begins and ends above zero"),
        ("seed=a:b:2", "--vary seed: 'a' is neither a number nor a quantity such as 900GB/s"),
        ("seed=1:2:0", "--vary seed: a range needs 1 to 1000000 values, not 0"),
        ("seed=1,,2", "--vary seed: '1,,2' has an empty value"),
    ],
)
def test_what_cannot_be_read_is_said(scenario, text, message):
    with pytest.raises(ScenarioError) as raised:
        make_grid(scenario, [text])
    assert str(raised.value) == message


def test_a_path_stands_once(scenario):
    with pytest.raises(ScenarioError, match="stands twice"):
        make_grid(scenario, ["plan.pipeline=1", "plan.pipeline=2"])


def test_too_many_points_are_refused(scenario):
    with pytest.raises(ScenarioError, match="1000000000000 points"):
        make_grid(scenario, ["seed=1:1000000:1000000", "plan.pipeline=1:1000000:1000000"])


def test_points_are_all_combinations_the_last_axis_fastest(scenario):
    grid = make_grid(scenario, ["plan.pipeline=1,2", "plan.zero=0,1"])
    assert [tuple(point.values()) for point in grid.points()] == [(1, 0), (1, 1), (2, 0), (2, 1)]
    assert len(grid) == 4


def test_the_key_depends_on_scenario_values_and_fill(scenario):
    keys = {
        make_grid(scenario, ["plan.zero=0,1"]).key,
        make_grid(scenario, ["plan.zero=1,0"]).key,
        make_grid(scenario, ["plan.zero=0,1"], fill="data").key,
        make_grid(load("gpt3_fp32.yaml"), ["plan.zero=0,1"]).key,
    }
    assert len(keys) == 4
    assert make_grid(scenario, ["plan.zero=0,1"]).key in keys


def test_data_follows_a_varied_degree_unless_it_is_varied_itself(scenario):
    assert make_grid(scenario, ["plan.pipeline=6"], fill="auto").fill == "data"
    assert make_grid(scenario, ["plan.pipeline=6", "plan.data=4"], fill="auto").fill == "none"
    assert make_grid(scenario, ["plan.zero=1"], fill="auto").fill == "none"


def test_what_follows_makes_up_the_devices(scenario):
    # tensor 8 x pipeline 12 x data 2 on 24 nodes of 8
    assert filled(scenario, {"plan.pipeline": 6}, "data")["plan.data"] == 4
    assert filled(scenario, {"plan.pipeline": 6}, "nodes")["cluster.nodes"] == 12
    assert filled(scenario, {"plan.pipeline": 7}, "data") == {"plan.pipeline": 7}
    assert filled(scenario, {"plan.pipeline": "six"}, "data") == {"plan.pipeline": "six"}
    assert filled(scenario, {"plan.pipeline": 6}, "none") == {"plan.pipeline": 6}
