"""Elasticities from the critical path against finite differences of whole simulations."""

import numpy as np
import pytest

from mpsim.cost.compiled import compile_scenario
from mpsim.engine import longest_path
from mpsim.errors import ScenarioError
from mpsim.planner.sensitivity import (
    critical_path,
    finite_difference,
    neighbours,
    parameters,
    sensitivities,
)
from mpsim.spec.reader import changed, load

CASES = [
    ("gpt3_bf16.yaml", {"training.global_batch": 48}),
    ("gpt3_fp32.yaml", {"training.global_batch": 24, "plan.zero": 1}),
    ("hybrid.yaml", {"plan.schedule": "zb_h1"}),
]


@pytest.fixture(scope="module", params=CASES, ids=[name for name, _ in CASES])
def scenario(request):
    return load(*request.param)


def test_the_critical_path_adds_up_to_the_step(scenario):
    compiled = compile_scenario(scenario)
    timeline = longest_path.run(compiled.graph, compiled.work)
    path = critical_path(compiled.graph, timeline)
    assert compiled.work.durations()[path].sum() == pytest.approx(timeline.end.max())
    assert timeline.begin[path[0]] == 0
    assert np.allclose(timeline.begin[path[1:]], timeline.end[path[:-1]])


def test_elasticities_are_those_of_finite_differences(scenario):
    for one in sensitivities(scenario):
        whole = finite_difference(scenario, one.parameter)
        # over 0.1 % the path may move to one that is as long: a bend, not an error
        assert one.elasticity == pytest.approx(whole, rel=0.02, abs=2e-4), one.parameter.name


def test_all_elasticities_to_rates_and_latencies_sum_to_minus_one(scenario):
    # twice all rates and half all latencies and overheads is the same machine, twice as fast
    total = sum(
        -one.elasticity if one.parameter.smaller_is_better else one.elasticity
        for one in sensitivities(scenario)
    )
    # fixed kernel floors of the profile, which no parameter scales, make it a little less
    assert -1.01 <= total <= -0.9


def test_more_is_never_worse_and_infinity_bounds_it(scenario):
    for one in sensitivities(scenario):
        assert one.doubled + 1e-12 >= 0
        assert one.doubled <= one.infinite + 1e-9
        assert (one.elasticity >= 0) == one.parameter.smaller_is_better or one.elasticity == 0


def test_the_largest_comes_first(scenario):
    sizes = [abs(one.elasticity) for one in sensitivities(scenario)]
    assert sizes == sorted(sizes, reverse=True)


def test_one_node_has_no_network_parameters():
    one = load("two_device_mlp.yaml")
    if one.cluster.network is None:
        assert not [p for p in parameters(one) if "network" in p.path]


def test_neighbours_are_simulated_or_say_why_not():
    found = list(neighbours(load("gpt3_bf16.yaml", {"training.global_batch": 32})))
    assert any(one.step for one in found)
    assert all(one.step or one.reason for one in found)
    assert "tensor=16, data=1" in {one.change for one in found}


def test_torch_data_parallel_has_no_sensitivities():
    one = load("gpt3_bf16.yaml")
    alone = {"plan.tensor": 1, "plan.pipeline": 1, "plan.data": 8, "cluster.nodes": 1,
             "training.global_batch": 8, "plan.data_parallel": "data_parallel"}  # fmt: skip
    with pytest.raises(ScenarioError, match="whose ops the cost model times"):
        sensitivities(changed(one, alone))
