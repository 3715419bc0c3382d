"""A profile of measured workers: fitted on all cells, judged on each by a fit without it."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mpsim.calibration.cells import Cell, read_cells
from mpsim.calibration.machine_fit import Fit, fit_workers, step_seconds
from mpsim.cost.derived import derived_profile
from mpsim.cost.work import Floats, Ints
from mpsim.errors import CalibrationError
from mpsim.spec.cluster import DeviceSpec
from mpsim.spec.profile import Profile, Sheet
from mpsim.spec.tables import read_machine
from mpsim.spec.workers import StepErrors, WorkerFit, Workers

FOLDS = 4
"""Parts of the networks that are held out in turn."""


def fit_machine(folder: Path, *, name: str, seed: int = 0) -> Profile:
    """The profile of a folder of own measurements.

    Args:
        folder: With ``steps.jsonl`` and ``machine.yaml``.
        name: Name of the profile.
        seed: Of the draw of the folds.

    Raises:
        CalibrationError: If there are too few steps, or they cannot be read.
    """
    path = folder / "steps.jsonl"
    if not path.is_file():
        raise CalibrationError(f"{folder}: holds no steps.jsonl: no whole step was measured")
    cells, machine = read_cells(path), read_machine(folder)
    fit = fit_workers(cells)
    residuals = held_out_residuals(cells, fit, seed=seed)
    workers = Workers.model_construct(
        devices=[str(device) for device in machine.get("workers", ["cpu", "cpu"])],
        memory=_memory(machine),
        versions=_versions(machine),
        fit=fit.worker,
        names=list(fit.names),
        covariance=[tuple(row) for row in fit.covariance.tolist()],
        residuals=tuple(residuals.tolist()),
        spread=float(np.median([cell.spread for cell in cells])),
        fit_range=_range(cells),
        errors=step_errors(residuals),
        noise=float(machine.get("noise", 0.0)),
        seconds=float(machine.get("seconds", 0.0)),
        cells=len(cells),
    )
    return _profile(name, machine, workers)


def held_out_residuals(cells: Sequence[Cell], whole: Fit, *, seed: int = 0) -> Floats:
    """Logarithms of measured over predicted steps, each by a fit to the other folds; (K,).

    A fold holds all steps of its networks: what is asked of a profile is mostly another network,
    and a fit that has seen a network under one schedule knows it under the next.
    """
    folds = _folds(cells, np.random.default_rng(seed))
    found = np.zeros(len(cells))
    for fold in np.unique(folds).tolist():
        others = [cell for cell, mine in zip(cells, folds, strict=True) if mine != fold]
        fit = fit_workers(others, start=whole.worker.values)
        for index in np.flatnonzero(folds == fold).tolist():
            found[index] = np.log(cells[index].seconds / step_seconds(cells[index], fit.worker))
    return found


def _folds(cells: Sequence[Cell], generator: np.random.Generator) -> Ints:
    """Fold of each cell, (K,): by its network, told by width and attention; else at random."""
    networks = [
        (cell.facts.get("width", 0.0), bool(cell.asked.passes.attentions.any())) for cell in cells
    ]
    names = sorted(set(networks))
    if len(names) < FOLDS:
        return (generator.permutation(len(cells)) % FOLDS).astype(np.int32)
    of = dict(zip(names, (generator.permutation(len(names)) % FOLDS).tolist(), strict=True))
    return np.array([of[network] for network in networks], np.int32)


def step_errors(residuals: Floats) -> StepErrors:
    """Errors of held-out steps; whether a cell is covered is told by the other cells' residuals."""
    errors = np.abs(np.expm1(-residuals))
    covered = [
        low <= residual <= high
        for index, residual in enumerate(residuals)
        for low, high in [np.quantile(np.delete(residuals, index), (0.05, 0.95))]
    ]
    return StepErrors(
        cells=len(residuals),
        median=float(f"{np.median(errors):.4f}"),
        p90=float(f"{np.quantile(errors, 0.9):.4f}"),
        within_15=float(f"{np.mean(errors <= 0.15):.4f}"),
        covered=float(f"{np.mean(covered):.4f}"),
    )


def _range(cells: Sequence[Cell]) -> dict[str, tuple[float, float]]:
    """Smallest and largest value of each fact."""
    names = list(dict.fromkeys(name for cell in cells for name in cell.facts))
    return {
        name: (min(values), max(values))
        for name in names
        for values in [[cell.facts[name] for cell in cells if name in cell.facts]]
    }


def _memory(machine: Mapping[str, Any]) -> float:
    """Bytes that a worker may use: its share of the machine's, or 4 GiB where that is not told."""
    return float(machine.get("memory_bytes", 4 * 2**30))


def _versions(machine: Mapping[str, Any]) -> dict[str, str]:
    """Versions of what was measured with."""
    names = ("torch", "cuda", "driver", "python", "system", "backend", "link")
    return {name: str(machine[name]) for name in names if machine.get(name) is not None}


def _profile(name: str, machine: Mapping[str, Any], workers: Workers) -> Profile:
    """The profile of the workers; kernels of other software stay those of the nearest device."""
    fit: WorkerFit = workers.fit
    sheet = Sheet.model_construct(
        peak={"fp32": fit.rate}, memory_bandwidth=fit.stream, multiprocessors=1
    )
    device = str(machine.get("device", "measured device"))
    spec = DeviceSpec.model_construct(
        name=device, memory=workers.memory, source="measured", vector_peak=None, **dict(sheet)
    )
    base = derived_profile(spec)
    plain = [f"{key} {value}" for key, value in workers.versions.items()]
    date = str(machine.get("date", datetime.datetime.now(tz=datetime.UTC).date()))[:10]
    return base.model_copy(
        update={
            "name": name,
            "device": device,
            "kind": "measured",
            "date": datetime.date.fromisoformat(date),
            "source": f"measured by mpsim calibrate on {', '.join(workers.devices)}; "
            + ", ".join(plain)
            + f"; kernels of other software: {base.source}",
            "tables": {"steps": workers.cells},
            "workers": workers,
        }
    )
