"""The layers of any model, as one device of each group runs them."""

from __future__ import annotations

from mpsim.errors import ScenarioError
from mpsim.spec.model import ModelSpec, Network, Transformer
from mpsim.spec.plan import PlanSpec, TrainingSpec
from mpsim.workload.layers import Layer
from mpsim.workload.network import network_layers
from mpsim.workload.transformer import transformer_layers


def build_layers(model: ModelSpec, plan: PlanSpec, training: TrainingSpec) -> list[Layer]:
    """The model's layers in depth order, cut over the tensor, context and expert groups.

    A transformer gives: embedding, its layers, multi-token-prediction layers, head (final norm,
    output matrix and loss). A network gives one layer for each of its own. Equal layers are one
    object. Recomputation is inside: see ``Layer.plain`` for a layer without it.

    Raises:
        ScenarioError: If the plan cannot cut the model, shapes do not fit, or a torch module was
            not traced.
    """
    if isinstance(model, Transformer):
        return transformer_layers(model, plan, training)
    if isinstance(model, Network):
        return network_layers(model, plan, training)
    raise ScenarioError("model.torch", "a torch module has to be traced before it is simulated")
