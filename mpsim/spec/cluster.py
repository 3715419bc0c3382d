"""The cluster: devices, the links inside a node and between nodes, prices."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from mpsim.spec.quantities import (
    Bandwidth,
    Bytes,
    BytesOrZero,
    Count,
    Declaration,
    FlopRate,
    Fraction,
    Power,
    SecondsOrZero,
    UsdRate,
)

Precision = Literal["fp32", "tf32", "fp16", "bf16", "fp8", "mxfp8", "nvfp4"]
"""Number format of the matrix products."""

PRECISION_BYTES: dict[str, float] = {
    "fp32": 4,
    "tf32": 4,
    "fp16": 2,
    "bf16": 2,
    "fp8": 1,
    "mxfp8": 1,
    "nvfp4": 0.5,
}
"""Bytes of one element on the wire or in a matrix product; tf32 is stored as fp32."""

PCIE_LANE_BANDWIDTH = {
    1: 2.5e9 * 8 / 10 / 8,
    2: 5e9 * 8 / 10 / 8,
    3: 8e9 * 128 / 130 / 8,
    4: 16e9 * 128 / 130 / 8,
    5: 32e9 * 128 / 130 / 8,
    6: 64e9 * 242 / 256 / 8,
}
"""B/s of one PCIe lane and direction by generation: transfer rate x line code (PCI-SIG base
specifications: 8b/10b, 128b/130b, 242B/256B flits)."""


class LinkSpec(Declaration):
    """A link as one device sees it: latency plus bytes over bandwidth."""

    name: str = "link"
    """What reports call it."""
    kind: Literal["nvlink", "pcie", "network", "memory", "loopback"] = "network"
    """Technology."""
    bandwidth: Bandwidth
    """Data sheet rate of one device in one direction."""
    latency: SecondsOrZero
    """Time of one hop: of each further step of a collective, whatever its bytes."""
    startup: SecondsOrZero = 0.0
    """Time that a collective or a transfer takes before its first hop, in the library that runs it;
    where collectives were fitted, their factors hold it."""
    efficiency: Fraction = 1.0
    """Share of the bandwidth that large messages reach."""
    generation: int | None = Field(default=None, ge=1, le=6)
    """PCIe generation; with ``width`` it gives the bandwidth."""
    width: int | None = Field(default=None, ge=1, le=32)
    """PCIe lanes."""
    switched: bool = True
    """Whether each pair of devices has the full rate at once (NVSwitch, fat tree); false: direct
    links that the rate is divided over."""
    peers: Count | None = None
    """Devices that the direct links of one lead to, each with an even share of the bandwidth; null:
    any device has the whole."""
    profile: str | None = None
    """Name of the fitted profile that times its collectives; null: none."""
    source: str = "declared in the scenario"
    """Where the figures come from."""

    @model_validator(mode="before")
    @classmethod
    def _lanes(cls, data: Any) -> Any:  # noqa: ANN401
        """PCIe bandwidth from generation and width where it is not given."""
        if (
            isinstance(data, dict)
            and "bandwidth" not in data
            and {"generation", "width"} <= {*data}
        ):
            lane = PCIE_LANE_BANDWIDTH.get(data["generation"])
            if lane is not None and isinstance(data["width"], int):
                return {**data, "bandwidth": f"{lane * data['width']!r} B/s"}
        return data

    @property
    def rate(self) -> float:
        """B/s that large messages reach."""
        return self.bandwidth * self.efficiency

    def among(self, group: int) -> LinkSpec:
        """The link as a group sees it: with direct links, those to its other members alone.

        bandwidth x min(1, (group - 1) / peers)
        """
        if self.peers is None or group > self.peers:
            return self
        bandwidth = self.bandwidth * max(1, group - 1) / self.peers
        return self.model_copy(update={"bandwidth": bandwidth, "peers": None})

    @property
    def delay(self) -> float:
        """Time of a lone transfer of no bytes: ``startup + latency``, seconds."""
        return self.startup + self.latency


class DeviceSpec(Declaration):
    """An accelerator by its data sheet."""

    name: str = "device"
    """What reports call it."""
    memory: Bytes
    """Capacity as the driver shows it."""
    memory_bandwidth: Bandwidth
    """Data sheet rate of the device memory."""
    peak: dict[Precision, FlopRate] = Field(min_length=1)
    """Dense peak rate of matrix products by precision."""
    ceiling: dict[Precision, Fraction] = Field(default_factory=dict)
    """Share of the peak rate that the best matrix product reached, where someone measured it; a
    derived profile scales its products and its attention by it. Empty: as the profile's device."""
    vector_peak: FlopRate | None = None
    """fp32 rate outside the matrix units; null: the fp32 peak."""
    multiprocessors: Count | None = None
    """Streaming multiprocessors (compute units); matrix products quantise to waves of them."""
    power: Power | None = None
    """Board power limit."""
    reserved: BytesOrZero = 0.0
    """Memory that the driver and runtime keep (the context)."""
    profile: str | None = None
    """Name of the fitted profile that times its kernels, applied to this data sheet where it is
    another's; null: that of the nearest fitted device."""
    source: str = "declared in the scenario"
    """Where the figures come from."""


class NodeSpec(Declaration):
    """A node: some devices and the link between them."""

    devices: Count = 8
    """Devices of a node (of the fast domain, where that is larger)."""
    link: LinkSpec
    """Link between devices of the node."""
    shared_uplink: bool = False
    """Whether the devices share one PCIe uplink, so that concurrent transfers divide it."""
    host_link: LinkSpec | None = None
    """Link between device and host memory, for offload and torch's DataParallel."""


class ClusterSpec(Declaration):
    """Nodes of devices and the network between them."""

    name: str = "cluster"
    """What reports call it."""
    device: DeviceSpec
    """The devices, all alike."""
    nodes: Count = 1
    """Number of nodes."""
    node: NodeSpec
    """One node."""
    network: LinkSpec | None = None
    """Link between nodes, as one device's share of its node's network; null: one node only."""
    price: UsdRate | None = None
    """Price of one device per time."""
    price_source: str | None = None
    """Where the price comes from, with its date."""
    source: str = "declared in the scenario"
    """Where the composition comes from."""

    @property
    def devices(self) -> int:
        """Number of devices."""
        return self.nodes * self.node.devices

    @model_validator(mode="after")
    def _connected(self) -> Self:
        if self.nodes > 1 and self.network is None:
            raise ValueError(f"{self.nodes} nodes need a 'network' between them")
        return self
