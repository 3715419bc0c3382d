"""Explicit layers as pieces: kernels, exchanges, kept tensors and the shape that comes out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import Literal

from mpsim.errors import ScenarioError
from mpsim.spec.model import (
    Activation,
    Conv2d,
    Dropout,
    Embedding,
    Flatten,
    Linear,
    Loss,
    Normalisation,
    Pool,
    Recurrent,
    SelfAttention,
    Traced,
)
from mpsim.workload.attention import Core, attention_core
from mpsim.workload.layers import Exchange, Kernel, Saved
from mpsim.workload.parameters import GATES, network_parameters
from mpsim.workload.pieces import Piece, Product, Steps, linear, memory, norm
from mpsim.workload.sharding import Share
from mpsim.workload.weights import Cut, Weight

Shape = tuple[int, ...]
NetworkCut = Literal["", "column", "row", "first_of_pair", "row_of_pair", "inside", "inner"]
"""Whole; by outputs and gathered; by inputs and summed; the two of a pair; between them; by its
own inner width (heads, state, rows of a table)."""


@dataclass(frozen=True, slots=True)
class Flow:
    """What reaches a layer."""

    shape: Shape  # of one sample, before any cut
    cut: NetworkCut
    kept: bool  # whether autograd keeps the input already
    gradient: bool  # whether the input needs a gradient
    where: str  # dotted path, for complaints

    def need(self, *, axes: int, last: int | None = None, layer: str) -> None:
        """Refuse an input of other rank or width than the layer takes."""
        if len(self.shape) != axes and axes > 0:
            hint = "; put a 'flatten' before it" if axes == 1 else ""
            raise ScenarioError(
                self.where,
                f"{layer} takes {axes} axes, but gets a sample of shape {list(self.shape)}{hint}",
            )
        width = self.shape[0] if layer == "conv2d" else self.shape[-1]
        if last is not None and width != last:
            hint = ""
            if prod(self.shape) == last:
                hint = "; put a 'flatten' before it"
            raise ScenarioError(
                self.where,
                f"{layer} has {last} inputs, but gets a sample of shape {list(self.shape)}{hint}",
            )


def _size(share: Share, shape: Shape, *, cut: bool = False) -> float:
    """Elements of a microbatch of tensors of one shape on this device."""
    return share.batch * prod(shape) / (share.tensor if cut else 1)


def _around(share: Share, piece: Piece, flow: Flow, output: float) -> Piece:
    """The exchanges of a layer that is cut by columns, by rows, or in a pair of both.

    Columns: the outputs are gathered, backward the partial gradients of the input are summed.
    Rows: the partial outputs are summed, backward the gradient of the input is gathered. A pair
    sums once in each direction (arXiv:1909.08053).
    """
    e = share.element
    given = _size(share, flow.shape) * e
    forward: Steps = ()
    backward: Steps = ()
    if flow.cut == "column":
        forward = (Exchange("all_gather", "tensor", output * e),)
    elif flow.cut in ("row", "row_of_pair", "inner"):
        forward = (Exchange("all_reduce", "tensor", output * e),)
    if flow.gradient and flow.cut in ("column", "first_of_pair", "inner"):
        backward = (Exchange("all_reduce", "tensor", given),)
    elif flow.gradient and flow.cut == "row":
        backward = (Exchange("all_gather", "tensor", given),)
    return replace(
        piece,
        forward=(*piece.forward, *forward),
        backward_input=(*piece.backward_input, *backward),
    )


def _matrix_cut(flow: Flow) -> Cut:
    if flow.cut in ("column", "first_of_pair"):
        return "column"
    return "row" if flow.cut in ("row", "row_of_pair") else "none"


def _product(flow: Flow, tokens: int) -> Product:
    return Product(
        tokens, keeps_input=not flow.kept, needs_input_gradient=flow.gradient, quantise=True
    )


def fully_connected(share: Share, layer: Linear, flow: Flow) -> tuple[Piece, Shape]:
    """Y = x Wᵀ + b over the last axis."""
    flow.need(axes=0, last=layer.inputs, layer="linear")
    tokens = share.batch * prod(flow.shape[:-1])
    weight = Weight("linear", layer.inputs, layer.outputs, layer.bias, _matrix_cut(flow))
    shape = (*flow.shape[:-1], layer.outputs)
    piece = linear(share, weight, _product(flow, tokens))
    return _around(share, piece, flow, _size(share, shape)), shape


def convolution(share: Share, layer: Conv2d, flow: Flow) -> tuple[Piece, Shape]:
    """A convolution as the matrix product that it is: (b·H·W) x (k²·inputs/groups) x outputs.

    The input is read once from memory, not k² times.
    """
    flow.need(axes=3, last=layer.inputs, layer="conv2d")
    height, width = (
        _windows(extent, layer.kernel, layer.stride, layer.padding, flow.where)
        for extent in flow.shape[1:]
    )
    shape = (layer.outputs, height, width)
    tokens, groups = share.batch * height * width, layer.groups
    rows = layer.inputs // groups * layer.kernel**2
    weight = Weight("conv2d", rows, layer.outputs // groups, layer.bias, _matrix_cut(flow))
    piece = linear(share, weight, replace(_product(flow, tokens), batch=groups))
    shrink = _size(share, flow.shape) / (tokens * rows * groups)
    saved = tuple(replace(kept, nbytes=kept.nbytes * shrink) for kept in piece.saved)
    return _around(share, replace(piece, saved=saved), flow, _size(share, shape)), shape


def _windows(extent: int, kernel: int, stride: int, padding: int, where: str) -> int:
    """Positions of a window along one axis: ⌊(extent + 2 padding − kernel) / stride⌋ + 1."""
    count = (extent + 2 * padding - kernel) // stride + 1
    if count < 1:
        raise ScenarioError(
            where, f"a window of {kernel} does not fit into {extent} + 2 x {padding}"
        )
    return count


def pooling(share: Share, layer: Pool, flow: Flow) -> tuple[Piece, Shape]:
    """Maximum (keeps input and 8-byte indices) or mean (keeps the input) over windows."""
    flow.need(axes=3, layer=layer.type)
    stride = layer.stride or layer.kernel
    height, width = (
        _windows(extent, layer.kernel, stride, layer.padding, flow.where)
        for extent in flow.shape[1:]
    )
    shape = (flow.shape[0], height, width)
    given, taken = _size(share, flow.shape), _size(share, shape)
    index = 8 * taken if layer.type == "max_pool" else 0.0
    piece = _memory_piece(
        share, flow, layer.type, moved=given + taken, kept=given, extra=index, back=given + taken
    )
    return piece, shape


def _memory_piece(
    share: Share,
    flow: Flow,
    name: str,
    *,
    moved: float,
    kept: float,
    back: float,
    extra: float = 0.0,
) -> Piece:
    """A piece of one memory-bound kernel in each direction.

    ``moved``, ``kept`` and ``back`` count elements, ``extra`` bytes that are written, kept and
    read besides.
    """
    e = share.element
    saved = []
    if kept and not flow.kept:
        saved.append(Saved(f"{name}_input", kept * e))
    if extra:
        saved.append(Saved(f"{name}_mask", extra))
    backward = (memory(f"{name}_backward", back * e + extra),) if flow.gradient else ()
    return Piece(
        "layer", (memory(name, moved * e + extra, flops=moved),), backward, saved=tuple(saved)
    )


def elementwise(share: Share, layer: Activation, flow: Flow) -> tuple[Piece, Shape]:
    """A non-linearity; relu, sigmoid and tanh keep their output, gelu and silu their input."""
    size = _size(share, flow.shape, cut=flow.cut == "inside")
    by_output = layer.type in ("relu", "sigmoid", "tanh")
    own = replace(flow, kept=False) if by_output else flow
    piece = _memory_piece(share, own, layer.type, moved=2 * size, kept=size, back=3 * size)
    if by_output:
        renamed = tuple(
            replace(kept, name=kept.name.replace("input", "output")) for kept in piece.saved
        )
        piece = replace(piece, saved=renamed)
    return piece, flow.shape


def dropout(share: Share, layer: Dropout, flow: Flow) -> tuple[Piece, Shape]:
    """Random zeroing with a mask of 1 B an element; a probability of 0 does nothing."""
    if not layer.probability:
        return Piece("layer"), flow.shape
    size = _size(share, flow.shape, cut=flow.cut == "inside")
    own = replace(flow, kept=True)
    piece = _memory_piece(share, own, "dropout", moved=2 * size, kept=0, back=2 * size, extra=size)
    return piece, flow.shape


def normalisation(share: Share, layer: Normalisation, flow: Flow) -> tuple[Piece, Shape]:
    """Norm over the last axis, or by channel over the batch."""
    width = flow.shape[0] if layer.type == "batch_norm" else flow.shape[-1]
    if width != layer.features:
        raise ScenarioError(
            flow.where,
            f"{layer.type} has {layer.features} features, but gets a sample of shape "
            f"{list(flow.shape)}",
        )
    weight = Weight(layer.type, 1, layer.features, layer.type != "rms_norm")
    tokens = round(_size(share, flow.shape) / layer.features)
    piece = norm(share, weight, name=layer.type, tokens=tokens, part="layer")
    if flow.kept:
        piece = replace(piece, saved=tuple(s for s in piece.saved if "input" not in s.name))
    return (piece if flow.gradient else replace(piece, backward_input=())), flow.shape


def embedding(share: Share, layer: Embedding, flow: Flow) -> tuple[Piece, Shape]:
    """Table look-up; keeps the tokens (8 B each); cut by rows, the parts are summed."""
    flow.need(axes=1, layer="embedding")
    shape, e = (*flow.shape, layer.width), share.element
    size, tokens = _size(share, shape), _size(share, flow.shape)
    parameters = layer.rows * layer.width / (share.tensor if flow.cut == "inner" else 1)
    step = memory("embedding", 2 * size * e + 8 * tokens)
    table = parameters * (e + 2.0 * share.gradient_element)
    back = memory("embedding_backward", 3 * size * e + table)
    saved = (Saved("tokens", 8 * tokens),)
    piece = Piece("layer", (step,), (), (back,), saved, parameters)
    return _around(share, piece, replace(flow, gradient=False), size), shape


def flatten(share: Share, layer: Flatten, flow: Flow) -> tuple[Piece, Shape]:
    """All axes into one; a view."""
    return Piece("layer"), (prod(flow.shape),)


def recurrent(share: Share, layer: Recurrent, flow: Flow) -> tuple[Piece, Shape]:
    """One product over all steps for the inputs, then a small product and gates at each step.

    Kept are the gates and states of every step. Cut by its state, each step gathers the state and
    backward sums its gradient.
    """
    flow.need(axes=2, last=layer.inputs, layer=layer.type)
    steps, gates = flow.shape[0], GATES[layer.type]
    degree = share.tensor if flow.cut == "inner" else 1
    state = layer.hidden // degree
    cut: Cut = "column" if degree > 1 else "none"
    entry = Weight(f"{layer.type}_input", layer.inputs, gates * layer.hidden, layer.bias, cut)
    first = linear(share, entry, _product(flow, share.batch * steps))
    inner = Weight(f"{layer.type}_state", layer.hidden, gates * layer.hidden, layer.bias, cut)
    turn = linear(share, inner, Product(share.batch, needs_input_gradient=True))
    size, e = float(share.batch * state), share.element
    each = memory(f"{layer.type}_gates", (2 * gates + 2) * size * e, flops=8 * gates * size)
    back = memory(f"{layer.type}_gates_backward", (3 * gates + 2) * size * e)
    gather: Steps = ()
    reduce: Steps = ()
    if degree > 1:
        whole = float(share.batch * layer.hidden * e)
        gather = (Exchange("all_gather", "tensor", whole, steps),)
        reduce = (Exchange("all_reduce", "tensor", whole, steps),)
    kept = Saved(f"{layer.type}_gates", size * e * (gates + 1) * steps)
    piece = Piece(
        "layer",
        (*first.forward, *_repeat((*turn.forward, each), steps), *gather),
        (*_repeat((back, *turn.backward_input), steps), *reduce, *first.backward_input),
        (*_repeat(turn.backward_weight, steps), *first.backward_weight),
        (*first.saved, kept),
        first.parameters + turn.parameters,
    )
    return piece, (steps, layer.hidden)


def _repeat(steps: Steps, count: int) -> Steps:
    return tuple(
        replace(step, count=step.count * count) if isinstance(step, Kernel) else step
        for step in steps
    )


def attention(share: Share, layer: SelfAttention, flow: Flow) -> tuple[Piece, Shape]:
    """Projections, attention core, output projection; cut by heads, the outputs are summed."""
    flow.need(axes=2, last=layer.width, layer="attention")
    if layer.width % layer.heads:
        raise ScenarioError(
            flow.where, f"width ({layer.width}) is not a multiple of heads ({layer.heads})"
        )
    degree = share.tensor if flow.cut == "inner" else 1
    steps, heads = flow.shape[0], layer.heads // degree
    width = layer.width // layer.heads
    core = Core(
        share.batch, heads, heads, steps, steps, width, width, causal=layer.causal, window=None
    )
    column: Cut = "column" if degree > 1 else "none"
    row: Cut = "row" if degree > 1 else "none"
    tokens = share.batch * steps
    entry = Weight("qkv", layer.width, 3 * layer.width, layer.bias, column)
    exit_ = Weight("attention_output", layer.width, layer.width, layer.bias, row)
    first = linear(share, entry, _product(flow, tokens))
    middle = attention_core(share, core)
    last = linear(share, exit_, Product(tokens))
    again = share.plan.recompute == "selective" and "core_attention" in share.plan.recompute_modules
    dropped = ("core_attention",) if again else ()
    saved = (*first.saved, *middle.saved, *last.saved)
    piece = Piece(
        "layer",
        (*first.forward, *middle.forward, *last.forward),
        (
            *last.backward_input,
            *(middle.forward if again else ()),
            *middle.backward_input,
            *first.backward_input,
        ),
        (*last.backward_weight, *first.backward_weight),
        tuple(kept for kept in saved if kept.part not in dropped),
        first.parameters + last.parameters,
    )
    return _around(share, piece, flow, _size(share, flow.shape)), flow.shape


def loss(share: Share, layer: Loss, flow: Flow) -> tuple[Piece, Shape]:
    """Softmax (keeps its output), or a loss (keeps its input, or its log-softmax) to one number."""
    size = _size(share, flow.shape)
    own = replace(flow, kept=False) if layer.type in ("softmax", "cross_entropy") else flow
    targets = 0.0
    if layer.type == "cross_entropy":
        targets = 8 * _size(share, flow.shape[:-1])
    elif layer.type != "softmax":
        targets = size * share.element
    piece = _memory_piece(
        share, own, layer.type, moved=2 * size, kept=size, back=3 * size, extra=targets
    )
    return piece, flow.shape if layer.type == "softmax" else (1,)


def traced(share: Share, layer: Traced, flow: Flow) -> tuple[Piece, Shape]:
    """A traced module: its FLOP as one matrix product of unknown shape, its bytes as they are.

    Backward takes the same again for the input and, where there are parameters, for them.
    """
    e, batch = share.element, share.batch
    moved = (layer.moved_elements * batch + layer.parameters) * e / layer.kernels
    flops = float(layer.forward_flops * batch) / layer.kernels
    forward = Kernel(
        "traced", "memory", flops, moved, precision=share.precision, count=layer.kernels
    )
    back = replace(forward, name="traced_backward")
    weight = (replace(forward, name="traced_wgrad"),) if layer.parameters else ()
    saved = (Saved("traced", float(layer.saved_elements * batch * e)),)
    piece = Piece(
        "layer",
        (forward,),
        (back,) if flow.gradient else (),
        weight,
        saved if layer.saved_elements else (),
        float(network_parameters(layer)),
    )
    return piece, tuple(layer.output)
