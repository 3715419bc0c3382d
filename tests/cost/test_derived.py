"""Profiles of devices that were not fitted: what they borrow, and from whom."""

import pytest

from mpsim.cost.compute import kernel_seconds, peak_rate
from mpsim.cost.derived import ceiling_ratio, derived_profile, profile_of
from mpsim.cost.silicon import silicon
from mpsim.spec.cluster import DeviceSpec
from mpsim.spec.profile import load_profile, shipped_profiles
from mpsim.spec.zoo import load_entry, names
from mpsim.workload.layers import Kernel

SQUARE = Kernel("gemm", "gemm", 0.0, 0.0, (1, 8192, 8192, 8192), "bf16")
ATTENTION = Kernel("a", "attention", 0, 0, (4, 32, 32, 4096, 4096, 128), causal=True)


def device(name, **over):
    return DeviceSpec.model_validate({"name": name, **load_entry("devices", name), **over})


@pytest.mark.parametrize("name", names("devices"))
def test_every_device_of_the_zoo_names_the_profile_it_borrows(name):
    assert device(name).profile in shipped_profiles()


@pytest.mark.parametrize("name", ["rtx-4090", "l4", "h20-sxm-96gb", "v100-sxm-32gb", "mi300x"])
@pytest.mark.parametrize("factor", [0.25, 0.5, 2, 4])
def test_another_figure_never_changes_the_profile(name, factor):
    before, rate = device(name), device(name).memory_bandwidth * factor
    after = device(name, memory_bandwidth=f"{rate!r} B/s")
    base = profile_of(before).name.partition("@")[0]
    assert profile_of(after).name.partition("@")[0] == base
    kernels = [SQUARE, ATTENTION, Kernel("m", "memory", 0.0, 1e8)]
    old = kernel_seconds(kernels, profile_of(before), before)
    new = kernel_seconds(kernels, profile_of(after), after)
    assert all(new <= old) if factor > 1 else all(new >= old)


def test_a_device_of_the_users_own_takes_the_nearest():
    mine = device("rtx-4090", profile=None)
    assert profile_of(mine).name == derived_profile(mine).name
    assert profile_of(mine).kind == "derived"


def test_a_measured_ceiling_scales_products_and_attention_by_its_ratio():
    mi300x = device("mi300x")
    plain = device("mi300x", ceiling={})
    # 668.4 of 1307.4 over 794.5 of 989.4 TFLOP/s
    ratio = ceiling_ratio(mi300x, load_profile("h100_sxm"), "bf16")
    assert ratio == pytest.approx((668.4 / 1307.4) / (794.5 / 989.4), rel=0.01)
    kernels = [SQUARE, ATTENTION]
    scaled = kernel_seconds(kernels, profile_of(mi300x), mi300x, benchmark=True)
    alike = kernel_seconds(kernels, profile_of(plain), plain, benchmark=True)
    # the floors of a few us do not scale
    assert scaled / alike == pytest.approx([1 / ratio] * 2, rel=0.03)
    assert "measured ceilings" in profile_of(mi300x).source


@pytest.mark.parametrize("name", ["mi300x", "mi325x", "mi355x", "gaudi2", "gaudi3"])
def test_no_product_beats_the_measured_ceiling(name):
    where = device(name)
    load_profile("h100_sxm").gemm["bf16"].candidates.sum()  # what it keeps is not passed on
    sides = [Kernel("g", "gemm", 0, 0, (1, n, n, n), "bf16") for n in (4096, 8192, 12288, 16384)]
    seconds = kernel_seconds(sides, profile_of(where), where, benchmark=True)
    rates = [2 * kernel.shape[1] ** 3 / t for kernel, t in zip(sides, seconds, strict=True)]
    share = max(rates) / peak_rate(where, "bf16")
    # the H100 and A100 profiles reach their own ceilings within 8 %
    assert 0.85 * where.ceiling["bf16"] < share < 1.08 * where.ceiling["bf16"]


def test_a_ceiling_found_under_the_power_limit_is_not_throttled_again():
    assert set(profile_of(device("mi300x")).sustained.values()) == {1.0}
    assert profile_of(device("h200-sxm-141gb")).sustained == {}
    assert profile_of(device("h100-sxm-80gb")) is load_profile("h100_sxm")


def test_a_ceiling_stands_against_the_best_tile_where_the_other_has_none():
    profile = load_profile("rtx_pro_6000_server")
    where = device("mi300x", profile=profile.name)
    best = max(profile.gemm["bf16"].tiles.values())
    assert ceiling_ratio(where, profile, "bf16") == pytest.approx(0.511 / best)


@pytest.mark.parametrize(
    ("name", "link", "fit"),
    [
        ("h200-sxm-141gb", "nvlink4", "nvlink4"),
        ("l40s", "pcie4", "pcie5"),
        ("a30", "pcie4", "pcie5"),
        ("h20-sxm-96gb", "nvlink4", "nvlink4"),
        ("gh200-96gb", "nvlink4-gh200", "nvlink4"),
        ("gb300", "nvl72", "nvl72"),
        ("mi300x", "infinity_fabric", None),
    ],
)
def test_a_device_brings_the_link_of_its_node(name, link, fit):
    subject = silicon(name)
    assert subject.link.name == link
    assert (subject.profile.link and subject.profile.link.link) == fit
