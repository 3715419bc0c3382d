"""Running side by side: between the longer one alone and both in a row, times the slow-downs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpsim.cost.overlap import EXCHANGE_SLOWDOWN, KERNEL_SLOWDOWN, overlapped

seconds = st.floats(1e-6, 10.0)


@given(seconds, seconds)
def test_side_by_side_lies_between_the_longer_one_and_both_in_a_row(kernel, exchange):
    both = overlapped(kernel, exchange)
    assert both >= max(kernel, exchange) * (1 - 1e-12)
    assert both <= kernel + exchange


@given(seconds, seconds, st.floats(1.0, 2.0))
def test_more_work_is_never_done_sooner(kernel, exchange, factor):
    assert overlapped(kernel * factor, exchange) >= overlapped(kernel, exchange) - 1e-15
    assert overlapped(kernel, exchange * factor) >= overlapped(kernel, exchange) - 1e-15


def test_the_measured_pair_comes_out():
    # two that end together under the measured slow-downs take a k = b c
    kernel = 1.0
    exchange = KERNEL_SLOWDOWN * kernel / EXCHANGE_SLOWDOWN
    assert overlapped(kernel, exchange) == pytest.approx(KERNEL_SLOWDOWN, rel=1e-12)
    assert overlapped(kernel, 0.0) == kernel
