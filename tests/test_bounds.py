"""Closed forms against each other and against hand values."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpsim.bounds import (
    amdahl_causes,
    amdahl_fraction,
    amdahl_limit,
    amdahl_speed_up,
    bubble_seconds,
    critical_lower_bound,
    cut_volume,
)


@given(st.floats(0, 1), st.integers(2, 10_000))
def test_the_fraction_inverts_amdahls_law(fraction, devices):
    speed_up = amdahl_speed_up(fraction, devices)
    assert amdahl_fraction(speed_up, devices) == pytest.approx(fraction, abs=1e-9)
    assert speed_up <= amdahl_limit(fraction) * (1 + 1e-9)


@given(st.integers(2, 64), st.integers(1, 512))
def test_a_uniform_pipeline_amounts_to_one_minus_one_over_m(devices, microbatches):
    # p m units of work in (m + p - 1) slots: α = 1 - 1/m whatever the depth
    speed_up = devices * microbatches / (microbatches + devices - 1)
    fraction = amdahl_fraction(speed_up, devices)
    assert fraction == pytest.approx(1 - 1 / microbatches, abs=1e-9)


def test_a_naive_split_has_a_fraction_of_zero_and_a_limit_of_one():
    assert amdahl_fraction(1.0, 4) == 0.0
    assert amdahl_limit(0.0) == 1.0
    assert math.isinf(amdahl_limit(1.0))


def test_the_causes_sum_to_the_serial_fraction():
    # 4 devices, T1 = 8 s, a step of 3 s: 2 s of work on each, 0.7 s bubble, 0.3 s exchange
    causes = amdahl_causes({"bubble": 0.7, "exchange": 0.3}, 8.0, 4)
    assert sum(causes.values()) == pytest.approx(1 - amdahl_fraction(8 / 3, 4), rel=1e-12)


def test_bubbles_of_the_catalogue():
    times = {"forward": 1.0, "input_gradient": 1.0, "weight_gradient": 1.0}
    size = {"num_devices": 4, "num_microbatches": 8, "num_chunks": 1}
    assert bubble_seconds("1f1b", **size, **times) == 9.0
    assert bubble_seconds("naive", **size, **times) == 72.0
    assert bubble_seconds("zb_h1", **size, **times) == 3.0
    assert bubble_seconds("chimera", **size, **times) == 2 * 2 + 1 * 2 * 1
    assert bubble_seconds("v_min", **size, **times) is None
    assert bubble_seconds("1f1b", **{**size, "num_devices": 1}, **times) == 0.0


def test_the_cut_volume_counts_forward_and_backward():
    # the two-part network's cut is 20 floats wide; 64 samples; activation there, gradient back
    assert cut_volume([20 * 4], 64) == 2 * 20 * 4 * 64


def test_no_schedule_beats_the_busiest_device_or_the_chain():
    assert critical_lower_bound([1.0, 3.0], 10, 4.0) == 30.0
    assert critical_lower_bound([1.0, 1.0], 1, 2.0) == 2.0
