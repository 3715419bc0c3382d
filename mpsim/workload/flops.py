"""How many FLOP training takes, by the conventions that publications use."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mpsim.spec.model import Transformer
from mpsim.spec.plan import PlanSpec, TrainingSpec
from mpsim.workload.parameters import active_parameters
from mpsim.workload.weights import (
    Weight,
    attention_weights,
    expert_layers,
    mlp_weights,
    mtp_weights,
    router_weights,
)


@dataclass(frozen=True)
class ModelFlops:
    """FLOP of one sample (sequence), forward and backward; a multiply-add is two.

    Divide by step time, devices and peak rate, times the batch: the first three are model FLOP
    utilisation (MFU) in three conventions, ``hardware`` is hardware FLOP utilisation (HFU).
    """

    six_n: float
    """6 N a token, N all parameters that work on a token (Kaplan et al., arXiv:2001.08361)."""
    with_attention: float
    """6 N + 12 L H Q s a token, H heads of width Q (PaLM, arXiv:2204.02311, appendix B)."""
    model: float
    """Matrix products of layers, attention and head, backward twice the forward: without
    recomputation 72 s l h² (1 + s/6h + V/12lh) for a plain GPT (Narayanan et al.,
    arXiv:2104.04473)."""
    hardware: float
    """``model`` and what is recomputed; 96 s l h² (1 + s/6h + V/16lh) when all layers are."""


def model_flops(model: Transformer, plan: PlanSpec, training: TrainingSpec) -> ModelFlops:
    """FLOP of one sample by convention.

    The triangle that a causal mask leaves out is counted everywhere, as the publications do; so
    are products only, not norms, activations, softmax and optimizer. A routed expert counts for
    the tokens that visit it. A learned table of positions counts in N.
    """
    tokens = training.sequence
    six_n = 6.0 * active_parameters(model, sequence=tokens) * tokens
    matrices, core = _matrices(model), _core(model, tokens)
    layers = model.layers + model.mtp_layers
    width = model.embedding_width or model.hidden
    head = 2.0 * tokens * width * model.vocab * (1 + model.mtp_layers)
    forward = 2.0 * tokens * matrices + layers * core
    return ModelFlops(
        six_n=six_n,
        with_attention=six_n + 3 * layers * core,
        model=3 * (forward + head),
        hardware=3 * (forward + head) + _again(model, plan, tokens),
    )


def _elements(weights: Iterable[Weight]) -> float:
    """Elements of matrices, biases and vectors apart."""
    return float(sum(w.count * w.inputs * w.outputs for w in weights if w.inputs > 1))


def _matrices(model: Transformer) -> float:
    """Matrix elements that work on one token in all layers, the head apart."""
    layers = model.layers + model.mtp_layers
    sparse = expert_layers(model) + (model.mtp_layers if model.experts else 0)
    total = layers * _elements(attention_weights(model)) + sparse * _experts(model)
    total += (layers - sparse) * _elements(mlp_weights(model, model.ffn_width))
    return total + model.mtp_layers * _elements(mtp_weights(model))


def _experts(model: Transformer) -> float:
    experts = model.experts
    if experts is None:
        return 0.0
    routed = _elements(mlp_weights(model, experts.ffn, count=experts.per_token))
    shared = mlp_weights(model, experts.shared_ffn) if experts.shared_ffn else ()
    return _elements(router_weights(model)) + routed + _elements(shared)


def _core(model: Transformer, tokens: int) -> float:
    """Forward FLOP of one attention core: 2 s² H (Q + V), s² s · window where that is less."""
    latent = model.latent_attention
    widths = 2 * model.head_width
    if latent:
        widths = latent.qk_nope_head_dim + latent.qk_rope_head_dim + latent.v_head_dim
    seen = min(tokens, model.window or tokens)
    return 2.0 * tokens * seen * model.heads * widths


def _again(model: Transformer, plan: PlanSpec, tokens: int) -> float:
    """FLOP of one sample that run again because of recomputation."""
    core, whole = _core(model, tokens), 2.0 * tokens * _matrices(model)
    layers = model.layers + model.mtp_layers
    if plan.recompute == "none":
        return 0.0
    if plan.recompute == "full":
        of_stage = model.layers / plan.stages
        share = min(1.0, (plan.recompute_layers or of_stage) / of_stage)
        return share * (whole + layers * core)
    modules, total = set(plan.recompute_modules), 0.0
    if "every_2nd_layer" in modules:
        return (whole + layers * core) / 2
    if "per_op" in modules:
        return whole / 2
    if "core_attention" in modules:
        total += layers * core
    sparse = expert_layers(model)
    if "mlp" in modules:
        dense = (model.layers - sparse) * _elements(mlp_weights(model, model.ffn_width))
        total += 2.0 * tokens * dense
    if "moe" in modules:
        total += 2.0 * tokens * sparse * _experts(model)
    return total
