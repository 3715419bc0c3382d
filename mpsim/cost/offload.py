"""How long what passes between device and host takes, and what of it is not hidden."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mpsim.cost.memory_offload import host_transfers
from mpsim.cost.overlap import overlapped
from mpsim.cost.passes import Machine
from mpsim.errors import ScenarioError
from mpsim.workload.layers import Layer

OFFLOAD = "offload"
"""Part of an op in which its device waits for its host's memory."""

HOST_MEMORY_BANDWIDTH = 2 * 8 * 25.6e9
"""B/s of the host memory of a node, which its devices share, where an offloaded optimizer updates.
Default: two sockets of eight channels of DDR4-3200, as in a DGX A100 (data sheets of NVIDIA DGX
A100, 2020, and AMD EPYC 7742, 2019), used in full."""


@dataclass(frozen=True)
class HostSeconds:
    """Seconds of a stage's transfers over the host link, for a microbatch and for the update."""

    forward: float = 0.0
    backward: float = 0.0
    update: float = 0.0


def host_seconds(layers: Sequence[Layer], machine: Machine) -> HostSeconds:
    """Seconds that the transfers of a stage take by themselves.

        t = n latency + bytes / rate

    with the latency once for each of the n layers. Both directions go one after the other, though
    links are duplex; devices that share one uplink divide it.

    Raises:
        ScenarioError: If something is offloaded and the node has no link to its host.
    """
    if not machine.plan.offload:
        return HostSeconds()
    node = machine.cluster.node
    if node.host_link is None:
        raise ScenarioError(
            "plan.offload",
            f"{', '.join(machine.plan.offload)} in host memory needs the link to it: write "
            "cluster.node.host_link: pcie4 (a name of `mpsim zoo links`, or bandwidth and latency)",
        )
    rate = node.host_link.rate / (node.devices if node.shared_uplink else 1)
    latency = node.host_link.latency * len(layers)
    passed = host_transfers(layers, machine.plan, machine.training)
    return HostSeconds(
        *(
            latency + nbytes / rate if nbytes else 0.0
            for nbytes in (passed.forward, passed.backward, passed.update)
        )
    )


def exposed(transfer: float, compute: float, machine: Machine) -> dict[str, float]:
    """What a transfer adds to a pass of so many seconds, as a part.

    Beside the pass, where the plan lets data run beside compute: layers are fetched and stored one
    ahead (the buffers of two that memory counts). The factors are those of collectives, though a
    copy engine takes no multiprocessors: an upper estimate.
    """
    if not transfer:
        return {}
    if not machine.plan.overlap_data:
        return {OFFLOAD: transfer}
    return {OFFLOAD: overlapped(compute, transfer) - compute}


def host_update(transfer: float, on_device: float, machine: Machine) -> dict[str, float]:
    """The update of an offloaded optimizer: gradients out, the update, weights back.

    The host's update moves the bytes that the device's would, at the device's share of the host's
    memory bandwidth; it is never quicker than the device's. Nothing of it is hidden (ZeRO-Offload,
    arXiv:2101.06840, section 4.1, hides part of the way out behind the backward pass).
    """
    memory = machine.profile.memory
    nbytes = (on_device - memory.floor) * (
        memory.bandwidth_fraction * machine.cluster.device.memory_bandwidth
    )
    host = nbytes * machine.cluster.node.devices / HOST_MEMORY_BANDWIDTH
    return {OFFLOAD: transfer + max(host, on_device)}
