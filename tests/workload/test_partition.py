"""Partitions: equal, balanced exactly (against brute force), given, and refused."""

from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpsim.errors import ScenarioError
from mpsim.spec.model import Network, Transformer
from mpsim.spec.plan import PlanSpec, TrainingSpec
from mpsim.workload.build import build_layers
from mpsim.workload.partition import assign, balanced, equal_counts, partition

MODEL = Transformer(layers=10, hidden=64, heads=4, vocab=1000, tied_embeddings=False)
TRAINING = TrainingSpec(global_batch=1, sequence=32)


def layers(**plan):
    return build_layers(MODEL, PlanSpec(**plan), TRAINING)


def sizes(slices):
    return [part.stop - part.start for part in slices]


def test_embedding_and_head_go_to_the_ends():
    assert sizes(partition(layers(), 5)) == [3, 2, 2, 2, 3]


def test_a_remainder_goes_to_the_middle():
    assert sizes(partition(layers(), 4)) == [3, 3, 3, 3]  # 1 + 2, 3, 3, 2 + 1
    assert equal_counts(7, 3) == [2, 3, 2]


def test_counts_are_of_transformer_layers():
    assert sizes(partition(layers(), 3, how=[2, 5, 3])) == [3, 5, 4]


def test_a_stage_may_hold_the_embedding_alone():
    assert sizes(partition(layers(), 3, how=[0, 5, 5])) == [1, 5, 6]


def test_multi_token_prediction_stands_with_the_head():
    model = MODEL.model_copy(update={"mtp_layers": 1})
    found = build_layers(model, PlanSpec(), TRAINING)
    assert sizes(partition(found, 2)) == [6, 7]


def test_all_layers_of_a_network_count():
    network = Network(
        input=[8], network=[{"type": "linear", "inputs": 8, "outputs": 8}, {"type": "relu"}] * 3
    )
    found = build_layers(network, PlanSpec(), TRAINING)
    assert sizes(partition(found, 3)) == [2, 2, 2]


def test_equal_parameters_spare_the_ends_with_large_tables():
    model = MODEL.model_copy(update={"vocab": 4000})
    found = build_layers(model, PlanSpec(), TRAINING)
    slices = partition(found, 4, how="parameters")
    loads = [sum(layer.parameters for layer in found[part]) for part in slices]
    equal = [sum(layer.parameters for layer in found[part]) for part in partition(found, 4)]
    assert max(loads) < max(equal)


def test_time_follows_the_seconds():
    seconds = [0.0] + [1.0] * 5 + [3.0] * 5 + [0.0]
    slices = partition(layers(), 2, how="time", seconds=seconds)
    assert max(sum(seconds[part]) for part in slices) == 11


@given(weights=st.lists(st.integers(0, 20), min_size=1, max_size=9), stages=st.integers(1, 9))
def test_balanced_finds_the_least_possible_maximum(weights, stages):
    if stages > len(weights):
        return
    found = balanced(weights, stages)
    assert len(found) == stages
    assert [i for part in found for i in range(part.start, part.stop)] == list(range(len(weights)))
    assert min(sizes(found)) >= 1

    def worst(cuts):
        edges = [0, *cuts, len(weights)]
        return max(sum(weights[a:b]) for a, b in pairwise(edges))

    best = min(worst(cuts) for cuts in combinations(range(1, len(weights)), stages - 1))
    assert max(sum(weights[part]) for part in found) == best


def test_only_the_first_layers_of_a_stage_are_recomputed():
    found = layers(recompute="full")
    stages = assign(found, partition(found, 2), recompute_layers=2)
    again = [[layer.plain is not None for layer in stage] for stage in stages]
    assert again == [
        [False, True, True, False, False, False],
        [True, True, False, False, False, False],
    ]


REFUSED = [
    (11, "layers", "plan.pipeline: 11 stages, but only 10 layers"),
    (11, "parameters", "plan.pipeline: 11 stages, but only 10 layers"),
    (
        2,
        [5, 6],
        "plan.partition: the counts [5, 6] are 2 stages and 11 layers, but there are 2 stages and "
        "10 layers",
    ),
    (3, [5, 0, 5], "plan.partition: stage 1 has no layer"),
    (2, "time", "plan.partition: 'time' needs the seconds of 12 layers, but none are known"),
    (0, "layers", "plan.pipeline: 0 stages; there must be at least one"),
]


@pytest.mark.parametrize(("stages", "how", "message"), REFUSED)
def test_impossible_partitions_are_refused(stages, how, message):
    with pytest.raises(ScenarioError) as caught:
        partition(layers(), stages, how=how)
    assert str(caught.value) == message
