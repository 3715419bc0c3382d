"""Interpolation of the correction surfaces of a profile."""

from __future__ import annotations

from itertools import product

import numpy as np

from mpsim.cost.work import Floats
from mpsim.spec.profile import Surface


def surface_factor(surface: Surface | None, *coordinates: Floats) -> Floats:
    """The factor of a surface at some points: exp of the multilinear interpolation of its rows.

    Interpolated in the logarithms of the axes; beyond the grid the value of its edge holds, so
    that nothing is extrapolated. No surface: 1.

    Args:
        surface: Grid of logarithms.
        coordinates: One array (K,) for each axis, in their order.

    Returns:
        Factors, (K,).
    """
    if surface is None:
        return np.ones_like(coordinates[0])
    grids, values = surface.grid
    corners, shares = zip(*map(_neighbours, grids, coordinates), strict=True)
    total: Floats = np.zeros_like(coordinates[0])
    for sides in product((0, 1), repeat=len(grids)):
        index = tuple(corner[side] for corner, side in zip(corners, sides, strict=True))
        term = values[index]
        for share, side in zip(shares, sides, strict=True):
            term = term * share[side]
        total += term
    return np.exp(total)


def _neighbours(
    knots: Floats, points: Floats
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[Floats, Floats]]:
    """Indices of the knots below and above each point, and the shares of the two."""
    place = np.log(np.maximum(points, 1e-30))
    upper = np.clip(np.searchsorted(knots, place), min(1, len(knots) - 1), len(knots) - 1)
    lower = np.maximum(upper - 1, 0)
    width = np.where(upper > lower, knots[upper] - knots[lower], 1.0)
    share = np.clip((place - knots[lower]) / width, 0.0, 1.0)
    return (lower, upper), (1.0 - share, share)
