"""The scoreboard for people: errors by source, the worst rows and why, what was left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mpsim.units import format_bytes, format_seconds
from mpsim.validation.comparison import Comparison
from mpsim.validation.records import Problem
from mpsim.validation.series import SeriesScore
from mpsim.validation.statistics import Score, Summary, by_source, over_sources, summarise, worst

_COLUMNS = ("rows", "median", "mean", "≤ 10 %", "≤ 20 %", "bias")


def show(
    rows: Sequence[Comparison], problems: Sequence[Problem], console: Console, *, shown: int = 10
) -> None:
    """Print the scoreboard.

    Args:
        rows: Comparisons.
        problems: Lines that are no record.
        console: Where to.
        shown: How many of the worst rows.
    """
    sources = by_source(rows)
    total = summarise(rows)
    console.print(_scores("Step time", {name: s.step_time for name, s in sources.items()}, total))
    mean = over_sources(sources)
    if len(sources) > 1 and mean.count:
        console.print(
            f"  means over sources: median {_percent(mean.median)}, mean {_percent(mean.mean)}\n"
        )
    if total.memory.count:
        memory = {name: s.memory for name, s in sources.items() if s.memory.count}
        console.print(_scores("Peak memory", memory, total))
    _show_fits(total, console)
    _show_worst(worst(rows, shown), console)
    _show_skipped(rows, problems, console)


def show_series(scores: Mapping[str, SeriesScore], console: Console) -> None:
    """Print the ratio tests by variable."""
    table = Table(box=box.SIMPLE, title="Ratios within series", title_justify="left")
    for name in ("variable", "series", "ratio error (median)", "ranked pairs", "in order"):
        table.add_column(name, justify="left" if name == "variable" else "right")
    for variable, score in scores.items():
        table.add_row(
            variable, str(score.count), _percent(score.ratio), str(score.pairs),
            _percent(score.ranked),
        )  # fmt: skip
    console.print(table)


def show_factors(factors: Mapping[str, float], rows: int, console: Console) -> None:
    """Print the factors that were fitted."""
    text = ", ".join(f"{name} x {factor:.3f}" for name, factor in factors.items())
    console.print(f"fitted on {rows} rows: {text}\n")


def attribution(row: Comparison, shown: int = 4) -> str:
    """The largest causes of a predicted step with their shares."""
    step = row.step_time or 1.0
    order = sorted(row.parts.items(), key=lambda item: -item[1])[:shown]
    return ", ".join(f"{cause} {seconds / step:.0%}" for cause, seconds in order)


def _scores(title: str, scores: Mapping[str, Score], total: Summary) -> Table:
    """The table of one quantity."""
    table = Table(box=box.SIMPLE, title=title, title_justify="left")
    table.add_column("source", no_wrap=True)
    for name in _COLUMNS:
        table.add_column(name, justify="right")
    for source, score in scores.items():
        table.add_row(source, *_cells(score))
    table.add_section()
    table.add_row("all", *_cells(total.step_time if title == "Step time" else total.memory))
    return table


def _cells(score: Score) -> list[str]:
    """The figures of a score."""
    bias = "–" if score.bias is None else f"{100 * score.bias:+.1f} %"
    shares = (score.median, score.mean, score.within_10, score.within_20)
    return [str(score.count), *(_percent(share) for share in shares), bias]


def _percent(share: float | None) -> str:
    """A share in percent."""
    return "–" if share is None else f"{100 * share:.1f} %"


def _show_fits(total: Summary, console: Console) -> None:
    """What was said about fitting where the run says whether it did."""
    if total.oom_found or total.oom_missed or total.false_alarms or total.undecided:
        console.print(
            f"  out of memory: {total.oom_found} foreseen, {total.oom_missed} missed, "
            f"{total.false_alarms} runs that fitted predicted not to; {total.undecided} hang on a "
            "microbatch or recomputation that is not stated\n",
            soft_wrap=True,
        )


def _show_worst(rows: Sequence[Comparison], console: Console) -> None:
    """The worst rows with what their prediction is made of."""
    if not rows:
        return
    console.print(Text("Worst rows", style="italic"))
    for row in rows:
        measured = row.record.measured.step_time_s or 0.0
        console.print(
            f"  {row.record.id}: {format_seconds(row.step_time or 0.0)} for "
            f"{format_seconds(measured)} ({100 * (row.step_time_error or 0.0):+.0f} %); "
            f"{attribution(row)}{_memory(row)}",
            soft_wrap=True,
        )
        if row.assumptions:
            console.print(f"    assumed: {', '.join(row.assumptions)}", soft_wrap=True)


def _memory(row: Comparison) -> str:
    """Predicted memory of a row, where it was measured."""
    measured = row.record.measured.peak_memory_bytes
    if row.memory is None or measured is None:
        return ""
    return f"; {format_bytes(row.memory)} for {format_bytes(measured)}"


def _show_skipped(
    rows: Sequence[Comparison], problems: Sequence[Problem], console: Console
) -> None:
    """Rows without a prediction and lines that are no record, each with its reason."""
    skipped = [row for row in rows if row.skipped is not None]
    if skipped or problems:
        console.print(Text("Left out", style="italic"))
    for problem in problems:
        console.print(f"  {problem}", soft_wrap=True)
    for row in skipped:
        console.print(f"  {row.record.id}: {row.skipped}", soft_wrap=True)
