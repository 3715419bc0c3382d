"""The gap between a predicted and a measured step: sums, and injected faults found."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpsim.schedule.ops import Kind, Op
from mpsim.validation.gap import CAUSES, Span, critical_path, gap, is_compute, place, worker_times

F, B, SEND, MESSAGE, LAUNCH = 1e-3, 2e-3, 50e-6, 200e-6, 100e-6
"""Seconds of a clean pipeline's ops, of beginning a message, of a message, of launches in an op."""


def order(devices, microbatches):
    """1F1B with one stage on each device, as rows of ops."""
    rows = []
    for stage in range(devices):
        warm = min(devices - 1 - stage, microbatches)
        row = [Op(stage, Kind.F, m) for m in range(warm)]
        for m in range(microbatches):
            if warm + m < microbatches:
                row.append(Op(stage, Kind.F, warm + m))
            row.append(Op(stage, Kind.B, m))
        rows.append(row)
    return rows


def run(devices=2, microbatches=6, *, sleep=None, rate=None, launches=None, late=0.0, noise=None):
    """Spans of a pipeline that is run in this test, faults included: an engine of its own.

    ``sleep``: stage → s longer in each forward; ``rate``: device → s longer for each message it
    sends; ``launches``: stage → s of needless launches in each forward; ``late``: s by which the
    last device begins late.
    """
    sleep, rate, launches = sleep or {}, rate or {}, launches or {}
    rows = order(devices, microbatches)
    clock = [0.0] * devices
    clock[-1] = late
    arrived, spans, place_of = {}, [], [0] * devices
    link_free = {}
    while any(place_of[d] < len(rows[d]) for d in range(devices)):
        moved = False
        for d in range(devices):
            if place_of[d] == len(rows[d]):
                continue
            op = rows[d][place_of[d]]
            source = {Kind.F: op.stage - 1, Kind.B: op.stage + 1}[op.kind]
            ready, sender, sent = clock[d], -1, math.nan
            if 0 <= source < devices:
                if (source, op.kind, op.microbatch) not in arrived:
                    continue
                sent, there = arrived[source, op.kind, op.microbatch]
                ready, sender = max(clock[d], there), source
            own = F if op.kind == Kind.F else B
            host = LAUNCH
            if op.kind == Kind.F:
                own += sleep.get(op.stage, 0.0) + launches.get(op.stage, 0.0)
                host += launches.get(op.stage, 0.0)
            own *= 1.0 if noise is None else float(noise.lognormal(0, 0.02))
            end = ready + own
            spans.append(Span(d, str(op), clock[d], ready, end, host, sender, sent))
            target = op.stage + (1 if op.kind == Kind.F else -1)
            if 0 <= target < devices:
                kind = "SEND_F" if op.kind == Kind.F else "SEND_B"
                spans.append(Span(d, f"{op.stage}{kind}{op.microbatch}", end, end, end + SEND))
                end += SEND
                begin = max(end, link_free.get(d, 0.0))
                link_free[d] = begin + rate.get(d, 0.0)
                arrived[op.stage, op.kind, op.microbatch] = (
                    end,
                    begin + MESSAGE + rate.get(d, 0.0),
                )
            clock[d], moved = end, True
            place_of[d] += 1
        assert moved, "the test's own pipeline deadlocks"
    return spans + [Span(d, "STEP", at, at, at + 1e-4) for d, at in enumerate(clock)]


def length(spans):
    return max(span.end for span in spans)


def test_equal_steps_have_no_gap():
    found = gap(run(), run())
    assert found.seconds == 0
    assert all(abs(seconds) < 1e-12 for seconds in found.causes.values())


@settings(max_examples=60, deadline=None)
@given(
    st.integers(2, 4),
    st.integers(1, 9),
    st.floats(0, 5e-3),
    st.floats(0, 5e-3),
    st.floats(0, 5e-3),
    st.floats(0, 2e-3),
    st.integers(0, 99),
)
def test_causes_sum_to_the_gap(devices, microbatches, sleep, slow, launch, late, seed):
    measured = run(
        devices,
        microbatches,
        sleep={0: sleep},
        rate={0: slow},
        launches={1: launch},
        late=late,
        noise=np.random.default_rng(seed),
    )
    found = gap(run(devices, microbatches), measured)
    assert sum(found.causes.values()) == pytest.approx(found.seconds, abs=1e-12)
    assert sum(found.places.values()) == pytest.approx(found.seconds, abs=1e-9)
    assert abs(found.causes["unexplained"]) < 1e-9  # the path covers the step
    assert set(found.causes) == set(CAUSES)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 4), st.integers(1, 9), st.floats(0, 4e-3))
def test_a_critical_path_covers_its_step_without_overlap(devices, microbatches, sleep):
    spans = run(devices, microbatches, sleep={devices - 1: sleep})
    path = critical_path(spans)
    assert path[0].begin == 0
    assert path[-1].end == length(spans)
    assert all(
        before.end == pytest.approx(after.begin, abs=1e-12)
        for before, after in itertools.pairwise(path)
    )


# What is injected shows in the step as far as it is exposed; at least 90 % of what the step grows
# by must be put to its cause.
@pytest.mark.parametrize("stage", [0, 1])
@pytest.mark.parametrize("seed", range(3))
def test_a_sleep_in_one_stage_is_found_as_compute_of_that_stage(stage, seed):
    noise = np.random.default_rng(seed)
    measured = run(sleep={stage: 5e-3}, noise=noise)
    found = gap(run(), measured)
    assert found.seconds > 0.9 * 6 * 5e-3
    assert found.causes["compute"] >= 0.9 * found.seconds
    assert found.places["compute", f"{stage}F"] >= 0.9 * found.seconds


@pytest.mark.parametrize("device", [0, 1])
@pytest.mark.parametrize("seed", range(3))
def test_a_throttled_link_is_found_as_transfer(device, seed):
    measured = run(rate={device: 8e-3}, noise=np.random.default_rng(seed))
    found = gap(run(), measured)
    assert found.seconds > 20e-3
    assert found.causes["transfer"] >= 0.9 * found.seconds


@pytest.mark.parametrize("stage", [0, 1])
def test_extra_launches_are_found_as_launch(stage):
    measured = run(launches={stage: 3e-3}, noise=np.random.default_rng(0))
    found = gap(run(), measured)
    assert found.causes["launch"] >= 0.9 * found.seconds > 0.9 * 15e-3


def test_a_worker_that_begins_late_is_skew():
    found = gap(run(microbatches=1), run(microbatches=1, late=20e-3))
    assert found.causes["skew"] >= 0.9 * found.seconds > 15e-3


def test_workers_tell_waiting_from_transfer():
    sleepy = worker_times(run(sleep={0: 5e-3}))[1]
    slow = worker_times(run(rate={0: 5e-3}))[1]
    clean = worker_times(run())[1]
    assert sleepy["waiting"] - clean["waiting"] > 20e-3
    assert sleepy["transfer"] == pytest.approx(clean["transfer"], abs=2e-3)
    assert slow["transfer"] - clean["transfer"] > 15e-3
    assert slow["waiting"] == pytest.approx(clean["waiting"], abs=4e-3)


def test_worker_times_sum_to_its_last_moment():
    spans = run(3, 5, sleep={1: 1e-3})
    for device, times in worker_times(spans).items():
        last = max(span.end for span in spans if span.device == device)
        assert sum(times.values()) == pytest.approx(last, abs=1e-12)


def test_a_worker_that_begins_before_the_step_is_counted_from_its_begin():
    spans = [
        Span(0, "0RECV_F0", -2.5e-3, -1e-3, -0.5e-3),
        Span(0, "0F0", -0.5e-3, 1e-3, 2e-3, host=0.5e-3, sender=1, sent=-0.25e-3),
    ]
    (times,) = worker_times(spans).values()
    expected = {"transfer": 1e-3, "launch": 0.5e-3, "compute": 0.5e-3}
    for cause in CAUSES:
        assert times[cause] == pytest.approx(expected.get(cause, 0.0), abs=1e-12)


@pytest.mark.parametrize(
    ("text", "compute"),
    [("0F3", True), ("11W0", True), ("STEP", True), ("0SEND_F1", False), ("1REDUCE_GRAD", False)],
)
def test_actions_that_compute(text, compute):
    assert is_compute(text) is compute


def test_places_name_stage_and_letter():
    path = critical_path(run())
    assert {place(segment) for segment in path if segment.cause == "compute"} >= {"0F", "1B"}
