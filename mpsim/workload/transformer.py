"""The layers of a transformer: embedding, transformer layers, final norm with head and loss."""

from __future__ import annotations

from dataclasses import replace

from mpsim.spec.model import Transformer
from mpsim.spec.plan import PlanSpec, TrainingSpec
from mpsim.workload.assembly import join
from mpsim.workload.attention import attention_block, core_sizes
from mpsim.workload.ends import embedding_layer, head_layer
from mpsim.workload.experts import experts_block, worked_tokens
from mpsim.workload.layers import Layer
from mpsim.workload.mlp import but_input, mlp_block
from mpsim.workload.pieces import Piece, Product, linear, norm, residual
from mpsim.workload.recompute import full, per_operation, recomputed_parts, selective
from mpsim.workload.sharding import Share, check_transformer
from mpsim.workload.weights import has_experts, mtp_weights, norm_weight


def transformer_layers(model: Transformer, plan: PlanSpec, training: TrainingSpec) -> list[Layer]:
    """Embedding, ``model.layers`` transformer layers, multi-token-prediction layers, head.

    Equal layers are one object, so that a cost is computed once for each distinct layer.
    Parameters that no dimension describes (``extra_parameters``) are spread evenly over the
    transformer layers and divided by the tensor degree.

    Raises:
        ScenarioError: If the plan's degrees do not divide the model's dimensions.
    """
    check_transformer(model, plan)
    share, parts = Share(plan, training), recomputed_parts(plan)
    made: dict[bool, Layer] = {}
    layers = [embedding_layer(share, model)]
    modules = plan.recompute_modules if plan.recompute == "selective" else []
    for index in range(model.layers):
        sparse = has_experts(model, index)
        layer = _made(made, share, model, sparse=sparse, parts=parts)
        if "every_2nd_layer" in modules and index % 2 == 0 and layer.plain:
            layer = layer.plain
        layers.append(layer)
    if model.mtp_layers:
        last = _made(made, share, model, sparse=model.experts is not None, parts=parts)
        layers += [_mtp(share, model, last)] * model.mtp_layers
    layers.append(head_layer(share, model))
    return layers


def _made(
    made: dict[bool, Layer],
    share: Share,
    model: Transformer,
    *,
    sparse: bool,
    parts: frozenset[str],
) -> Layer:
    """The layer with or without experts, made once."""
    if sparse not in made:
        made[sparse] = _layer(share, model, sparse=sparse, parts=parts)
    return made[sparse]


def _layer(share: Share, model: Transformer, *, sparse: bool, parts: frozenset[str]) -> Layer:
    """One transformer layer: norm, attention, residual, norm, MLP or experts, residual."""
    tokens, hidden, dropout = share.tokens_between, model.hidden, model.dropout
    block = (
        experts_block(share, model, model.experts)
        if sparse and model.experts
        else mlp_block(share, model, model.ffn_width)
    )
    norms = _norms(share, model)
    attention = attention_block(share, model)
    first = residual(share, name="attention", tokens=tokens, hidden=hidden, dropout=dropout)
    second = residual(share, name="mlp", tokens=tokens, hidden=hidden, dropout=dropout)
    if len(norms) == 1:  # one normalised input for both: kept once, added once
        block = [replace(piece, saved=but_input(piece)) for piece in block]
        pieces = [norms[0], *attention, *block, second]
    else:
        pieces = [norms[0], *attention, *norms[2:3], first, norms[1], *block, *norms[3:], second]
    extra = model.extra_parameters / model.layers / share.tensor
    if extra:
        pieces.append(Piece("layer", parameters=extra))
    kept = selective(_compiled(share, pieces), parts)
    output = float(tokens * hidden * share.element)
    name, kind = ("experts_layer", "experts") if sparse else ("layer", "transformer")
    layer = join(name, kind, kept, output=output, workspace=_workspace(share, model, sparse=sparse))
    return _recomputed(share, model, layer, output)


_CHEAP_INPUTS = ("qkv_input", "mlp_up_input", "mlp_down_input")
"""Inputs of matrices that are elementwise functions of other kept tensors: of a norm's input and
statistics, of the activation's input."""


def _compiled(share: Share, pieces: list[Piece]) -> list[Piece]:
    """The pieces without what torch.compile makes again in backward kernels.

    Its partitioner cuts between forward and backward where the fewest bytes cross, and elementwise
    operations run again for nothing (torch/_functorch/partitioners.py:
    ``min_cut_rematerialization_partition``). Exchanges between do not run again.
    """
    if not share.plan.fused or share.fuses_accumulation or share.tensor > 1:
        return pieces
    return [
        replace(piece, saved=tuple(s for s in piece.saved if s.name not in _CHEAP_INPUTS))
        for piece in pieces
    ]


def _norms(share: Share, model: Transformer) -> list[Piece]:
    """Norms before attention and MLP, then after them where a layer has four (Gemma 2)."""
    names = ["attention_norm", "mlp_norm", "attention_post_norm", "mlp_post_norm"]
    weight = norm_weight(model, "norm")
    count = min(model.norms_per_layer, len(names))
    pieces = [norm(share, weight, name=name, tokens=share.tokens_between) for name in names[:count]]
    more = model.norms_per_layer - count
    return [*pieces[:-1], replace(pieces[-1], parameters=pieces[-1].parameters * (1 + more))]


def _recomputed(share: Share, model: Transformer, layer: Layer, input_nbytes: float) -> Layer:
    plan = share.plan
    modules = plan.recompute_modules if plan.recompute == "selective" else []
    if plan.recompute == "full" or "every_2nd_layer" in modules:
        return full(layer, input_nbytes, last=_last_product(share, model))
    if "per_op" in modules:
        core = core_sizes(share, model)
        matrix = model.ffn_width // share.tensor * share.tokens
        kept = 2 * share.tokens_between * model.hidden + core.query + core.output
        kept += core.key_value // 2 + matrix
        facts = {"per_op_saved": float(kept * share.element)}
        return per_operation(replace(layer, facts=facts))
    return layer


def _last_product(share: Share, model: Transformer) -> str:
    """Product at which recomputation stops: the MLP's second, where nothing after it is kept.

    A mask of dropout, a norm after the MLP, or a router's weights are kept, and need its output.
    """
    torch = share.training.framework in ("torch", "fsdp")
    kept = model.dropout or model.norms_per_layer > 2 or model.experts
    return "mlp_down" if torch and not kept else ""


def _workspace(share: Share, model: Transformer, *, sparse: bool) -> float:
    """B of gradients alive at the widest point of a layer's backward pass.

    The gradient of the residual stream and of its sum, those of the MLP's two inner tensors, or
    with unfused attention those of two score matrices. What a framework's kernels allocate beside
    is not counted.
    """
    wide = 3 if model.gated_mlp else 2
    width = model.ffn_width // share.tensor * share.tokens
    if sparse and model.experts:
        width = worked_tokens(share, model.experts) * model.experts.ffn // share.expert_tensor
    widest = float(wide * width)
    if share.plan.attention == "math":
        core = core_sizes(share, model)
        widest = max(widest, 2.0 * core.tokens * core.heads * core.keys)
    return (widest + 2 * share.tokens * model.hidden) * share.element


def _mtp(share: Share, model: Transformer, layer: Layer) -> Layer:
    """A multi-token-prediction layer: projection of two inputs, a transformer layer, the head.

    The head's product and loss run once more on the model's own weights, and so does the
    embedding: where it is on another device, a copy of the table is kept (``tied_to``).
    """
    between = share.tokens_between
    norms, projection = mtp_weights(model)
    product = linear(share, projection, Product(between, quantise=False))
    weight = norm_weight(model, "")
    normed = [norm(share, weight, name=f"mtp_norm_{i}", tokens=between) for i in range(2)]
    head = head_layer(share, model)
    extra = join("mtp", "mtp", [*normed, product], output=layer.output_nbytes, workspace=0.0)
    return Layer(
        "mtp",
        "mtp",
        extra.parameters + layer.parameters + norms.elements / norms.count,
        (*extra.forward, *layer.forward, *head.forward),
        (*head.backward_input, *layer.backward_input, *extra.backward_input),
        (*head.backward_weight, *layer.backward_weight, *extra.backward_weight),
        (*extra.saved, *layer.saved, *head.saved),
        layer.output_nbytes,
        max(layer.workspace_nbytes, head.workspace_nbytes),
        layer.expert_parameters,
        tied_to="embedding",
        facts=head.facts,
        forward_workspace_nbytes=head.forward_workspace_nbytes,
    )
