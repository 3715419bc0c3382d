"""Every entry of the zoo is well formed, sourced, and agrees with what was published."""

import json
import re
import time
from importlib.resources import files

import pytest

from mpsim.errors import ScenarioError
from mpsim.spec import zoo
from mpsim.spec.cluster import (
    PCIE_LANE_BANDWIDTH,
    PRECISION_BYTES,
    ClusterSpec,
    DeviceSpec,
    LinkSpec,
)
from mpsim.spec.model import Transformer
from mpsim.spec.reader import build
from mpsim.workload.parameters import active_parameters, parameter_count


def device(name):
    return DeviceSpec.model_validate({"name": name} | zoo.load_entry("devices", name))


def link(name):
    return LinkSpec.model_validate({"name": name} | zoo.load_entry("links", name))


def model(name):
    return Transformer.model_validate({"name": name} | zoo.load_entry("models", name))


def cluster(name):
    """A cluster with its names resolved as the reader resolves them in a scenario."""
    devices = zoo.load_entry("clusters", name)["node"]["devices"]
    tree = {
        "model": {"layers": 1, "hidden": 8, "heads": 1, "vocab": 8},
        "cluster": name,
        "plan": {"data": devices},
        "training": {
            "global_batch": devices,
            "microbatch": 1,
            "sequence": 8,
            "precision": "fp32",  # which every device has
        },
    }
    return build(tree).cluster


class TestLoader:
    def test_zoo_holds_its_kinds(self):
        assert {"clusters", "devices", "links", "models"} <= set(zoo.kinds())

    def test_unknown_entry_names_the_nearest(self):
        with pytest.raises(ScenarioError) as caught:
            zoo.load_entry("devices", "a100-sxm-80g")
        assert str(caught.value) == (
            "devices: no device 'a100-sxm-80g' in the zoo; did you mean 'a100-sxm-80gb'?"
        )

    def test_unknown_entry_far_from_all_names_the_command_that_lists_them(self):
        with pytest.raises(ScenarioError) as caught:
            zoo.load_entry("links", "zzzzzz")
        assert (
            str(caught.value) == "links: no link 'zzzzzz' in the zoo; `mpsim zoo links` lists them"
        )

    def test_unknown_kind_names_those_there_are(self):
        with pytest.raises(ScenarioError, match="the zoo holds clusters, devices, links"):
            zoo.names("animals")

    def test_changing_a_loaded_entry_changes_no_other(self):
        first = zoo.load_entry("devices", "a100-sxm-80gb")
        first["peak"]["fp32"] = "1 FLOP/s"
        assert zoo.load_entry("devices", "a100-sxm-80gb")["peak"]["fp32"] == "19.5 TFLOP/s"

    @pytest.mark.parametrize("kind", ["clusters", "devices", "links", "models"])
    def test_no_name_stands_twice(self, kind):
        text = (files("mpsim.zoo") / f"{kind}.yaml").read_text(encoding="utf-8")
        heads = [line for line in text.splitlines() if line[:1].isalnum()]
        assert len(heads) == len({*heads}) == len(zoo.names(kind))

    def test_one_entry_is_read_without_parsing_the_rest(self):
        # about 2 ms cold; the whole file would take ten times as long
        zoo._texts.cache_clear()
        zoo._entry.cache_clear()
        begin = time.perf_counter()
        zoo.load_entry("models", "gpt3-175b")
        assert time.perf_counter() - begin < 0.1  # generous: the machine may be busy


@pytest.mark.parametrize("kind", zoo.kinds())
def test_every_entry_has_a_source(kind):
    for name in zoo.names(kind):
        assert len(zoo.load_entry(kind, name)["source"]) >= 10, name


class TestDevices:
    def test_there_are_at_least_25(self):
        assert len(zoo.names("devices")) >= 25

    @pytest.mark.parametrize("name", zoo.names("devices"))
    def test_is_well_formed_and_plausible(self, name):
        spec = device(name)
        assert spec.reserved < 0.1 * spec.memory
        assert "fp32" in spec.peak
        # narrower types are never slower, nor is a matrix unit slower than plain arithmetic
        rates = sorted((-PRECISION_BYTES[p], rate) for p, rate in spec.peak.items() if p != "tf32")
        assert [rate for _, rate in rates] == sorted(rate for _, rate in rates)
        if "tf32" in spec.peak:
            assert spec.peak["fp32"] <= spec.peak["tf32"] <= max(spec.peak.values())
        assert spec.vector_peak is not None
        assert spec.vector_peak <= spec.peak["fp32"]

    @pytest.mark.parametrize("name", zoo.names("devices"))
    def test_profile_is_in_the_zoo(self, name):
        profile = device(name).profile
        assert profile is None or profile in zoo.names("profiles")

    # What the data sheets print with 2:4 sparsity, which doubles the dense rate (TFLOP/s).
    SPARSE = (
        ("a100-sxm-80gb", "bf16", 624),
        ("a100-sxm-40gb", "tf32", 312),
        ("a6000", "bf16", 309.7),
        ("rtx-a5000", "bf16", 222.2),
        ("rtx-6000-ada", "fp8", 1457),
        ("l4", "fp8", 485),
        ("l40s", "fp8", 1466),
        ("h100-sxm-80gb", "bf16", 1979),
        ("h100-sxm-80gb", "fp8", 3958),
        ("h100-pcie-80gb", "bf16", 1513),
        ("h100-nvl-94gb", "fp8", 3341),
        ("h200-sxm-141gb", "tf32", 989),
        ("h200-nvl-141gb", "bf16", 1671),
        ("h800-pcie-80gb", "fp8", 3026),
        ("gh200-96gb", "fp8", 3958),
        ("b200-sxm-180gb", "bf16", 4500),
        ("b200-sxm-180gb", "nvfp4", 18000),
        ("b300-sxm", "fp8", 9000),
        ("gb200", "fp8", 10000),
        ("gb300", "bf16", 5000),
        ("mi300x", "fp8", 5229.8),
        ("mi355x", "bf16", 5033.2),
    )

    @pytest.mark.parametrize(("name", "precision", "sparse"), SPARSE)
    def test_dense_peak_is_half_of_the_sparse_one(self, name, precision, sparse):
        # data sheets round to whole TFLOP/s: 1 % holds for the smallest of them
        assert 2 * device(name).peak[precision] == pytest.approx(sparse * 1e12, rel=0.01)

    # Multiprocessors x FLOP per clock and multiprocessor x boost clock (white papers), TFLOP/s.
    BY_CLOCK = (
        ("v100-sxm-32gb", "fp16", 80 * 1024 * 1.53e9),
        ("a100-sxm-80gb", "bf16", 108 * 2048 * 1.41e9),
        ("a100-sxm-80gb", "fp32", 108 * 128 * 1.41e9),
        ("a100-sxm-64gb", "bf16", 124 * 2048 * 1.41e9),
        ("h100-sxm-80gb", "bf16", 132 * 4096 * 1.83e9),
        ("rtx-3090", "bf16", 82 * 512 * 1.695e9),
        ("rtx-3080", "bf16", 68 * 512 * 1.71e9),
        ("rtx-4090", "bf16", 128 * 512 * 2.52e9),
        ("rtx-5090", "bf16", 170 * 512 * 2.407e9),
        ("rtx-2080", "fp16", 46 * 512 * 1.71e9),
        ("rtx-2080-ti", "fp16", 68 * 512 * 1.545e9),
        ("titan-rtx", "fp16", 72 * 1024 * 1.77e9),
        ("mi100", "fp16", 120 * 1024 * 1.502e9),
        ("mi210", "bf16", 104 * 1024 * 1.7e9),
        ("mi250", "bf16", 104 * 1024 * 1.7e9),
        ("mi300a", "bf16", 228 * 2048 * 2.1e9),
        ("mi300x", "bf16", 304 * 2048 * 2.1e9),
        ("mi350x", "bf16", 256 * 4096 * 2.2e9),
        ("mi355x", "bf16", 256 * 4096 * 2.4e9),
    )

    @pytest.mark.parametrize(("name", "precision", "rate"), BY_CLOCK)
    def test_peak_is_that_of_units_and_clock(self, name, precision, rate):
        # clocks are printed to three or four digits
        assert device(name).peak[precision] == pytest.approx(rate, rel=0.01)

    def test_every_device_of_the_measured_runs_is_there(self, shared):
        used = set()
        for path in (shared / "data" / "measured").glob("*.jsonl"):
            for line in path.read_text(encoding="utf-8").splitlines():
                used.add(json.loads(line).get("cluster", {}).get("device", "mixed"))
        assert used - {"mixed"} <= set(zoo.names("devices"))


class TestLinks:
    @pytest.mark.parametrize("name", zoo.names("links"))
    def test_is_well_formed_and_plausible(self, name):
        spec = link(name)
        assert 0 < spec.latency < 1e-4
        assert 0.5 <= spec.efficiency <= 1

    # Bandwidth of 16 lanes and one direction as PCI-SIG states it, GB/s to three digits.
    PCIE = (("pcie3", 15.75), ("pcie4", 31.5), ("pcie5", 63.0))

    @pytest.mark.parametrize(("name", "published"), PCIE)
    def test_pcie_bandwidth_follows_from_lanes_and_is_the_published_one(self, name, published):
        spec = link(name)
        assert spec.bandwidth == pytest.approx(PCIE_LANE_BANDWIDTH[spec.generation] * spec.width)
        assert spec.bandwidth == pytest.approx(published * 1e9, rel=2e-3)

    # Both directions together, as data sheets print NVLink, GB/s.
    NVLINK = (("nvlink2", 300), ("nvlink3", 600), ("nvlink4", 900), ("nvlink5", 1800))

    @pytest.mark.parametrize(("name", "both"), NVLINK)
    def test_nvlink_counts_one_direction(self, name, both):
        assert 2 * link(name).bandwidth == both * 1e9

    def test_every_link_of_the_measured_runs_is_there(self, shared):
        used = set()
        for path in (shared / "data" / "measured").glob("*.jsonl"):
            for line in path.read_text(encoding="utf-8").splitlines():
                used.add(json.loads(line).get("cluster", {}).get("intra_node"))
        assert used - {None} <= set(zoo.names("links"))

    @pytest.mark.parametrize("name", zoo.names("links"))
    def test_profile_is_in_the_zoo(self, name):
        assert link(name).profile is None or link(name).profile in zoo.names("profiles")


class TestClusters:
    @pytest.mark.parametrize("name", zoo.names("clusters"))
    def test_its_names_resolve_to_a_whole_cluster(self, name):
        spec = cluster(name)
        assert isinstance(spec, ClusterSpec)
        assert spec.nodes == 1
        assert spec.node.host_link is not None
        assert spec.network is None or spec.network.bandwidth <= spec.node.link.bandwidth

    def test_every_device_has_one(self):
        used = {zoo.load_entry("clusters", name)["device"] for name in zoo.names("clusters")}
        assert set(zoo.names("devices")) <= used

    def test_boards_without_peer_to_peer_copies_share_the_way_through_the_host(self):
        sharing = {name for name in zoo.names("clusters") if cluster(name).node.shared_uplink}
        assert sharing == {name for name in zoo.names("clusters") if name.endswith("-workstation")}

    @pytest.mark.parametrize("name", zoo.names("clusters"))
    def test_a_price_has_a_dated_source(self, name):
        spec = cluster(name)
        assert (spec.price is None) == (spec.price_source is None)
        if spec.price_source:
            assert "20" in spec.price_source
            assert 0.1 < spec.price * 3600 < 20

    @pytest.mark.parametrize("name", zoo.names("clusters"))
    def test_price_is_the_node_s_over_its_devices(self, name):
        spec = cluster(name)
        stated = re.search(r"([\d.]+) USD/h for (\d+) devices", spec.price_source or "")
        if stated:
            # written to four decimals
            assert spec.price * 3600 == pytest.approx(float(stated[1]) / int(stated[2]), abs=1e-4)

    def test_efa_share_is_the_instance_s_rate_over_its_devices(self):
        assert cluster("aws-p4d").network.bandwidth == 400e9 / 8 / 8
        assert cluster("aws-p5").network.bandwidth == 3200e9 / 8 / 8

    def test_a_hundred_gbit_of_an_a2_is_shared_by_eight(self):
        assert cluster("gcp-a2-highgpu").network.bandwidth == 100e9 / 8 / 8


class TestModels:
    def test_there_are_at_least_30_with_exact_counts(self):
        exact = [name for name in zoo.names("models") if model(name).published_parameters]
        assert len(exact) >= 30

    @pytest.mark.parametrize("name", zoo.names("models"))
    def test_parameter_count_is_exactly_the_published_one(self, name):
        spec = model(name)
        if spec.published_parameters is None:
            assert any(word in spec.source for word in ("there", "its page", "padded"))
        else:
            # multi-token prediction is left out of published counts
            assert parameter_count(spec, with_mtp=False) == spec.published_parameters

    # Sizes that publications print rounded, and half a unit of their last digit (parameters).
    ROUNDED = (
        ("gpt3-125m", 125e6, 0.5e6),
        ("gpt3-760m", 760e6, 0.5e6),
        ("gpt3-1.3b", 1.3e9, 0.05e9),
        ("gpt3-2.7b", 2.7e9, 0.05e9),
        ("gpt3-6.7b", 6.7e9, 0.05e9),
        ("gpt3-175b", 174.6e9, 0.05e9),
        ("megatron-1.7b", 1.7e9, 0.05e9),
        ("megatron-3.6b", 3.6e9, 0.05e9),
        ("megatron-7.5b", 7.5e9, 0.05e9),
        ("megatron-18.4b", 18.4e9, 0.05e9),
        ("megatron-39.1b", 39.1e9, 0.05e9),
        ("megatron-76.1b", 76.1e9, 0.051e9),
        ("megatron-145.6b", 145.6e9, 0.05e9),
        ("megatron-310.1b", 310.1e9, 0.05e9),
        ("megatron-529.6b", 529.6e9, 0.05e9),
        ("megatron-1t", 1008.0e9, 0.05e9),
        ("megatron-22b", 22e9, 0.5e9),
        ("opt-66b", 66e9, 0.5e9),
        ("opt-175b", 175e9, 0.5e9),
        ("palm-540b", 540.35e9, 0.01e9),
        ("qwen2-57b-a14b", 57.41e9, 0.005e9),
        ("mpt-30b", 30e9, 0.5e9),
        ("nemotron4-15b", 15.6e9, 0.05e9),
        ("nemotron4-340b", 341e9, 0.5e9),
        ("grok-1", 314e9, 2e9),
    )

    @pytest.mark.parametrize(("name", "printed", "half"), ROUNDED)
    def test_parameter_count_rounds_to_the_printed_one(self, name, printed, half):
        assert parameter_count(model(name)) == pytest.approx(printed, abs=half)

    # Parameters at work on one token, as the models' papers and cards print them.
    ACTIVE = (
        ("mixtral-8x7b", 12.9e9, 0.05e9),
        ("mixtral-8x22b", 39e9, 0.5e9),
        ("deepseek-v2", 21e9, 0.5e9),
        ("qwen3-30b-a3b", 3.3e9, 0.1e9),
        ("qwen3-235b-a22b", 22e9, 0.5e9),
        ("dbrx-132b", 36e9, 0.6e9),
        ("kimi-k2", 32.6e9, 0.5e9),
    )

    @pytest.mark.parametrize(("name", "printed", "within"), ACTIVE)
    def test_active_parameters_are_those_printed(self, name, printed, within):
        assert active_parameters(model(name)) == pytest.approx(printed, abs=within)
