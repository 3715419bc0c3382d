"""An order over time: a grid of characters for the terminal, a picture for documents."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mpsim.report.lanes import COLOURS, KIND_NAMES
from mpsim.report.schedule_measures import ScheduleMeasures
from mpsim.schedule.ops import Kind, Op, Order

_LABELLED_OPS = 600  # ops of a picture up to which each bar carries its name
_RASTER_OPS = 4000  # ops above which bars are rasterised, so that an SVG stays small
_SHADES = (1.0, 0.55)  # how strong the colour is on even and odd chunks of a device
_SHADE_COLOUR = "#54504c"  # of the pale shade in the legend, where it stands for all kinds


class Piece(NamedTuple):
    """Characters of one op, or of idle time."""

    text: str
    kind: Kind | None


def strips(measures: ScheduleMeasures, *, width: int) -> list[list[Piece]]:
    """The grid of an order: for each device the pieces that fill ``width`` characters or less.

    Time runs to the right in proportion. Where the shortest op has room each op carries its name
    (without the stage where devices hold one each), otherwise a character stands for the time of
    the median op, with the letter of the op that then runs or ``·`` for none; ``…`` ends what is
    too long.
    """
    order = measures.order
    names = [_name(order, entry) for entry in range(len(order.kind))]
    seconds = measures.end - measures.begin
    shortest = float(seconds[seconds > 0].min(initial=measures.makespan))
    scale = (max(map(len, names)) + 1) / shortest if shortest else 1.0  # characters a second
    bounds = list(zip(order.starts[:-1].tolist(), order.starts[1:].tolist(), strict=True))
    if measures.makespan * scale <= width:
        return [list(_named(measures, names, slice(*bound), scale)) for bound in bounds]
    return [_lettered(measures, slice(*bound), width) for bound in bounds]


def _named(
    measures: ScheduleMeasures, names: list[str], ops: slice, scale: float
) -> Iterator[Piece]:
    at = 0
    kinds = measures.order.kind[ops].tolist()
    for name, kind, begin, end in zip(
        names[ops], kinds, measures.begin[ops].tolist(), measures.end[ops].tolist(), strict=True
    ):
        first, last = round(begin * scale), round(end * scale)
        if last <= first:
            continue
        if first > at:
            yield Piece(" " * (first - at), None)
        yield Piece(f"{name:─<{last - first - 1}} "[: last - first], Kind(kind))
        at = last


def _lettered(measures: ScheduleMeasures, ops: slice, width: int) -> list[Piece]:
    begin, end = measures.begin[ops], measures.end[ops]
    unit = float(np.median(measures.end - measures.begin)) or measures.makespan
    count = round(measures.makespan / unit)
    middles = (np.arange(min(count, width - 1) if count > width else count) + 0.5) * unit
    entry = np.searchsorted(end, middles, side="right")
    kinds = measures.order.kind[ops].tolist()
    pieces = [
        Piece(Kind(kinds[at]).name, Kind(kinds[at]))
        if at < len(kinds) and begin[at] <= middle
        else Piece("·", None)
        for at, middle in zip(entry.tolist(), middles.tolist(), strict=True)
    ]
    return [*pieces, Piece("…", None)] if count > width else pieces


def _name(order: Order, entry: int) -> str:
    op = Op(
        int(order.stage[entry]),
        Kind(int(order.kind[entry])),
        int(order.microbatch[entry]),
        int(order.slice[entry]),
    )
    one_each = order.num_stages == order.num_devices and order.weight_copies == 1
    return str(op)[len(str(op.stage)) :] if one_each else str(op)


def draw(measures: ScheduleMeasures, path: Path) -> None:
    """Write the picture of an order: one lane a device, one bar an op, idle time blank.

    Args:
        measures: The order, timed.
        path: Where to; the ending says the format (svg, png, pdf).
    """
    from matplotlib.collections import PolyCollection
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    order = measures.order
    device = order.device
    figure = Figure(figsize=(12, 1.4 + 0.36 * order.num_devices), layout="constrained")
    axes = figure.subplots()
    corners = _corners(measures)
    for kind in sorted(set(order.kind.tolist())):
        for odd, strength in enumerate(_SHADES):
            chosen = (order.kind == kind) & (order.stage // order.num_devices % 2 == odd)
            bars = PolyCollection(
                list(corners[chosen]), facecolor=COLOURS[Kind(kind)], alpha=strength,
                edgecolor="white", linewidth=0.4, rasterized=len(device) > _RASTER_OPS,
            )  # fmt: skip
            axes.add_collection(bars)
    if len(device) <= _LABELLED_OPS:
        middles = (measures.begin + measures.end) / 2
        for entry, middle in enumerate(middles.tolist()):
            axes.text(
                middle, int(device[entry]), _name(order, entry),
                ha="center", va="center", fontsize=5,
            )  # fmt: skip
    axes.set_yticks(range(order.num_devices), [f"device {d}" for d in range(order.num_devices)])
    axes.set_ylim(order.num_devices - 0.4, -0.6)
    axes.set_xlim(0, measures.makespan)
    axes.set_xlabel("time, in the unit of the op times")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_title(f"{order.schedule}: makespan {measures.makespan:g}", loc="left", fontsize=10)
    handles = [
        Patch(facecolor=colour, alpha=strength, label=label)
        for label, colour, strength in _legend(order)
    ]
    figure.legend(handles=handles, loc="outside lower right", ncols=5, fontsize=7, frameon=False)
    figure.savefig(path, dpi=150)


def _legend(order: Order) -> Iterator[tuple[str, str, float]]:
    """Label, colour and strength of each entry of the legend: kinds, then the pale shade."""
    for kind in sorted(set(order.kind.tolist())):
        yield KIND_NAMES[Kind(kind)], COLOURS[Kind(kind)], _SHADES[0]
    if order.num_stages > order.num_devices:
        which = "second" if order.num_stages == 2 * order.num_devices else "every second"
        yield f"pale: {which} stage of a device", _SHADE_COLOUR, _SHADES[1]


def _corners(measures: ScheduleMeasures) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Corners of the bar of each op, (N, 4, 2)."""
    device = measures.order.device
    left, right = measures.begin, measures.end
    x = np.stack([left, right, right, left], axis=1)
    y = np.stack([device - 0.42, device - 0.42, device + 0.42, device + 0.42], axis=1)
    return np.stack([x, y], axis=2)
