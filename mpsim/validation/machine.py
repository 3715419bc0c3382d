"""The machine of a measured run as a cluster of the zoo."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

from mpsim.spec.zoo import load_entry, names
from mpsim.units import parse
from mpsim.validation.devices import device_of
from mpsim.validation.record_parts import RecordedCluster

Tree = dict[str, Any]

_DEFAULT_LINK = "pcie3"
"""Where neither the record nor a cluster of the zoo says: the slot of every consumer board."""
_DEFAULT_NETWORK = {"infiniband": "200 Gbit/s", "roce": "200 Gbit/s", "ethernet": "10 Gbit/s"}
"""Rate of one device where neither the record nor a cluster of the zoo states one: the port of
the A100 generation; the on-board port of servers."""
_FAMILY = {
    "infiniband": {"infiniband", "roce"},
    "roce": {"roce", "infiniband"},
    "ethernet": {"ethernet", "roce"},
}
"""Networks of one kind of port: that of a usual cluster tells the rate of any of them."""


def cluster_tree(recorded: RecordedCluster, precision: str, notes: list[str]) -> Tree:
    """The cluster of a record as the reader takes it.

    A fast domain that the devices do not fill evenly is taken as the largest even share of it, as
    jobs are placed (256 devices on racks of 72: four of 64).

    Args:
        recorded: The cluster of the record.
        precision: Number format of the matrix products.
        notes: Where assumptions are appended, as ``path = value``.

    Raises:
        ScenarioError: If the zoo does not have the device.
    """
    device, declared = device_of(recorded, precision, notes)
    usual = _usual_cluster(device, recorded.devices_per_node)
    per_node = _even_share(recorded.devices, recorded.devices_per_node)
    if per_node not in (recorded.devices_per_node, recorded.devices):
        notes.append(f"cluster.node.devices = {per_node}")
    tree: Tree = {
        "name": f"{recorded.devices} x {device}",
        "device": declared,
        "nodes": recorded.devices // per_node,
        "node": {"devices": per_node, "link": _link(recorded, usual, notes)},
    }
    sold = usual.get("node", {})
    if _base(tree["node"]["link"]).startswith("pcie") and "shared_uplink" in sold:
        tree["node"]["shared_uplink"] = sold["shared_uplink"]
    if "host_link" in sold:
        tree["node"]["host_link"] = sold["host_link"]
    if tree["nodes"] > 1:
        tree["network"] = _network(recorded, usual, notes)
    return tree


def _even_share(devices: int, per_node: int) -> int:
    """Devices of each node: the largest divisor of the devices that a node holds."""
    return next(n for n in range(min(devices, per_node), 0, -1) if devices % n == 0)


def _link(recorded: RecordedCluster, usual: Tree, notes: list[str]) -> str | Tree:
    """The link inside the node: as recorded, in the variant with which the device is sold.

    Boards with a slot for PCIe have NVLink as a bridge between two of them alone: in larger nodes
    what they share is the slot.
    """
    sold: str | Tree | None = usual.get("node", {}).get("link")
    stated = recorded.intra_node
    if stated is None or sold is None:
        if stated is None:
            notes.append(f"cluster.node.link = {_base(sold or _DEFAULT_LINK)}")
        return stated or sold or _DEFAULT_LINK
    if _base(sold).startswith("pcie") and f"{stated}-bridge" in names("links"):
        if recorded.devices_per_node == 2:
            return f"{stated}-bridge"
        notes.append(f"cluster.node.link = {_base(sold)}")
        return sold
    return sold if _base(sold).startswith(stated) else stated


def _base(link: str | Tree) -> str:
    """The link of the zoo that a link of a cluster is, or is based on."""
    return link if isinstance(link, str) else str(link["base"])


def _network(recorded: RecordedCluster, usual: Tree, notes: list[str]) -> Tree:
    """The network link: kind and rate as recorded, else as the device is usually sold.

    The rate is the record's; latency and efficiency are those of the link of that kind in the zoo
    whose rate is nearest.
    """
    kind = recorded.inter_node
    if kind in (None, "none"):
        kind = "infiniband"
        notes.append(f"cluster.network = {kind}")
    sold = usual.get("network")
    if recorded.inter_node_gbit_s_per_device is not None:
        rate = f"{recorded.inter_node_gbit_s_per_device!r} Gbit/s"
    else:
        like = _FAMILY.get(str(kind), {kind})
        usually = _rate_of(sold) if sold and _base(sold).split("-")[0] in like else None
        rate = usually or _DEFAULT_NETWORK.get(str(kind)) or _largest_rate(str(kind))
        notes.append(f"cluster.network.bandwidth = {rate}")
    family = [name for name in names("links") if name == kind or name.startswith(f"{kind}-")]
    wanted = parse(rate, "B/s")
    near = min(family, key=lambda name: abs(math.log(parse(str(_rate_of(name)), "B/s") / wanted)))
    return {"base": near, "bandwidth": rate}


def _largest_rate(kind: str) -> str:
    """Bandwidth of the fastest link of a kind in the zoo: there is one generation of each."""
    rates = [str(_rate_of(name)) for name in names("links") if name.split("-")[0] == kind]
    return max(rates, key=lambda rate: parse(rate, "B/s"))


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
