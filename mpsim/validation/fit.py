"""Calibrating a few global factors on measured runs, to score the rest with them.

The predicted step is a sum of causes. Each group of causes has one factor, the same for every row:
how much longer kernels, host launches, exchanges along an axis and updates take on this software
and these machines than the profiles say. Idle time follows the kernels, which it is made of. What
the factors leave, runs with like kernels share (``residual.py``).
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from mpsim.errors import CalibrationError
from mpsim.validation.comparison import Comparison
from mpsim.validation.residual import Residual, fit_residual

Floats = NDArray[np.float64]

GROUPS = {
    "compute": "kernels",
    "imbalance": "kernels",
    "bubble": "kernels",
    "launch": "launches",
    "update": "updates",
    "tensor exchange": "tensor exchange",
    "transfers": "transfers",
}
"""Cause of the waterfall → factor; all else is exchange between replicas."""
_REST = "replica exchange"
_BOUNDS = (0.25, 4.0)
"""A factor beyond these is no calibration but another model."""
_PRIOR = 0.3
"""Standard deviation of the logarithm of a factor before any row is seen: what no row speaks of
stays at one."""
_SCALE = 0.05
"""Error of a row beyond which it counts as an outlier (soft L1)."""


@dataclass(frozen=True, eq=False)
class Calibration:
    """Global factors by group of causes, and the correction for like runs."""

    factors: Mapping[str, float]
    residual: Residual | None

    def apply(self, row: Comparison) -> Comparison:
        """A comparison with its predicted step corrected."""
        if row.step_time is None:
            return row
        corrected = apply_factors(row, self.factors)
        if self.residual is None:
            return corrected
        factor = self.residual.factor(row.record)
        parts = {cause: seconds * factor for cause, seconds in corrected.parts.items()}
        return replace(corrected, parts=parts, step_time=sum(parts.values()))


def calibrate(rows: Sequence[Comparison]) -> Calibration:
    """The calibration on some rows.

    Raises:
        CalibrationError: If no row has both times.
    """
    factors = fit_factors(rows)
    return Calibration(factors, fit_residual([apply_factors(row, factors) for row in rows]))


def choose(rows: Sequence[Comparison], count: int, seed: int = 0) -> list[Comparison]:
    """Some rows with both times, drawn at random.

    Raises:
        CalibrationError: If there are not more rows than that.
    """
    timed = [row for row in rows if row.step_time_error is not None]
    if len(timed) <= count:
        raise CalibrationError(
            f"{count} rows to fit on, but only {len(timed)} have a step time; leave some to score"
        )
    return random.Random(seed).sample(timed, count)


def fit_factors(rows: Sequence[Comparison]) -> dict[str, float]:
    """The factors that bring the predictions of some rows nearest to their measurements.

    Least squares of relative errors, robust against outliers (soft L1), with a prior at one.

    Raises:
        CalibrationError: If no row has both times.
    """
    timed = [row for row in rows if row.step_time_error is not None]
    if not timed:
        raise CalibrationError("none of the rows to fit on has a measured and a predicted step")
    names = list(dict.fromkeys([*GROUPS.values(), _REST]))
    shares = np.array([_shares(row, names) for row in timed])  # (rows, groups)

    def residuals(logarithms: Floats) -> Floats:
        errors = (shares @ np.exp(logarithms) - 1) / _SCALE
        robust = np.sign(errors) * np.sqrt(2 * (np.sqrt(1 + errors**2) - 1))
        return np.concatenate([robust, logarithms / _PRIOR])

    found = least_squares(
        residuals, np.zeros(len(names)), bounds=(np.log(_BOUNDS[0]), np.log(_BOUNDS[1]))
    )
    return dict(zip(names, np.exp(found.x).tolist(), strict=True))


def apply_factors(row: Comparison, factors: Mapping[str, float]) -> Comparison:
    """A comparison with the causes of its predicted step multiplied."""
    if row.step_time is None:
        return row
    parts = {cause: seconds * factors[_group(cause)] for cause, seconds in row.parts.items()}
    return replace(row, parts=parts, step_time=sum(parts.values()))


def _group(cause: str) -> str:
    """The factor of a cause."""
    return GROUPS.get(cause, _REST)


def _shares(row: Comparison, names: Sequence[str]) -> list[float]:
    """Predicted seconds of each group over the measured step."""
    sums = dict.fromkeys(names, 0.0)
    for cause, seconds in row.parts.items():
        sums[_group(cause)] += seconds
    measured = row.record.measured.step_time_s or 1.0
    return [sums[name] / measured for name in names]
