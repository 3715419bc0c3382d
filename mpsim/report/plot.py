"""The timeline as a Gantt picture, and memory over time, with matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from mpsim.report.lanes import COLOURS, KIND_NAMES, Lane, lanes, op_label
from mpsim.report.metrics import Report
from mpsim.schedule.ops import Kind
from mpsim.units import format_bytes, format_seconds

_RASTER_OPS = 4000
"""Ops above which bars are rasterised, so that an SVG stays small."""

_LABELLED_OPS = 400
"""Ops below which each bar carries its name."""


def plot_timeline(report: Report, path: Path) -> None:
    """Write the Gantt picture: one lane a device and stream, colours by kind, idle in grey.

    Args:
        report: The simulated step.
        path: Where to; the ending says the format (svg, png, pdf).
    """
    found = list(lanes(report.graph))
    figure = Figure(figsize=(12, 1.6 + 0.32 * len(found)), layout="constrained")
    axes = figure.subplots()
    scale, unit = _time_scale(report.step_time)
    kinds: set[Kind] = set()
    for row, lane in enumerate(found):
        kinds |= _draw_lane(axes, report, lane, row=row, scale=scale)
    axes.set_yticks(range(len(found)), [_lane_name(report, lane) for lane in found], fontsize=7)
    axes.set_ylim(len(found) - 0.4, -0.6)
    axes.set_xlim(0, report.step_time * scale)
    axes.set_xlabel(f"time in the step ({unit})")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_title(_title(report), fontsize=10, loc="left")
    handles = [
        Patch(color=colour, label=name)
        for name, colour in {
            **{KIND_NAMES[kind]: COLOURS[kind] for kind in sorted(kinds)},
            "idle": "#eeeeee",
        }.items()
    ]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=min(len(handles), 8), fontsize=8
    )
    _save(figure, path)


def plot_memory(report: Report, path: Path) -> None:
    """Write memory over time: one line a device, the capacity as a dashed line."""
    figure = Figure(figsize=(12, 4.5), layout="constrained")
    axes = figure.subplots()
    scale, unit = _time_scale(report.step_time)
    for device in report.devices:
        memory = device.memory
        axes.step(
            np.append(memory.times, report.step_time) * scale,
            np.append(memory.total, memory.total[-1]) / 2**30,
            where="post",
            label=f"{report.device_names[device.index]}: peak {format_bytes(memory.peak)}",
            linewidth=1,
        )
    capacity = report.scenario.cluster.device.memory
    axes.axhline(capacity / 2**30, color="black", linestyle="--", linewidth=1)
    axes.annotate(
        f"capacity {format_bytes(capacity)}",
        (0.0, capacity / 2**30),
        fontsize=8,
        va="bottom",
    )
    axes.set_xlim(0, report.step_time * scale)
    axes.set_ylim(0)
    axes.set_xlabel(f"time in the step ({unit})")
    axes.set_ylabel("memory (GiB)")
    axes.set_title(_title(report), fontsize=10, loc="left")
    axes.legend(fontsize=7, ncols=2, loc="lower right")
    _save(figure, path)


def _draw_lane(axes: Any, report: Report, lane: Lane, *, row: int, scale: float) -> set[Kind]:  # noqa: ANN401
    """Draw the bars of a lane over a grey strip; returns the kinds that it shows."""
    graph, timeline = report.graph, report.timeline
    axes.barh(row, report.step_time * scale, left=0, height=0.7, color="#eeeeee", zorder=0)
    begin, end = timeline.begin[lane.ops] * scale, timeline.end[lane.ops] * scale
    low, high = np.full(len(begin), row - 0.35), np.full(len(begin), row + 0.35)
    corners = np.stack(
        [np.stack([begin, begin, end, end], axis=1), np.stack([low, high, high, low], axis=1)],
        axis=2,
    )
    kinds = [Kind(int(kind)) for kind in graph.kind[lane.ops]]
    bars = PolyCollection(
        list(corners),
        facecolors=[COLOURS[kind] for kind in kinds],
        edgecolors="white",
        linewidths=0.3,
        rasterized=graph.num_ops > _RASTER_OPS,
    )
    axes.add_collection(bars)
    if graph.num_ops <= _LABELLED_OPS and lane.stream == 0:
        for op, left, right in zip(lane.ops.tolist(), begin, end, strict=True):
            if right - left > 0.012 * report.step_time * scale:
                place = ((left + right) / 2, row)
                axes.annotate(op_label(graph, op), place, ha="center", va="center", fontsize=5)
    return set(kinds)


def _lane_name(report: Report, lane: Lane) -> str:
    """Device and stream; the device only on its first lane."""
    return f"{report.device_names[lane.device]}  {lane.name}" if lane.first else lane.name


def _title(report: Report) -> str:
    """Scenario, variant, step time and bubble."""
    scenario = report.scenario
    variant = f" ({scenario.variant})" if scenario.variant != "base" else ""
    return (
        f"{scenario.name}{variant}: step {format_seconds(report.step_time)}, "
        f"idle {report.idle_fraction:.1%}"
    )


def _time_scale(seconds: float) -> tuple[float, str]:
    """Factor and unit in which an axis of this length reads well."""
    if seconds >= 1:
        return 1.0, "s"
    return (1e3, "ms") if seconds >= 1e-3 else (1e6, "µs")


def _save(figure: Figure, path: Path) -> None:
    """Write the figure so that equal figures give equal bytes."""
    metadata = {"Date": None} if path.suffix == ".svg" else None
    with mpl.rc_context({"svg.hashsalt": "mpsim"}):
        figure.savefig(path, dpi=150, metadata=metadata)
