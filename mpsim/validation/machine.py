"""The machine of a measured run as a cluster of the zoo."""

from __future__ import annotations

import math
import re
from functools import cache
from typing import Any

from mpsim.errors import ScenarioError
from mpsim.spec.zoo import load_entry, names
from mpsim.units import parse
from mpsim.validation.record_parts import RecordedCluster

Tree = dict[str, Any]

_DEFAULT_LINK = "pcie3"
"""Where neither the record nor a cluster of the zoo says: the slot of every consumer board."""
_DEFAULT_NETWORK = {"infiniband": "200 Gbit/s", "ethernet": "10 Gbit/s"}
"""Rate of one device where neither the record nor a cluster of the zoo states one: the port of
the A100 generation; the on-board port of servers."""


def cluster_tree(recorded: RecordedCluster, notes: list[str]) -> Tree:
    """The cluster of a record as the reader takes it.

    A run on several kinds of devices is timed on the slowest of them, which the others wait for.
    A fast domain that the devices do not fill evenly is taken as the largest even share of it, as
    jobs are placed (256 devices on racks of 72: four of 64).

    Args:
        recorded: The cluster of the record.
        notes: Where assumptions are appended, as ``path = value``.

    Raises:
        ScenarioError: If the zoo does not have the device.
    """
    device = recorded.device if recorded.device != "mixed" else _slowest(recorded, notes)
    load_entry("devices", device)  # raises, with a near miss, where the zoo lacks it
    usual = _usual_cluster(device, recorded.devices_per_node)
    per_node = _even_share(recorded.devices, recorded.devices_per_node)
    if per_node not in (recorded.devices_per_node, recorded.devices):
        notes.append(f"cluster.node.devices = {per_node}")
    tree: Tree = {
        "name": f"{recorded.devices} x {device}",
        "device": device,
        "nodes": recorded.devices // per_node,
        "node": {"devices": per_node, "link": _link(recorded, usual, notes)},
    }
    if recorded.intra_node is None and str(tree["node"]["link"]).startswith("pcie"):
        tree["node"]["shared_uplink"] = True  # boards without a link of their own meet at the host
    if "host_link" in usual.get("node", {}):
        tree["node"]["host_link"] = usual["node"]["host_link"]
    if tree["nodes"] > 1:
        tree["network"] = _network(recorded, usual, notes)
    return tree


def _even_share(devices: int, per_node: int) -> int:
    """Devices of each node: the largest divisor of the devices that a node holds."""
    return next(n for n in range(min(devices, per_node), 0, -1) if devices % n == 0)


def _link(recorded: RecordedCluster, usual: Tree, notes: list[str]) -> str:
    """The link inside the node: as recorded, in the variant with which the device is sold."""
    sold = str(usual.get("node", {}).get("link", _DEFAULT_LINK))
    if recorded.intra_node is None:
        notes.append(f"cluster.node.link = {sold}")
        return sold
    return sold if sold.startswith(recorded.intra_node) else recorded.intra_node


def _network(recorded: RecordedCluster, usual: Tree, notes: list[str]) -> Tree:
    """The network link: kind and rate as recorded, else as the device is usually sold.

    The rate is the record's; latency and efficiency are those of the link of that kind in the zoo
    whose rate is nearest.
    """
    kind = recorded.inter_node
    if kind in (None, "none"):
        kind = "infiniband"
        notes.append(f"cluster.network = {kind}")
    if recorded.inter_node_gbit_s_per_device is not None:
        rate = f"{recorded.inter_node_gbit_s_per_device!r} Gbit/s"
    else:
        default = _DEFAULT_NETWORK.get(str(kind), _DEFAULT_NETWORK["infiniband"])
        rate = default if kind == "ethernet" else _rate_of(usual.get("network")) or default
        notes.append(f"cluster.network.bandwidth = {rate}")
    family = [name for name in names("links") if name == kind or name.startswith(f"{kind}-")]
    wanted = parse(rate, "B/s")
    near = min(family, key=lambda name: abs(math.log(parse(str(_rate_of(name)), "B/s") / wanted)))
    return {"base": near, "bandwidth": rate}


def _rate_of(network: Any) -> str | None:  # noqa: ANN401  (a name or an entry of the zoo)
    """Bandwidth of a link of the zoo or of a cluster's network, where its entry states one."""
    if isinstance(network, str):
        network = load_entry("links", network)
    if not isinstance(network, dict):
        return None
    if "bandwidth" in network:
        return str(network["bandwidth"])
    return _rate_of(network.get("base"))


@cache
def _usual_cluster(device: str, per_node: int) -> Tree:
    """A cluster of the zoo with that device, of nodes of that size if there is one; else empty."""
    found: Tree = {}
    for name in names("clusters"):
        entry = load_entry("clusters", name)
        base = entry.get("device")
        if base == device or (isinstance(base, dict) and base.get("base") == device):
            if entry.get("node", {}).get("devices") == per_node:
                return entry
            found = found or entry
    return found


def _slowest(recorded: RecordedCluster, notes: list[str]) -> str:
    """The slowest of the devices that the note of a mixed cluster names."""
    kinds = re.split(r"\s*\+\s*", (recorded.device_note or "").partition(",")[0])
    known = {re.sub(r"[^a-z0-9]", "", name): name for name in names("devices")}
    found = []
    for kind in kinds:
        key = re.sub(r"[^a-z0-9]", "", kind.lower())
        match = next((name for slug, name in known.items() if slug.startswith(key)), None)
        if match is None or not key:
            raise ScenarioError("cluster.device", f"no device of the zoo for '{kind}' of the mix")
        found.append(match)
    slowest = min(found, key=_fastest_rate)
    notes.append(f"cluster.device = {slowest}")
    return slowest


def _fastest_rate(device: str) -> float:
    """Highest peak rate of a device, FLOP/s."""
    return max(parse(rate, "FLOP/s") for rate in load_entry("devices", device)["peak"].values())
