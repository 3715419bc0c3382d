"""What global factors leave: errors that runs with like kernels share.

Two runs whose kernels have the same shapes (width of the model, tensor degree, tokens of a
microbatch, precision) run the same code for most of their time, and what a model misses in one it
misses in the other; between unlike runs the error changes smoothly with the plan. That is a
Gaussian process on the logarithm of the error, with the covariance

    w [same kernels] + (1 - w) exp(-|x - x'|² / 2 l²)

over x, the logarithms of degrees, batch and dimensions in standard deviations. Runs unlike all
that were seen keep their prediction. Weight, length and noise are those with the least error when
each row is left out in turn.

Source:
    Rasmussen and Williams, "Gaussian Processes for Machine Learning", MIT Press, 2006, sections 2.2
    (prediction) and 5.4.2 (leaving one out).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mpsim.validation.comparison import Comparison
from mpsim.validation.records import Record

Floats = NDArray[np.float64]

_WEIGHTS = (0.0, 0.5, 0.7)
_LENGTHS = (1.0, 2.0, 3.0)
_NOISES = (0.05, 0.1, 0.3, 1.0)
"""Noise variance over signal variance; 1 shrinks towards no correction at all."""
_LEAST_ROWS = 8
"""Rows below which nothing but noise could be learnt."""


@dataclass(frozen=True, eq=False)
class Residual:
    """A fitted correction. N rows, K coordinates."""

    kernels: tuple[tuple[object, ...], ...]  # (N,) kernel shapes of the rows seen
    coordinates: Floats  # (N, K)
    centre: Floats  # (K,)
    scale: Floats  # (K,)
    weight: float
    length: float
    pull: Floats  # (N,) solution of (covariance + noise) pull = logarithms

    def factor(self, record: Record) -> float:
        """What the predicted step of a record is to be multiplied by."""
        here = (np.array(_coordinates(record)) - self.centre) / self.scale
        same = np.array([shapes == _kernels(record) for shapes in self.kernels], float)
        distance = ((self.coordinates - here) ** 2).sum(axis=1)
        covariance = self.weight * same + (1 - self.weight) * _bell(distance, self.length)
        return float(np.exp(covariance @ self.pull))


def fit_residual(rows: Sequence[Comparison]) -> Residual | None:
    """The correction learnt from rows with both times; None from too few of them."""
    timed = [row for row in rows if row.step_time_error is not None]
    if len(timed) < _LEAST_ROWS:
        return None
    raw = np.array([_coordinates(row.record) for row in timed])
    centre, scale = raw.mean(axis=0), raw.std(axis=0) + 1e-9
    x = (raw - centre) / scale
    y = np.array([-math.log1p(row.step_time_error or 0.0) for row in timed])
    shapes = tuple(_kernels(row.record) for row in timed)
    same = np.array([[a == b for b in shapes] for a in shapes], float)
    distance = ((x[:, None] - x[None]) ** 2).sum(axis=2)
    best, chosen = math.inf, (0.0, 1.0, y)
    for weight, length, noise in itertools.product(_WEIGHTS, _LENGTHS, _NOISES):
        covariance = weight * same + (1 - weight) * _bell(distance, length)
        inverse = np.linalg.inv(covariance + noise * np.eye(len(y)))
        pull = inverse @ y
        left_out = float(np.abs(pull / np.diag(inverse)).mean())
        if left_out < best:
            best, chosen = left_out, (weight, length, pull)
    return Residual(shapes, x, centre, scale, *chosen)


def _bell(distance: Floats, length: float) -> Floats:
    """The squared exponential of squared distances."""
    bell: Floats = np.exp(-distance / (2 * length**2))
    return bell


def _kernels(record: Record) -> tuple[object, ...]:
    """What gives the kernels of a run their shapes."""
    training, plan = record.training, record.plan
    tokens = (training.microbatch or 1) * training.sequence
    return record.cluster.device, record.model.hidden, plan.tensor, tokens, plan.precision


def _coordinates(record: Record) -> list[float]:
    """Logarithms of degrees, batch and dimensions; what is not stated counts as one."""
    plan, training, model = record.plan, record.training, record.model
    batch = (training.global_batch or 1) / ((training.microbatch or 1) * (plan.data or 1))
    numbers = [
        *(degree or 1 for degree in plan.degrees),
        training.microbatch or 1,
        training.sequence,
        batch,
        model.hidden,
        model.layers,
    ]
    return [math.log2(number) for number in numbers]
