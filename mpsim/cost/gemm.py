"""How long a matrix product takes: tiles dealt in waves to the multiprocessors, under a roofline."""

from __future__ import annotations

import numpy as np

from mpsim.cost.surface import surface_factor
from mpsim.cost.work import Floats
from mpsim.spec.profile import GemmFit

TILES = np.array(
    [
        *[(256, 256), (256, 128), (128, 256), (128, 128), (256, 64), (64, 256)],
        *[(128, 64), (64, 128), (64, 64), (32, 128), (128, 32)],
    ],
    float,
)  # (T, 2) elements
"""Candidate tiles of C, rows by columns: those of CUTLASS's default kernels
(NVIDIA CUTLASS, docs "Efficient GEMM in CUDA"), the larger on Hopper by a pair of blocks."""

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
    with_cast: bool = False,
) -> Floats:
    """Seconds of C[b,m,n] = A[b,m,k] B[b,k,n] for each shape, the best candidate kernel taken.

    A candidate cuts C into tiles of a by c elements and k into s parts. With S multiprocessors,

        tiles   = b ceil(m / a) ceil(n / c) s
        waves   = max(1, (1 - wave) tiles / S + wave ceil(tiles / S))
        compute = waves 2 a c (k / s + prologue) (1 + edge (1/a + 1/c)) / (peak_fraction peak / S)
        memory  = (bytes of A, B, C + reduction 8 m n s for s > 1) / (bandwidth of the busy ones)
        seconds = floor + (compute^p + memory^p)^(1/p), times the correction

    where busy multiprocessors draw ``parallel`` times their even share of the memory bandwidth at
    most. No product is faster than its FLOPs at the peak rate, or its bytes at the full bandwidth:
    operands that happen to lie in the cache, as in a benchmark that repeats one product, are not
    counted as free. Beta C, bias and activation are not counted.

    Args:
        shape: (K, 4) batch, m, n, k.
        fit: Parameters for this precision.
        peak: Dense peak rate, FLOP/s.
        bandwidth: Data sheet rate of the device memory, B/s.
        multiprocessors: Number of them, S.
        element: Bytes of an element of A and B; C has two, or four for four.
        clock: Sustained rate over that of a short benchmark.
        with_cast: Whether to add the kernels that scale and cast A, as the calls of fp8 tables do.

    Returns:
        Seconds, (K,).

    Source:
        Williams et al., "Roofline", CACM 52(4), 2009; NVIDIA, "Matrix Multiplication Background
        User's Guide" (tile and wave quantisation); Osama et al., "Stream-K", arXiv:2301.03598.
    """
    batch, m, n, k = np.asarray(shape, float).T
    result = max(element, 2.0)
    nbytes = batch * ((m * k + n * k) * element + m * n * result)
    rate = fit.peak_fraction * peak * clock / multiprocessors
    work, tiles = _work(batch, m, n, k, fit=fit, multiprocessors=multiprocessors)
    compute = work / rate  # (K, T, Z)
    partial = np.where(SPLITS > 1, 8 * fit.reduction * SPLITS, 0.0)  # (Z,)
    traffic = nbytes[:, None] + (batch * m * n)[:, None] * partial
    drawn = np.minimum(1.0, tiles / multiprocessors * fit.parallel)
    memory = traffic[:, None, :] / (bandwidth * fit.bandwidth_fraction * drawn)
    best = (compute + memory).reshape(len(m), -1).argmin(axis=1)
    pick = np.arange(len(m)), best
    compute, memory = (part.reshape(len(m), -1)[pick] for part in (compute, memory))
    p = fit.overlap
    seconds = fit.floor + (compute**p + memory**p) ** (1 / p)
    if with_cast:
        seconds += fit.cast_floor + batch * m * k * fit.cast_bytes / bandwidth
    seconds *= surface_factor(fit.correction, batch * m, n, k)
    return np.maximum(seconds, np.maximum(2 * batch * m * n * k / peak, nbytes / bandwidth))


def _work(
    batch: Floats, m: Floats, n: Floats, k: Floats, *, fit: GemmFit, multiprocessors: float
) -> tuple[Floats, Floats]:
    """FLOPs that the busiest multiprocessor spends, and tiles, by candidate: (K, T, Z) each."""
    rows, columns = TILES.T
    grid = batch[:, None] * np.ceil(m[:, None] / rows) * np.ceil(n[:, None] / columns)  # (K, T)
    tiles = grid[:, :, None] * SPLITS
    full = tiles / multiprocessors
    waves = np.maximum(1.0, (1 - fit.wave) * full + fit.wave * np.ceil(full))
    edge = 1 + fit.tile_edge * (1 / rows + 1 / columns)
    depth = k[:, None] / SPLITS + fit.prologue  # (K, Z)
    return waves * (2 * rows * columns * edge)[:, None] * depth[:, None, :], tiles
