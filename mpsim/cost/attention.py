"""How long fused (flash) attention takes, forward and backward."""

from __future__ import annotations

import numpy as np

from mpsim.cost.surface import surface_factor
from mpsim.cost.work import Floats
from mpsim.spec.profile import AttentionFit


def attention_pairs(queries: Floats, keys: Floats, causal: Floats) -> Floats:
    """Pairs of a query and a key that attention looks at.

    All of them, or with causality, where the last query sees all keys, keys - (queries - 1) / 2
    for the mean query; benchmarks count queries x keys / 2, half a diagonal less.

    >>> attention_pairs(np.array([4.0]), np.array([4.0]), np.array([True]))
    array([8.])
    """
    seen = np.maximum(keys - queries / 2, keys / 2)
    return queries * np.where(causal, seen, keys)


def attention_seconds(
    shape: Floats,
    causal: Floats,
    backward: Floats,
    fit: AttentionFit,
    *,
    peak: float,
    bandwidth: float,
    multiprocessors: float,
    clock: float = 1.0,
) -> Floats:
    """Seconds of one call of fused attention in 16 bits for each shape.

    A work item is a tile of queries of one head of one sample; with S multiprocessors,

        items   = batch heads ceil(queries / tile)
        waves   = max(1, (1 - wave) items / S + wave ceil(items / S))
        work    = 4 tile head_dim max(waves (keys seen by the mean item + prologue),
                                      keys seen by the longest item + prologue)
        compute = work / (peak_fraction(head_dim) peak / S), and grouped more for shared keys
        seconds = floor + max(compute, memory), times the correction

    The backward takes ``backward_flops / backward_efficiency`` times the forward. Dropout, biases
    and windows are not counted: a window is a shorter row of keys. Never faster than the FLOPs at
    the peak rate or the bytes of queries, keys, values and result at the full bandwidth.

    Args:
        shape: (K, 6) batch, heads, kv_heads, queries, keys, head_dim.
        causal: (K,) whether a query sees earlier keys only.
        backward: (K,) whether it is the backward call.
        fit: Parameters.
        peak: Dense bf16 peak rate, FLOP/s.
        bandwidth: Data sheet rate of the device memory, B/s.
        multiprocessors: Number of them, S.
        clock: Sustained rate over that of a short benchmark.

    Returns:
        Seconds, (K,).

    Source:
        Dao, "FlashAttention-2", arXiv:2307.08691; Shah et al., "FlashAttention-3",
        arXiv:2407.08608.
    """
    batch, heads, kv_heads, queries, keys, width = np.asarray(shape, float).T
    seen = attention_pairs(queries, keys, causal) / queries
    items = batch * heads * np.ceil(queries / fit.tile)
    full = items / multiprocessors
    waves = np.maximum(1.0, (1 - fit.wave) * full + fit.wave * np.ceil(full))
    share = np.interp(np.log(width), np.log(fit.head_dim), fit.peak_fraction)
    rate = share * peak * clock / multiprocessors
    depth = np.maximum(waves * (seen + fit.prologue), keys + fit.prologue)
    compute = 4 * fit.tile * width * depth / rate
    compute = compute * np.where(kv_heads < heads, 1 + fit.grouped, 1.0)
    nbytes = 2 * batch * width * (2 * heads * queries + 2 * kv_heads * keys)
    memory = nbytes / (fit.bandwidth_fraction * bandwidth)
    times = np.where(backward, fit.backward_flops / fit.backward_efficiency, 1.0)
    seconds = fit.floor + times * np.maximum(compute, memory)
    points = (width, batch * heads, np.sqrt(queries * keys))
    seconds = seconds * surface_factor(fit.correction, *points)
    flops = 4 * batch * heads * width * queries * seen
    flops = flops * np.where(backward, fit.backward_flops, 1.0)
    bound: Floats = np.maximum(flops / peak, nbytes / bandwidth)
    longer: Floats = np.maximum(bound, seconds)
    return longer
