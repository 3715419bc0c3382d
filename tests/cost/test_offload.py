"""Offload costs time over the host link: by hand, and never for nothing."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpsim.cost.compiled import compile_scenario, machine_of, stages_of
from mpsim.cost.offload import HOST_MEMORY_BANDWIDTH, host_seconds, host_update
from mpsim.cost.overlap import overlapped
from mpsim.errors import ScenarioError
from mpsim.simulation import simulate
from mpsim.spec.reader import build

WIDTH, LAYERS = 256, 4
HOST = {"kind": "pcie", "bandwidth": "10 GB/s", "latency": "5 us"}
LINEAR = {"type": "linear", "inputs": WIDTH, "outputs": WIDTH, "bias": False}
TREE = {
    "model": {
        "input": [WIDTH],
        "network": [{"type": "linear", "inputs": WIDTH, "outputs": WIDTH, "bias": False}]
        * 2
        * LAYERS,
    },
    "cluster": {
        "device": "a100-sxm-80gb",
        "node": {"devices": 2, "link": "nvlink3", "host_link": HOST},
    },
    "plan": {"pipeline": 2},
    "training": {
        "global_batch": 64,
        "microbatch": 8,
        "precision": "fp32",
        "optimizer": "sgd",
        "gradient_clipping": False,
    },
}
"""Two stages of four square linear layers each."""

PARAMETERS = LAYERS * WIDTH * WIDTH
KINDS = ("optimizer", "weights", "activations")


def scenario(*offload, **fields):
    return build(TREE, {"plan.offload": list(offload), **fields})


def costs(*offload, **fields):
    return compile_scenario(scenario(*offload, **fields)).costs[0]


def test_an_offloaded_optimizer_sends_gradients_and_fetches_weights_and_updates_on_the_host():
    sent = 4 * PARAMETERS + 4 * PARAMETERS  # B: gradients out, weights back
    host = 12 * PARAMETERS * 2 / HOST_MEMORY_BANDWIDTH  # gradient read, weight read and written
    hand = LAYERS * 5e-6 + sent / 10e9 + host
    assert costs("optimizer").update == pytest.approx({"offload": hand}, rel=1e-9)


def test_offloaded_weights_come_in_before_each_pass():
    found = costs("weights", **{"plan.overlap_data": False})
    hand = LAYERS * 5e-6 + 4 * PARAMETERS / 10e9
    assert found.forward["offload"] == pytest.approx(hand, rel=1e-12)
    assert found.backward_input["offload"] == pytest.approx(hand, rel=1e-12)
    assert found.update == costs().update


def test_offloaded_activations_leave_and_return():
    found = costs("activations", **{"plan.overlap_data": False})
    kept = LAYERS * 8 * WIDTH * 4  # B: the input of each layer, for a microbatch of 8
    assert found.forward["offload"] == pytest.approx(LAYERS * 5e-6 + kept / 10e9, rel=1e-12)


def test_beside_compute_only_what_the_overlap_leaves_counts():
    plain, found = costs(), costs("weights")
    alone, compute = LAYERS * 5e-6 + 4 * PARAMETERS / 10e9, sum(plain.forward.values())
    assert found.forward["offload"] == pytest.approx(overlapped(compute, alone) - compute)
    assert 0 < found.forward["offload"] < alone


def test_devices_on_one_uplink_divide_it():
    fields = {"plan.overlap_data": False}
    shared = {**fields, "cluster.node.shared_uplink": True}
    one, both = (costs("weights", **kind).forward["offload"] for kind in (fields, shared))
    latency = LAYERS * 5e-6
    assert both - latency == pytest.approx(2 * (one - latency), rel=1e-9)


def test_nothing_passes_without_offload():
    one = scenario()
    machine = machine_of(one)
    assert host_seconds(stages_of(one, machine)[0], machine).forward == 0
    assert "offload" not in simulate(one).waterfall


def test_an_update_on_the_host_is_never_quicker_than_on_the_device():
    machine = machine_of(scenario("optimizer", **{"cluster.device.memory_bandwidth": "1 GB/s"}))
    assert host_update(0.0, 2.0, machine) == {"offload": 2.0}


@settings(max_examples=25, deadline=None)
@given(
    offload=st.lists(st.sampled_from(KINDS), min_size=1, max_size=3, unique=True),
    zero=st.sampled_from([0, 1, 3]),
    overlap=st.booleans(),
    recompute=st.sampled_from(["none", "full"]),
)
def test_offload_is_never_faster_and_never_holds_more(offload, zero, overlap, recompute):
    tree = {
        "model": {"layers": 4, "hidden": 256, "heads": 8, "vocab": 1024},
        "cluster": {"base": "dgx-a100-80gb", "node": {"devices": 4}},
        "plan": {
            "pipeline": 2,
            "data": 2,
            "zero": zero,
            "overlap_data": overlap,
            "recompute": recompute,
        },
        "training": {"global_batch": 16, "sequence": 128},
    }
    plain = simulate(build(tree), engine="fast")
    found = simulate(build(tree, {"plan.offload": offload}), engine="fast")
    assert found.step_time >= plain.step_time
    assert found.waterfall["offload"] > 0
    assert found.peak_memory <= plain.peak_memory * (1 + 1e-12)
    assert sum(found.waterfall.values()) == pytest.approx(found.step_time, rel=1e-9)


def test_offload_without_a_host_link_says_what_to_write():
    fields = {"cluster.node": {"devices": 2, "link": "nvlink3"}}
    one = build({**TREE, "cluster": {**TREE["cluster"], "node": fields["cluster.node"]}})
    with pytest.raises(ScenarioError) as caught:
        simulate(one.model_copy(update={"plan": scenario("weights", "optimizer").plan}))
    assert str(caught.value) == (
        "plan.offload: weights, optimizer in host memory needs the link to it: write "
        "cluster.node.host_link: pcie4 (a name of `mpsim zoo links`, or bandwidth and latency)"
    )
