"""Recomputation: what is dropped after the forward pass and run again before the backward one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mpsim.errors import ScenarioError, did_you_mean
from mpsim.spec.plan import PlanSpec
from mpsim.workload.layers import Exchange, Kernel, Layer, Saved
from mpsim.workload.pieces import Piece

MODULES: dict[str, tuple[str, ...]] = {
    "core_attention": ("core_attention",),
    "layernorm": ("layernorm",),
    "mlp": ("mlp",),
    "moe_act": ("moe_act",),
    "moe": ("moe", "experts", "moe_act", "shared_experts"),
    "shared_experts": ("shared_experts",),
    "mla_up_proj": ("mla_up_proj",),
    "per_op": (),
    "every_2nd_layer": (),
}
"""What selective recomputation can name, and the parts of a layer that each means (Megatron's
``--recompute-modules``; per_op and every_2nd_layer are torchtitan's selective modes)."""


def recomputed_parts(plan: PlanSpec) -> frozenset[str]:
    """Parts of a layer that selective recomputation drops.

    Raises:
        ScenarioError: If a name is not in ``MODULES``.
    """
    if plan.recompute != "selective":
        return frozenset()
    for name in plan.recompute_modules:
        if name not in MODULES:
            hint = did_you_mean(name, MODULES)
            known = ", ".join(MODULES)
            raise ScenarioError(
                "plan.recompute_modules", f"unknown part '{name}'{hint}; known: {known}"
            )
    return frozenset(part for name in plan.recompute_modules for part in MODULES[name])


def selective(pieces: Sequence[Piece], parts: frozenset[str]) -> list[Piece]:
    """The pieces with the tensors of ``parts`` dropped and the pieces of ``parts`` run again.

    An input of a matrix product that a dropped piece produced is dropped with it; the input of
    the dropped piece itself stays.
    """
    if not parts:
        return list(pieces)
    return [
        replace(
            piece,
            backward_input=(*piece.forward, *piece.backward_input)
            if piece.part in parts
            else piece.backward_input,
            saved=tuple(kept for kept in piece.saved if kept.part not in parts),
        )
        for piece in pieces
    ]


def full(layer: Layer, input_nbytes: float, *, last: str = "") -> Layer:
    """The layer recomputed whole: it keeps its input, and backward runs its forward pass first.

    All the tensors that it would have kept come to life at once at the start of its backward pass
    and count as its workspace there. Exchanges of the forward pass run again too.

    Args:
        layer: The layer.
        input_nbytes: Size of its input.
        last: Matrix product from which on nothing is run again, since no tensor that backward needs
            comes of it; "": all is run again. torch's checkpoints stop there
            (torch.utils.checkpoint, ``set_checkpoint_early_stop``), Megatron's do not.
    """
    names = [step.name if isinstance(step, Kernel) else "" for step in layer.forward]
    again = layer.forward[: names.index(last)] if last and last in names else layer.forward
    revived = sum(saved.nbytes for saved in layer.saved) - input_nbytes
    return replace(
        layer,
        backward_input=(*again, *layer.backward_input),
        saved=(Saved("layer_input", input_nbytes),),
        workspace_nbytes=layer.workspace_nbytes + max(0.0, revived),
        plain=layer,
    )


def per_operation(layer: Layer, share_of_products: float = 0.5) -> Layer:
    """Torchtitan's policy by operation: every second matrix product's output is kept.

    Kept are the layer's input, the attention core's output and the outputs of the first, third, …
    product (of queries, keys, values, output, gate, up, down: queries, values, gate, down);
    everything else runs again, matrix products in half
    (pytorch/torchtitan, distributed/activation_checkpoint.py).
    """
    again: list[Kernel | Exchange] = [
        _part_of_product(step, share_of_products)
        if isinstance(step, Kernel) and step.kind == "gemm"
        else step
        for step in layer.forward
        if not (isinstance(step, Kernel) and step.kind == "attention")
        and not (isinstance(step, Exchange) and step.op == "reduce_scatter")
    ]
    kept = layer.facts.get("per_op_saved", 0.0)
    revived = sum(saved.nbytes for saved in layer.saved) - kept
    return replace(
        layer,
        backward_input=(*again, *layer.backward_input),
        saved=(Saved("kept_by_policy", kept),),
        workspace_nbytes=layer.workspace_nbytes + max(0.0, revived),
        plain=layer,
    )


def _part_of_product(product: Kernel, share: float) -> Kernel:
    """A matrix product with a share of its columns."""
    batch, m, n, k = product.shape
    return replace(
        product,
        flops=product.flops * share,
        nbytes=product.nbytes * share,
        shape=(batch, m, max(1, round(n * share)), k),
    )
