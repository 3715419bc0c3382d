"""What cannot be meant, or not be computed, is refused at once, in one message."""

import time
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

import mpsim
from mpsim.cli import main
from mpsim.cli.scenario import _stem
from mpsim.errors import MpsimError, ScenarioError, ScheduleError
from mpsim.schedule.orders import make_order
from mpsim.spec.reader import build

TREE = {
    "model": {"layers": 4, "hidden": 512, "heads": 8, "vocab": 1024},
    "cluster": {"device": "a100-sxm-80gb", "node": {"devices": 1, "link": "nvlink3"}},
    "training": {"global_batch": 4, "sequence": 64},
}


@pytest.mark.parametrize(("devices", "microbatches"), [(4096, 4096), (1, 10**7), (2, 10**9)])
def test_an_order_of_too_many_passes_is_refused_at_once(devices, microbatches):
    begin = time.monotonic()
    with pytest.raises(ScheduleError, match=r"passes, more than the 10,000,000 .* fewer microb"):
        make_order("1f1b", num_devices=devices, num_microbatches=microbatches)
    assert time.monotonic() - begin < 1


def test_a_scenario_of_too_many_microbatches_is_refused_at_once():
    begin = time.monotonic()
    with pytest.raises(MpsimError, match="20,000,000 forward and backward passes"):
        mpsim.simulate(build(TREE, {"training.global_batch": 10**7}))
    assert time.monotonic() - begin < 2


def test_a_degree_that_does_not_divide_a_billion_heads_is_refused_at_once():
    fields = {"model.heads": 10**9, "model.hidden": 10**9, "plan.tensor": 3, "cluster.nodes": 1}
    begin = time.monotonic()
    with pytest.raises(ScenarioError, match="3 does not divide the 1000000000 heads"):
        build(TREE, fields | {"cluster.node.devices": 3})
    assert time.monotonic() - begin < 1


def test_groups_that_do_not_divide_the_channels_are_refused():
    layer = {"type": "conv2d", "inputs": 6, "outputs": 9, "kernel": 3, "groups": 3}
    network = {"input": [6, 8, 8], "network": [layer]}
    tree = {**TREE, "model": network, "training": {"global_batch": 4}}
    build(tree)
    with pytest.raises(ScenarioError, match=r"groups \(2\) must divide inputs \(6\) and outputs"):
        build(tree, {"model.network.0.groups": 2})


@pytest.mark.parametrize("wrong", [3, None, {"plan": 1}, ["a.yaml"]])
def test_what_is_no_path_or_scenario_is_refused_in_words(wrong):
    with pytest.raises(ScenarioError, match="named by a text or a path"):
        mpsim.load(wrong)
    with pytest.raises(ScenarioError, match="simulate takes a scenario"):
        mpsim.simulate(wrong)


def test_an_engine_that_does_not_exist_is_refused():
    with pytest.raises(ScenarioError, match="no engine 'simpy'; there are events, fast"):
        mpsim.simulate(build(TREE), engine="simpy")


def test_a_picture_that_cannot_be_written_is_refused_before_it_is_simulated(monkeypatch):
    monkeypatch.setattr("mpsim.cli.scenario.simulate", lambda *_, **__: pytest.fail("simulated"))
    result = CliRunner().invoke(main, ["scenario", "gpt3_fp32.yaml", "--plot", "x.bmp"])
    assert result.exit_code == 2
    assert "ending must be .svg, .png or .pdf" in result.output


def test_variants_that_differ_in_punctuation_have_files_of_their_own():
    reports = [
        SimpleNamespace(scenario=SimpleNamespace(name="one", variant=name))
        for name in ("a b", "a/b", "a_b", "c")
    ]
    stems = [_stem(report, reports) for report in reports]
    assert stems == ["one-a_b-1", "one-a_b-2", "one-a_b-3", "one-c"]


def test_another_base_takes_the_place_of_the_whole_entry():
    other = build(TREE, {"cluster.device.base": "a100-sxm-40gb"})
    assert other == build(TREE, {"cluster.device": "a100-sxm-40gb"})
    assert other.cluster.device.memory < build(TREE).cluster.device.memory
