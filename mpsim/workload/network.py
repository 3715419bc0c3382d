"""The layers of an explicit network: shapes inferred one after another, each layer cut or whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from types import MappingProxyType
from typing import Any

from mpsim.errors import ScenarioError
from mpsim.spec.model import (
    Activation,
    Conv2d,
    Dropout,
    Embedding,
    Linear,
    Network,
    NetworkLayer,
    Recurrent,
    SelfAttention,
)
from mpsim.spec.plan import PlanSpec, TrainingSpec
from mpsim.workload.assembly import join
from mpsim.workload.layers import Layer
from mpsim.workload.network_pieces import (
    Flow,
    NetworkCut,
    attention,
    convolution,
    dropout,
    elementwise,
    embedding,
    flatten,
    fully_connected,
    loss,
    normalisation,
    pooling,
    recurrent,
    traced,
)
from mpsim.workload.pieces import Piece
from mpsim.workload.sharding import Share

Shape = tuple[int, ...]
Build = Callable[[Share, Any, Flow], tuple[Piece, Shape]]

BUILDERS: Mapping[str, Build] = MappingProxyType(
    {
        "linear": fully_connected,
        "conv2d": convolution,
        "max_pool": pooling,
        "mean_pool": pooling,
        "rnn": recurrent,
        "lstm": recurrent,
        "gru": recurrent,
        **dict.fromkeys(("relu", "gelu", "silu", "sigmoid", "tanh"), elementwise),
        **dict.fromkeys(("layer_norm", "rms_norm", "batch_norm"), normalisation),
        "embedding": embedding,
        "dropout": dropout,
        "flatten": flatten,
        "attention": attention,
        **dict.fromkeys(("softmax", "cross_entropy", "binary_cross_entropy", "mse"), loss),
        "traced": traced,
    }
)

OWN_OUTPUT = {"relu", "sigmoid", "tanh", "softmax"}
"""Layers whose output autograd keeps (torch's derivatives.yaml), so that the next need not."""

PASSES_ON = {"flatten"}
"""Layers whose output is their input in another shape."""


@dataclass(frozen=True, slots=True)
class _State:
    """The tensor between two layers."""

    shape: Shape
    kept: bool = False  # whether autograd keeps it already
    gradient: bool = False  # whether a layer before has parameters, so that it needs a gradient


def network_layers(model: Network, plan: PlanSpec, training: TrainingSpec) -> list[Layer]:
    """One layer for each of the network's; equal ones in equal places are one object.

    Tensor parallelism cuts linear and convolution layers by columns (outputs; the parts are
    gathered) or rows (inputs; the partial sums are all-reduced), or in pairs of both without an
    exchange between ('megatron'); attention by heads, recurrent layers by their state, tables by
    rows. A layer whose width the degree does not divide stays whole on every device.

    Raises:
        ScenarioError: If the shapes do not fit, or nothing can be cut although the plan asks it.
    """
    _check(model, plan)
    share = Share(plan, training)
    cuts = _cuts(model.network, plan)
    if plan.tensor > 1 and not any(cuts):
        raise ScenarioError("plan.tensor", f"{plan.tensor} divides the width of no layer")
    state, made = _State(tuple(model.input)), {}
    layers = []
    for index, (declared, cut) in enumerate(zip(model.network, cuts, strict=True)):
        key = (declared.model_dump_json(), state, cut)
        if key not in made:
            made[key] = _build(share, declared, state, cut=cut, where=f"model.network.{index}")
        layer, state = made[key]
        layers.append(layer)
    return layers


def _check(model: Network, plan: PlanSpec) -> None:
    for field in ("context", "expert"):
        if getattr(plan, field) > 1:
            raise ScenarioError(
                f"plan.{field}", f"{getattr(plan, field)}, but explicit layers have no such axis"
            )
    if plan.sequence_parallel:
        raise ScenarioError(
            "plan.sequence_parallel", "explicit layers are not cut along a sequence"
        )
    if not model.network:
        raise ScenarioError("model.network", "has no layers")


def _build(
    share: Share, declared: NetworkLayer, state: _State, *, cut: NetworkCut, where: str
) -> tuple[Layer, _State]:
    """The layer and the tensor after it."""
    flow = Flow(state.shape, cut, state.kept, state.gradient, where)
    piece, shape = BUILDERS[declared.type](share, declared, flow)
    size = share.batch * share.element
    inside = share.tensor if cut == "row_of_pair" else 1
    output = float(size * prod(shape)) / (share.tensor if cut in ("first_of_pair", "inside") else 1)
    inputs = float(size * prod(state.shape)) / inside
    name = f"{declared.type} {'x'.join(map(str, state.shape))} to {'x'.join(map(str, shape))}"
    layer = join(name, declared.type, [piece], output=output, workspace=inputs + output)
    layer = replace(layer, input_nbytes=inputs)
    if share.plan.recompute == "full":
        layer = _recomputed(layer)
    gradient = state.gradient or piece.parameters > 0
    kept = state.kept if declared.type in PASSES_ON else declared.type in OWN_OUTPUT
    return layer, _State(shape, kept, gradient)


def _recomputed(layer: Layer) -> Layer:
    """Nothing is kept but the stage's input (GPipe, arXiv:1811.06965); forward runs again."""
    return replace(
        layer, backward_input=(*layer.forward, *layer.backward_input), saved=(), plain=layer
    )


def _cuts(layers: Sequence[NetworkLayer], plan: PlanSpec) -> list[NetworkCut]:
    """How each layer is cut; "": whole."""
    cuts: list[NetworkCut] = [""] * len(layers)
    if plan.tensor == 1:
        return cuts
    for index, layer in enumerate(layers):
        if cuts[index]:
            continue
        partner = _partner(layers, index, plan) if plan.split == "megatron" else None
        if partner is not None:
            cuts[index], cuts[partner] = "first_of_pair", "row_of_pair"
            cuts[index + 1 : partner] = ["inside"] * (partner - index - 1)
        else:
            cuts[index] = _cut(layer, plan)
    return cuts


def _cut(layer: NetworkLayer, plan: PlanSpec) -> NetworkCut:
    width = _width(layer, plan)
    if not width or width % plan.tensor or (isinstance(layer, Conv2d) and layer.groups > 1):
        return ""
    if not isinstance(layer, Linear | Conv2d):
        return "inner"
    return "row" if plan.split == "row" else "column"


def _width(layer: NetworkLayer, plan: PlanSpec) -> int:
    """What of a layer is dealt out: outputs or inputs, heads, state, rows; 0: nothing."""
    if isinstance(layer, Linear | Conv2d):
        return layer.inputs if plan.split == "row" else layer.outputs
    if isinstance(layer, SelfAttention):
        return layer.heads
    if isinstance(layer, Recurrent):
        return layer.hidden
    return layer.rows if isinstance(layer, Embedding) else 0


def kept_whole(model: Network, plan: PlanSpec) -> dict[int, int]:
    """Layers that every tensor peer has whole, as its degree does not divide them: index, width."""
    cuts = _cuts(model.network, plan)
    widths = {index: _width(layer, plan) for index, layer in enumerate(model.network)}
    return {
        index: width for index, width in widths.items() if not cuts[index] and width % plan.tensor
    }


def _partner(layers: Sequence[NetworkLayer], index: int, plan: PlanSpec) -> int | None:
    """Index of the linear layer that pairs with the one at ``index``, elementwise ones between."""
    first = layers[index]
    if not isinstance(first, Linear) or first.outputs % plan.tensor:
        return None
    for later in range(index + 1, len(layers)):
        layer = layers[later]
        if isinstance(layer, Linear):
            return later if layer.inputs == first.outputs else None
        if not isinstance(layer, Activation | Dropout):
            return None
    return None
