"""The report for machines: every figure of the report, units in the keys, plain JSON."""

import json
import re

import pytest

from mpsim.report.record import record
from mpsim.simulation import simulate
from mpsim.spec.reader import load

UNITS = ("_s", "_bytes", "_per_s", "usd_per_step", "_fraction", "_form")
PLAIN = {"name", "variant", "fits", "devices", "engine", "seed", "notes", "phases", "device"}
NESTED = {"amdahl", "traffic", "model_flops_utilisation", "minimum_devices", "ledger"}


@pytest.fixture(scope="module")
def report():
    return simulate(load("gpt3_fp32.yaml"))


@pytest.fixture(scope="module")
def found(report):
    return record(report)


def test_it_is_json_and_reads_back_equal(found):
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_every_key_ends_in_its_unit_or_has_none(found):
    for key in found:
        assert key in PLAIN | NESTED or key.endswith(UNITS) or key == "busy_at_once", key
    for key in found["device"][0]:
        assert key in {"index", "stages", "layers"} or key.endswith(UNITS), key


def test_the_figures_are_those_of_the_report(report, found):
    assert found["step_time_s"] == report.step_time
    assert found["fits"] is True
    assert found["capacity_bytes"] == report.scenario.cluster.device.memory
    assert found["peak_memory_bytes"] == max(d["peak_memory_bytes"] for d in found["device"])
    assert found["tokens_per_s"] == pytest.approx(2048 * found["samples_per_s"])
    assert found["minimum_devices"]["weights"] == 9
    assert found["amdahl"]["devices"] == 192


def test_causes_phases_and_components_add_up(found):
    step = found["step_time_s"]
    assert sum(found["waterfall_s"].values()) == pytest.approx(step, rel=1e-9)
    assert sum(found["phases_s"].values()) == pytest.approx(step, rel=1e-9)
    assert sum(found["ledger"]["shares"].values()) == pytest.approx(1, abs=1e-9)
    for device in found["device"]:
        parts = sum(device["peak_memory_components_bytes"].values())
        assert parts == pytest.approx(device["peak_memory_bytes"], rel=1e-9)
        outside = sum(device["outside_allocator_bytes"].values())
        whole = parts + device["fragmentation_bytes"] + outside
        assert whole == pytest.approx(device["reserved_memory_bytes"], rel=1e-9)
        busy = device["compute_s"] + device["exchange_s"] + device["idle_s"]
        assert busy == pytest.approx(step, rel=1e-9)


def test_an_infinite_limit_is_null():
    alone = record(simulate(load("two_layer_fc.yaml", ["plan={}", "cluster.node.devices=1"])))
    assert alone["amdahl"]["limit"] is None or alone["amdahl"]["limit"] > 0
    json.dumps(alone, allow_nan=False)


def test_the_same_scenario_gives_the_same_bytes():
    first, second = (json.dumps(record(simulate(load("hybrid.yaml")))) for _ in range(2))
    assert first == second
    assert not re.search(r"NaN|Infinity", first)
