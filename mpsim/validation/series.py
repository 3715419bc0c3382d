"""Ratio tests: series of runs that differ in one variable only.

A model may be off by a constant and still rank plans rightly; what a user of a planner needs is the
ratio between two plans. A series gives it free of whatever its rows have in common.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from mpsim.errors import ScenarioError
from mpsim.validation.comparison import Comparison

_NOISE = 0.03
"""Difference of step times below which two runs have no rank: repeated runs of one configuration
differ by 1.7 % at the median (data sheet of the measured runs)."""


@dataclass(frozen=True)
class Series:
    """Runs of one table that differ only in one variable."""

    name: str
    variable: str
    ids: tuple[str, ...]


@dataclass(frozen=True)
class SeriesScore:
    """How well the ratios within some series are predicted.

    Attributes:
        count: Series with at least two comparable runs.
        ratio: Median over pairs of |predicted ratio / measured ratio - 1|.
        pairs: Pairs whose measured step times differ by more than the noise.
        ranked: Share of those pairs that the prediction puts in the measured order.
    """

    count: int
    ratio: float | None
    pairs: int
    ranked: float | None


def read_series(path: Path) -> list[Series]:
    """The series of a JSON-lines file.

    Raises:
        ScenarioError: If a line is no series.
    """
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            tree = json.loads(line)
            found.append(Series(str(tree["series"]), str(tree["variable"]), tuple(tree["ids"])))
        except (ValueError, KeyError, TypeError):
            raise ScenarioError(
                f"{path.name}:{number}", "a series is an object with series, variable and ids"
            ) from None
    return found


def score_series(series: Iterable[Series], rows: Iterable[Comparison]) -> dict[str, SeriesScore]:
    """The scores by variable, those with most series first, and of all series as ``all``."""
    by_id = {row.record.id: row for row in rows if row.step_time_error is not None}
    groups: dict[str, list[Series]] = {}
    for item in series:
        groups.setdefault(item.variable, []).append(item)
    ordered = sorted(groups.items(), key=lambda group: -len(group[1]))
    scores = {variable: _score(group, by_id) for variable, group in ordered}
    everything = [item for group in groups.values() for item in group]
    kept = {variable: score for variable, score in scores.items() if score.count}
    return kept | {"all": _score(everything, by_id)}


def _score(series: Iterable[Series], by_id: Mapping[str, Comparison]) -> SeriesScore:
    """The score of some series together."""
    ratios: list[float] = []
    ranked: list[bool] = []
    count = 0
    for item in series:
        rows = [by_id[name] for name in item.ids if name in by_id]
        count += len(rows) > 1
        for first, second in combinations(rows, 2):
            predicted = _ratio(first.step_time, second.step_time)
            measured = _ratio(first.record.measured.step_time_s, second.record.measured.step_time_s)
            ratios.append(abs(predicted / measured - 1))
            if abs(np.log(measured)) > np.log1p(_NOISE):
                ranked.append((predicted > 1) == (measured > 1))
    return SeriesScore(
        count=count,
        ratio=float(np.median(ratios)) if ratios else None,
        pairs=len(ranked),
        ranked=float(np.mean(ranked)) if ranked else None,
    )


def _ratio(first: float | None, second: float | None) -> float:
    """Ratio of two step times that are known to exist."""
    return float(first or 0.0) / float(second or 1.0)
