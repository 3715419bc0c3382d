"""Which devices of the cluster form a group, and which links they meet over.

Ranks are laid out as Megatron does (arXiv:2104.04473, section 3): tensor innermost, then context,
then data, pipeline outermost; expert groups lie inside context x data. Nodes hold ranks in a row.
"""

from __future__ import annotations

from dataclasses import dataclass

from mpsim.spec.cluster import ClusterSpec, LinkSpec
from mpsim.spec.plan import PlanSpec


@dataclass(frozen=True)
class Group:
    """Devices that run a collective together.

    A group on one node has ``nodes`` of 1; one with a single member on each node has ``inside``
    of 1.
    """

    size: int  # members
    inside: int  # members on one node
    nodes: int  # nodes that it spans

    @property
    def spans_nodes(self) -> bool:
        """Whether it uses the network."""
        return self.nodes > 1


def _group(size: int, stride: int, per_node: int) -> Group:
    """The group of ``size`` ranks that lie ``stride`` apart, ``per_node`` ranks to a node."""
    if size == 1:
        return Group(1, 1, 1)
    inside = min(size, max(1, per_node // stride))
    while size % inside:  # a group that does not fill its last node: count its even part
        inside -= 1
    return Group(size, inside, size // inside)


def group_of(axis: str, plan: PlanSpec, per_node: int) -> Group:
    """The group of a device along an axis.

    Args:
        axis: ``tensor``, ``context``, ``data`` (replicas of the dense weights: data x context),
            ``shard`` (the part of those over which state is sharded), ``expert``,
            ``expert_tensor``, ``expert_data`` (replicas of the expert weights) or ``pipeline``.
        plan: The degrees.
        per_node: Devices of a node.
    """
    tensor, context, data = plan.tensor, plan.context, plan.data
    expert_tensor = plan.expert_tensor or tensor
    replicas = max(1, tensor * context * data // (expert_tensor * plan.expert))
    size, stride = {
        "tensor": (tensor, 1),
        "context": (context, tensor),
        "data": (data * context, tensor),
        "shard": (plan.zero_group or data * context, tensor),
        "shard_replicas": (
            max(1, data * context // (plan.zero_group or data * context)),
            tensor * (plan.zero_group or data * context),
        ),
        "expert_tensor": (expert_tensor, 1),
        "expert": (plan.expert, expert_tensor),
        "expert_data": (replicas, expert_tensor * plan.expert),
        "pipeline": (plan.pipeline, tensor * context * data),
    }[axis]
    return _group(size, stride, per_node)


def node_of(pipeline_device: int, plan: PlanSpec, per_node: int) -> int:
    """Node of the first device of a pipeline position."""
    return pipeline_device * plan.tensor * plan.context * plan.data // per_node


def link_between(a: int, b: int, plan: PlanSpec, cluster: ClusterSpec) -> LinkSpec:
    """The link between two pipeline positions: inside their node, or the network.

    Of direct links, the one between the two.
    """
    per_node = cluster.node.devices
    if cluster.network is None or node_of(a, plan, per_node) == node_of(b, plan, per_node):
        return cluster.node.link.among(2)
    return cluster.network
