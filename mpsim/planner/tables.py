"""Tables, files and pictures of what-ifs and comparisons."""

from __future__ import annotations

import csv
import importlib
import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from mpsim.errors import ScenarioError
from mpsim.planner.comparison import Comparison, Difference
from mpsim.planner.grid import Grid
from mpsim.planner.sensitivity import Neighbour, Sensitivity
from mpsim.planner.sweep import COLUMNS
from mpsim.planner.text import rate_name
from mpsim.units import format_bytes, format_seconds, format_si

_SHOWN_ROWS = 40
Rows = Sequence[Mapping[str, Any]]


def rows_table(grid: Grid, rows: Rows) -> Table:
    """The points of a grid, at most forty; all of them are in the files."""
    shown = rows[:_SHOWN_ROWS]
    scenario = grid.scenario
    more = f", the first {len(shown)} of {len(rows)}" if len(rows) > len(shown) else ""
    which = f" · {scenario.variant}" if scenario.variant != "base" else ""
    title = f"{scenario.name}{which}{more}"
    table = Table(box=box.SIMPLE_HEAVY, title=title, title_justify="left")
    for axis in grid.axes:
        table.add_column(axis.path.rsplit(".", 1)[-1], justify="right", overflow="fold")
    for name in ("step", rate_name(scenario), "memory", "MFU"):
        table.add_column(name, justify="right")
    table.add_column("", overflow="fold")
    for row in shown:
        values = [format_value(row[axis.path]) for axis in grid.axes]
        if row["status"] == "invalid":
            table.add_row(*values, "–", "–", "–", "–", str(row["reason"]), style="dim")
            continue
        use = row["model_flops_utilisation"]
        table.add_row(
            *values,
            format_seconds(row["step_time_s"]),
            format_si(row["tokens_per_s"], ""),
            format_bytes(row["memory_bytes"]),
            f"{use:.1%}" if use is not None else "–",
            f"does not fit: {row['reason']}" if row["reason"] else "",
        )
    return table


def format_value(value: Any) -> str:  # noqa: ANN401
    """A value of an axis as people read it: ``50 GB/s`` for ``50000000000.0 B/s``."""
    number, _, unit = str(value).partition(" ")
    try:
        return format_si(float(number), unit) if unit else str(value)
    except ValueError:
        return str(value)


def write_rows(rows: Rows, path: Path, kind: str) -> None:
    """Rows as CSV, JSON or Parquet.

    Raises:
        ScenarioError: If Parquet is asked for and ``pyarrow`` is not installed.
    """
    if kind == "json":
        path.write_text(json.dumps(list(rows), indent=1) + "\n", encoding="utf-8")
    elif kind == "csv":
        names = list(rows[0]) if rows else list(COLUMNS)
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(rows)
    else:
        try:
            arrow = importlib.import_module("pyarrow")
            parquet = importlib.import_module("pyarrow.parquet")
        except ImportError:
            raise ScenarioError(
                "--parquet", "needs the package 'pyarrow': pip install mpsim[parquet]"
            ) from None
        plain = [
            {name: str(value) if isinstance(value, list) else value for name, value in row.items()}
            for row in rows
        ]
        parquet.write_table(arrow.Table.from_pylist(plain), path)


def plot_rows(grid: Grid, rows: Rows, path: Path) -> None:
    """A line for one axis, a heat map for two; what does not fit is marked with the reason."""
    check_plot(grid, path)
    figure_module = importlib.import_module("matplotlib.figure")
    figure = figure_module.Figure(figsize=(8, 5), layout="constrained")
    picture = figure.subplots()
    (_line if len(grid.axes) == 1 else _heat)(grid, rows, picture, figure)
    picture.set_title(grid.scenario.name)
    figure.savefig(path)


def check_plot(grid: Grid, path: Path) -> None:
    """Refuse a picture that cannot be drawn, before anything is simulated for it.

    Raises:
        ScenarioError: If there are more axes than two, or the file name has another ending.
    """
    if path.suffix not in (".svg", ".png", ".pdf"):
        raise ScenarioError(str(path), "the picture's ending must be .svg, .png or .pdf")
    if len(grid.axes) not in (1, 2):
        raise ScenarioError("--plot", f"shows one axis or two, not {len(grid.axes)}")


def _number(value: Any) -> float | None:  # noqa: ANN401
    """The number of a value of an axis; None for names."""
    if isinstance(value, bool | list):
        return None
    try:
        return float(str(value).partition(" ")[0])
    except ValueError:
        return None


def _line(grid: Grid, rows: Rows, picture: Any, figure: Any) -> None:  # noqa: ANN401
    """Step time over one axis."""
    del figure
    axis = grid.axes[0]
    numbers = [_number(value) for value in axis.values]
    spaced = all(number is not None for number in numbers)
    places = [float(number or 0) for number in numbers] if spaced else list(range(len(numbers)))
    for status, mark, colour in (("ok", "o", "tab:blue"), ("infeasible", "x", "tab:red")):
        chosen = [place for place, row in enumerate(rows) if row["status"] == status]
        if chosen:
            label = "fits" if status == "ok" else "does not fit"
            steps = [rows[place]["step_time_s"] for place in chosen]
            picture.plot([places[p] for p in chosen], steps, mark, color=colour, label=label)
    timed = [place for place, row in enumerate(rows) if row["step_time_s"] is not None]
    steps = [rows[place]["step_time_s"] for place in timed]
    picture.plot([places[p] for p in timed], steps, "-", color="tab:gray", linewidth=0.8, zorder=0)
    for place, row in enumerate(rows):
        if row["status"] == "invalid":
            picture.axvline(places[place], color="tab:gray", linestyle=":", linewidth=0.8)
            picture.annotate(
                str(row["reason"])[:60], (places[place], 0.5), rotation=90, fontsize=6,
                xycoords=("data", "axes fraction"), ha="right", va="center",
            )  # fmt: skip
        elif row["reason"]:
            picture.annotate(
                row["reason"], (places[place], row["step_time_s"]), fontsize=6, rotation=30
            )
    ticks = [format_value(value) for value in axis.values]
    if not spaced or len(places) <= 12:
        picture.set_xticks(places, ticks, rotation=30, ha="right", fontsize=8)
    picture.set_xlabel(axis.path)
    picture.set_ylabel("step, s")
    picture.legend()


def _heat(grid: Grid, rows: Rows, picture: Any, figure: Any) -> None:  # noqa: ANN401
    """Step time over two axes; a cell that does not fit is hatched, an invalid one empty."""
    down, across = grid.axes
    wide = len(across.values)
    nothing = float("nan")
    cells = [
        [
            row["step_time_s"] if row["status"] == "ok" else nothing
            for row in rows[start : start + wide]
        ]
        for start in range(0, len(rows), wide)
    ]
    image = picture.imshow(cells, aspect="auto", cmap="viridis_r")
    figure.colorbar(image, label="step, s")
    small = max(3.0, min(8.0, 90 / max(wide, len(down.values))))
    for place, row in enumerate(rows):
        y, x = divmod(place, wide)
        if row["status"] == "ok":
            text = format_seconds(row["step_time_s"])
        elif row["status"] == "infeasible":
            text = str(row["reason"]).replace(", ", "\n")
        else:
            text = "\n".join(textwrap.wrap(str(row["reason"]), 20)[:4])
        if len(rows) <= 400:
            behind = {"facecolor": "white", "alpha": 0.6, "edgecolor": "none", "pad": 1}
            picture.text(x, y, text, ha="center", va="center", fontsize=small, bbox=behind)
    picture.set_xticks(range(wide), map(format_value, across.values), rotation=30, ha="right")
    picture.set_yticks(range(len(down.values)), map(format_value, down.values))
    picture.set_xlabel(across.path)
    picture.set_ylabel(down.path)


def sensitivity_table(found: Sequence[Sensitivity]) -> Table:
    """A line for each parameter."""
    table = Table(box=box.SIMPLE_HEAVY)
    table.add_column("parameter")
    for name in ("elasticity", "doubled gains", "at most", "then binds"):
        table.add_column(name, justify="right")
    for one in found:
        table.add_row(
            one.parameter.name,
            f"{one.elasticity:+.3f}",
            f"{one.doubled:.1%}",
            f"{one.infinite:.1%}",
            one.then_binds,
        )
    return table


def sensitivity_sentence(one: Sensitivity) -> str:
    """A parameter in words."""
    verb = "halving" if one.parameter.smaller_is_better else "doubling"
    return f"{verb} the {one.parameter.name} gains {one.doubled:.1%}; then {_binds(one.then_binds)}"


def _binds(cause: str) -> str:
    return "compute binds" if cause == "compute" else f"the {cause} binds"


def neighbours_table(found: Sequence[Neighbour], step: float) -> Table:
    """Neighbouring plans, shortest step first."""
    table = Table(box=box.SIMPLE_HEAVY, title="neighbouring plans", title_justify="left")
    for name in ("change", "step", "", ""):
        table.add_column(name, overflow="fold")
    for one in sorted(found, key=lambda one: (one.step is None, one.step or 0.0)):
        if one.step is None:
            table.add_row(one.change, "–", "", one.reason, style="dim")
        else:
            note = "" if one.fits else "does not fit"
            table.add_row(one.change, format_seconds(one.step), f"{one.step / step - 1:+.1%}", note)
    return table


def comparison_tables(found: Comparison, names: tuple[str, str]) -> list[Table]:
    """Fields that differ, causes, numbers."""
    fields = Table(box=box.SIMPLE_HEAVY, title="what differs", title_justify="left")
    for name in ("field", *names):
        fields.add_column(name, overflow="fold")
    for path, first, second in found.fields:
        fields.add_row(path, format_value(first), format_value(second))
    causes = _differences(found.causes, names, "what makes the difference in the step")
    return [fields, causes, _differences(found.numbers, names, "numbers")]


def _differences(found: Sequence[Difference], names: tuple[str, str], title: str) -> Table:
    table = Table(box=box.SIMPLE_HEAVY, title=title, title_justify="left")
    table.add_column("")
    for name in (*names, "difference", "ratio"):
        table.add_column(name, justify="right", overflow="fold")
    for one in found:
        table.add_row(
            _label(one.name),
            _shown(one.name, one.first),
            _shown(one.name, one.second),
            _shown(one.name, one.change, sign=True),
            "–" if one.ratio is None else f"{one.ratio:.3f}",
        )
    return table


_COUNTS = ("devices", "usd_per_step")
"""Numbers that are printed without a prefix."""


def _label(name: str) -> str:
    """What people call a number, from its key."""
    if name == "reserved_memory_bytes":
        return "memory as the driver shows it"
    if name.endswith("_per_s"):
        return name.removesuffix("_per_s") + " per second"
    return name.removesuffix("_s").removesuffix("_bytes").replace("_", " ")


def _shown(name: str, value: float | None, *, sign: bool = False) -> str:
    """A number in its unit."""
    if value is None:
        return "–"
    zero = name not in _COUNTS and not name.endswith("_per_s") and abs(value) < 1e-12
    plus = "+" if sign and value > 0 and not zero else ""
    if name.endswith("_bytes"):
        return plus + format_bytes(value)
    if name.endswith("_per_s"):
        return plus + format_si(value, "", 4)
    if name in _COUNTS:
        return plus + (f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}")
    if name.endswith(("_fraction", "_utilisation")):
        return plus + f"{value:.2%}"
    return plus + format_seconds(value)
