"""The pieces that layers are made of: matrix products, normalisations, elementwise passes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mpsim.workload.layers import Exchange, Kernel, Saved
from mpsim.workload.sharding import Share
from mpsim.workload.weights import Weight

Steps = tuple[Kernel | Exchange, ...]


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a layer, with what its passes run and what autograd keeps for it."""

    part: str  # what selective recomputation calls it; "layer": never recomputed alone
    forward: Steps = ()
    backward_input: Steps = ()
    backward_weight: Steps = ()
    saved: tuple[Saved, ...] = ()
    parameters: float = 0.0
    expert_parameters: float = 0.0


def memory(name: str, nbytes: float, *, flops: float = 0.0, count: int = 1) -> Kernel:
    """A kernel bound by the bytes that it moves; ``nbytes`` and ``flops`` are of one launch."""
    return Kernel(name, "memory", flops, nbytes, precision="fp32", count=count)


def gemm(
    name: str,
    shape: tuple[int, int, int, int],
    precision: str,
    *,
    nbytes: float,
    count: int = 1,
) -> Kernel:
    """A (batched) matrix product of 2·batch·m·n·k FLOP."""
    batch, m, n, k = shape
    return Kernel(name, "gemm", 2.0 * batch * m * n * k, nbytes, shape, precision, count)


@dataclass(frozen=True, slots=True)
class Product:
    """How a linear layer is run, apart from its weight."""

    tokens: int
    part: str = "layer"
    input_part: str = "layer"  # part that recomputes the input; dropped with it
    quantise: bool = True  # whether a low-precision recipe covers it
    batch: int = 1  # equal matrices on this device, each with ``tokens`` rows (grouped experts)
    keeps_input: bool = True
    needs_input_gradient: bool = True


def linear(share: Share, weight: Weight, product: Product, *, tensor: int = 0) -> Piece:
    """Y = x Wᵀ + b with its two backward products.

        forward [m,k]·[k,n], for the input [m,n]·[n,k], for the weight [n,m]·[m,k]

    m tokens, k inputs and n outputs on this device. Autograd keeps x. The product for the weight
    adds into the stored gradient (read and written in its type) where the framework fuses this,
    else a pass of its own adds it when there is more than one microbatch. Under 8-bit and 4-bit
    recipes x, dy and (once a step) W are cast, row-wise and transposed, by passes of their own,
    and x is kept in the small type. Under torch.autocast W is cast in each forward pass, and its
    gradient back (6 B an element each).

    Args:
        share: The sizes on this device.
        weight: The matrix; its ``count`` is not used, ``product.batch`` is.
        product: Tokens and what recomputation calls it.
        tensor: Degree it is cut over, if not the plan's.
    """
    degree = tensor or share.tensor
    k = weight.inputs // (degree if weight.cut == "row" else 1)
    n = -(-weight.outputs // (degree if weight.cut == "column" else 1))
    m, batch, name = product.tokens, product.batch, weight.name
    quantised = share.quantised and product.quantise
    precision = share.precision if quantised else share.wide_precision
    small, wide = (share.matrix_element if quantised else share.element), share.element
    matrix = n * k
    forward: list[Kernel] = []
    if quantised:
        forward.append(memory(f"{name}_cast", batch * m * k * (wide + 2 * small)))
        step = batch * matrix * (wide + 2 * small) / share.microbatches
        forward.append(memory(f"{name}_cast_weight", step))
    elif share.casts_weights:
        forward.append(memory(f"{name}_cast_weight", 6.0 * batch * matrix))
    moved = batch * (small * (m * k + matrix) + wide * m * n)
    forward.append(gemm(name, (batch, m, n, k), precision, nbytes=moved))
    if weight.bias and not share.plan.fused:
        forward.append(memory(f"{name}_bias", 2.0 * batch * m * n * wide))
    backward: list[Kernel] = []
    if quantised:
        backward.append(memory(f"{name}_cast_gradient", batch * m * n * (wide + 2 * small)))
    if product.needs_input_gradient:
        moved = batch * (small * (m * n + matrix) + wide * m * k)
        backward.append(gemm(f"{name}_dgrad", (batch, m, k, n), precision, nbytes=moved))
    return Piece(
        product.part,
        tuple(forward),
        tuple(backward),
        _weight_gradient(share, weight, product, (batch, n, k, m), precision),
        (_kept(name, batch * m * k * small, product.input_part),) if product.keeps_input else (),
        batch * (matrix + (n if weight.bias else 0)),
    )


def _kept(name: str, nbytes: float, part: str) -> Saved:
    return Saved(f"{name}_input", float(nbytes), part)


def _weight_gradient(
    share: Share,
    weight: Weight,
    product: Product,
    shape: tuple[int, int, int, int],
    precision: str,
) -> Steps:
    """Product for the weight, its accumulation, and the column sums for the bias."""
    batch, n, k, m = shape
    quantised = precision == share.precision and share.quantised
    small = share.matrix_element if quantised else share.element
    stored, matrix = share.gradient_element, batch * n * k
    out = 2 * stored if share.fuses_accumulation else share.element
    steps = [
        gemm(
            f"{weight.name}_wgrad",
            shape,
            precision,
            nbytes=batch * small * m * (n + k) + out * matrix,
        )
    ]
    if share.casts_weights and not quantised:
        steps.append(memory(f"{weight.name}_cast_weight_gradient", 6.0 * matrix))
    if not share.fuses_accumulation and share.microbatches > 1:
        steps.append(memory(f"{weight.name}_accumulate", matrix * (share.element + 2.0 * stored)))
    if weight.bias:
        steps.append(memory(f"{weight.name}_bias_gradient", float(batch * m * n * share.element)))
    return tuple(steps)


def norm(share: Share, weight: Weight, *, name: str, tokens: int, part: str = "layernorm") -> Piece:
    """Normalisation of ``tokens`` rows: reads and writes each once, backward reads two, writes one.

    Autograd keeps the input and the statistics (mean and reciprocal deviation of a layer norm,
    the latter of an rms norm, fp32). Unfused, an rms norm is six elementwise passes, four of them
    in fp32 (square, mean, scale, two casts, weight), and keeps its fp32 copy; a layer norm is one
    kernel in every framework.
    """
    elements = float(tokens * weight.outputs)
    e, shifted = share.element, weight.bias
    split = not share.plan.fused and not shifted
    kept = [
        Saved(f"{name}_input", elements * e, "layer"),
        Saved(f"{name}_statistics", tokens * (8.0 if shifted else 4.0), "layer"),
    ]
    if split and e < 4:
        kept.append(Saved(f"{name}_fp32", elements * 4, "layer"))
    passes = 6 if split else 1
    back = elements * 3 * e * (2 if split else 1) / passes
    forward = memory(name, elements * ((2 * e + 20) / 6 if split else 2 * e), count=passes)
    return Piece(
        part,
        (replace(forward, flops=5 * elements / passes),),
        (memory(f"{name}_backward", back, count=passes),),
        (memory(f"{name}_weight_gradient", elements * 2 * e),),
        tuple(kept),
        float((1 + shifted) * weight.outputs),
    )


def residual(share: Share, *, name: str, tokens: int, hidden: int, dropout: float) -> Piece:
    """Dropout and addition to the residual stream; the mask (1 B an element) is kept.

    Backward, the gradients of the two branches are added.
    """
    elements, e = float(tokens * hidden), share.element
    mask = elements if dropout else 0.0
    forward: Steps = (memory(f"{name}_add", 3 * elements * e + mask),)
    if dropout and not share.plan.fused:
        forward = (
            memory(f"{name}_dropout", 2 * elements * e + mask),
            memory(f"{name}_add", 3 * elements * e),
        )
    backward = [memory(f"{name}_gradient_add", 3 * elements * e)]
    if dropout:
        backward.insert(0, memory(f"{name}_dropout_backward", 2 * elements * e + mask))
    kept = (Saved(f"{name}_dropout_mask", mask, "layer"),) if dropout else ()
    return Piece("layer", forward, tuple(backward), saved=kept)


def exchanged(
    piece: Piece,
    *,
    forward: Sequence[Exchange] = (),
    ahead: Sequence[Exchange] = (),
    backward: Sequence[Exchange] = (),
    backward_ahead: Sequence[Exchange] = (),
) -> Piece:
    """The piece with exchanges after (``forward``) and before (``ahead``) its passes."""
    return replace(
        piece,
        forward=(*ahead, *piece.forward, *forward),
        backward_input=(*backward_ahead, *piece.backward_input, *backward),
    )


def column_parallel(share: Share, piece: Piece, *, nbytes: float, name: str) -> Piece:
    """Exchanges around a matrix cut by columns (arXiv:1909.08053; 2205.05198, section 4.2.2).

    Without sequence parallelism the gradient of the input is all-reduced, beside the product for
    the weight. With it the input is gathered, gathered again for the weight's product (beside the
    product for the input), and the input's gradient reduce-scattered (beside the weight's). torch's
    autograd keeps the gathered input instead.

    Args:
        share: The sizes on this device.
        piece: The linear layer.
        nbytes: The whole input, b s/c h, in bytes.
        name: Name of its matrix product.
    """
    if share.tensor == 1:
        return piece
    behind = f"{name}_wgrad"
    if not share.plan.sequence_parallel:
        return exchanged(piece, backward=[Exchange("all_reduce", "tensor", nbytes, beside=behind)])
    ahead = name if share.plan.overlap_tensor else ""
    again = [Exchange("all_gather", "tensor", nbytes, beside=f"{name}_dgrad")]
    return exchanged(
        cut_along_sequence(share, piece),
        ahead=[Exchange("all_gather", "tensor", nbytes, beside=ahead)],
        backward_ahead=again if share.fuses_accumulation else [],
        backward=[Exchange("reduce_scatter", "tensor", nbytes, beside=behind)],
    )


def row_parallel(share: Share, piece: Piece, *, nbytes: float, name: str) -> Piece:
    """Exchanges around a matrix cut by rows: the partial outputs are summed.

    By an all-reduce, or under sequence parallelism by a reduce-scatter whose backward gathers the
    gradient of the output. Both are exposed unless the plan overlaps tensor parallelism.
    """
    if share.tensor == 1:
        return piece
    beside = name if share.plan.overlap_tensor else ""
    if not share.plan.sequence_parallel:
        return exchanged(piece, forward=[Exchange("all_reduce", "tensor", nbytes, beside=beside)])
    back = f"{name}_dgrad" if share.plan.overlap_tensor else ""
    return exchanged(
        piece,
        forward=[Exchange("reduce_scatter", "tensor", nbytes, beside=beside)],
        backward_ahead=[Exchange("all_gather", "tensor", nbytes, beside=back)],
    )


def cut_along_sequence(share: Share, piece: Piece) -> Piece:
    """The piece whose kept inputs are those of this device's part of the sequence only (Megatron).

    torch's autograd keeps the gathered input: the piece as it is.
    """
    if not share.fuses_accumulation:
        return piece
    kept = tuple(replace(saved, nbytes=saved.nbytes / share.tensor) for saved in piece.saved)
    return replace(piece, saved=kept)
