"""Fit of fused attention, forward and backward."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mpsim.calibration.least_squares import Parameter, fit_parameters
from mpsim.calibration.surfaces import fit_surface
from mpsim.cost.attention import attention_seconds
from mpsim.cost.work import Floats
from mpsim.spec.profile import AttentionFit, Sheet
from mpsim.spec.tables import Table

PARAMETERS = (
    Parameter("prologue", 200, 0, 3000),
    Parameter("wave", 0.7, 0, 1),
    Parameter("bandwidth_fraction", 0.8, 0.1, 1.2),
    Parameter("grouped", 0.0, -0.3, 0.3),
    Parameter("floor", 5e-6, 1e-7, 5e-5),
)
"""What is fitted besides the share of the peak rate for each head width."""

TILE = 128
"""Queries of a work item: that of FlashAttention-2 and -3 for heads of up to 128."""

KNOTS = {
    "items": (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096),
    "seq": (512, 1024, 2048, 4096, 8192, 16384),
}
"""Knots of the correction, besides the head widths."""


def fit_attention(
    forward: Table, sheet: Sheet, *, backward: Table | None = None, base: AttentionFit
) -> AttentionFit:
    """Parameters and correction of the forward, and the rate of the backward.

    Args:
        forward: Table of forward calls.
        sheet: Data sheet.
        backward: Table of backward calls; null: ``backward_efficiency`` stays that of ``base``.
        base: Where everything that is not fitted comes from.
    """
    widths = [float(width) for width in np.unique(forward["head_dim"])]
    shares = [Parameter(f"share {width:g}", 0.5, 0.01, 1.0) for width in widths]

    def as_fit(values: Mapping[str, float]) -> AttentionFit:
        plain = {name: value for name, value in values.items() if not name.startswith("share")}
        rates = tuple(values[share.name] for share in shares)
        update = {"head_dim": tuple(widths), "peak_fraction": rates, "tile": float(TILE), **plain}
        return base.model_copy(update={"correction": None, **update})

    def residual(values: Mapping[str, float]) -> Floats:
        return np.log(_seconds(forward, as_fit(values), sheet) / forward.seconds)

    fitted = fit_parameters((*PARAMETERS, *shares), residual)
    fit = as_fit({name: float(f"{value:.4g}") for name, value in fitted.values.items()})
    fit = _corrected(fit, forward, sheet)
    if backward is None:
        return fit
    slower = float(np.median(backward.seconds / _seconds(backward, fit, sheet)))
    efficiency = min(1.0, fit.backward_efficiency / slower)
    return fit.model_copy(update={"backward_efficiency": float(f"{efficiency:.4g}")})


def _corrected(fit: AttentionFit, table: Table, sheet: Sheet) -> AttentionFit:
    """The fit with the surface to what the formula misses, where there are rows enough."""
    if len(table) < 100:
        return fit
    logs = np.log(table.seconds / _seconds(table, fit, sheet))
    axes = {"head_dim": fit.head_dim, **KNOTS}
    if len(fit.head_dim) == 1:  # an axis needs two knots; beyond the first the factor is the same
        axes["head_dim"] = (fit.head_dim[0], 2 * fit.head_dim[0])
    points = (table["head_dim"], table["batch"] * table["heads"], table["seq"])
    surface = fit_surface(axes, points, logs, smoothness=0.1, ridge=0.05)
    return fit.model_copy(update={"correction": surface})


def _seconds(table: Table, fit: AttentionFit, sheet: Sheet) -> Floats:
    """Predicted seconds of the rows."""
    names = ("batch", "heads", "kv_heads", "seq", "seq", "head_dim")
    peak = sheet.peak.get("bf16") or sheet.peak.get("fp16") or max(sheet.peak.values())
    return attention_seconds(
        np.column_stack([table[name] for name in names]),
        np.ones(len(table), bool),
        np.full(len(table), table.name == "attention_bwd"),
        fit,
        peak=peak,
        bandwidth=sheet.memory_bandwidth,
        multiprocessors=sheet.multiprocessors,
    )
