"""The dense multi-layer perceptron of a transformer layer."""

from __future__ import annotations

from mpsim.spec.model import Transformer
from mpsim.workload.layers import Saved
from mpsim.workload.pieces import Piece, Product, column_parallel, linear, memory, row_parallel
from mpsim.workload.sharding import Share
from mpsim.workload.weights import mlp_weights

ACTIVATION_FLOPS = 8.0
"""FLOP an element of GELU (tanh form: Hendrycks and Gimpel, arXiv:1606.08415) or SiLU, about."""


def mlp_block(share: Share, model: Transformer, width: int, *, part: str = "mlp") -> list[Piece]:
    """Up (and gate) projection by columns, activation, down projection by rows."""
    up, down = mlp_weights(model, width)
    tokens = share.tokens
    nbytes = float(tokens * model.hidden * share.element)
    first = linear(share, up, Product(tokens, part=part, input_part="layernorm"))
    last = linear(share, down, Product(tokens, part=part, input_part=part))
    return [
        column_parallel(share, first, nbytes=nbytes, name="mlp_up"),
        activation(share, model, tokens * width // share.tensor, part=part),
        row_parallel(share, last, nbytes=nbytes, name="mlp_down"),
    ]


def activation(share: Share, model: Transformer, elements: int, *, part: str) -> Piece:
    """The non-linearity of ``elements`` outputs; gated, it reads two inputs for each.

    Fused with the bias and the gate it is one pass that keeps its input alone; unfused and gated
    it is two passes, the non-linearity's output kept as well.
    """
    e, inputs = share.element, 2 if model.gated_mlp else 1
    nbytes, flops = float(elements * e), ACTIVATION_FLOPS * elements
    saved = [Saved("activation_input", inputs * nbytes, _kept_part(part))]
    if share.plan.fused or not model.gated_mlp:
        forward = [memory("activation", (inputs + 1) * nbytes, flops=flops)]
        backward = [memory("activation_backward", (2 * inputs + 1) * nbytes, flops=flops)]
    else:
        forward = [memory("activation", 2 * nbytes, flops=flops), memory("gate", 3 * nbytes)]
        backward = [
            memory("gate_backward", 5 * nbytes),
            memory("activation_backward", 3 * nbytes, flops=flops),
        ]
        saved.append(Saved("activation_output", nbytes, part))
    return Piece(part, tuple(forward), tuple(backward), saved=tuple(saved))


def _kept_part(part: str) -> str:
    """What recomputes the activation's input: recomputing ``moe_act`` alone keeps it."""
    return "experts" if part == "moe_act" else part


def but_input(piece: Piece) -> tuple[Saved, ...]:
    """What a piece keeps but its normalised input, which another piece keeps already."""
    return tuple(saved for saved in piece.saved if saved.name != "mlp_up_input")
