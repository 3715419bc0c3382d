"""The trace in the format that Perfetto and chrome://tracing open."""

import json

import pytest

from mpsim.report.trace import trace
from mpsim.simulation import simulate

KEYS = {"ph", "pid"}


@pytest.fixture
def report(small):
    return simulate(small({"plan.zero": 1, "plan.data": 2, "plan.pipeline": 2}))


@pytest.fixture
def events(report):
    return trace(report)["traceEvents"]


def of(events, letter):
    return [event for event in events if event["ph"] == letter]


def test_every_op_is_an_event_with_its_times_in_microseconds(report, events):
    complete = of(events, "X")
    assert len(complete) == report.graph.num_ops
    assert max(one["ts"] + one["dur"] for one in complete) == pytest.approx(1e6 * report.step_time)
    assert all(one["dur"] >= 0 for one in complete)
    assert {"0F0", "1B7", "update", "1SEND_B0"} <= {one["name"] for one in complete}


def test_events_of_a_compute_stream_do_not_overlap(events):
    mine = sorted((e["ts"], e["dur"]) for e in of(events, "X") if (e["pid"], e["tid"]) == (0, 0))
    ends = [begin + long for begin, long in mine]
    assert all(end <= begin + 1e-6 for end, (begin, _) in zip(ends, mine[1:], strict=False))


def test_parts_of_an_op_add_up_to_it(events):
    for one in of(events, "X"):
        parts = sum(us for name, us in one["args"].items() if name.endswith("_us"))
        if one["cat"] in ("F", "B", "STEP", "REDUCE_GRAD"):
            assert parts == pytest.approx(one["dur"], abs=1e-3)


def test_devices_and_streams_have_names(report, events):
    names = [(e["name"], e["pid"], e["args"]["name"]) for e in of(events, "M")]
    for device in range(2):
        assert ("process_name", device, report.device_names[device]) in names
        assert {n for kind, d, n in names if kind == "thread_name" and d == device} == {
            "compute",
            "transfers",
            "collectives",
        }


def test_memory_is_a_counter_stacked_by_component(report, events):
    for device in report.devices:
        mine = [one for one in of(events, "C") if one["pid"] == device.index]
        assert len(mine) == len(device.memory.times)
        sums = [sum(one["args"].values()) for one in mine]
        assert sums == pytest.approx([n / 2**30 for n in device.memory.total], abs=1e-5)
        assert "optimizer state (GiB)" in mine[0]["args"]


def test_a_trace_is_json_without_infinities(report):
    text = json.dumps(trace(report), allow_nan=False)
    back = json.loads(text)
    assert back["otherData"] == {"scenario": "small", "variant": "base"}
    assert all(set(event) >= KEYS for event in back["traceEvents"])
