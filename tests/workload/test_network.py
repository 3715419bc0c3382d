"""Explicit layers: shapes as torch has them, cuts with the exchanges that theory asks for."""

import pytest

from mpsim.errors import ScenarioError
from mpsim.spec.model import Network
from mpsim.spec.plan import PlanSpec, TrainingSpec
from mpsim.workload.build import build_layers
from mpsim.workload.layers import Exchange, Kernel
from mpsim.workload.network import kept_whole

CNN = [
    {"type": "conv2d", "inputs": 1, "outputs": 10, "kernel": 5},
    {"type": "max_pool", "kernel": 2},
    {"type": "relu"},
    {"type": "conv2d", "inputs": 10, "outputs": 20, "kernel": 5},
    {"type": "max_pool", "kernel": 2},
    {"type": "relu"},
    {"type": "flatten"},
    {"type": "linear", "inputs": 320, "outputs": 50},
    {"type": "relu"},
    {"type": "linear", "inputs": 50, "outputs": 10},
    {"type": "cross_entropy"},
]

TWO_LAYERS = [
    {"type": "linear", "inputs": 64, "outputs": 32},
    {"type": "relu"},
    {"type": "linear", "inputs": 32, "outputs": 16},
]


def build(layers, shape, *, batch=4, **plan):
    model = Network(input=list(shape), network=layers)
    train = TrainingSpec(global_batch=batch, microbatch=batch, precision="fp32", optimizer="sgd")
    return build_layers(model, PlanSpec(**plan), train)


def exchanges(steps):
    return [(step.op, step.nbytes) for step in steps if isinstance(step, Exchange)]


def test_small_cnn_has_the_shapes_of_torch():
    layers = build(CNN, (1, 28, 28), batch=100)
    outputs = [layer.output_nbytes / 400 for layer in layers]
    assert outputs == [5760, 1440, 1440, 1280, 320, 320, 320, 50, 50, 10, 1]
    assert sum(layer.parameters for layer in layers) == 21_840


def test_convolution_takes_two_flop_a_weight_and_output_position():
    first = build(CNN, (1, 28, 28), batch=1)[0].forward[0]
    assert first.flops == 2 * 24 * 24 * 10 * 25


def test_first_layer_needs_no_gradient_of_its_input():
    layers = build(TWO_LAYERS, (64,))
    assert layers[0].backward_input == ()
    assert [step.name for step in layers[2].backward_input] == ["linear_dgrad"]


def test_a_tensor_is_kept_once():
    """torch keeps relu's output, which is the next linear layer's input."""
    kept = [[s.name for s in layer.saved] for layer in build(TWO_LAYERS, (64,))]
    assert kept == [["linear_input"], ["relu_output"], []]


@pytest.mark.parametrize(
    ("split", "forward", "backward"),
    [
        # b = 4, fp32: 16 B a unit of width
        ("column", [("all_gather", 32), ("all_gather", 16)], [("all_reduce", 32)]),
        ("row", [("all_reduce", 32), ("all_reduce", 16)], [("all_gather", 32)]),
        ("megatron", [("all_reduce", 16)], []),
    ],
)
def test_cuts_by_columns_rows_and_pairs_communicate_what_they_must(split, forward, backward):
    layers = build(TWO_LAYERS, (64,), tensor=2, split=split)
    found = [e for layer in layers for e in exchanges(layer.forward)]
    assert found == [(op, 16 * width) for op, width in forward]
    found = [e for layer in reversed(layers) for e in exchanges(layer.backward_input)]
    assert found == [(op, 16 * width) for op, width in backward]


@pytest.mark.parametrize("split", ["column", "row", "megatron"])
def test_cut_matrices_halve(split):
    whole, cut = build(TWO_LAYERS, (64,)), build(TWO_LAYERS, (64,), tensor=2, split=split)

    def products(layers):
        steps = [s for m in layers for s in (*m.forward, *m.backward_input, *m.backward_weight)]
        return sum(s.flops for s in steps if isinstance(s, Kernel) and s.kind == "gemm")

    assert products(cut) == products(whole) / 2


def test_a_width_that_the_degree_does_not_divide_stays_whole():
    layers = [
        {"type": "linear", "inputs": 64, "outputs": 32},
        {"type": "sigmoid"},
        {"type": "linear", "inputs": 32, "outputs": 1},
    ]
    found = build(layers, (64,), tensor=4, split="column")
    assert [m.parameters for m in found] == [65 * 32 / 4, 0, 33]
    assert exchanges(found[2].forward) == []


@pytest.mark.parametrize(
    ("split", "tensor", "whole"),
    [
        ("megatron", 1, {}),
        ("megatron", 2, {0: 31}),
        ("column", 2, {0: 31}),
        ("row", 2, {2: 31}),
        ("column", 4, {0: 31, 2: 2}),
        ("column", 31, {2: 2}),
        ("megatron", 31, {}),
    ],
)
def test_layers_that_stay_whole_are_known(split, tensor, whole):
    layers = [
        {"type": "linear", "inputs": 10, "outputs": 31},
        {"type": "relu"},
        {"type": "linear", "inputs": 31, "outputs": 2},
    ]
    model, plan = Network(input=[10], network=layers), PlanSpec(tensor=tensor, split=split)
    assert kept_whole(model, plan) == whole
    if tensor > 1 and len(whole) < 2:  # what is not named is cut
        found = build(layers, (10,), tensor=tensor, split=split)
        full = {0: 11 * 31, 2: 32 * 2}
        assert [i for i, count in full.items() if found[i].parameters == count] == list(whole)


def test_recurrent_layer_runs_a_product_at_each_step():
    layer = build([{"type": "lstm", "inputs": 8, "hidden": 16}], (10, 8))[0]
    state = next(step for step in layer.forward if step.name == "lstm_state")
    assert state.count == 10
    assert state.shape == (1, 4, 64, 16)
    assert layer.parameters == 4 * 16 * (8 + 16 + 2)


def test_attention_keeps_scores_or_not():
    layers = [{"type": "attention", "width": 64, "heads": 4}]
    names = {
        kind: {s.name for s in build(layers, (10, 64), attention=kind)[0].saved}
        for kind in ("math", "flash")
    }
    assert "softmax_output" in names["math"]
    assert "softmax_output" not in names["flash"]


def test_full_recompute_leaves_only_the_stage_input():
    layers = build(CNN, (1, 28, 28), recompute="full")
    assert all(layer.saved == () for layer in layers)
    assert layers[0].input_nbytes == 4 * 4 * 28 * 28
    assert layers[0].plain.saved != ()


def test_equal_layers_in_equal_places_are_one_object():
    square = [{"type": "linear", "inputs": 8, "outputs": 8}, {"type": "relu"}] * 4
    layers = build(square, (8,))
    assert len({id(layer) for layer in layers}) == 3  # the first linear gives no input gradient


REFUSED = [
    (
        [{"type": "conv2d", "inputs": 1, "outputs": 2, "kernel": 3}, CNN[7]],
        (1, 28, 28),
        {},
        "model.network.1: linear has 320 inputs, but gets a sample of shape [2, 26, 26]",
    ),
    (
        [{"type": "linear", "inputs": 784, "outputs": 2}],
        (1, 28, 28),
        {},
        "model.network.0: linear has 784 inputs, but gets a sample of shape [1, 28, 28]; "
        "put a 'flatten' before it",
    ),
    (
        [{"type": "conv2d", "inputs": 3, "outputs": 2, "kernel": 3}],
        (1, 28, 28),
        {},
        "model.network.0: conv2d has 3 inputs, but gets a sample of shape [1, 28, 28]",
    ),
    (
        [{"type": "max_pool", "kernel": 9}],
        (1, 8, 8),
        {},
        "model.network.0: a window of 9 does not fit into 8 + 2 x 0",
    ),
    (
        [{"type": "lstm", "inputs": 8, "hidden": 16}],
        (8,),
        {},
        "model.network.0: lstm takes 2 axes, but gets a sample of shape [8]",
    ),
    (
        [{"type": "batch_norm", "features": 3}],
        (1, 8, 8),
        {},
        "model.network.0: batch_norm has 3 features, but gets a sample of shape [1, 8, 8]",
    ),
    (
        [{"type": "attention", "width": 10, "heads": 4}],
        (5, 10),
        {},
        "model.network.0: width (10) is not a multiple of heads (4)",
    ),
    (TWO_LAYERS, (64,), {"tensor": 7}, "plan.tensor: 7 divides the width of no layer"),
    (
        TWO_LAYERS,
        (64,),
        {"context": 2},
        "plan.context: 2, but explicit layers have no such axis",
    ),
]


@pytest.mark.parametrize(("layers", "shape", "plan", "message"), REFUSED)
def test_layers_that_do_not_fit_are_refused(layers, shape, plan, message):
    with pytest.raises(ScenarioError) as caught:
        build(layers, shape, **plan)
    assert str(caught.value) == message
