"""The timeline as a Gantt picture, and memory over time, with matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import IO, Any

import matplotlib as mpl
import numpy as np
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from mpsim.report.lanes import COLOURS, KIND_NAMES, Lane, lanes, op_label
from mpsim.report.metrics import DeviceUse, Report
from mpsim.schedule.ops import Kind
from mpsim.units import format_bytes, format_seconds

_RASTER_OPS = 4000
"""Ops above which bars are rasterised, so that an SVG stays small."""

_LABELLED_OPS = 400
"""Ops below which a bar that is wide enough carries its name."""

_ALL_LANES = 24
"""Devices up to which transfers and collectives are drawn too; of more, compute alone."""

_NAMED_LINES = 8
"""Devices up to which each line of memory has its name."""

_SHOWN_COMPONENTS = 12
"""Components of memory that have a colour of their own."""

_SMALLEST = 0.003
"""Share of the peak below which a component is not told from the rest."""

_WIDTH = 12.0
"""Width of a picture, inches."""

_TALL, _THIN, _GAP = 0.8, 0.3, 0.25
"""Height of a compute lane, of the others, and between devices."""

_IDLE = "#ececec"


def plot_timeline(report: Report, path: Path) -> None:
    """Write the Gantt picture: one lane a device and stream, colours by kind, idle in grey.

    Transfers and collectives have thin lanes below the compute of their device; with many devices
    there is compute alone.

    Args:
        report: The simulated step.
        path: Where to; the ending says the format (svg, png, pdf).
    """
    _save(_timeline(report), path)


def plot_memory(report: Report, path: Path) -> None:
    """Write memory over time: that of all devices, and the components of the fullest.

    Args:
        report: The simulated step.
        path: Where to; the ending says the format (svg, png, pdf).
    """
    _save(_memory(report), path)


def pictures(report: Report) -> dict[str, str]:
    """Both pictures as SVG text, by name: ``timeline`` and ``memory``."""
    found = {}
    for name, figure in (("timeline", _timeline(report)), ("memory", _memory(report))):
        text = StringIO()
        _write(figure, text, "svg")
        found[name] = text.getvalue()
    return found


def _timeline(report: Report) -> Figure:
    """The Gantt figure."""
    few = report.graph.num_devices <= _ALL_LANES
    found = [lane for lane in lanes(report.graph) if few or lane.stream == 0]
    rows = _rows(found)
    height = float(rows[-1]) + 0.5
    figure = Figure(figsize=(_WIDTH, 1.3 + (0.28 if few else 0.18) * height), layout="constrained")
    axes = figure.subplots()
    scale, unit = _time_scale(report.makespan)
    kinds: set[Kind] = set()
    for row, lane in zip(rows, found, strict=True):
        kinds |= _draw_lane(axes, report, lane, row=row, scale=scale)
    first = {row: lane.device for row, lane in zip(rows, found, strict=True) if lane.first}
    axes.set_yticks(list(first), [report.device_names[d] for d in first.values()], fontsize=7)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(height, -0.3)
    axes.set_xlim(0, report.makespan * scale)
    axes.set_xlabel(f"time in the step ({unit})")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_title(_title(report), fontsize=10, loc="left", parse_math=False)
    colours = {KIND_NAMES[kind]: COLOURS[kind] for kind in sorted(kinds)} | {"idle": _IDLE}
    handles = [Patch(color=colour, label=name) for name, colour in colours.items()]
    columns = min(len(handles), 9)
    figure.legend(
        handles=handles, loc="outside lower center", ncols=columns, fontsize=8, frameon=False
    )
    return figure


def _rows(found: Sequence[Lane]) -> list[float]:
    """The middle of each lane, from the top: thin ones close below the compute of their device."""
    rows, below = [], -_GAP
    for lane in found:
        height = _TALL if lane.stream == 0 else _THIN
        top = below + (_GAP if lane.first else 0.06)
        rows.append(top + height / 2)
        below = top + height
    return rows


def _draw_lane(axes: Any, report: Report, lane: Lane, *, row: float, scale: float) -> set[Kind]:  # noqa: ANN401
    """Draw the bars of a lane over a grey strip; returns the kinds that it shows."""
    graph, timeline = report.graph, report.timeline
    half = (_TALL if lane.stream == 0 else _THIN) / 2
    axes.barh(row, report.makespan * scale, left=0, height=2 * half, color=_IDLE, zorder=0)
    begin, end = timeline.begin[lane.ops] * scale, timeline.end[lane.ops] * scale
    low, high = np.full(len(begin), row - half), np.full(len(begin), row + half)
    corners = np.stack(
        [np.stack([begin, begin, end, end], axis=1), np.stack([low, high, high, low], axis=1)],
        axis=2,
    )
    kinds = [Kind(int(kind)) for kind in graph.kind[lane.ops]]
    colours = [COLOURS[kind] for kind in kinds]
    # a white edge tells bars apart, but would hide a narrow one: that has an edge of its own colour
    wide = (end - begin) > 0.004 * report.makespan * scale
    bars = PolyCollection(
        list(corners),
        facecolors=colours,
        edgecolors=["white" if w else c for w, c in zip(wide, colours, strict=True)],
        linewidths=0.4,
        rasterized=graph.num_ops > _RASTER_OPS,
    )
    axes.add_collection(bars)
    if graph.num_ops <= _LABELLED_OPS and lane.stream == 0:
        for op, left, right in zip(lane.ops.tolist(), begin, end, strict=True):
            label = op_label(graph, op)
            if right - left > (0.004 * len(label) + 0.004) * report.makespan * scale:
                place = ((left + right) / 2, row)
                axes.annotate(label, place, ha="center", va="center", fontsize=5, color="white")
    return set(kinds)


def _memory(report: Report) -> Figure:
    """The figure of memory: totals above, the fullest device's components below.

    Lines are what the allocator hands out. What it may hand out is the capacity less fragmentation,
    context and communicators: a step fits where its fullest device stays below that.
    """
    figure = Figure(figsize=(_WIDTH, 6.5), layout="constrained")
    totals, parts = figure.subplots(2, sharex=True, height_ratios=(2, 3))
    scale, unit = _time_scale(report.makespan)
    peak = max(device.memory.peak for device in report.devices)
    size, size_unit = _size_scale(peak)
    _draw_totals(totals, report, scale=scale, size=size)
    _draw_components(parts, report, report.fullest, scale=scale, size=size)
    capacity, fullest = report.scenario.cluster.device.memory, report.fullest
    room = capacity - (fullest.reserved - fullest.memory.peak)
    lines = {"--": room, ":": capacity}  # those near enough: else all would lie flat on the ground
    lines = {style: level for style, level in lines.items() if level < 3 * peak}
    for axes in (totals, parts):
        for style, level in lines.items():
            axes.axhline(level * size, color="black", linestyle=style, linewidth=1)
        axes.set_ylim(0, 1.08 * max(peak, *lines.values(), 0.0) * size)
        axes.set_ylabel(f"allocated ({size_unit})")
        axes.spines[["top", "right"]].set_visible(False)
    parts.set_xlim(0, report.makespan * scale)
    parts.set_xlabel(f"time in the step ({unit})")
    dotted = " (dotted)" if ":" in lines else ""
    dashed = f", for tensors {format_bytes(max(room, 0.0))} (dashed)" if lines else ", far above"
    totals.set_title(
        f"{_title(report)}; capacity {format_bytes(capacity)}{dotted}{dashed}",
        fontsize=10,
        loc="left",
    )
    return figure


def _draw_totals(axes: Any, report: Report, *, scale: float, size: float) -> None:  # noqa: ANN401
    """One line a device; of many, the first, the last and the fullest have names."""
    count, colours = len(report.devices), mpl.colormaps["viridis"]
    named = {0, count - 1, report.fullest.index} if count > _NAMED_LINES else {*range(count)}
    for device in report.devices:
        memory, name = device.memory, report.device_names[device.index]
        axes.step(
            np.append(memory.times, report.makespan) * scale,
            np.append(memory.total, memory.total[-1]) * size,
            where="post",
            label=f"{name}: {format_bytes(memory.peak)}" if device.index in named else None,
            color=colours(0.9 * device.index / max(count - 1, 1)),
            linewidth=1,
        )
    title = "peak" if count == len(named) else f"peak, {count - len(named)} more between"
    _legend_beside(axes, title)


def _draw_components(
    axes: Any,  # noqa: ANN401
    report: Report,
    device: DeviceUse,
    *,
    scale: float,
    size: float,
) -> None:
    """The components of one device on top of each other: what stays first, then what changes."""
    memory = device.memory
    size_of = {name: float(values.max()) for name, values in memory.components.items()}
    seen = [name for name in size_of if size_of[name] > _SMALLEST * memory.peak]
    large = sorted(seen, key=lambda name: -size_of[name])[:_SHOWN_COMPONENTS]
    large.sort(key=lambda name: (np.ptp(memory.components[name]) > 0, -size_of[name]))
    shown = {name.replace("_", " "): memory.components[name] for name in large}
    rest = [memory.components[name] for name in size_of if name not in large]
    if rest:
        shown["the rest"] = sum(rest, np.zeros(len(memory.times)))
    times = np.append(memory.times, report.makespan) * scale
    layers = [np.append(values, values[-1]) * size for values in shown.values()]
    axes.stackplot(times, layers, labels=list(shown), step="post", colors=_PALETTE)
    handles, labels = axes.get_legend_handles_labels()
    _legend_beside(
        axes, report.device_names[device.index], handles=handles[::-1], labels=labels[::-1]
    )


_PALETTE = mpl.colormaps["tab20"].colors  # type: ignore[attr-defined]


def _legend_beside(axes: Any, title: str, **entries: Any) -> None:  # noqa: ANN401
    """A legend to the right of the axes, off the lines."""
    axes.legend(
        **entries,
        title=title,
        fontsize=7,
        title_fontsize=7,
        frameon=False,
        loc="center left",
        bbox_to_anchor=(1.0, 0.5),
    )


def _title(report: Report) -> str:
    """Scenario, variant, step time and idle share."""
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


def _size_scale(nbytes: float) -> tuple[float, str]:
    """Factor and unit in which sizes up to this one read well."""
    return (2.0**-30, "GiB") if nbytes >= 2**30 else (2.0**-20, "MiB")


def _save(figure: Figure, path: Path) -> None:
    """Write the figure to a file."""
    with path.open("wb" if path.suffix != ".svg" else "w") as file:
        _write(figure, file, path.suffix[1:])


def _write(figure: Figure, file: IO[Any], kind: str) -> None:
    """Write the figure so that equal figures give equal bytes."""
    metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind)
    with mpl.rc_context({"svg.hashsalt": "mpsim"}):
        figure.savefig(file, format=kind, dpi=150, metadata=metadata)
