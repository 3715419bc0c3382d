"""How far predictions are off: errors of a set of comparisons, by group and in total.

The error of a row is predicted / measured - 1; a prediction twice too long is off by 1, one half
as long as it should be by -0.5.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mpsim.validation.comparison import Comparison


@dataclass(frozen=True)
class Score:
    """Errors of one quantity over some rows.

    Attributes:
        count: Rows with a prediction and a measurement; over sources, the sources that have any.
        median: Median absolute error.
        mean: Mean absolute error.
        within_10: Share of rows off by at most 10 %.
        within_20: Share of rows off by at most 20 %.
        bias: Mean error with its sign.
    """

    count: int
    median: float | None
    mean: float | None
    within_10: float | None
    within_20: float | None
    bias: float | None

    @classmethod
    def of(cls, errors: Sequence[float]) -> Score:
        """The score of some errors; without any, only the count is a number.

        >>> score = Score.of([0.05, -0.15, 0.4])
        >>> score.count, score.median, round(score.mean, 3), round(score.bias, 3)
        (3, 0.15, 0.2, 0.1)
        """
        if not errors:
            return cls(0, None, None, None, None, None)
        signed = np.asarray(errors, float)
        size = np.abs(signed)
        return cls(
            count=len(signed),
            median=float(np.median(size)),
            mean=float(size.mean()),
            within_10=float((size <= 0.1).mean()),
            within_20=float((size <= 0.2).mean()),
            bias=float(signed.mean()),
        )


@dataclass(frozen=True)
class Summary:
    """What is said of one group of comparisons.

    Attributes:
        records: Rows of the group.
        skipped: Rows without a prediction.
        step_time: Errors of step time.
        memory: Errors of peak memory.
        oom_missed: Runs that went out of memory though the prediction says that they fit.
        oom_found: Runs that went out of memory, and the prediction says so.
        false_alarms: Runs that fitted though the prediction says that they do not.
        undecided: Runs of which nothing is said, for it hangs on what their records leave open.
    """

    records: int
    skipped: int
    step_time: Score
    memory: Score
    oom_missed: int
    oom_found: int
    false_alarms: int
    undecided: int = 0

    def as_json(self) -> dict[str, Any]:
        """Nested plain values."""
        return asdict(self)


def summarise(rows: Iterable[Comparison]) -> Summary:
    """The summary of some comparisons."""
    rows = list(rows)
    fits = [(row.record.measured.oom, row.fits) for row in rows if row.fits is not None]
    return Summary(
        records=len(rows),
        skipped=sum(row.skipped is not None for row in rows),
        step_time=Score.of([e for row in rows if (e := row.step_time_error) is not None]),
        memory=Score.of([e for row in rows if (e := row.memory_error) is not None]),
        oom_missed=sum(oom and fit for oom, fit in fits),
        oom_found=sum(oom and not fit for oom, fit in fits),
        false_alarms=sum(not oom and not fit for oom, fit in fits),
        undecided=sum(row.skipped is None and row.fits is None for row in rows),
    )


def by_source(rows: Iterable[Comparison]) -> dict[str, Summary]:
    """The summary of each source, in the order in which the sources appear."""
    groups: dict[str, list[Comparison]] = {}
    for row in rows:
        groups.setdefault(row.record.source, []).append(row)
    return {source: summarise(group) for source, group in groups.items()}


def over_sources(summaries: Mapping[str, Summary]) -> Score:
    """Means of the sources' figures: each source counts once, however many rows it has.

    ``count`` is the number of sources.
    """
    scores = [summary.step_time for summary in summaries.values() if summary.step_time.count]
    if not scores:
        return Score.of([])

    def mean(values: Iterable[float | None]) -> float:
        return float(np.mean([value for value in values if value is not None]))

    return Score(
        count=len(scores),
        median=mean(score.median for score in scores),
        mean=mean(score.mean for score in scores),
        within_10=mean(score.within_10 for score in scores),
        within_20=mean(score.within_20 for score in scores),
        bias=mean(score.bias for score in scores),
    )


def worst(rows: Iterable[Comparison], count: int) -> list[Comparison]:
    """The rows with the largest error of step time, worst first."""
    timed = [row for row in rows if row.step_time_error is not None]
    return sorted(timed, key=lambda row: -_size(row))[:count]


def _size(row: Comparison) -> float:
    """How far off, the same for twice as long as for half as long."""
    return float(abs(np.log1p(row.step_time_error or 0.0)))
