"""Orders as text: rows of cells, the CSV of torch.distributed.pipelining, a grid to read.

A row is what one device runs, a cell one op, a fused pair, or nothing (an idle slot). Rows may
hold the communication ops of torch as well; an ``Order`` holds the compute ops alone.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable

import numpy as np

from mpsim.errors import ScheduleError
from mpsim.schedule.ops import COMPUTE_KINDS, Kind, Op, Order

Cell = tuple[Op, ...]
"""One op, two that are fused, or none."""
Rows = list[list[Cell]]
"""The cells of every device."""

_OVERLAP = "OVERLAP_F_B"
_SHOWN = 7  # cells shown on each side of a mark


def rows_of(order: Order) -> Rows:
    """The rows of an order, fused ops in one cell."""
    columns = (order.stage, order.kind, order.microbatch, order.slice, order.block)
    entries = list(zip(*(column.tolist() for column in columns), strict=True))
    rows: Rows = []
    for begin, end in zip(order.starts[:-1].tolist(), order.starts[1:].tolist(), strict=True):
        row: list[Cell] = []
        open_block = -1
        for stage, kind, microbatch, cut, block in entries[begin:end]:
            op = Op(stage, Kind(kind), microbatch, cut)
            if block >= 0 and block == open_block:
                row[-1] = (*row[-1], op)
            else:
                row.append((op,))
            open_block = block
        rows.append(row)
    return rows


def order_of(rows: Rows, *, name: str) -> Order:
    """The order of the compute ops of rows, whatever its counts; ``check`` says if it can run.

    The counts are one more than the largest stage, microbatch and slice; a device holds as many
    copies of its weights as stages stand on more than one device.
    """
    lists = [
        [(op, number if len(cell) > 1 else -1) for number, cell in enumerate(row) for op in cell]
        for row in rows
    ]
    lists = [[(op, block) for op, block in row if op.kind in COMPUTE_KINDS] for row in lists]
    ops = [op for row in lists for op, _ in row]
    if not ops:
        raise ScheduleError(f"{name} holds no compute op such as 2F0")
    devices = {(op.stage, device) for device, row in enumerate(lists) for op, _ in row}
    num_stages = max(op.stage for op in ops) + 1
    return Order(
        schedule=name,
        num_stages=num_stages,
        num_microbatches=max(op.microbatch for op in ops) + 1,
        kind=np.array([op.kind for op in ops], np.int8),
        stage=np.array([op.stage for op in ops], np.int32),
        microbatch=np.array([op.microbatch for op in ops], np.int32),
        slice=np.array([op.slice for op in ops], np.int32),
        block=np.array([block for row in lists for _, block in row], np.int32),
        starts=np.cumsum([0, *map(len, lists)]).astype(np.int32),
        num_slices=max(1, max(op.slice for op in ops) + 1),
        weight_copies=max(1, round(len(devices) / num_stages)),
    )


def read_csv(text: str, *, name: str = "schedule") -> Rows:
    """The rows of a CSV: one line a device, cells as torch writes them, empty ones for idle slots.

    A fused pair is ``(0F3;3B1)OVERLAP_F_B``, or ``(0F3+3B1)`` for short.

    Raises:
        ScheduleError: If a cell is no op; the text names line and cell.
    """
    rows: Rows = []
    for line, cells in enumerate(csv.reader(io.StringIO(text.lstrip("\ufeff"))), start=1):
        row: list[Cell] = []
        for column, cell in enumerate(cells, start=1):
            try:
                row.append(_read_cell(cell.strip()))
            except ValueError as error:
                raise ScheduleError(f"{name}: line {line}, cell {column}: {error}") from None
        rows.append(row)
    while rows and not any(rows[-1]):
        rows.pop()
    return rows


def write_csv(rows: Rows) -> str:
    """The CSV that torch's ``_load_csv`` reads; slices (``0F1.2``) are ours alone."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    for row in rows:
        writer.writerow([_write_cell(cell) for cell in row])
    return out.getvalue()


def cell_text(cell: Cell) -> str:
    """A cell for people: ``2F0``, ``(0F3+3B1)``, or nothing."""
    text = "+".join(map(str, cell))
    return f"({text})" if len(cell) > 1 else text


def grid(rows: Rows, *, mark: tuple[int, int] | None = None) -> str:
    """The rows as a table, one line a device, with carets under one cell.

    Around a mark, and at the begin where there is none, only some cells of long rows are shown.

    Args:
        rows: The rows.
        mark: Device and cell to point at.
    """
    width = max(map(len, rows), default=0)
    middle = mark[1] if mark else 0
    begin, end = max(0, middle - _SHOWN), min(width, middle + 1 + _SHOWN * (1 if mark else 2))
    table = [[cell_text(cell) for cell in row[begin:end]] for row in rows]
    widths = [
        max((len(row[column]) for row in table if column < len(row)), default=0)
        for column in range(end - begin)
    ]
    head = max(len(f"device {len(rows) - 1}"), 1)
    before, after = ("… " if begin else ""), (" …" if end < width else "")
    lines = []
    for device, row in enumerate(table):
        cells = " ".join(f"{text:<{widths[column]}}" for column, text in enumerate(row))
        more = after if len(rows[device]) > end else ""
        lines.append(f"{f'device {device}':<{head}}: {before}{cells.rstrip()}{more}")
        if mark and mark[0] == device:
            column = middle - begin
            offset = head + 2 + len(before) + sum(widths[:column]) + column
            carets = "^" * max(1, len(row[column]) if column < len(row) else 1)
            lines.append(" " * offset + carets + " here")
    return "\n".join(lines)


def compute_rows(rows: Rows) -> Rows:
    """The rows without communication ops and idle slots."""
    return [
        [cell for cell in row if cell and all(op.kind in COMPUTE_KINDS for op in cell)]
        for row in rows
    ]


def has_transfers(rows: Rows) -> bool:
    """Whether rows hold sends or receives."""
    moves = (Kind.SEND_F, Kind.RECV_F, Kind.SEND_B, Kind.RECV_B)
    return any(op.kind in moves for op in all_ops(rows))


def all_ops(rows: Rows) -> Iterable[Op]:
    """Every op of the rows."""
    return (op for row in rows for cell in row for op in cell)


def _read_cell(text: str) -> Cell:
    if not text:
        return ()
    if not text.startswith("("):
        return (Op.parse(text),)
    inside, closed, kind = text[1:].partition(")")
    parts = [part for part in inside.replace("+", ";").split(";") if part.strip()]
    if not closed or kind.strip() not in ("", _OVERLAP) or len(parts) != 2:
        raise ValueError(f"'{text}' is not a fused pair such as (0F3;3B1){_OVERLAP}")
    return tuple(Op.parse(part) for part in parts)


def _write_cell(cell: Cell) -> str:
    if len(cell) < 2:
        return str(cell[0]) if cell else ""
    return f"({';'.join(map(str, cell))}){_OVERLAP}"
