"""The mixture-of-experts block: router, dispatch, grouped products, combination, shared experts."""

from __future__ import annotations

from dataclasses import replace

from mpsim.spec.model import Experts, Transformer
from mpsim.workload.layers import Exchange, Kernel, Saved
from mpsim.workload.mlp import activation, but_input, mlp_block
from mpsim.workload.pieces import Piece, Product, Steps, linear, memory
from mpsim.workload.sharding import Share
from mpsim.workload.weights import mlp_weights, router_weights


def experts_block(share: Share, model: Transformer, experts: Experts) -> list[Piece]:
    """Router, all-to-all to the experts' devices, their products, all-to-all back.

    Each token visits ``per_token`` experts. The busiest device of the expert group works on
    ``imbalance`` times the mean, at most on what the capacity admits. Experts cut over their own
    tensor group gather the tokens of that group first and reduce-scatter the outputs.
    """
    pieces = _router(share, model)
    if experts.shared_ffn:
        shared = mlp_block(share, model, experts.shared_ffn, part="shared_experts")
        pieces += [replace(piece, saved=but_input(piece)) for piece in shared]
    pieces.append(_dispatch(share, model, experts))
    pieces += _routed(share, model, experts)
    pieces.append(_combine(share, model, experts))
    return pieces


def sent_tokens(share: Share, experts: Experts) -> float:
    """Copies of tokens that this device sends: tokens · per_token, fewer where capacity binds."""
    factor = min(1.0, experts.capacity_factor) if experts.capacity_factor else 1.0
    return share.tokens_between * experts.per_token * factor


def _gathered(share: Share) -> int:
    """Devices of a tensor group of the experts that bring tokens of their own.

    All of them where the sequence is cut; else those of one tensor group of the layers have the
    same tokens.
    """
    if share.plan.sequence_parallel:
        return share.expert_tensor
    return max(1, share.expert_tensor // share.plan.tensor)


def worked_tokens(share: Share, experts: Experts) -> int:
    """Copies of tokens that the busiest device's experts work on.

    With a capacity every expert's batch is padded to it: ``capacity_factor`` times the even share.
    """
    group = _gathered(share)
    load = experts.capacity_factor or experts.imbalance
    if share.plan.expert == 1:
        load = experts.capacity_factor or 1.0
    return max(1, round(share.tokens_between * experts.per_token * group * load))


def _router(share: Share, model: Transformer) -> list[Piece]:
    """Logits (kept in fp32), softmax or sigmoid, top-k; and the shared expert's gate."""
    tokens = share.tokens_between
    router, *gates = router_weights(model)
    first = linear(share, router, Product(tokens, input_part="layernorm", quantise=False))
    logits = float(tokens * router.outputs * 4)
    choice = Piece(
        "layer",
        (memory("router_choice", 3 * logits, count=3),),
        (memory("router_choice_backward", 3 * logits, count=2),),
        saved=(Saved("router_probabilities", 2 * logits),),
    )
    product = Product(tokens, input_part="layernorm", quantise=False, keeps_input=False)
    return [first, choice, *(linear(share, gate, product) for gate in gates)]


def _dispatch(share: Share, model: Transformer, experts: Experts) -> Piece:
    """Copies in the order of experts, their all-to-all, and the sort on arrival."""
    nbytes, arrived = _moved(share, model, experts)
    sort = memory("expert_sort", 2 * arrived)
    ahead = (*_copied(share, "permute", nbytes), *_to_experts(share, experts, nbytes, arrived))
    back = _from_experts(share, experts, nbytes, arrived)
    unsort = memory("expert_sort_backward", 2 * arrived)
    return Piece(
        "moe", (*ahead, sort), (unsort, *back, *_copied(share, "permute_backward", nbytes))
    )


def _combine(share: Share, model: Transformer, experts: Experts) -> Piece:
    """The way back: all-to-all and the weighted sum of each token's copies."""
    nbytes, arrived = _moved(share, model, experts)
    unsort = memory("expert_unsort", 2 * arrived)
    forward: Steps = (
        unsort,
        *_from_experts(share, experts, nbytes, arrived),
        *_copied(share, "unpermute", nbytes),
    )
    back: Steps = (
        *_copied(share, "unpermute_backward", nbytes),
        *_to_experts(share, experts, nbytes, arrived),
        memory("expert_unsort_backward", 2 * arrived),
    )
    if share.tensor > 1 and not share.plan.sequence_parallel:
        whole = float(share.tokens * model.hidden * share.element)
        reduce: Steps = (Exchange("all_reduce", "tensor", whole),)
        forward, back = (*forward, *reduce), (*back, *reduce)
    return Piece("moe", forward, back)


def _moved(share: Share, model: Transformer, experts: Experts) -> tuple[float, float]:
    """Bytes of the copies that this device sends, and of those that its experts work on."""
    nbytes = sent_tokens(share, experts) * model.hidden * share.element
    return nbytes, float(worked_tokens(share, experts) * model.hidden * share.element)


def _copied(share: Share, name: str, nbytes: float) -> Steps:
    """The copies put in order before they leave; a fused dispatcher does so as it sends."""
    return () if share.plan.expert_dispatch == "fused" else (memory(name, 2 * nbytes),)


def _to_experts(
    share: Share, experts: Experts, nbytes: float, arrived: float
) -> tuple[Exchange, ...]:
    """All-to-all over the expert group, then the gather over the experts' tensor group."""
    gathered = _over_tensor(share, "all_gather", arrived)
    return (*_all_to_all(share, experts, nbytes), *gathered)


def _from_experts(
    share: Share, experts: Experts, nbytes: float, arrived: float
) -> tuple[Exchange, ...]:
    scattered = _over_tensor(share, "reduce_scatter", arrived)
    return (*scattered, *_all_to_all(share, experts, nbytes))


def _all_to_all(share: Share, experts: Experts, nbytes: float) -> tuple[Exchange, ...]:
    """The exchange over the expert group; with a fused dispatcher, how often a token is in it."""
    if share.plan.expert == 1:
        return ()
    beside = "*" if share.plan.overlap_expert else ""
    copies = experts.per_token if share.plan.expert_dispatch == "fused" else 1
    return (Exchange("all_to_all", "expert", nbytes, beside=beside, copies=copies),)


def _over_tensor(share: Share, op: str, nbytes: float) -> tuple[Exchange, ...]:
    if _gathered(share) == 1:
        return ()
    return (Exchange(op, "expert_tensor", nbytes),)  # type: ignore[arg-type]


def _routed(share: Share, model: Transformer, experts: Experts) -> list[Piece]:
    """Grouped products of the experts on this device, each with an even part of the tokens."""
    local, degree = experts.count // share.plan.expert, share.expert_tensor
    tokens = worked_tokens(share, experts)
    each = max(1, round(tokens / local))
    up, down = mlp_weights(model, experts.ffn, count=local)
    first = Product(each, part="experts", input_part="experts", batch=local)
    last = Product(each, part="experts", input_part="moe_act", batch=local)
    pieces = [
        linear(share, up, first, tensor=degree),
        activation(share, model, tokens * experts.ffn // degree, part="moe_act"),
        linear(share, down, last, tensor=degree),
    ]
    return [_grouped(piece) for piece in pieces]


def _grouped(piece: Piece) -> Piece:
    """The piece with its parameters counted as those of experts, its kernels named so."""

    def named(step: Kernel | Exchange) -> Kernel | Exchange:
        return replace(step, name=f"expert_{step.name}") if isinstance(step, Kernel) else step

    return replace(
        piece,
        forward=tuple(named(step) for step in piece.forward),
        backward_input=tuple(named(step) for step in piece.backward_input),
        backward_weight=tuple(named(step) for step in piece.backward_weight),
        saved=tuple(replace(kept, name=f"expert_{kept.name}") for kept in piece.saved),
        expert_parameters=piece.parameters,
    )
