"""Predicted against measured step times, one point a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from mpsim.validation.comparison import Comparison


def plot_scatter(rows: Sequence[Comparison], path: Path) -> None:
    """Write the scatter plot: logarithmic axes, one colour a source, bands of 10 and 20 %.

    Args:
        rows: Comparisons; those without both times are left out.
        path: Where to; the ending says the format (svg, png, pdf).
    """
    groups: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        measured = row.record.measured.step_time_s
        if row.step_time is not None and measured is not None:
            groups.setdefault(row.record.source, []).append((measured, row.step_time))
    figure = Figure(figsize=(8, 7), layout="constrained")
    axes = figure.subplots()
    times = [time for points in groups.values() for point in points for time in point] or [1.0]
    line = np.array([min(times) / 1.3, max(times) * 1.3])
    for band, alpha in ((0.2, 0.12), (0.1, 0.18)):
        axes.fill_between(line, line * (1 - band), line * (1 + band), color="#888888", alpha=alpha)
    axes.plot(line, line, color="#444444", linewidth=0.8)
    colours = mpl.colormaps["tab20"].colors  # type: ignore[attr-defined]
    for index, (source, points) in enumerate(groups.items()):
        axes.plot(
            *np.array(points).T,
            "o",
            markersize=3,
            alpha=0.7,
            color=colours[index % len(colours)],
            label=f"{source} ({len(points)})",
        )
    axes.set(
        xscale="log", yscale="log", xlim=line, ylim=line,
        xlabel="measured step time (s)", ylabel="predicted step time (s)",
        title="bands: within 10 % and 20 %",
    )  # fmt: skip
    if groups:
        axes.legend(fontsize=7, frameon=False)
    figure.savefig(path, dpi=150)
