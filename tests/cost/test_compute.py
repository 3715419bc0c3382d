"""Kernel times: rooflines as lower bounds, hand values, scaling between devices, speed."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpsim.cost.attention import attention_pairs, attention_seconds
from mpsim.cost.compute import (
    SCALAR_SHARE,
    gemm_fit,
    kernel_seconds,
    nearest_precision,
    peak_rate,
    runs_scalar,
)
from mpsim.cost.derived import distance, profile_of
from mpsim.cost.gemm import SPLITS, gemm_seconds
from mpsim.cost.surface import surface_factor
from mpsim.spec.cluster import PRECISION_BYTES, DeviceSpec
from mpsim.spec.profile import AttentionFit, GemmFit, Surface, load_profile, shipped_profiles
from mpsim.spec.zoo import load_entry
from mpsim.workload.layers import Kernel

PROFILES = shipped_profiles()
PLAIN = GemmFit(
    tiles={"128x128": 0.8},
    prologue=0,
    wave=1,
    bandwidth_fraction=1,
    parallel=100,
    overlap=10,
    reduction=5,
    floor="2 us",
)
"""One tile, whole waves: what can be computed by hand."""


def device(name):
    return DeviceSpec.model_validate({"name": name, **load_entry("devices", name)})


def gemm(m, n, k, *, batch=1, precision="bf16"):
    return Kernel("gemm", "gemm", 0.0, 0.0, (batch, m, n, k), precision)


def test_one_full_wave_by_hand():
    # 10 x 10 tiles on 100 multiprocessors: each computes one of 2 x 128 x 128 x k FLOPs
    k = 2**20
    peak, share = 1e15, 0.8
    by_hand = 2 * 128 * 128 * k / (share * peak / 100) + 2e-6
    sides = {"peak": peak, "bandwidth": 1e15, "multiprocessors": 100.0, "element": 2.0}
    seconds = gemm_seconds([[1, 1280, 1280, k]], PLAIN, **sides)
    # bandwidth is all but free; the p-norm of 10 and the splits leave less than 1 %
    assert seconds == pytest.approx([by_hand], rel=0.01)


def test_one_tile_more_than_a_wave_costs_a_whole_wave_more():
    sides = {"peak": 1e15, "bandwidth": 1e15, "multiprocessors": 100.0, "element": 2.0}
    slow_to_start = PLAIN.model_copy(update={"prologue": 1e6})  # so that splits do not pay
    shapes = [[100, 128, 128, 64], [101, 128, 128, 64]]
    full, over = gemm_seconds(shapes, slow_to_start, **sides) - 2e-6
    assert over == pytest.approx(2 * full, rel=0.01)


def test_a_deep_product_with_a_small_result_is_split_over_k():
    sides = {"peak": 1e15, "bandwidth": 1e15, "multiprocessors": 128.0, "element": 2.0}
    alone = 2 * 128 * 128 * 2**20 / (0.8 * 1e15 / 128)
    [seconds] = gemm_seconds([[1, 128, 128, 2**20]], PLAIN, **sides)
    assert seconds < 2 * alone / SPLITS.max()


def test_the_smallest_product_takes_the_floor():
    sides = {"peak": 1e15, "bandwidth": 1e13, "multiprocessors": 100.0, "element": 2.0}
    assert gemm_seconds([[1, 1, 1, 1]], PLAIN, **sides) == pytest.approx([2e-6], rel=0.01)


side = st.integers(1, 40_000)


@pytest.mark.parametrize("name", PROFILES)
@given(m=side, n=side, k=side, batch=st.integers(1, 64), precision=st.sampled_from(["bf16", "fp8"]))
@settings(max_examples=40, deadline=None)
def test_no_product_beats_the_roofline(name, m, n, k, batch, precision):
    profile = load_profile(name)
    where = device(profile.device)
    [seconds] = kernel_seconds([gemm(m, n, k, batch=batch, precision=precision)], profile, where)
    nbytes = batch * (PRECISION_BYTES[precision] * (m * k + n * k) + 2 * m * n)
    assert seconds >= 2 * batch * m * n * k / peak_rate(where, precision) * (1 - 1e-12)
    assert seconds >= nbytes / where.memory_bandwidth * (1 - 1e-12)


@pytest.mark.parametrize("name", PROFILES)
@given(
    seq=st.integers(1, 65_536),
    heads=st.integers(1, 16),
    group=st.sampled_from([1, 4, 8]),
    width=st.sampled_from([64, 80, 128, 256]),
    causal=st.booleans(),
    backward=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_no_attention_beats_the_roofline(name, seq, heads, group, width, causal, backward):
    profile = load_profile(name)
    where = device(profile.device)
    shape = (1, heads * group, heads, seq, seq, width)
    kernel = Kernel("attention", "attention", 0, 0, shape, causal=causal, backward=backward)
    [seconds] = kernel_seconds([kernel], profile, where)
    flops = 4 * heads * group * seq * seq * width / (2 if causal else 1)
    assert seconds >= flops * (2.5 if backward else 1) / peak_rate(where, "bf16") * (1 - 1e-12)
    nbytes = 2 * width * seq * 2 * (heads * group + heads)
    assert seconds >= nbytes / where.memory_bandwidth * (1 - 1e-12)


@pytest.mark.parametrize("name", PROFILES)
@given(
    m=side,
    n=side,
    k=side,
    faster=st.floats(1, 8),
    field=st.sampled_from(["memory_bandwidth", "peak"]),
)
@settings(max_examples=30, deadline=None)
def test_more_bandwidth_or_flops_never_slow_a_product(name, m, n, k, faster, field):
    profile = load_profile(name)
    where = device(profile.device)
    value = getattr(where, field)
    scaled = (
        {key: rate * faster for key, rate in value.items()} if field == "peak" else value * faster
    )
    better = where.model_copy(update={field: scaled})
    kernels = [gemm(m, n, k), Kernel("norm", "memory", 8.0 * m * n, 4.0 * m * n)]
    slow, fast = (kernel_seconds(kernels, profile, one) for one in (where, better))
    assert np.all(fast <= slow * (1 + 1e-9))


def test_causal_pairs_of_whole_sequences_are_half_of_all():
    queries = np.array([1024.0, 1024.0])
    assert attention_pairs(queries, queries, np.array([True, False])) == pytest.approx(
        [1024 * 512, 1024 * 1024]
    )


def test_causal_pairs_of_a_last_part_of_the_queries_see_nearly_all_keys():
    # the last 1024 queries of 8192 see 7168 keys and half of their own
    pairs = attention_pairs(np.array([1024.0]), np.array([8192.0]), np.array([True]))
    assert pairs == pytest.approx([1024 * (8192 - 512)])


def test_the_backward_takes_its_flops_at_its_efficiency():
    fit = AttentionFit(
        head_dim="128",
        peak_fraction="0.5",
        tile=128,
        prologue=0,
        wave=0,
        bandwidth_fraction=1,
        floor="0 s",
        backward_flops=2.5,
        backward_efficiency=0.8,
    )
    shape = [[4, 64, 64, 8192, 8192, 128]] * 2
    forward, backward = attention_seconds(
        shape,
        np.array([True, True]),
        np.array([False, True]),
        fit,
        peak=1e15,
        bandwidth=1e13,
        multiprocessors=128,
    )
    assert forward == pytest.approx(4 * 4 * 64 * 8192 * 8192 * 128 / 2 / (0.5 * 1e15))
    assert backward == pytest.approx(forward * 2.5 / 0.8)


def test_a_kernel_bound_by_memory_takes_its_bytes_and_the_floor():
    profile, where = load_profile("a100_sxm"), device("a100-sxm-80gb")
    [seconds] = kernel_seconds([Kernel("norm", "memory", 0.0, 1e9)], profile, where)
    rate = profile.memory.bandwidth_fraction * 2039e9
    assert seconds == pytest.approx(profile.memory.floor + 1e9 / rate)


def test_count_is_left_to_the_caller():
    profile, where = load_profile("a100_sxm"), device("a100-sxm-80gb")
    once, many = (Kernel("n", "memory", 0.0, 1e6, count=count) for count in (1, 9))
    one, nine = kernel_seconds([once, many], profile, where)
    assert one == nine


@pytest.mark.parametrize(
    ("wanted", "known", "taken"),
    [
        ("bf16", {"bf16", "fp8"}, "bf16"),
        ("fp16", {"bf16", "fp8"}, "bf16"),
        ("nvfp4", {"bf16", "fp8"}, "fp8"),
        ("fp8", {"bf16"}, "bf16"),
        ("tf32", {"fp32"}, "fp32"),
        ("bf16", {"fp32"}, "fp32"),
    ],
)
def test_a_missing_precision_has_a_stand_in(wanted, known, taken):
    assert nearest_precision(wanted, known) == taken


def test_a_sustained_clock_slows_products_and_not_memory():
    profile, where = load_profile("h100_sxm"), device("h100-sxm-80gb")
    slowed = profile.model_copy(update={"sustained": {"bf16": 0.5}})
    kernels = [gemm(8192, 8192, 8192), Kernel("norm", "memory", 0.0, 1e9)]
    full, half = (kernel_seconds(kernels, one, where) for one in (profile, slowed))
    # the product is bound by compute, so nearly twice as long; the floor and memory stay
    assert half[0] == pytest.approx(2 * full[0], rel=0.05)
    assert half[1] == full[1]
    assert kernel_seconds(kernels, slowed, where, benchmark=True) == pytest.approx(
        kernel_seconds(kernels, profile, where, benchmark=True)
    )


def test_fp32_without_matrix_units_comes_near_its_peak_where_16_bits_do_not():
    where = device("v100-sxm-32gb")
    seconds = kernel_seconds([gemm(8192, 8192, 8192, precision="fp32")], profile_of(where), where)
    share = 2 * 8192**3 / seconds[0] / where.peak["fp32"]
    assert share == pytest.approx(SCALAR_SHARE[64], abs=0.03)  # waves and floor take the rest


def test_doubled_fp32_lanes_reach_a_smaller_share():
    shares = []
    for name in ("a100-sxm-80gb", "h100-sxm-80gb"):
        where = device(name)
        one = gemm(8192, 8192, 8192, precision="fp32")
        seconds = kernel_seconds([one], profile_of(where), where)
        shares.append(2 * 8192**3 / seconds[0] / where.peak["fp32"])
    assert shares[1] < 0.85 * shares[0]


def test_which_products_run_outside_the_matrix_units():
    assert runs_scalar("fp32", device("a100-sxm-80gb"))
    assert not runs_scalar("tf32", device("a100-sxm-80gb"))
    assert runs_scalar("tf32", device("v100-sxm-32gb"))  # it has no tf32
    assert not runs_scalar("fp32", device("mi250x"))  # matrix units take fp32
    assert not runs_scalar("fp16", device("v100-sxm-32gb"))


def test_a_benchmark_in_8_bits_includes_its_casts():
    profile, where = load_profile("h100_sxm"), device("h100-sxm-80gb")
    kernels = [gemm(4096, 4096, 4096, precision="fp8")]
    alone, called = (kernel_seconds(kernels, profile, where, benchmark=b) for b in (False, True))
    assert called > alone + gemm_fit(profile, "fp8").cast_floor / 2


def test_no_kernels_take_no_time():
    assert kernel_seconds([], load_profile("a100_sxm"), device("a100-sxm-80gb")).shape == (0,)


@pytest.mark.parametrize("name", PROFILES)
def test_a_shipped_profile_speaks_of_the_device_that_names_it(name):
    profile = load_profile(name)
    where = device(profile.device)
    assert where.profile == name
    assert distance(where, profile.sheet) == pytest.approx(0, abs=1e-6)
    assert profile_of(where) is profile
    for precision, rate in profile.sheet.peak.items():
        assert where.peak[precision] == pytest.approx(rate)


def test_a_device_without_a_profile_gets_one_derived_from_its_nearest():
    derived = profile_of(device("l40s"))
    assert derived.kind == "derived"
    assert "l40s" in derived.device
    assert "data sheet of l40s" in derived.source
    assert derived.residuals == []


def test_h200_takes_the_kernels_of_h100_and_its_own_bandwidth():
    h100, h200 = device("h100-sxm-80gb"), device("h200-sxm-141gb")
    skinny, square = gemm(32, 16384, 16384), gemm(8192, 8192, 8192)
    old = kernel_seconds([skinny, square], profile_of(h100), h100)
    new = kernel_seconds([skinny, square], profile_of(h200), h200)
    assert profile_of(h200).kind == "derived"
    # 4.8 over 3.35 TB/s where memory binds, nothing where compute does
    assert new[0] < 0.85 * old[0]
    assert new[1] == pytest.approx(old[1], rel=0.03)


@pytest.mark.parametrize("name", ["v100-sxm-32gb", "mi300x", "tpu-v5p", "cpu-core", "rtx-4090"])
def test_every_kind_of_device_can_be_timed(name):
    where = device(name)
    kernels = [
        *(gemm(4096, 4096, 4096, precision=p) for p in PRECISION_BYTES),
        Kernel("a", "attention", 0, 0, (1, 16, 16, 2048, 2048, 128), causal=True),
        Kernel("m", "memory", 0.0, 1e8),
    ]
    seconds = kernel_seconds(kernels, profile_of(where), where)
    assert np.all(np.isfinite(seconds))
    assert np.all(seconds > 0)


def test_a_surface_holds_its_knots_and_its_edges():
    surface = Surface(axes={"x": "1 4", "y": "1 10 100"}, rows=["0 0.1 0.2", "1 1.1 1.2"])
    x, y = np.array([1.0, 4.0, 2.0, 0.1, 99.0]), np.array([10.0, 100.0, 10.0, 1.0, 1e6])
    # (2, 10) lies midway in log x; the last two lie beyond the grid
    expected = np.exp([0.1, 1.2, 0.6, 0.0, 1.2])
    assert surface_factor(surface, x, y) == pytest.approx(expected)


def test_no_surface_changes_nothing():
    assert surface_factor(None, np.array([3.0, 4.0])) == pytest.approx([1, 1])


def test_fifty_kernels_are_timed_in_well_under_a_few_milliseconds():
    profile, where = load_profile("h100_sxm"), device("h100-sxm-80gb")
    kernels = [gemm(1024 * (i + 1), 4096, 4096) for i in range(40)]
    kernels += [Kernel("m", "memory", 0.0, 1e8)] * 10
    kernel_seconds(kernels, profile, where)
    best = min(_elapsed(kernels, profile, where) for _ in range(20))
    # measured at 0.4 ms on one core; five times that leaves room for a busy machine
    assert best < 2e-3


def _elapsed(kernels, profile, where):
    begin = time.perf_counter()
    kernel_seconds(kernels, profile, where)
    return time.perf_counter() - begin
