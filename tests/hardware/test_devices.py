"""Which workers are placed on which machine; the machines are made up."""

import importlib
import sys

import pytest

import mpsim
from mpsim.errors import CalibrationError, ScenarioError
from mpsim.hardware.devices import Machine, choose_devices, find_devices, parse_devices, place

LAPTOP = Machine(gpus=(), cores=(0, 1))
ONE = Machine(gpus=("NVIDIA H200",), cores=tuple(range(16)))
TWO = Machine(gpus=("NVIDIA A100", "NVIDIA A100"), cores=tuple(range(8)), peer_access=True)
SLOW = Machine(gpus=("NVIDIA T4", "NVIDIA T4"), cores=tuple(range(8)))


@pytest.mark.parametrize(
    ("machine", "devices", "backend", "link", "warning"),
    [
        (TWO, ("cuda:0", "cuda:1"), "nccl", "peer", ""),
        (SLOW, ("cuda:0", "cuda:1"), "nccl", "host", ""),
        (ONE, ("cuda:0", "cpu"), "gloo", "host", "the devices differ: cuda:0, cpu"),
        (LAPTOP, ("cpu", "cpu"), "gloo", "loopback", "no GPU in use: 2 CPU processes"),
    ],
)
def test_the_best_two_workers_are_chosen(machine, devices, backend, link, warning):
    chosen = choose_devices(machine)
    placement = place(chosen, machine)
    assert chosen == placement.devices == devices
    assert (placement.backend, placement.link) == (backend, link)
    assert placement.warning.startswith(warning)
    assert bool(placement.warning) == bool(warning)


def test_two_processes_on_one_gpu_go_over_gloo():
    placement = place(("cuda:0", "cuda:0"), ONE)
    assert (placement.backend, placement.link) == ("gloo", "memory")
    assert "2 processes share cuda:0" in placement.warning
    assert placement.describes == "cuda:0 + cuda:0, gloo over memory of one GPU through host memory"


def test_cores_are_dealt_in_disjoint_runs():
    placement = place(("cpu", "cpu"), Machine(gpus=(), cores=(1, 3, 5, 7, 9)))
    assert [worker.cores for worker in placement.workers] == [(1, 3), (5, 7)]
    crowded = place(("cpu", "cpu"), Machine(gpus=(), cores=(4,)))
    assert [worker.cores for worker in crowded.workers] == [(4,), (4,)]
    assert "sharing 1 core(s)" in crowded.warning


@pytest.mark.parametrize(
    ("text", "devices"),
    [
        ("cuda:0,cuda:1", ("cuda:0", "cuda:1")),
        ("cuda, cpu", ("cuda:0", "cpu")),
        ("cpu,cpu,cpu", ("cpu", "cpu", "cpu")),
    ],
)
def test_devices_are_read(text, devices):
    assert parse_devices(text, TWO) == devices


@pytest.mark.parametrize(
    ("text", "machine", "message"),
    [
        ("cuda:2,cpu", TWO, "--devices: cuda:2 is not there; this machine has 2 GPUs"),
        ("cuda:0,cpu", LAPTOP, "cuda:0 is not there; this machine has no GPU that torch can use"),
        (
            "cuda:0",
            TWO,
            "'cuda:0' is one device, but two workers are needed; write cuda:0,cpu, "
            "or cuda:0,cuda:0 for two processes on it",
        ),
        ("cpu", LAPTOP, "'cpu' is one device, but two workers are needed; write cpu,cpu for two p"),
        ("", TWO, "'' is not a device; write cpu or cuda:N, as in cuda:0,cuda:1"),
        ("gpu0,cpu", TWO, "'gpu0' is not a device"),
    ],
)
def test_devices_that_cannot_be_meant_are_refused(text, machine, message):
    with pytest.raises(ScenarioError) as caught:
        parse_devices(text, machine)
    assert message in str(caught.value)
    assert caught.value.where == "--devices"


@pytest.mark.parametrize(
    ("text", "count", "message"),
    [
        ("cpu,cpu,cpu", 2, "--devices: two, not three: cpu,cpu,cpu"),
        ("cpu", 4, "--devices: four, not one: cpu"),
        ("cpu,cpu", 6, "--devices: 6, not two: cpu,cpu"),
    ],
)
def test_as_many_devices_as_are_asked_for(text, count, message):
    with pytest.raises(ScenarioError) as caught:
        parse_devices(text, LAPTOP, count=count)
    assert str(caught.value) == message


def test_no_device_is_refused():
    with pytest.raises(CalibrationError, match="no device to place a worker on"):
        place((), TWO)


def test_this_machine_has_cores():
    machine = find_devices()
    assert machine.cores
    assert machine.cpu


def test_without_torch_the_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.delitem(sys.modules, "mpsim.hardware")
    monkeypatch.delattr(mpsim, "hardware")
    with pytest.raises(CalibrationError) as caught:
        importlib.import_module("mpsim.hardware")
    assert str(caught.value) == "torch is not installed; pip install 'mpsim[hardware]'"
    assert caught.value.exit_code == 4
