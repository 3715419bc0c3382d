"""Fit of matrix products of one precision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mpsim.calibration.least_squares import Parameter, fit_parameters
from mpsim.calibration.surfaces import fit_surface
from mpsim.cost.gemm import gemm_seconds
from mpsim.cost.tables import SMALL
from mpsim.cost.work import Floats
from mpsim.spec.cluster import PRECISION_BYTES, Precision
from mpsim.spec.profile import GemmFit, Sheet
from mpsim.spec.tables import Table

TILES = {
    "256x256": 0.84,
    "256x128": 0.82,
    "128x128": 0.76,
    "256x64": 0.7,
    "128x64": 0.64,
    "64x64": 0.52,
    "128x32": 0.47,
}
"""Tiles of the result, with the share of the peak rate that a fit starts from. The tiles are those
of CUTLASS's default kernels (NVIDIA CUTLASS, "Efficient GEMM in CUDA"), the largest by a pair of
blocks since Hopper; the shares fall with the reuse of operands within a tile."""

PARAMETERS = (
    *(Parameter(tile, share, 0.05, 1.0) for tile, share in TILES.items()),
    Parameter("prologue", 100, 0, 3000),
    Parameter("wave", 0.7, 0, 1),
    Parameter("bandwidth_fraction", 0.85, 0.1, 1.3),
    Parameter("parallel", 2.5, 0.5, 6),
    Parameter("overlap", 3, 1, 10),
    Parameter("reduction", 0.3, 0, 5),
    Parameter("floor", 2e-6, 1e-7, 3e-5),
)
"""What is fitted, for every precision."""

CASTS = (Parameter("cast_floor", 5e-6, 0, 3e-5), Parameter("cast_bytes", 6, 0, 14))
"""Fitted besides for products in 8 bits, whose calls may scale and cast an operand."""

KNOTS = {
    "m": (32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 32768),
    "n": (64, 256, 512, 1024, 2048, 4096, 8192, 16384, 65536),
    "k": (64, 256, 512, 1024, 2048, 4096, 8192, 16384, 65536),
}
"""Knots of the smooth correction, a factor of two or four apart."""

EDGES = (
    *(32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512, 768, 1024, 1280, 1536, 1792, 2048),
    *(2304, 2560, 2816, 3072, 3328, 3584, 3840, 4096, 4352, 5120, 6144, 7168, 8192, 10240),
    *(12288, 16384, 32768, 65536),
)
"""Knots of the tiling factor: multiples of tiles, between which waves fill and empty."""

ROWS = 6000
"""Rows, drawn at random, that the parameters are fitted on: more change them by less than their
standard errors and take longer. The surfaces are fitted on all rows."""


def fit_gemm(
    table: Table,
    precision: Precision,
    sheet: Sheet,
    *,
    floor: float | None = None,
    seed: int = 0,
) -> GemmFit:
    """Parameters and corrections of the products of one precision.

    First the parameters of the formula, in logarithms, robustly; then the smooth correction over
    m, n, k to what remains; then the tiling factor over m, n. Products above 1 GFLOP weigh double.

    Args:
        table: Rows of one number format.
        precision: Its name.
        sheet: Data sheet.
        floor: Time of the smallest product where it is known (that of 16 bits): what 8 bits take
            beyond it are casts.
        seed: Of the draw of rows.
    """
    big = 2 * table["m"] * table["n"] * table["k"] > SMALL
    weights = np.where(big, 1.0, 0.5)
    draw = np.random.default_rng(seed).permutation(len(table))[:ROWS]
    sample = table.rows(draw)

    def residual(values: Mapping[str, float]) -> Floats:
        predicted = _seconds(sample, _as_fit(values), precision, sheet)
        missed: Floats = weights[draw] * np.log(predicted / sample.seconds)
        return missed

    casts = CASTS if PRECISION_BYTES[precision] <= 1 else ()
    fitted = fit_parameters((*PARAMETERS, *casts), residual)
    values = dict(fitted.values)
    if casts and floor is not None and values["floor"] > floor:
        values["cast_floor"] += values["floor"] - floor
        values["floor"] = floor
    fit = _as_fit({name: float(f"{value:.4g}") for name, value in values.items()})
    fit = fit.model_copy(update={"standard_errors": dict(fitted.errors)})
    return _corrected(fit, table, precision, sheet, weights=weights)


def _corrected(
    fit: GemmFit, table: Table, precision: Precision, sheet: Sheet, *, weights: Floats
) -> GemmFit:
    """The fit with the two surfaces to what the formula misses, where there are rows enough."""
    if len(table) < 10 * len(KNOTS["m"]):
        return fit
    m, n, k = table["m"], table["n"], table["k"]
    logs = np.log(table.seconds / _seconds(table, fit, precision, sheet))
    surface = fit_surface(KNOTS, (m, n, k), logs, weights=weights, smoothness=0.05, ridge=0.02)
    fit = fit.model_copy(update={"correction": surface})
    logs = np.log(table.seconds / _seconds(table, fit, precision, sheet))
    edges = {"m": EDGES[:-1], "n": EDGES[2:]}
    tiling = fit_surface(edges, (m, n), logs, weights=weights, smoothness=0.05, ridge=1.0)
    return fit.model_copy(update={"tiling": tiling})


def _as_fit(values: Mapping[str, float]) -> GemmFit:
    """The declaration from values by name; not validated, for it is made at every step."""
    rest = {name: value for name, value in values.items() if name not in TILES}
    tiles = {tile: values[tile] for tile in TILES}
    empty: dict[str, Any] = {
        "cast_floor": 0.0,
        "cast_bytes": 0.0,
        "correction": None,
        "tiling": None,
    }
    return GemmFit.model_construct(**{**empty, "standard_errors": {}, "tiles": tiles, **rest})


def _seconds(table: Table, fit: GemmFit, precision: Precision, sheet: Sheet) -> Floats:
    """Predicted seconds of the rows."""
    ones = np.ones(len(table))
    return gemm_seconds(
        np.column_stack([ones, table["m"], table["n"], table["k"]]),
        fit,
        peak=sheet.peak[precision],
        bandwidth=sheet.memory_bandwidth,
        multiprocessors=sheet.multiprocessors,
        element=PRECISION_BYTES[precision],
        benchmark=True,
    )
