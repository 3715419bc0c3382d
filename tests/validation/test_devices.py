"""Machines that records name, as entries of the zoo: names, links and networks as they are sold."""

import pytest

from mpsim.errors import ScenarioError
from mpsim.spec.zoo import load_entry
from mpsim.validation.devices import device_of
from mpsim.validation.machine import cluster_tree
from mpsim.validation.record_parts import RecordedCluster


def cluster(device, **fields):
    return RecordedCluster.model_validate(
        {"device": device, "devices": 16, "devices_per_node": 8, **fields}
    )


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("a100-sxm-80gb", "a100-sxm-80gb"),
        ("A100-SXM4-80GB", "a100-sxm-80gb"),
        ("NVIDIA H100 SXM5 80 GB", "h100-sxm-80gb"),
        ("b200-sxm-192gb", "b200-sxm-180gb"),  # the memory of the part before its ECC is taken off
        ("RTX4090", "rtx-4090"),
        ("rtx-a6000", "a6000"),
        ("mi300x-192gb", "mi300x"),
        ("l40s-48gb", "l40s"),
        ("AMD Instinct MI300X", "mi300x"),
        ("a100-sxm-80gb-hbm2e", "a100-sxm-80gb"),
    ],
)
def test_one_part_has_many_names(text, name):
    notes: list[str] = []
    found, declared = device_of(cluster(text), "bf16", notes)
    assert (found, declared) == (name, name)
    assert notes == ([] if text == name else [f"cluster.device = {name}"])


@pytest.mark.parametrize("text", ["a10g", "a100x", "foo", "8", "gb", "100"])
def test_another_part_is_not_taken_for_one_of_the_zoo(text):
    with pytest.raises(ScenarioError, match="in the zoo"):
        device_of(cluster(text), "bf16", [])


def test_a_part_with_another_power_limit_keeps_its_limit():
    name, declared = device_of(cluster("h100-sxm-80gb-hbm3-650w"), "bf16", [])
    assert (name, declared) == ("h100-sxm-80gb", {"base": "h100-sxm-80gb", "power": "650 W"})


def test_a_part_with_other_memory_keeps_its_memory():
    name, declared = device_of(cluster("mi300x-128gb"), "bf16", [])
    assert name == "mi300x"
    assert declared == {"base": "mi300x", "memory": "128 GiB"}


@pytest.mark.parametrize(
    ("note", "precision", "slowest"),
    [
        # bf16: 312 of the A100, 165 TFLOP/s of the RTX 4090, whose fp8 rate is above both
        ("RTX 4090 + A100 80GB", "bf16", "rtx-4090"),
        ("A100 80GB, V100", "fp16", "v100-sxm-16gb"),
        ("8x A100-SXM-80GB + 8x H100-SXM-80GB, as told", "bf16", "a100-sxm-80gb"),
        ("RTX 2080 + RTX 3090, see notes", "fp16", "rtx-2080"),
    ],
)
def test_mixed_devices_wait_for_the_slowest_in_their_precision(note, precision, slowest):
    mix = cluster("mixed", device_note=note)
    assert device_of(mix, precision, [])[0] == slowest


def test_mixed_devices_hold_what_the_smallest_holds():
    mix = cluster("mixed", device_note="RTX 4090 + A100 80GB")
    assert device_of(mix, "bf16", [])[1]["memory"] == load_entry("devices", "rtx-4090")["memory"]


def test_mixed_devices_keep_the_memory_that_is_stated():
    mix = cluster("mixed", device_note="A100 24GB + V100 12GB")
    assert device_of(mix, "fp16", [])[1]["memory"] == "12 GiB"


def test_no_memory_is_none_that_is_stated():
    assert device_of(cluster("A100 0GB"), "bf16", [])[0] == "a100-sxm-40gb"


def test_a_node_whose_link_is_not_stated_is_that_of_the_zoo():
    for device, link in (("b300-sxm", "nvlink5"), ("a40", "pcie4"), ("l4", "pcie4")):
        tree = cluster_tree(cluster(device), "bf16", [])
        found = tree["node"]["link"]
        assert (found if isinstance(found, str) else found["base"]) == link


def test_a_stated_link_is_the_same_as_the_one_it_is_sold_with():
    stated = cluster_tree(cluster("l40s", intra_node="pcie4"), "bf16", [])
    assert stated == cluster_tree(cluster("l40s"), "bf16", [])
    boards = cluster_tree(cluster("b300-sxm", intra_node="nvlink5"), "bf16", [])
    assert boards == cluster_tree(cluster("b300-sxm"), "bf16", [])


def test_nvlink_between_boards_is_a_bridge_of_two():
    pair = cluster("a100-pcie-80gb", intra_node="nvlink3", devices_per_node=2)
    assert cluster_tree(pair, "bf16", [])["node"]["link"] == "nvlink3-bridge"
    eight = cluster("a100-pcie-80gb", intra_node="nvlink3")
    assert cluster_tree(eight, "bf16", [])["node"]["link"] == "pcie4"


@pytest.mark.parametrize(
    ("device", "kind", "rate"),
    [
        ("h100-sxm-80gb", "infiniband", "400 Gbit/s"),
        ("h100-sxm-80gb", "roce", "400 Gbit/s"),
        ("h100-sxm-80gb", "omnipath", "100 Gbit/s"),
        ("h100-sxm-80gb", "slingshot", "200 Gbit/s"),
        ("h100-sxm-80gb", "ethernet", "10 Gbit/s"),
        ("v100-sxm-16gb", "infiniband", "200 Gbit/s"),  # its cluster in the zoo has Ethernet
        ("gaudi2", "ethernet", "300 Gbit/s"),  # its ports are RoCE, which is Ethernet
    ],
)
def test_a_rate_is_taken_from_a_network_of_the_kind(device, kind, rate):
    tree = cluster_tree(cluster(device, inter_node=kind), "bf16", [])
    assert tree["network"]["bandwidth"] == rate
