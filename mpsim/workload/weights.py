"""The weights of a transformer: matrices and vectors, and how tensor parallelism cuts each."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from mpsim.spec.model import LatentAttention, Transformer

Cut = Literal["column", "row", "none"]


@dataclass(frozen=True, slots=True)
class Weight:
    """A matrix of inputs x outputs with an optional bias, or ``count`` equal ones.

    A vector (a norm's scale) has one input. Cut by columns, outputs and bias are divided over the
    tensor group; cut by rows, the inputs are and every device has the whole bias; uncut, every
    device has all of it.
    """

    name: str
    inputs: int
    outputs: int
    bias: bool = False
    cut: Cut = "none"
    count: int = 1

    @property
    def elements(self) -> int:
        """Number of parameters: count · (inputs · outputs + outputs if biased)."""
        return self.count * (self.inputs + self.bias) * self.outputs

    def on_device(self, tensor: int) -> float:
        """Parameters on one of ``tensor`` devices; a fraction where the degree does not divide."""
        if self.cut == "column":
            return self.elements / tensor
        if self.cut == "row":
            return self.count * (self.inputs / tensor + self.bias) * self.outputs
        return float(self.elements)


def _own(choice: bool | None, general: bool) -> bool:
    return general if choice is None else choice


def norm_weight(model: Transformer, name: str, *, count: int = 1, width: int = 0) -> Weight:
    """A normalisation's scale, and its shift where it is a layer norm with one."""
    shifted = model.norm == "layernorm" and model.norm_bias
    return Weight(name, 1, width or model.hidden, shifted, count=count)


@lru_cache(maxsize=256)
def attention_weights(model: Transformer) -> tuple[Weight, ...]:
    """Projections of one attention block: Q, K and V by columns, the output by rows.

    Latent attention has down projections (whole on every device), norms of the two latents, and
    up projections by columns (DeepSeek-V2, arXiv:2405.04434, section 2.1).
    """
    if model.latent_attention:
        return _latent_weights(model, model.latent_attention)
    bias, width = _own(model.qkv_bias, model.bias), model.head_width
    weights = [
        Weight("query", model.hidden, model.heads * width, bias, "column"),
        Weight("key_value", model.hidden, 2 * model.kv_head_count * width, bias, "column"),
        _attention_output(model, width),
    ]
    if model.qk_norm:
        weights.append(norm_weight(model, "qk_norm", count=2, width=width))
    return tuple(weights)


def _attention_output(model: Transformer, width: int) -> Weight:
    bias = _own(model.attention_output_bias, model.bias)
    return Weight("attention_output", model.heads * width, model.hidden, bias, "row")


def _latent_weights(model: Transformer, latent: LatentAttention) -> tuple[Weight, ...]:
    bias, heads = _own(model.qkv_bias, model.bias), model.heads
    query = heads * (latent.qk_nope_head_dim + latent.qk_rope_head_dim)
    weights = []
    if latent.q_rank:
        weights += [
            Weight("query_down", model.hidden, latent.q_rank, bias),
            Weight("query_norm", 1, latent.q_rank),
        ]
    weights += [
        Weight("query_up", latent.q_rank or model.hidden, query, cut="column"),
        Weight("kv_down", model.hidden, latent.kv_rank + latent.qk_rope_head_dim, bias),
        Weight("kv_norm", 1, latent.kv_rank),
        Weight(
            "kv_up",
            latent.kv_rank,
            heads * (latent.qk_nope_head_dim + latent.v_head_dim),
            cut="column",
        ),
        _attention_output(model, latent.v_head_dim),
    ]
    return tuple(weights)


def mlp_weights(model: Transformer, width: int, *, count: int = 1) -> tuple[Weight, Weight]:
    """The two (gated: three) matrices of an MLP of hidden width ``width``, ``count`` times."""
    wide = width * (2 if model.gated_mlp else 1)
    return (
        Weight("mlp_up", model.hidden, wide, model.bias, "column", count),
        Weight("mlp_down", width, model.hidden, model.bias, "row", count),
    )


@lru_cache(maxsize=256)
def router_weights(model: Transformer) -> tuple[Weight, ...]:
    """Router and shared-expert gate, whole on every device."""
    if model.experts is None:
        return ()
    router = Weight("router", model.hidden, model.experts.count, model.experts.router_bias)
    if not (model.experts.shared_gate and model.experts.shared_ffn):
        return (router,)
    return (router, Weight("shared_gate", model.hidden, 1))


@lru_cache(maxsize=256)
def norms_of_layer(model: Transformer) -> Weight:
    """The normalisations of one transformer layer, those inside attention apart."""
    return norm_weight(model, "norms", count=model.norms_per_layer)


def has_experts(model: Transformer, index: int) -> bool:
    """Whether layer ``index`` (from 0) has experts in place of the dense MLP.

    The first ``dense_layers`` have none; after them every ``every``-th layer of the model has,
    counted so that the last of each group is one (Switch Transformer, Qwen2-MoE, Llama 4).
    """
    experts = model.experts
    return bool(experts and index >= experts.dense_layers and (index + 1) % experts.every == 0)


def expert_layers(model: Transformer) -> int:
    """Number of layers with experts, those for multi-token prediction apart."""
    return sum(has_experts(model, index) for index in range(model.layers))


def mtp_weights(model: Transformer) -> tuple[Weight, ...]:
    """What a multi-token-prediction layer has besides a transformer layer.

    Two norms of its inputs, their joint projection 2h → h and a final norm; embedding and head
    are the model's own (DeepSeek-V3, arXiv:2412.19437, section 2.2).
    """
    return (
        norm_weight(model, "mtp_norms", count=3),
        Weight("mtp_projection", 2 * model.hidden, model.hidden),
    )


def embedding_weights(model: Transformer, sequence: int = 0) -> tuple[Weight, ...]:
    """Token table (cut by its rows, the vocabulary), learned positions and the norm after them.

    The table of positions has ``model.positions`` rows, else ``sequence``.
    """
    width = model.embedding_width or model.hidden
    weights = [Weight("embedding", width, model.vocab, cut="column")]
    if model.embedding_width:
        weights.append(Weight("embedding_projection", width, model.hidden))
    if model.position == "learned":
        weights.append(Weight("positions", model.positions or sequence, model.hidden))
    if model.embedding_norm:
        weights.append(norm_weight(model, "embedding_norm"))
    return tuple(weights)


def head_weights(model: Transformer) -> tuple[Weight, ...]:
    """Final norm and output head; a tied head has no matrix of its own, only its bias."""
    weights = [norm_weight(model, "final_norm")] if model.final_norm else []
    width = model.embedding_width or model.hidden
    if model.embedding_width:
        weights.append(Weight("head_projection", model.hidden, width))
    if not model.tied_embeddings:
        weights.append(Weight("head", width, model.vocab, model.head_bias, "column"))
    elif model.head_bias:
        weights.append(Weight("head_bias", 1, model.vocab, cut="column"))
    return tuple(weights)
