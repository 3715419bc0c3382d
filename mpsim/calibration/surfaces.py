"""Fit of a correction surface: a penalised, robust regression on a grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mpsim.cost.work import Floats
from mpsim.spec.profile import Surface

_ROBUST = 0.02
"""Residual beyond which a row counts by its size, not its square, as in the judged medians."""


def fit_surface(
    axes: Mapping[str, Sequence[float]],
    points: Sequence[Floats],
    logs: Floats,
    *,
    weights: Floats | None = None,
    smoothness: float = 0.2,
    ridge: float = 0.03,
) -> Surface:
    """The surface through noisy logarithms.

    Minimises sum of w |log - surface| (a Huber loss that is quadratic below 0.02, solved by
    reweighting) + smoothness x squared second differences along each axis + ridge x squared
    values: where there is no data the surface bends little, and tends to no correction.

    Args:
        axes: Knots by name.
        points: One array (K,) for each axis.
        logs: Natural logarithm of measured over predicted, (K,).
        weights: Weight of each row; null: 1.
        smoothness: Weight of the bending.
        ridge: Weight of the values.

    Source:
        Eilers and Marx, "Flexible smoothing with B-splines and penalties", Statistical Science
        11(2), 1996, with linear B-splines; Huber, "Robust Statistics", 1981, section 7.8.
    """
    grids = [np.log(np.asarray(knots, float)) for knots in axes.values()]
    design = _design(grids, points)
    lengths = [len(grid) for grid in grids]
    penalty = ridge * np.eye(int(np.prod(lengths)))
    for position in range(len(lengths)):
        parts = [_bend(n) if i == position else np.eye(n) for i, n in enumerate(lengths)]
        whole: Any = parts[0]
        for part in parts[1:]:
            whole = np.kron(whole, part)
        penalty += smoothness * whole
    base = np.ones(len(logs)) if weights is None else weights
    scale, values = base, np.zeros(len(penalty))
    for _ in range(4):
        normal = (design.T @ design.multiply(scale[:, None])).toarray() + penalty
        values = np.linalg.solve(normal, design.T @ (scale * logs))
        miss = np.abs(logs - design @ values)
        scale = base * _ROBUST / np.maximum(miss, _ROBUST)
    rows = values.round(3).reshape(-1, lengths[-1])
    return Surface(
        axes={name: tuple(map(float, knots)) for name, knots in axes.items()},
        rows=[tuple(map(float, row)) for row in rows],
    )


def _bend(length: int) -> Floats:
    """The matrix whose form is the sum of squared second differences of a vector."""
    second = np.diff(np.eye(length), n=2, axis=0)
    form: Floats = second.T @ second
    return form


def _design(grids: Sequence[Floats], points: Sequence[Floats]) -> Any:  # noqa: ANN401  (untyped)
    """The sparse matrix (K, knots) of the shares of the knots at each point."""
    from scipy import sparse  # loaded when a fit is made: start-up loads nothing heavy

    count = len(points[0])
    index, share = np.zeros((count, 1), int), np.ones((count, 1))
    for grid, point in zip(grids, points, strict=True):
        place = np.log(point)
        upper = np.clip(np.searchsorted(grid, place), 1, len(grid) - 1)
        lower = upper - 1
        part = np.clip((place - grid[lower]) / (grid[upper] - grid[lower]), 0, 1)[:, None]
        index = index * len(grid)
        index = np.hstack([index + lower[:, None], index + upper[:, None]])
        share = np.hstack([share * (1 - part), share * part])
    rows = np.repeat(np.arange(count), index.shape[1])
    size = int(np.prod([len(grid) for grid in grids]))
    return sparse.csr_matrix((share.ravel(), (rows, index.ravel())), (count, size))
