"""Running side by side: between the longer one alone and both in a row, times the slow-downs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpsim.cost.compiled import machine_of
from mpsim.cost.overlap import EXCHANGE_SLOWDOWN, KERNEL_SLOWDOWN, overlapped
from mpsim.cost.passes import _passes
from mpsim.spec.reader import build
from mpsim.workload.layers import Exchange, Kernel

TENSOR = {
    "name": "eight",
    "model": {"layers": 2, "hidden": 1024, "heads": 8, "vocab": 1024},
    "cluster": {"base": "dgx-a100-80gb", "nodes": 1},
    "plan": {"tensor": 8},
    "training": {"global_batch": 1, "sequence": 512},
}

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


@given(st.sampled_from(["weight_product", "*"]), st.floats(0.25, 1.0), st.floats(0.25, 1.0))
def test_no_pass_gets_longer_when_kernels_get_shorter(beside, of_input, of_weight):
    """Where a schedule runs the two passes apart, either may lie on the critical path by itself."""
    machine = machine_of(build(TENSOR, {}))
    exchange = Exchange("all_reduce", "tensor", 2e7, beside=beside)
    mine, other = (
        Kernel(name, "gemm", 1e11, 1e7, (1, 2048, 2048, 2048))
        for name in ("input_product", "weight_product")
    )
    passes = ((mine, exchange), (other,))
    seconds = ({mine: 4e-4, other: 4e-4}, {mine: 4e-4 * of_input, other: 4e-4 * of_weight})
    slow, fast = ([sum(p.values()) for p in _passes(passes, each, machine)] for each in seconds)
    assert all(after <= before * (1 + 1e-12) for before, after in zip(slow, fast, strict=True))
