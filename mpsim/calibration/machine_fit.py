"""Parameters of measured workers: one robust fit to ops, messages and whole steps at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mpsim.calibration.cells import Cell
from mpsim.cost.work import Floats
from mpsim.cost.worker import Demand, demand_seconds, worker_step_seconds
from mpsim.errors import CalibrationError
from mpsim.schedule.compiled import warm
from mpsim.spec.workers import WorkerFit

if TYPE_CHECKING:
    from scipy.optimize import OptimizeResult

START = {
    "forward": 60e-6, "backward": 80e-6, "input_gradient": 80e-6, "weight_gradient": 60e-6,
    "loss": 30e-6, "views": 50e-6, "kernel": 5e-6, "backward_kernel": 6e-6, "split_kernel": 8e-6,
    "rate": 80e9, "half_rows": 4.0, "half_columns": 8.0, "half_depth": 8.0,
    "operands": 20e9, "stream": 10e9, "functions": 5e8, "attention": 10e9,
    "send": 50e-6, "receive": 40e-6, "fresh": 4e9, "wake": 20e-6, "slice": 50e-3,
    "copying": 4e9, "latency": 60e-6, "bandwidth": 2e9,
    "gap": 5e-6, "setup": 100e-6, "update": 100e-6, "tensor": 8e-6,
}  # fmt: skip
"""Where the search starts: orders of magnitude of a server core; each may move by ``FREEDOM``."""

FREEDOM = 300.0
"""Largest factor between a parameter and its start."""

STEP_WEIGHT, OP_WEIGHT, MESSAGE_WEIGHT, PRIOR_WEIGHT = 1.0, 0.5, 0.3, 0.02
"""Weights of residuals. An op is one of several of its cell; the prior keeps a parameter that no
cell determines at its start."""

SCALE = 0.08
"""Residual beyond which a row counts by its size, not its square: the noise of a busy machine."""


@dataclass(frozen=True, eq=False)
class Fit:
    """Fitted parameters, and the covariance of their logarithms in the order of ``names``."""

    worker: WorkerFit
    names: tuple[str, ...]
    covariance: Floats  # (K, K)


@dataclass(frozen=True, eq=False)
class _Joined:
    """All cells' passes in one demand, so that an evaluation is a few array operations."""

    passes: Demand
    starts: Floats
    cells: Sequence[Cell]


def fit_workers(cells: Sequence[Cell], *, start: Mapping[str, float] = START) -> Fit:
    """The parameters that make ops, messages and steps of the cells come out as measured.

    Residuals are logarithms of predicted over measured; a soft-L1 loss keeps disturbed cells from
    pulling. Steps are predicted by the longest path through their graphs, so that parameters which
    only show in waiting (latency, bandwidth) are fitted as well. Parameters are searched for as
    logarithms, within a factor of their start.

    Raises:
        CalibrationError: If there are too few cells.
    """
    from scipy.optimize import least_squares  # loaded when a fit is made

    if len(cells) < 4:
        raise CalibrationError(
            f"{len(cells)} measured steps are too few to fit: measure longer (--budget, --resume)"
        )
    warm()  # a fit plays tens of thousands of steps
    names = tuple(START)
    origin = np.log([START[name] for name in names])
    passes = join_demands([cell.asked.passes for cell in cells])

    def residuals(vector: Floats, steps: bool) -> Floats:
        fit = WorkerFit.of(dict(zip(names, np.exp(vector), strict=True)))
        prior = PRIOR_WEIGHT * (vector - origin)
        return np.concatenate([_cell_residuals(cells, passes, fit, steps=steps), prior])

    def solve(begin: Floats, *, steps: bool, most: int, relative: float | None) -> OptimizeResult:
        return least_squares(
            residuals,
            begin,
            bounds=(origin - np.log(FREEDOM), origin + np.log(FREEDOM)),
            loss="soft_l1",
            f_scale=SCALE,
            xtol=1e-4,
            ftol=1e-4,
            diff_step=relative,
            max_nfev=most,
            kwargs={"steps": steps},
        )

    begin = np.log([start[name] for name in names])
    if start is START:  # ops alone first: they are smooth in the parameters, steps are not quite
        begin = solve(begin, steps=False, most=40, relative=None).x
    solution = solve(begin, steps=True, most=25, relative=3e-3)
    values = dict(zip(names, np.exp(solution.x).tolist(), strict=True))
    return Fit(WorkerFit.of(values), names, _covariance(solution.jac, solution.fun))


def step_seconds(cell: Cell, fit: WorkerFit) -> float:
    """Predicted seconds of a cell's step."""
    return worker_step_seconds(cell.asked, fit)


def _cell_residuals(
    cells: Sequence[Cell], passes: Demand, fit: WorkerFit, *, steps: bool
) -> Floats:
    """Weighted logarithms of predicted over measured: ops, updates, messages, steps."""
    kernels, host = demand_seconds(passes, fit)
    own = kernels + host
    found, start = [], 0
    for cell in cells:
        predicted = own[start + cell.rows]
        start += len(cell.asked.passes.kind)
        weight = OP_WEIGHT / np.sqrt(max(len(cell.rows), 1))
        found.append(weight * np.log(predicted / cell.row_seconds))
        found.append(np.array(_others(cell, fit, steps=steps)))
    return np.concatenate(found)


def _others(cell: Cell, fit: WorkerFit, *, steps: bool) -> list[float]:
    """Residuals of messages, updates and the step of a cell."""
    found = []
    if steps:
        found.append(STEP_WEIGHT * float(np.log(step_seconds(cell, fit) / cell.seconds)))
    for name, value in (("SEND", fit.send), ("RECV", fit.receive)):
        if name in cell.messages:
            found.append(MESSAGE_WEIGHT * float(np.log(value / cell.messages[name])))
    asked = cell.asked
    for device in np.flatnonzero(np.isfinite(cell.updates)):
        ops = (asked.host.updates > 0) & (asked.graph.device == device)
        predicted = fit.update + float(
            (fit.tensor * asked.tensors + 5 * asked.updated / fit.stream)[ops].sum()
        )
        found.append(MESSAGE_WEIGHT * float(np.log(predicted / cell.updates[device])))
    return found


def join_demands(demands: Sequence[Demand]) -> Demand:
    """Demands one after the other."""
    counts = np.cumsum([0, *(len(one.kind) for one in demands[:-1])])
    owner = np.concatenate([one.owner + at for one, at in zip(demands, counts, strict=True)])
    fields = {
        name: np.concatenate([getattr(one, name) for one in demands])
        for name in Demand.__dataclass_fields__
        if name != "owner"
    }
    return Demand(owner=owner, **fields)


def _covariance(jacobian: Floats, residuals: Floats) -> Floats:
    """Covariance s² (J'J)⁻¹ of the logarithms at the solution."""
    free = max(1, len(residuals) - jacobian.shape[1])
    variance = float(residuals @ residuals) / free
    covariance: Floats = variance * np.linalg.pinv(jacobian.T @ jacobian)
    return covariance
