"""How long a matrix product takes: tiles in waves over the multiprocessors, under a roofline."""

from __future__ import annotations

import numpy as np

from mpsim.cost.surface import surface_factor
from mpsim.cost.work import Floats
from mpsim.spec.profile import GemmFit

SPLITS = np.array([1, 2, 3, 4, 6, 8, 16, 32], float)  # (Z,)
"""Candidate numbers of parts that k is split into."""


def gemm_seconds(
    shape: Floats,
    fit: GemmFit,
    *,
    peak: float,
    bandwidth: float,
    multiprocessors: float,
    element: float,
    clock: float = 1.0,
    benchmark: bool = False,
) -> Floats:
    """Seconds of C[b,m,n] = A[b,m,k] B[b,k,n] for each shape, the best candidate kernel taken.

    A candidate cuts C into tiles of a by c elements and k into s parts. With S multiprocessors,

        tiles   = b ceil(m / a) ceil(n / c) s
        waves   = max(1, (1 - wave) tiles / S + wave ceil(tiles / S))
        compute = waves 2 a c (k / s + prologue) / (share of the tile x peak / S)
        memory  = (bytes of A, B, C + reduction 8 m n s for s > 1) / (bandwidth of the busy ones)
        seconds = floor + (compute^p + memory^p)^(1/p), times the corrections

    where busy multiprocessors draw ``parallel`` times their even share of the memory bandwidth at
    most. No product is faster than its FLOPs at the peak rate, or its bytes at the full bandwidth:
    operands that lie in the cache are free only in a benchmark, which repeats one product. Beta C,
    bias and activation are not counted.

    Args:
        shape: (K, 4) batch, m, n, k.
        fit: Parameters for this precision.
        peak: Dense peak rate, FLOP/s.
        bandwidth: Data sheet rate of the device memory, B/s.
        multiprocessors: Number of them, S.
        element: Bytes of an element of A and B; C has two, or four for four.
        clock: Sustained rate over that of a short benchmark.
        benchmark: Whether to time the call of a benchmark's table: with the kernels that scale and
            cast A for 8 bits, and with operands that the call before left in the cache.

    Returns:
        Seconds, (K,).

    Source:
        Williams et al., "Roofline", CACM 52(4), 2009; NVIDIA, "Matrix Multiplication Background
        User's Guide" (tile and wave quantisation); Osama et al., "Stream-K", arXiv:2301.03598.
    """
    batch, m, n, k = np.asarray(shape, float).T
    result = max(element, 2.0)
    nbytes = batch * ((m * k + n * k) * element + m * n * result)
    work, tiles = _work(batch, m, n, k, fit=fit, multiprocessors=multiprocessors)
    compute = work / (peak * clock / multiprocessors)  # (K, T, Z)
    partial = np.where(SPLITS > 1, 8 * fit.reduction * SPLITS, 0.0)  # (Z,)
    traffic = nbytes[:, None] + (batch * m * n)[:, None] * partial
    drawn = np.minimum(1.0, tiles / multiprocessors * fit.parallel)
    memory = traffic[:, None, :] / (bandwidth * fit.bandwidth_fraction * drawn)
    p = fit.overlap
    together = (compute**p + memory**p).reshape(len(m), -1).min(axis=1)
    seconds = fit.floor + together ** (1 / p)
    if benchmark:
        seconds += fit.cast_floor + batch * m * k * fit.cast_bytes / bandwidth
    seconds = seconds * surface_factor(fit.correction, batch * m, n, k)
    seconds = seconds * surface_factor(fit.tiling, batch * m, n)
    streamed = 0.0 if benchmark else nbytes / bandwidth
    bound: Floats = np.maximum(2 * batch * m * n * k / peak, streamed)
    longer: Floats = np.maximum(bound, seconds)
    return longer


def _work(
    batch: Floats, m: Floats, n: Floats, k: Floats, *, fit: GemmFit, multiprocessors: float
) -> tuple[Floats, Floats]:
    """FLOPs at the peak rate that cost the busiest multiprocessor as long, and tiles, by candidate.

    Both (K, T, Z).
    """
    rows, columns, share = fit.candidates.T
    grid = batch[:, None] * np.ceil(m[:, None] / rows) * np.ceil(n[:, None] / columns)  # (K, T)
    tiles = grid[:, :, None] * SPLITS
    full = tiles / multiprocessors
    waves = np.maximum(1.0, (1 - fit.wave) * full + fit.wave * np.ceil(full))
    depth = k[:, None] / SPLITS + fit.prologue  # (K, Z)
    work: Floats = waves * (2 * rows * columns / share)[:, None] * depth[:, None, :]
    return work, tiles
