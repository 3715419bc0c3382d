"""Errors of a profile by table and region, as people and as programs read them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.table import Table

from mpsim.spec.profile import Residual


def residual_rows(found: Sequence[Residual]) -> list[dict[str, Any]]:
    """The errors as plain values: table, what, region, rows, median, p90, within_12."""
    return [residual.model_dump() for residual in found]


def residual_grid(found: Sequence[Residual], title: str) -> Table:
    """Absolute relative errors as a table: median, ninetieth percentile, share within 12 %."""
    grid = Table(title=title, box=box.SIMPLE, title_justify="left")
    for column in ("table", "what", "region"):
        grid.add_column(column, no_wrap=True)
    for column in ("rows", "median", "90 %", "≤ 12 %"):
        grid.add_column(column, justify="right")
    for row in found:
        figures = (f"{row.median:.1%}", f"{row.p90:.1%}", f"{row.within_12:.0%}")
        grid.add_row(row.table, row.what, row.region, str(row.rows), *figures)
    return grid
