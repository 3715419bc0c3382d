"""Collective times: textbook hand values, invariants, levels of the topology."""

import csv

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpsim.cost.collectives import collective_seconds, fitted_seconds, suits
from mpsim.cost.tables import OPS, link_of
from mpsim.cost.textbook import (
    pairwise_all_to_all,
    ring_all_reduce,
    ring_gather,
    textbook_seconds,
    transfer,
    tree_all_reduce,
    tree_broadcast,
)
from mpsim.errors import ScenarioError
from mpsim.spec.cluster import LinkSpec
from mpsim.spec.profile import load_profile, shipped_profiles
from mpsim.spec.zoo import load_entry

LINK = LinkSpec(bandwidth="100 GB/s", latency="2 us")
NETWORK = LinkSpec(bandwidth="50 GB/s", latency="5 us", efficiency=0.9)
FITTED = [name for name in shipped_profiles() if load_profile(name).link]

sizes = st.floats(1, 1e11)
groups = st.integers(1, 64)
ops = st.sampled_from(OPS)


def test_ring_all_reduce_by_hand():
    # 8 devices, 1 GB: 14 steps of 2 us, and 14/8 of a GB at 100 GB/s
    assert ring_all_reduce(1e9, 8, LINK) == pytest.approx(14 * 2e-6 + 14 / 8 * 1e9 / 100e9)


def test_all_gather_is_half_an_all_reduce():
    assert 2 * ring_gather(1e9, 8, LINK) == pytest.approx(ring_all_reduce(1e9, 8, LINK))


def test_a_tree_has_logarithmic_latency():
    # 64 devices: 12 levels up and down instead of 126 steps
    assert tree_all_reduce(0.0, 64, LINK) == pytest.approx(12 * 2e-6)
    assert ring_all_reduce(0.0, 64, LINK) == pytest.approx(126 * 2e-6)


def test_all_to_all_keeps_its_own_share():
    assert pairwise_all_to_all(8e9, 8, LINK) == pytest.approx(2e-6 + 7e9 / 100e9)


def test_broadcast_and_transfer_by_hand():
    assert tree_broadcast(1e9, 8, LINK) == pytest.approx(3 * 2e-6 + 1e9 / 100e9)
    assert transfer(1e9, LINK) == pytest.approx(2e-6 + 1e9 / 100e9)


def test_small_messages_take_the_tree_and_large_ones_the_ring():
    small, large = 1e3, 1e9
    assert textbook_seconds("all_reduce", small, 64, LINK) == tree_all_reduce(small, 64, LINK)
    assert textbook_seconds("all_reduce", large, 4, LINK) == ring_all_reduce(large, 4, LINK)


def test_the_efficiency_of_a_link_counts():
    half = LINK.model_copy(update={"efficiency": 0.5})
    slow, fast = (textbook_seconds("send", 1e9, 2, link) - 2e-6 for link in (half, LINK))
    assert slow == pytest.approx(2 * fast)


@pytest.mark.parametrize("op", OPS)
def test_a_group_of_one_takes_no_time(op):
    assert collective_seconds(op, [1.0, 1e9], group=1, link=LINK) == pytest.approx([0, 0])
    fit = load_profile("h100_sxm").link
    assert collective_seconds(op, 1e9, group=1, link=LINK, fit=fit) == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            {"op": "all_reduce", "group": 0},
            "a collective needs one device at least, not 0",
        ),
        ({"op": "gossip", "group": 2}, "'gossip' is no collective"),
        (
            {"op": "all_reduce", "group": 8, "nodes": 2},
            "cluster.network: all_reduce over 2 nodes needs a network",
        ),
    ],
)
def test_what_cannot_be_meant_is_said(call, message):
    with pytest.raises(ScenarioError) as caught:
        collective_seconds(nbytes=1.0, link=LINK, **call)
    assert str(caught.value) == message


@given(
    op=ops,
    nbytes=sizes,
    group=groups,
    nodes=st.integers(1, 128),
    better=st.floats(1, 10),
    field=st.sampled_from(["bandwidth", "latency"]),
    which=st.sampled_from(["link", "network"]),
    fitted=st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_a_better_link_never_slows(op, nbytes, group, nodes, better, field, which, fitted):
    links = {"link": LINK, "network": NETWORK}
    fit = load_profile("h100_sxm").link if fitted else None
    call = {"group": group, "nodes": nodes, "fit": fit}
    worse = collective_seconds(op, nbytes, **call, **links)
    value = getattr(links[which], field)
    changed = value * better if field == "bandwidth" else value / better
    links[which] = links[which].model_copy(update={field: changed})
    assert collective_seconds(op, nbytes, **call, **links) <= worse * (1 + 1e-9)


@given(op=ops, nbytes=sizes, group=groups, nodes=st.integers(1, 128), more=st.floats(1, 100))
@settings(max_examples=200, deadline=None)
def test_a_larger_message_never_is_faster_by_the_textbook(op, nbytes, group, nodes, more):
    call = {"group": group, "nodes": nodes, "link": LINK, "network": NETWORK}
    small, large = (collective_seconds(op, size, **call) for size in (nbytes, nbytes * more))
    assert large >= small * (1 - 1e-9)


@pytest.mark.parametrize("name", FITTED)
def test_a_larger_message_never_is_faster_as_fitted(name):
    fit = load_profile(name).link
    nbytes = np.geomspace(512, 2**32, 400)
    for op in OPS:
        for group in (2, 4, 8):
            seconds = fitted_seconds(op, nbytes, group, link_of(fit), fit=fit)
            # factors are kept to a thousandth, and times pooled to be level may so fall by as much
            assert np.all(seconds[1:] >= seconds[:-1] * (1 - 1.5e-3)), (op, group)


def test_beyond_the_fitted_sizes_large_messages_scale_with_the_bandwidth():
    fit = load_profile("h100_sxm").link
    link = link_of(fit)
    one, two = fitted_seconds("all_reduce", np.array([2.0**33, 2.0**34]), 8, link, fit=fit)
    assert two == pytest.approx(2 * one, rel=0.01)


def test_two_levels_are_bound_by_the_network():
    # 4 nodes of 8, 16 GB: a flat ring moves 2 x 31/32 of the buffer over 8 links of 45 GB/s
    [seconds] = collective_seconds(
        "all_reduce", [16e9], group=8, link=LINK, nodes=4, network=NETWORK
    )
    inside = ring_all_reduce(16e9, 8, LINK)
    across = 2 * 31 / 32 * 16e9 / (8 * 45e9)
    assert seconds == pytest.approx(max(inside, across), rel=0.01)


def test_two_nodes_take_the_tree_for_large_messages():
    # every byte crosses once each way, not twice: one pass at 92 % of the rate
    quick = LINK.model_copy(update={"bandwidth": 1e13})
    [seconds] = collective_seconds(
        "all_reduce", [16e9], group=8, link=quick, nodes=2, network=NETWORK
    )
    assert seconds == pytest.approx(16e9 / (0.92 * 8 * 45e9), rel=0.01)


def test_one_device_a_node_sees_the_network_alone():
    spread = collective_seconds("all_gather", 1e9, group=1, link=LINK, nodes=4, network=NETWORK)
    assert spread == pytest.approx(ring_gather(1e9, 4, NETWORK))


def test_the_shape_of_the_sizes_is_kept():
    fit = load_profile("h100_sxm").link
    nbytes = np.geomspace(1e3, 1e9, 6).reshape(2, 3)
    for nodes in (1, 4):
        call = {"group": 4, "nodes": nodes, "link": LINK, "network": NETWORK, "fit": fit}
        assert collective_seconds("all_reduce", nbytes, **call).shape == (2, 3)


def test_sizes_are_evaluated_alike_alone_and_together():
    fit = load_profile("b200_sxm").link
    nbytes = np.geomspace(1e3, 1e10, 7)
    together = fitted_seconds("all_to_all", nbytes, 8, link_of(fit), fit=fit)
    alone = [fitted_seconds("all_to_all", one, 8, link_of(fit), fit=fit) for one in nbytes]
    assert together == pytest.approx(np.array(alone))


def test_a_link_that_nobody_measured_starts_up_once():
    link = LinkSpec(bandwidth="100 GB/s", latency="2 us", startup="7 us")
    plain = link.model_copy(update={"startup": 0.0})
    for op in ("all_reduce", "all_gather", "all_to_all", "broadcast", "send"):
        slower = fitted_seconds(op, np.array([1e3, 1e9]), 4, link)
        assert slower - fitted_seconds(op, np.array([1e3, 1e9]), 4, plain) == pytest.approx(7e-6)
        assert fitted_seconds(op, np.array([1e3]), 1, link) == 0
    assert link.delay == pytest.approx(9e-6)


def test_factors_that_were_fitted_hold_the_startup():
    fit = load_profile("h100_sxm").link
    link = link_of(fit)
    late = link.model_copy(update={"startup": 1.0})
    sizes = np.array([1e4, 1e8])
    assert fitted_seconds("all_reduce", sizes, 8, late, fit=fit) == pytest.approx(
        fitted_seconds("all_reduce", sizes, 8, link, fit=fit)
    )


def zoo_link(name):
    return LinkSpec.model_validate({"name": name, **load_entry("links", name)})


@pytest.mark.parametrize(
    ("where", "devices", "op", "fit", "allowed"),
    [
        # factors measured through NVSwitch: an independent machine, without a switch
        ("nvlink3-mesh4", 4, "all_reduce", "a100_sxm", 0.05),
        ("nvlink3-mesh4", 4, "all_gather", "a100_sxm", 0.06),
        # NCCL's own latencies alone; without its startup the medians are 0.52 and 0.57
        ("nvlink3-mesh4", 4, "all_reduce", None, 0.2),
        ("nvlink3-mesh4", 4, "all_gather", None, 0.2),
    ],
)
def test_an_unswitched_mesh_agrees_with_measurements(shared, where, devices, op, fit, allowed):
    path = shared / "data" / "silicon" / "collectives_other.csv"
    with path.open(encoding="utf-8") as lines:
        rows = [
            row
            for row in csv.DictReader(lines)
            if "NVLink mesh" in row["gpu"] and (row["gpus"], row["op"]) == (str(devices), op)
        ]
    sizes = np.array([float(row["size_bytes"]) for row in rows])
    measured = np.array([float(row["time_us"]) for row in rows]) * 1e-6
    factors = load_profile(fit).link if fit else None
    predicted = fitted_seconds(op, sizes, devices, zoo_link(where), fit=factors)
    small = sizes < 1e6
    assert np.median(np.abs(predicted / measured - 1)[small]) < allowed


@pytest.mark.parametrize(
    ("link", "device", "low", "high"),
    [("infiniband-ndr400", "H100 DGX", 0.85, 1.15), ("nvlink4", "H100 DGX", 0.9, 1.5)],
)
def test_small_transfers_take_as_long_as_measured(shared, link, device, low, high):
    path = shared / "data" / "silicon" / "collectives_other.csv"
    nodes = 1 if link == "nvlink4" else 2
    with path.open(encoding="utf-8") as lines:
        rows = [
            row
            for row in csv.DictReader(lines)
            if row["gpu"].startswith(device)
            and row["op"] == "send_recv"
            and (row["gpus"], row["gpus_per_node"]) == ("2", str(2 // nodes))
            and float(row["size_bytes"]) <= 2**20
        ]
    sizes = np.array([float(row["size_bytes"]) for row in rows])
    measured = np.array([float(row["time_us"]) for row in rows]) * 1e-6
    ratio = fitted_seconds("send", sizes, 2, zoo_link(link)) / measured
    assert low < np.median(ratio) < high


def test_factors_suit_links_of_their_kind_or_that_name_them():
    nvlink3, pcie5 = load_profile("a100_sxm").link, load_profile("rtx_pro_6000_server").link
    assert suits(nvlink3, zoo_link("nvlink4"))
    assert suits(nvlink3, zoo_link("nvlink3-mesh4"))
    assert not suits(nvlink3, zoo_link("nvlink2-mesh"))
    assert not suits(nvlink3, zoo_link("pcie4"))
    assert suits(pcie5, zoo_link("pcie4"))


def test_of_direct_links_a_group_has_those_between_its_members():
    link = LinkSpec(bandwidth="300 GB/s", latency="2 us", switched=False, peers=3)
    assert [link.among(group).bandwidth for group in (2, 3, 4, 8)] == [1e11, 2e11, 3e11, 3e11]
    by_hand = 2 * (2e-6 + 1e9 / (2 * 1e11))
    assert fitted_seconds("all_reduce", np.array(1e9), 2, link) == pytest.approx(by_hand)
    whole = link.model_copy(update={"peers": None})
    assert whole.among(2) is whole


@pytest.mark.parametrize(
    ("where", "gpu", "devices", "fit", "allowed"),
    [
        # with the whole bandwidth for any group the errors are 0.61, 0.81 and 0.29
        ("nvlink3-mesh4", "NVLink mesh", 2, "a100_sxm", 0.2),
        ("nvlink2-mesh", "V100", 2, None, 0.3),  # even shares; the cube's pairs have 1 or 2 links
        ("nvlink2-mesh", "V100", 4, None, 0.1),
    ],
)
def test_few_devices_of_a_mesh_are_as_slow_as_measured(shared, where, gpu, devices, fit, allowed):
    path = shared / "data" / "silicon" / "collectives_other.csv"
    with path.open(encoding="utf-8") as lines:
        rows = [
            (float(row["size_bytes"]), float(row["time_us"]) * 1e-6)
            for row in csv.DictReader(lines)
            if gpu in row["gpu"] and (row["gpus"], row["op"]) == (str(devices), "all_reduce")
        ]
    sizes, measured = np.array(rows).T
    factors = load_profile(fit).link if fit else None
    predicted = fitted_seconds("all_reduce", sizes, devices, zoo_link(where), fit=factors)
    assert np.median(np.abs(predicted / measured - 1)[sizes > 6e7]) < allowed
