"""The attention block: projections, rotary positions, the attention core and its exchanges."""

from __future__ import annotations

from dataclasses import dataclass, replace

from mpsim.spec.model import LatentAttention, Transformer
from mpsim.workload.layers import Exchange, Kernel, Saved
from mpsim.workload.pieces import (
    Piece,
    Product,
    Steps,
    column_parallel,
    linear,
    memory,
    norm,
    row_parallel,
)
from mpsim.workload.sharding import Share
from mpsim.workload.weights import Weight, attention_weights


@dataclass(frozen=True, slots=True)
class Core:
    """Sizes of the attention core on one device."""

    batch: int
    heads: int
    kv_heads: int
    sequence: int  # tokens of a sample on this device
    keys: int  # tokens of a sample
    qk_dim: int
    v_dim: int
    causal: bool
    window: int | None

    @property
    def tokens(self) -> int:
        """Query tokens on this device."""
        return self.batch * self.sequence

    @property
    def query(self) -> int:
        """Elements of the queries."""
        return self.tokens * self.heads * self.qk_dim

    @property
    def key_value(self) -> int:
        """Elements of keys and values of this device's tokens."""
        return self.tokens * self.kv_heads * (self.qk_dim + self.v_dim)

    @property
    def output(self) -> int:
        """Elements of the output."""
        return self.tokens * self.heads * self.v_dim

    @property
    def pairs(self) -> float:
        """Pairs of a query and a key that a kernel without masked work visits, all heads.

        s² of a sample; causal half of it; with a window w each query sees w keys at most:
        w s − w²/2 causal, else min(s, 2w) s. Divided evenly over the context group, as the
        zig-zag order of causal context parallelism does.
        """
        s, w = self.keys, self.window
        if w is None or w >= s:
            pairs = s * s / 2 if self.causal else s * s
        else:
            pairs = w * s - w * w / 2 if self.causal else min(s, 2 * w) * s
        return self.batch * self.heads * pairs * self.sequence / s


def core_sizes(share: Share, model: Transformer) -> Core:
    """Heads, tokens and widths that this device's attention core works on."""
    latent = model.latent_attention
    kv_heads = model.heads if latent else model.kv_head_count
    return Core(
        batch=share.batch,
        heads=model.heads // share.tensor,
        kv_heads=kv_heads // (share.tensor if latent else share.kv_cut(model)),
        sequence=share.sequence,
        keys=share.training.sequence,
        qk_dim=latent.qk_nope_head_dim + latent.qk_rope_head_dim if latent else model.head_width,
        v_dim=latent.v_head_dim if latent else model.head_width,
        causal=model.causal,
        window=model.window,
    )


def attention_block(share: Share, model: Transformer) -> list[Piece]:
    """Pieces of the attention block from its projections to its output, norms of the block apart.

    Heads are cut over the tensor group (arXiv:1909.08053): projections of queries, keys and
    values by columns, the output's by rows; key-value heads are repeated where the degree exceeds
    their number.
    """
    core = core_sizes(share, model)
    if model.latent_attention:
        pieces = _latent_projections(share, model, model.latent_attention)
    else:
        pieces = _projections(share, model, core)
    output = next(w for w in attention_weights(model) if w.name == "attention_output")
    last = linear(share, output, Product(share.tokens))
    nbytes = float(share.tokens * model.hidden * share.element)
    return [
        *pieces,
        attention_core(
            share,
            core,
            dropout=model.dropout,
            part="mla_up_proj" if model.latent_attention else "layer",
        ),
        row_parallel(share, last, nbytes=nbytes, name="attention_output"),
    ]


def _projections(share: Share, model: Transformer, core: Core) -> list[Piece]:
    """One fused product for queries, keys and values, norms of heads, rotary positions."""
    query, key_value, *others = attention_weights(model)
    repeated = key_value.outputs * share.tensor // share.kv_cut(model)
    fused = Weight("qkv", query.inputs, query.outputs + repeated, query.bias, "column")
    piece = linear(share, fused, Product(share.tokens, input_part="layernorm"))
    nbytes = float(share.tokens * model.hidden * share.element)
    pieces = [column_parallel(share, piece, nbytes=nbytes, name="qkv")]
    rotated = core.query + core.key_value // 2
    if model.qk_norm:
        rows = rotated // model.head_width
        scale = Weight("qk_norm", 1, model.head_width, others[-1].bias)
        normed = norm(share, scale, name="qk_norm", tokens=rows)
        pieces.append(Piece(*_but_parameters(normed), 2 * normed.parameters))
    if model.position == "rope":
        pieces.append(_rotary(share, rotated))
    return pieces


def _but_parameters(piece: Piece) -> tuple[str, Steps, Steps, Steps, tuple[Saved, ...]]:
    return (
        piece.part,
        piece.forward,
        piece.backward_input,
        piece.backward_weight,
        piece.saved,
    )


def _rotary(share: Share, elements: int) -> Piece:
    """Rotation of queries and keys in place of a copy; unfused it is five elementwise passes."""
    passes = 1 if share.plan.fused else 5
    nbytes = 2.0 * elements * share.element * (1 if passes == 1 else 1.2)
    step = memory("rotary", nbytes, flops=6.0 * elements / passes, count=passes)
    back = memory("rotary_backward", nbytes, flops=6.0 * elements / passes, count=passes)
    return Piece("layer", (step,), (back,))


def _latent_projections(share: Share, model: Transformer, latent: LatentAttention) -> list[Piece]:
    """Down projections (whole on each device, on its own tokens), norms, up projections.

    Under sequence parallelism the latents, not the hidden states, are gathered. Queries and keys
    are then assembled from their parts with and without rotary positions.
    """
    weights = {weight.name: weight for weight in attention_weights(model)}
    tokens, between = share.tokens, share.tokens_between
    pieces = []
    for name in ("query", "kv"):
        up = weights[f"{name}_up"]
        down = weights.get(f"{name}_down")
        if down:
            product = Product(between, input_part="layernorm", keeps_input=name == "kv")
            pieces.append(linear(share, down, product))
            pieces.append(norm(share, weights[f"{name}_norm"], name=f"{name}_norm", tokens=between))
        part = "layernorm" if down else "layer"
        raised = linear(share, up, Product(tokens, part="mla_up_proj", input_part=part))
        nbytes = float(tokens * up.inputs * share.element)
        pieces.append(column_parallel(share, raised, nbytes=nbytes, name=up.name))
    rope = tokens * (model.heads // share.tensor) * 2 * latent.qk_rope_head_dim
    assembled = tokens * (model.heads // share.tensor) * 2 * latent.qk_nope_head_dim
    return [*pieces, _rotary(share, rope + assembled)]


def attention_core(share: Share, core: Core, *, dropout: float = 0.0, part: str = "layer") -> Piece:
    """The attention core with what it keeps and, under context parallelism, its exchanges.

    Queries, keys and values are kept in any case, and belong to ``part``.
    """
    flash = share.plan.attention == "flash"
    forward, backward = _flash(share, core) if flash else _math(share, core, dropout)
    kept = float((core.query + core.key_value) * share.element)
    saved = [Saved("query_key_value", kept, part)]
    if flash:
        lse = 4.0 * core.tokens * core.heads
        saved.append(Saved("softmax_statistics", lse, "core_attention"))
        if share.quantised:
            saved.append(Saved("attention_output", float(core.output * share.element)))
    else:
        saved += _scores(share, core, dropout)
    if share.plan.context > 1:
        ahead, after, back, back_after = _context(share, core)
        forward = (*ahead, *forward, *after)
        backward = (*back, *backward, *back_after)
    return Piece("core_attention", forward, backward, saved=tuple(saved))


def _scores(share: Share, core: Core, dropout: float) -> list[Saved]:
    """The score matrices that unfused attention keeps: a·s²·b elements each.

    The softmax's output; with dropout its mask (1 B) and its output too (Korthikanti et al.,
    arXiv:2205.05198, section 4.1: 5 a s² b bytes in 16 bits).
    """
    scores = float(core.tokens * core.heads * core.keys)
    kept = [Saved("softmax_output", scores * share.element, "core_attention")]
    if dropout:
        kept.append(Saved("softmax_dropout_mask", scores, "core_attention"))
        kept.append(Saved("softmax_dropout_output", scores * share.element, "core_attention"))
    return kept


def _flash(share: Share, core: Core) -> tuple[Steps, Steps]:
    """Fused attention (Dao, arXiv:2205.14135, 2307.08691): 4 d FLOP a pair, backward 2.5 times.

    It reads queries, keys and values and writes the output; backward reads these, the output and
    its gradient, and writes three gradients. Under ring context parallelism it is one kernel for
    each block of keys that passes; under all-to-all the heads, not the tokens, are divided.
    """
    degree = share.plan.context
    ring = degree > 1 and share.plan.context_exchange == "ring"
    ulysses = degree > 1 and share.plan.context_exchange == "all_to_all"
    count = degree if ring else 1
    queries = core.keys if ulysses else core.sequence
    keys = core.sequence if ring else core.keys
    heads = core.heads // degree if ulysses else core.heads
    kv_heads = max(1, core.kv_heads // degree) if ulysses else core.kv_heads
    keys = min(keys, core.window) if core.window else keys
    shape = (core.batch, heads, kv_heads, queries, keys, core.qk_dim)
    flops = 2.0 * core.pairs * (core.qk_dim + core.v_dim) / count
    read = share.element * (core.query + core.key_value * (degree // count) + core.output)
    forward = Kernel(
        "attention",
        "attention",
        flops,
        float(read),
        shape,
        share.wide_precision,
        count,
        core.causal,
    )
    moved = 2.0 * read + core.output * share.element
    backward = replace(
        forward, name="attention_backward", flops=2.5 * flops, nbytes=moved, backward=True
    )
    return (forward,), (backward,)


def _math(share: Share, core: Core, dropout: float) -> tuple[Steps, Steps]:
    """Unfused attention: two batched products and a softmax, nothing of the mask skipped."""
    e, batch = share.element, core.batch * core.heads
    scores = float(core.tokens * core.heads * core.keys)
    keys = core.batch * core.heads * core.keys
    qk, pv = (core.qk_dim, core.v_dim)

    def product(name: str, shape: tuple[int, int, int], moved: float) -> Kernel:
        m, n, k = shape
        flops = 2.0 * batch * m * n * k
        return Kernel(name, "gemm", flops, moved, (batch, m, n, k), share.wide_precision)

    q, s = core.sequence, core.keys
    first = e * (core.query + keys * qk + scores)
    second = e * (core.output + keys * pv + scores)
    forward: list[Kernel] = [
        product("attention_scores", (q, s, qk), first),
        *_softmax(share, core),
        product("attention_values", (q, pv, s), second),
    ]
    backward: list[Kernel] = [
        product("attention_values_dgrad", (q, s, pv), second),
        product("attention_values_wgrad", (s, pv, q), second),
        *_softmax_backward(share, core),
        product("attention_scores_dgrad", (q, qk, s), first),
        product("attention_scores_wgrad", (s, qk, q), first),
    ]
    if dropout:
        forward.insert(-1, memory("softmax_dropout", scores * (2 * e + 1)))
        backward.insert(2, memory("softmax_dropout_backward", scores * (2 * e + 1)))
    return tuple(forward), tuple(backward)


def _fuses_softmax(share: Share, core: Core) -> bool:
    """Whether scale, mask and softmax are one kernel.

    Megatron's kernel takes 16-bit scores only, and as many score matrices (samples x heads on the
    device) as its blocks of four warps divide (megatron/fused_kernels, fused_softmax.py:
    ``is_kernel_available``, 2021).
    """
    return share.plan.fused and share.element == 2 and core.batch * core.heads % 4 == 0


def _softmax(share: Share, core: Core) -> list[Kernel]:
    """Scale, mask and softmax in one kernel, or each in its own, 16-bit scores as fp32 between."""
    e, scores = share.element, float(core.tokens * core.heads * core.keys)
    if _fuses_softmax(share, core):
        return [memory("softmax", 2 * scores * e, flops=5 * scores)]
    casts = [memory("scores_cast", scores * (e + 4))] if e < 4 else []
    return [
        *casts,
        memory("scores_scale", 8 * scores, flops=scores),
        memory("scores_mask", 8 * scores),
        memory("softmax", 8 * scores, flops=4 * scores),
        *casts,
    ]


def _softmax_backward(share: Share, core: Core) -> list[Kernel]:
    """The same backwards: the softmax reads its output and the gradient."""
    e, scores = share.element, float(core.tokens * core.heads * core.keys)
    if _fuses_softmax(share, core):
        return [memory("softmax_backward", 3 * scores * e, flops=4 * scores)]
    casts = [memory("scores_cast_backward", scores * (e + 4))] if e < 4 else []
    return [
        *casts,
        memory("softmax_backward", 12 * scores, flops=4 * scores),
        memory("scores_mask_backward", 8 * scores),
        memory("scores_scale_backward", 8 * scores, flops=scores),
        *casts,
    ]


Exchanges = tuple[Exchange, ...]


def _context(share: Share, core: Core) -> tuple[Exchanges, Exchanges, Exchanges, Exchanges]:
    """Exchanges before and after the core, forward and backward, over the context group.

    - ring: keys and values pass c − 1 times, beside the attention of the block before; backward
      they pass again, and their gradients with them (arXiv:2310.01889).
    - all_gather: keys and values are gathered, and again backward, where the gradients are
      reduce-scattered (Llama 3, arXiv:2407.21783, section 3.3.2).
    - all_to_all: queries, keys, values before, the output after; backward mirrors it (Ulysses,
      arXiv:2309.14509).
    """
    degree, e = share.plan.context, share.element
    kv = float(core.key_value * e)
    kind = share.plan.context_exchange
    if kind == "ring":
        ahead = (Exchange("send", "context", kv, degree - 1, beside="attention"),)
        back = (Exchange("send", "context", 2 * kv, degree - 1, beside="attention_backward"),)
        return ahead, (), back, ()
    if kind == "all_gather":
        gather = (Exchange("all_gather", "context", kv * degree),)
        return gather, (), gather, (Exchange("reduce_scatter", "context", kv * degree),)
    before = (
        Exchange("all_to_all", "context", float(core.query * e)),
        Exchange("all_to_all", "context", kv / 2, 2),
    )
    after = (Exchange("all_to_all", "context", float(core.output * e)),)
    return before, after, after, before
