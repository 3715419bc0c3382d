"""The two ends of a transformer: embedding; final norm, output head and loss."""

from __future__ import annotations

from dataclasses import replace

from mpsim.spec.model import Transformer
from mpsim.workload.assembly import join
from mpsim.workload.layers import Exchange, Kernel, Layer, Saved
from mpsim.workload.pieces import Piece, Product, cut_along_sequence, linear, memory, norm
from mpsim.workload.sharding import Share
from mpsim.workload.weights import Weight, embedding_weights, head_weights, norm_weight


def embedding_layer(share: Share, model: Transformer) -> Layer:
    """Look-up in this device's part of the table, summed over the tensor group (or scattered).

    Backward it adds rows into a table-sized gradient that is cleared first. The tokens are kept
    (8 B each), and the mask of dropout.
    """
    e, tokens, hidden = share.element, share.tokens, model.hidden
    rows, between = -(-model.vocab // share.tensor), share.tokens_between
    weights = embedding_weights(model, share.training.sequence)
    elements, nbytes = float(tokens * hidden), float(tokens * hidden * e)
    forward: list[Kernel | Exchange] = [memory("embedding", 2 * nbytes)]
    op = "reduce_scatter" if share.plan.sequence_parallel else "all_reduce"
    backward: list[Kernel | Exchange] = [
        memory(
            "embedding_backward", 3 * nbytes + rows * hidden * (e + 2.0 * share.gradient_element)
        )
    ]
    saved = [Saved("tokens", 8.0 * tokens)]
    if share.tensor > 1:
        forward.append(Exchange(op, "tensor", nbytes))  # type: ignore[arg-type]
        saved.append(Saved("token_mask", float(tokens)))
    if share.plan.sequence_parallel:
        backward.insert(0, Exchange("all_gather", "tensor", nbytes))
    if model.position == "learned":
        forward.append(memory("positions", 3 * nbytes))
        backward.append(memory("positions_backward", 2 * nbytes))
    if model.dropout:
        mask = elements / tokens * between
        forward.append(memory("embedding_dropout", 2 * mask * e + mask))
        backward.insert(0, memory("embedding_dropout_backward", 2 * mask * e + mask))
        saved.append(Saved("embedding_dropout_mask", mask))
    count = sum(weight.on_device(share.tensor) for weight in weights)
    piece = Piece("layer", tuple(forward), (), tuple(backward), tuple(saved), count)
    pieces = [piece]
    if model.embedding_norm:
        normed = norm(share, norm_weight(model, ""), name="embedding_norm", tokens=between)
        pieces.append(replace(normed, parameters=0.0))
    if model.embedding_width:
        pieces.append(_projection(share, "embedding_projection", model.embedding_width, hidden))
    output = float(between * hidden * e)
    layer = join("embedding", "embedding", pieces, output=output, workspace=2 * nbytes)
    return replace(layer, forward_workspace_nbytes=nbytes)


def head_layer(share: Share, model: Transformer) -> Layer:
    """Final norm, the product with the (vocabulary-parallel) head, softmax cross-entropy.

    Under tensor parallelism the logits stay cut; the loss all-reduces three numbers a token
    (maximum, target's logit, sum) in fp32. Sequence parallelism gathers the hidden states first.
    """
    tokens, hidden = share.tokens, model.hidden
    nbytes = float(tokens * hidden * share.element)
    width = model.embedding_width or hidden
    weight = Weight("head", width, model.vocab, model.head_bias, "column")
    product = linear(share, weight, Product(tokens, quantise=False))
    weights = head_weights(model)
    count = sum(w.on_device(share.tensor) for w in weights if w.name != "final_norm")
    product = replace(product, parameters=count)
    pieces = [_around_head(share, product, nbytes), _loss(share, model)]
    if model.final_norm:
        normed = norm(share, norm_weight(model, ""), name="final_norm", tokens=share.tokens_between)
        pieces.insert(0, normed)
    if model.embedding_width:
        pieces.insert(-2, _projection(share, "head_projection", hidden, width))
    logits = tokens * -(-model.vocab // share.tensor)
    forward, backward = logits_workspace(share, logits)
    layer = join("head", "head", pieces, output=0.0, workspace=backward + 2 * nbytes)
    return replace(
        layer,
        forward_workspace_nbytes=forward,
        tied_to="embedding" if model.tied_embeddings else None,
        facts={"tied_parameters": model.vocab * width / share.tensor, "logits": float(logits)},
    )


def _projection(share: Share, name: str, inputs: int, outputs: int) -> Piece:
    """Matrix between a narrower embedding and the residual stream; counted with the end's own."""
    piece = linear(share, Weight(name, inputs, outputs), Product(share.tokens, quantise=False))
    return replace(piece, parameters=0.0)


def _around_head(share: Share, product: Piece, nbytes: float) -> Piece:
    if share.tensor == 1:
        return product
    if not share.plan.sequence_parallel:
        reduce = Exchange("all_reduce", "tensor", nbytes, beside="head_wgrad")
        return replace(product, backward_input=(*product.backward_input, reduce))
    gather = Exchange("all_gather", "tensor", nbytes)
    again = (Exchange("all_gather", "tensor", nbytes, beside="head_dgrad"),)
    scatter = Exchange("reduce_scatter", "tensor", nbytes, beside="head_wgrad")
    return replace(
        cut_along_sequence(share, product),
        forward=(gather, *product.forward),
        backward_input=(
            *(again if share.fuses_accumulation else ()),
            *product.backward_input,
            scatter,
        ),
    )


LOGIT_BYTES = {
    "megatron": (4.0, 2.0, 2.0),
    "torch": (4.0, 6.0, 8.0),
    "torch_parallel": (4.0, 10.0, 12.0),
    "fused": (2.0, 2.0, 2.0),
}
"""Bytes of a logit: kept, more at the worst of forward, more at the worst of backward.

Megatron's vocabulary-parallel cross entropy (core/tensor_parallel/cross_entropy.py) turns 2-byte
logits into one fp32 tensor and works in it in place: 4 kept, and 2 for the logits or their
gradient. torch's cross_entropy of ``logits.float()`` keeps the fp32 log-softmax, beside the logits
and their fp32 copy forward, beside two fp32 gradients backward. With the vocabulary cut over
devices (loss parallelism, torch/distributed/tensor/parallel/loss.py) there are, beside these, the
shifted logits and their exponential forward; backward the zeros with the target's -1, the
exponential and their sum. A fused loss keeps the 2-byte logits and makes their gradient. In fp32
the small ones are twice as large.
"""


def _logit_bytes(share: Share) -> tuple[float, float, float]:
    kind = "torch_parallel" if share.tensor > 1 else "torch"
    if share.fuses_accumulation:
        kind = "megatron"
    kept, forward, backward = LOGIT_BYTES["fused" if share.plan.fused_loss else kind]
    if share.element == 2:
        return kept, forward, backward
    return max(kept, 4.0), max(forward, 4.0), max(backward, 4.0)


def logits_workspace(share: Share, logits: int) -> tuple[float, float]:
    """B of temporaries of the loss, forward and backward, beside what it keeps."""
    _, forward, backward = _logit_bytes(share)
    return logits * forward, logits * backward


def _loss(share: Share, model: Transformer) -> Piece:
    """Softmax cross-entropy over a vocabulary cut over the tensor group, in fp32.

    Unfused: conversion, maximum, subtraction, exponential, sum, division: 36 B a logit forward;
    fused: two passes. Backward: subtraction of the target and scale, conversion.
    """
    logits = float(share.tokens * -(-model.vocab // share.tensor))
    e, fused = share.element, share.plan.fused
    passes, moved = (2, 2.0 * e + 4) if fused else (6, e + 34.0)
    forward: list[Kernel | Exchange] = [
        memory("loss", logits * moved / passes, flops=5 * logits / passes, count=passes)
    ]
    if share.tensor > 1:
        forward.append(Exchange("all_reduce", "tensor", share.tokens * 4.0, 3))
    moved = 4.0 + e if fused else 12.0 + e
    backward = memory("loss_backward", logits * moved, flops=2 * logits)
    kept = Saved("softmax_of_logits", logits * _logit_bytes(share)[0])
    return Piece("layer", tuple(forward), (backward,), saved=(kept,))
