"""Robust, bounded least squares over named parameters, with their standard errors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mpsim.cost.work import Floats
from mpsim.errors import CalibrationError


@dataclass(frozen=True)
class Parameter:
    """A parameter to be fitted: where it starts, and what it may be."""

    name: str
    start: float
    lower: float
    upper: float


@dataclass(frozen=True)
class Fitted:
    """Fitted parameters by name, and their relative standard errors."""

    values: Mapping[str, float]
    errors: Mapping[str, float]


def fit_parameters(
    parameters: Sequence[Parameter],
    residual: Callable[[Mapping[str, float]], Floats],
    *,
    scale: float = 0.05,
    evaluations: int = 40,
) -> Fitted:
    """Parameters that make the residuals small, by scipy's trust region with a soft-L1 loss.

    Args:
        parameters: Names, starts and bounds.
        residual: Logarithm of predicted over measured for parameters by name, (K,).
        scale: Residual beyond which a row counts by its size, not its square.
        evaluations: Most steps taken.

    Returns:
        Values, and standard errors over values from the covariance s^2 inv(J'J) at the solution;
        a parameter that the rows do not determine has none.

    Raises:
        CalibrationError: If the residuals are not finite anywhere near the start.
    """
    from scipy.optimize import least_squares  # loaded when a fit is made

    names = [parameter.name for parameter in parameters]
    start, lower, upper = (
        np.array([getattr(parameter, field) for parameter in parameters])
        for field in ("start", "lower", "upper")
    )
    try:
        solution = least_squares(
            lambda vector: residual(dict(zip(names, vector, strict=True))),
            np.clip(start, lower, upper),
            bounds=(lower, upper),
            loss="soft_l1",
            f_scale=scale,
            x_scale=np.maximum(np.abs(start), 1e-9),
            diff_step=1e-2,  # wide: tiles come in steps, whose mean slope is meant
            max_nfev=evaluations,
        )
    except ValueError as error:
        raise CalibrationError(f"the measurements cannot be fitted: {error}") from None
    values = dict(zip(names, map(float, solution.x), strict=True))
    return Fitted(values, _errors(names, solution.x, solution.jac, solution.fun))


def _errors(
    names: Sequence[str], vector: Floats, jacobian: Floats, residuals: Floats
) -> dict[str, float]:
    """Relative standard errors of the parameters that the residuals depend on."""
    free = max(1, len(residuals) - len(vector))
    variance = float(residuals @ residuals) / free
    scaled = jacobian * vector  # per relative change, so that microseconds and shares compare
    sensitive = np.linalg.norm(scaled, axis=0) > 0
    covariance = variance * np.linalg.pinv(scaled[:, sensitive].T @ scaled[:, sensitive])
    relative = np.sqrt(np.maximum(np.diag(covariance), 0))
    picked = [name for name, keep in zip(names, sensitive, strict=True) if keep]
    return {
        name: float(f"{error:.2g}")
        for name, error in zip(picked, relative, strict=True)
        if error < 1
    }
