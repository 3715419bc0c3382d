"""The demonstrations: what they train, what they print, and how they fail."""

import pytest
from click.testing import CliRunner

from mpsim.cli.demo import demo
from mpsim.errors import MpsimError, ScenarioError
from mpsim.hardware import demos

SPLITS = [(name, split) for name, what in demos.DEMOS.items() for split in what.splits]


@pytest.mark.parametrize(("name", "split"), SPLITS)
def test_split_network_learns_as_the_unsplit_one(pair, name, split):
    told = []
    trained = demos.train(pair, name, split, epochs=2, told=told.append)
    assert trained.agreement.holds
    assert tuple(told) == trained.epochs
    # fp32 sums of another order, grown over 32 steps
    assert trained.loss_error < 1e-4
    assert trained.epochs[1].loss < trained.epochs[0].loss
    assert len(trained.epochs[0].step_seconds) == demos.BATCHES


def test_parts_of_the_two_device_network_live_on_their_workers(pair):
    (epoch,) = demos.train(pair, "two-device", "layer", epochs=1).epochs
    assert epoch.where == {
        "0.weight": "(20, 10) on cpu, worker 0",
        "0.bias": "(20,) on cpu, worker 0",
        "2.weight": "(10, 20) on cpu, worker 1",
        "2.bias": "(10,) on cpu, worker 1",
        "4.weight": "(2, 10) on cpu, worker 1",
        "4.bias": "(2,) on cpu, worker 1",
    }


def test_cut_weights_live_on_both_workers(pair):
    (epoch,) = demos.train(pair, "two-layer", "row", epochs=1).epochs
    assert epoch.where["0.weight"] == "(64, 16) on cpu, worker 0; (64, 16) on cpu, worker 1"


def test_measured_step_has_the_ops_of_the_naive_order(pair):
    run = demos.measure_step(pair, steps=3)
    compute = [event.op for event in run.events if event.step == 0 and event.op[1:2] in "FB"]
    assert sorted(compute) == ["0B0", "0F0", "1B0", "1F0"]
    assert len(run.step_seconds) == 3


def test_command_prints_epochs_places_and_agreement():
    result = CliRunner().invoke(demo, ["two-device", "--epochs", "2", "--devices", "cpu,cpu"])
    assert result.exit_code == 0, result.output
    assert "two-device MLP on cpu + cpu, gloo over loopback" in result.output
    assert "warning: no GPU in use: 2 CPU processes stand in for the devices" in result.output
    assert "epoch 2  loss 0.6" in result.output
    assert "2.weight  (10, 20) on cpu, worker 1" in result.output
    assert "the same as the unsplit network: loss of a batch off by" in result.output
    assert "measured step" in result.output


@pytest.mark.parametrize(
    ("devices", "message"),
    [
        ("cuda:7,cpu", "--devices: cuda:7 is not there; this machine has"),
        ("cpu", "--devices: 'cpu' is one device, but two workers are needed; write cpu,cpu for"),
        ("cpu,cpu,cpu", "--devices: two, not three"),
        ("tpu:0,cpu", "--devices: 'tpu:0' is not a device; write cpu or cuda:N"),
    ],
)
def test_devices_that_are_not_there_are_refused(devices, message):
    result = CliRunner().invoke(demo, ["two-device", "--devices", devices])
    assert isinstance(result.exception, ScenarioError)
    assert str(result.exception).startswith(message)


def test_a_profile_that_is_not_there_is_noticed_before_the_run(monkeypatch):
    started = []
    monkeypatch.setattr("mpsim.hardware.workers.Workers.__enter__", started.append)
    result = CliRunner().invoke(demo, ["two-device", "--profile", "nope.yaml"])
    assert isinstance(result.exception, MpsimError)
    assert "nope" in str(result.exception)
    assert not started
