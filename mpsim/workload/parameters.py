"""How many parameters a model has."""

from __future__ import annotations

from collections.abc import Iterable

from mpsim.errors import ScenarioError
from mpsim.spec.model import (
    Conv2d,
    Embedding,
    Linear,
    ModelSpec,
    Network,
    NetworkLayer,
    Normalisation,
    Recurrent,
    SelfAttention,
    Traced,
    Transformer,
)
from mpsim.workload.weights import (
    Weight,
    attention_weights,
    embedding_weights,
    expert_layers,
    head_weights,
    mlp_weights,
    mtp_weights,
    norms_of_layer,
    router_weights,
)

GATES = {"rnn": 1, "lstm": 4, "gru": 3}
"""Matrices of a recurrent cell for each of input and state (torch.nn.RNN, LSTM, GRU)."""


def parameter_count(model: ModelSpec, *, sequence: int = 0, with_mtp: bool = True) -> int:
    """Number of parameters, shared ones once.

    Args:
        model: A transformer or a network; a torch module must have been traced first.
        sequence: Rows of a learned position table where the model does not give them.
        with_mtp: Whether multi-token-prediction layers count (publications leave them out).

    Raises:
        ScenarioError: If the model is an untraced torch module.
    """
    if isinstance(model, Transformer):
        return _transformer_count(model, sequence=sequence, with_mtp=with_mtp)
    if isinstance(model, Network):
        return sum(network_parameters(layer) for layer in model.network)
    raise ScenarioError("model.torch", "a torch module has to be traced before it is counted")


def active_parameters(model: Transformer, *, sequence: int = 0) -> int:
    """Parameters that work on one token: all but the routed experts it does not visit.

    The token table counts as a whole, as in publications ("37B activated" of DeepSeek-V3).
    """
    count = parameter_count(model, sequence=sequence)
    if model.experts is None:
        return count
    idle = model.experts.count - model.experts.per_token
    of_one = _sum(mlp_weights(model, model.experts.ffn))
    return count - (expert_layers(model) + model.mtp_layers) * idle * of_one


def network_parameters(layer: NetworkLayer) -> int:
    """Parameters of one explicit layer, as torch's module of that name has them."""
    if isinstance(layer, Linear):
        return (layer.inputs + layer.bias) * layer.outputs
    if isinstance(layer, Conv2d):
        return (layer.inputs // layer.groups * layer.kernel**2 + layer.bias) * layer.outputs
    if isinstance(layer, Recurrent):
        rows = layer.inputs + layer.hidden + 2 * layer.bias
        return GATES[layer.type] * layer.hidden * rows
    if isinstance(layer, Normalisation):
        return layer.features * (1 if layer.type == "rms_norm" else 2)
    if isinstance(layer, Embedding):
        return layer.rows * layer.width
    if isinstance(layer, SelfAttention):
        return 4 * (layer.width + layer.bias) * layer.width
    return layer.parameters if isinstance(layer, Traced) else 0


def _sum(weights: Iterable[Weight]) -> int:
    return sum(weight.elements for weight in weights)


def _transformer_count(model: Transformer, *, sequence: int, with_mtp: bool) -> int:
    extra = model.mtp_layers if with_mtp else 0
    sparse = expert_layers(model) + (extra if model.experts else 0)
    layers = model.layers + extra
    attention = _sum(attention_weights(model)) + norms_of_layer(model).elements
    return (
        _sum(embedding_weights(model, sequence))
        + _sum(head_weights(model))
        + layers * attention
        + (layers - sparse) * _sum(mlp_weights(model, model.ffn_width))
        + sparse * _experts_count(model)
        + extra * _sum(mtp_weights(model))
        + model.extra_parameters
    )


def _experts_count(model: Transformer) -> int:
    if model.experts is None:
        return 0
    routed = _sum(mlp_weights(model, model.experts.ffn, count=model.experts.count))
    shared = model.experts.shared_ffn
    return (
        _sum(router_weights(model)) + routed + (_sum(mlp_weights(model, shared)) if shared else 0)
    )
