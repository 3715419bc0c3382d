"""Host launches, attention of a software generation, and the clock that a power limit leaves."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpsim.cost.clock import (
    EXPONENT,
    FULL_CLOCK,
    scalar_clock,
    sustained_clock,
    with_sustained_clock,
)
from mpsim.cost.derived import profile_of
from mpsim.cost.software import HOST_SHARPNESS, SOFTWARE, Software, pass_seconds, slowdown
from mpsim.spec.cluster import DeviceSpec
from mpsim.spec.plan import TrainingSpec
from mpsim.spec.zoo import load_entry
from mpsim.workload.layers import Kernel

SECONDS = st.floats(0, 10, allow_nan=False)


def device(name: str, **changes: object) -> DeviceSpec:
    """A device of the zoo with fields changed."""
    return DeviceSpec.model_validate(load_entry("devices", name) | changes)


def test_every_framework_has_its_constants():
    names = TrainingSpec.model_fields["framework"].annotation.__args__
    assert set(SOFTWARE) == set(names)


@given(SECONDS, SECONDS)
def test_a_pass_is_never_shorter_than_device_or_host_and_never_longer_than_both(a, b):
    seconds = pass_seconds(a, b)
    assert max(a, b) * (1 - 1e-12) <= seconds <= (a + b) * (1 + 1e-12)
    assert seconds == pytest.approx(pass_seconds(b, a))


@given(SECONDS, SECONDS, SECONDS)
def test_a_faster_device_never_makes_a_pass_longer(host, quick, slow):
    quick, slow = sorted((quick, slow))
    assert pass_seconds(quick, host) <= pass_seconds(slow, host) * (1 + 1e-12)


def test_equal_device_and_host_cost_the_root_of_two():
    assert pass_seconds(3.0, 3.0) == pytest.approx(3 * 2 ** (1 / HOST_SHARPNESS))


def test_attention_written_for_ampere_is_slower_where_units_are_asynchronous():
    kernel = Kernel("attention", "attention", 1e12, 1e9, (1, 8, 8, 1024, 1024, 128))
    software = Software(dispatches=1, attention=1.1, attention_since_hopper=1.6, experts=1.3)
    assert slowdown(kernel, software, device("a100-sxm-80gb")) == 1.1
    assert slowdown(kernel, software, device("h100-sxm-80gb")) == pytest.approx(1.6)
    for no_faster in ("h20-sxm-96gb", "l40s", "rtx-4090"):  # a multiprocessor, than an A100's
        assert slowdown(kernel, software, device(no_faster)) == 1.1
    assert slowdown(kernel, software, device("b200-sxm-180gb")) == 1.1  # kernels of its own
    product = replace(kernel, name="expert_mlp_up", kind="gemm")
    assert slowdown(product, software, device("a100-sxm-80gb")) == 1.3
    assert slowdown(replace(product, name="mlp_up"), software, device("a100-sxm-80gb")) == 1.0


def test_the_clock_goes_with_the_root_of_the_power():
    full, half = device("h100-sxm-80gb"), device("h100-sxm-80gb", power="350 W")
    ratio = sustained_clock(half, profile_of(half)) / sustained_clock(full, profile_of(full))
    assert ratio == pytest.approx(0.5**EXPONENT)


def test_a_power_limit_never_raises_the_clock():
    plenty = device("h100-sxm-80gb", power="5000 W")
    assert sustained_clock(plenty, profile_of(plenty)) == 1.0


def test_the_clock_of_an_h100_by_hand():
    h100 = device("h100-sxm-80gb")
    by_hand = math.sqrt(700 * FULL_CLOCK["h100_sxm"] / 989.4e12)
    assert sustained_clock(h100, profile_of(h100)) == pytest.approx(by_hand, rel=1e-6)


def test_a_profile_with_a_sustained_rate_of_its_own_keeps_it():
    h100 = device("h100-sxm-80gb")
    own = profile_of(h100).model_copy(update={"sustained": {"bf16": 0.9}})
    assert with_sustained_clock(own, h100) is own
    given_one = with_sustained_clock(profile_of(h100), h100)
    by_matrix_units = {name: share for name, share in given_one.sustained.items() if name != "fp32"}
    assert set(by_matrix_units.values()) == {sustained_clock(h100, profile_of(h100))}


@pytest.mark.parametrize("name", ["v100-pcie", "a100-pcie-40gb", "h100-sxm-80gb"])
def test_products_outside_the_matrix_units_are_throttled_on_small_boards_alone(name):
    assert scalar_clock(device(name), profile_of(device(name))) == 1.0
    small = device("l4")
    assert scalar_clock(small, profile_of(small)) < sustained_clock(small, profile_of(small))
