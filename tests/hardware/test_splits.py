"""Every split of the scenarios' networks gives the unsplit network's loss and gradients."""

import doctest

import pytest
import torch

from mpsim.errors import CalibrationError
from mpsim.hardware import models, timing
from mpsim.hardware.agreement import Agreement, check_pipeline, check_split
from mpsim.hardware.models import (
    SMALL_CNN,
    TWO_DEVICE_MLP,
    build,
    count_layers,
    layer_stack,
    loss_of,
    make_batch,
    two_layer,
)
from mpsim.hardware.pipeline import PipelineJob
from mpsim.hardware.splits import SPLITS
from mpsim.spec.model import Network


@pytest.mark.parametrize("split", sorted(SPLITS))
@pytest.mark.parametrize(
    "model", [TWO_DEVICE_MLP, SMALL_CNN, two_layer(8, 16)], ids=lambda model: model.name
)
def test_split_gives_loss_and_gradients_of_the_unsplit_network(pair, split, model):
    agreement = check_split(pair, split, model, batch=64)
    assert agreement.holds, agreement
    assert agreement.loss > 0


def test_pipeline_gives_loss_and_gradients_of_the_unsplit_network(pair):
    job = PipelineJob(layer_stack(16, 4), (4, 4), "0F0,0F1,0B0,0B1\n1F0,1B0,1F1,1B1", 2, batch=8)
    assert check_pipeline(pair, job).holds


def test_a_wrong_gradient_is_noticed():
    assert not Agreement(1.0, 0.0, 2e-5).holds
    assert not Agreement(1.0, 2e-5, 0.0).holds
    assert Agreement(1.0, 1e-6, 1e-6).holds


def test_batch_that_cannot_be_dealt_is_refused(pair):
    with pytest.raises(CalibrationError, match="a batch of 7 cannot be dealt to 2 workers"):
        check_split(pair, "ddp", TWO_DEVICE_MLP, batch=7)


@pytest.mark.parametrize(
    ("model", "parameters", "output"),
    [
        (TWO_DEVICE_MLP, 10 * 20 + 20 + 20 * 10 + 10 + 10 * 2 + 2, (4, 2)),
        # the convolutional network of torch's MNIST examples: 21,840 parameters
        (SMALL_CNN, 21_840, (4, 10)),
        (two_layer(8, 16), 8 * 16 + 16 + 16 + 1, (4, 1)),
        (layer_stack(32, 3), 3 * (32 * 32 + 32), (4, 32)),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_networks_have_their_parameters_and_outputs(model, parameters, output):
    module = build(model)
    inputs, target = make_batch(model, 4)
    assert sum(parameter.numel() for parameter in module.parameters()) == parameters
    assert module(inputs).shape == output
    assert loss_of(model)(module(inputs), target).ndim == 0
    assert len(module) == count_layers(model)


def test_layers_of_every_declared_type_run():
    network = Network.model_validate(
        {
            "input": [6],
            "network": [
                {"type": "embedding", "rows": 11, "width": 8},
                {"type": "lstm", "inputs": 8, "hidden": 8},
                {"type": "layer_norm", "features": 8},
                {"type": "attention", "width": 8, "heads": 2, "causal": True},
                {"type": "dropout", "probability": 0.0},
                {"type": "gelu"},
                {"type": "rms_norm", "features": 8},
                {"type": "gru", "inputs": 8, "hidden": 8},
                {"type": "rnn", "inputs": 8, "hidden": 4},
                {"type": "flatten"},
                {"type": "softmax"},
            ],
        }
    )
    inputs, target = make_batch(network, 3)
    assert build(network)(inputs).shape == target.shape == (3, 24)


@pytest.mark.parametrize(
    ("ending", "probabilities"),
    [((), False), (("sigmoid",), True), (("sigmoid", "flatten"), True), (("relu",), False)],
)
def test_binary_cross_entropy_of_what_is_no_probability_has_the_sigmoid_in_it(
    ending, probabilities
):
    layers = [{"type": "linear", "inputs": 4, "outputs": 1}, *({"type": name} for name in ending)]
    model = Network.model_validate(
        {"name": "n", "input": [4], "network": [*layers, {"type": "binary_cross_entropy"}]}
    )
    value, target = torch.tensor([[0.3], [0.8]]), torch.tensor([[0.0], [1.0]])
    p = value if probabilities else 1 / (1 + torch.exp(-value))
    by_hand = -(torch.log(1 - p[0, 0]) + torch.log(p[1, 0])) / 2
    torch.testing.assert_close(models.loss_of(model)(value, target), by_hand)
    batch, targets = models.make_batch(model, 64)
    assert torch.isfinite(models.loss_of(model)(models.build(model)(batch), targets))


def test_weights_depend_on_the_seed_alone():
    first, again, other = build(TWO_DEVICE_MLP, 1), build(TWO_DEVICE_MLP, 1), build(TWO_DEVICE_MLP)
    torch.manual_seed(5)
    assert torch.equal(first[0].weight, again[0].weight)
    assert not torch.equal(first[0].weight, other[0].weight)


@pytest.mark.parametrize("module", [models, timing], ids=lambda module: module.__name__)
def test_examples_of_docstrings_hold(module):
    result = doctest.testmod(module)
    assert result.attempted
    assert not result.failed


def test_traced_layers_cannot_be_run():
    traced = {
        "type": "traced",
        "label": "x",
        "parameters": 0,
        "forward_flops": 1,
        "output": [2],
        "saved_elements": 0,
        "moved_elements": 0,
    }
    network = Network.model_validate({"input": [2], "network": [traced]})
    with pytest.raises(CalibrationError, match="a layer of type 'traced' cannot be run in torch"):
        build(network)
