"""Groups of ranks on nodes, against a layout written out rank by rank."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpsim.cost.topology import group_of, node_of
from mpsim.spec.plan import PlanSpec


def members(plan, axis):
    """Ranks of the group of rank 0, from the layout tensor < context < data < pipeline."""
    axes = ("tensor", "context", "data", "pipeline")
    sizes = [getattr(plan, name) for name in axes]
    moving = ("data", "context") if axis == "data" else (axis,)
    found = []
    for place in itertools.product(*(range(size) for size in sizes)):
        if all(place[i] == 0 for i, name in enumerate(axes) if name not in moving):
            rank = 0
            for index, size in zip(reversed(place), reversed(sizes), strict=True):
                rank = rank * size + index
            found.append(rank)
    return found


powers = st.sampled_from([1, 2, 4, 8])


@given(powers, powers, powers, powers, st.sampled_from([1, 2, 4, 8, 16]))
def test_a_group_spans_the_nodes_that_its_ranks_lie_on(tensor, context, data, pipeline, per_node):
    plan = PlanSpec(tensor=tensor, context=context, data=data, pipeline=pipeline)
    for axis in ("tensor", "context", "data", "pipeline"):
        ranks = members(plan, axis)
        nodes = {rank // per_node for rank in ranks}
        group = group_of(axis, plan, per_node)
        assert group.size == len(ranks)
        assert group.nodes == len(nodes)
        assert group.inside * group.nodes == group.size


def test_pipeline_positions_lie_apart_by_their_replicas():
    plan = PlanSpec(tensor=8, pipeline=4, data=2)
    assert [node_of(position, plan, 8) for position in range(4)] == [0, 2, 4, 6]
    assert [node_of(position, PlanSpec(pipeline=4), 8) for position in range(4)] == [0] * 4


@pytest.mark.parametrize(
    ("fields", "axis", "size"),
    [
        ({"data": 8, "tensor": 2, "expert": 4, "expert_tensor": 1}, "expert_data", 4),
        ({"data": 8, "tensor": 2, "expert": 4}, "expert_data", 2),
        ({"data": 16, "zero_group": 4}, "shard", 4),
        ({"data": 16, "zero_group": 4}, "shard_replicas", 4),
        ({"data": 4, "context": 2}, "data", 8),
    ],
)
def test_groups_of_shards_and_experts(fields, axis, size):
    assert group_of(axis, PlanSpec(**fields), 8).size == size
