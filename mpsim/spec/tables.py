"""Measurement tables in the documented formats, with file and line in every complaint."""

from __future__ import annotations

import csv
import gzip
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpsim.errors import CalibrationError
from mpsim.spec.yaml_text import parse_yaml

Floats = NDArray[np.float64]

_TEXT = {"dtype", "op", "link", "what", "layer"}
"""Columns of text; all others hold numbers above zero."""

COLUMNS: dict[str, tuple[str, ...]] = {
    "gemm": ("dtype", "m", "n", "k", "ms"),
    "attention_fwd": ("batch", "seq", "heads", "kv_heads", "head_dim", "ms"),
    "attention_bwd": ("batch", "seq", "heads", "kv_heads", "head_dim", "ms"),
    "memory_bound": ("op", "bytes", "ms"),
    "collectives": ("op", "gpus", "bytes", "ms"),
    "launch": ("what", "us"),
    "layers": ("layer", "batch", "fwd_ms", "bwd_input_ms", "bwd_weight_ms"),
    "overlap": ("compute_ms", "comm_ms", "compute_with_comm_ms", "comm_with_compute_ms"),
}
"""Columns that a table must have; it may have more."""

_ALIASES = {"nccl": "collectives"}
_OPS = {"alltoall": "all_to_all", "send_recv": "send", "sendrecv": "send"}
_DTYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32", "float64": "fp64"}
"""Names that tables use → names of mpsim."""


@dataclass(frozen=True, eq=False)
class Table:
    """The rows of one measurement table, by column.

    Attributes:
        name: Which table: a key of ``COLUMNS``.
        path: The file.
        columns: Arrays of one length; of text for dtype, op, link, what, layer, else of floats.
    """

    name: str
    path: Path
    columns: Mapping[str, Any]

    def __len__(self) -> int:
        """Number of rows."""
        return len(next(iter(self.columns.values())))

    def __getitem__(self, column: str) -> Any:  # noqa: ANN401  (text or floats)
        """A column."""
        return self.columns[column]

    def rows(self, mask: Any) -> Table:  # noqa: ANN401  (any index of numpy)
        """The rows that a mask or an index picks."""
        picked = {name: column[mask] for name, column in self.columns.items()}
        return Table(self.name, self.path, picked)

    @property
    def seconds(self) -> Floats:
        """Measured seconds of each row, from the column ``ms``."""
        seconds: Floats = self.columns["ms"] * 1e-3
        return seconds


def read_folder(folder: Path, *, device: str = "") -> dict[str, Table]:
    """All tables of a folder, by name.

    A table is a file ``gemm.csv``, ``gemm.csv.gz`` or, where the folder holds tables of several
    devices, ``<device>.gemm.csv.gz``; ``nccl`` is read as ``collectives``.

    Args:
        folder: Where the files are.
        device: Name before the dot, for folders of several devices.

    Raises:
        CalibrationError: If the folder has no table, or one cannot be read.
    """
    if not folder.is_dir():
        raise CalibrationError(f"{folder}: no such folder")
    found: dict[str, Table] = {}
    for path in sorted(folder.iterdir()):
        name = _table_name(path.name, device)
        if name is None:
            continue
        if name in found:
            raise CalibrationError(
                f"{path}: a second table '{name}' beside {found[name].path.name}; keep one"
            )
        found[name] = read_table(path, name)
    if not found:
        names = ", ".join(f"{name}.csv" for name in COLUMNS)
        prefix = f" or {device}.gemm.csv.gz and the like" if device else ""
        raise CalibrationError(f"{folder}: holds no table; expected any of {names}{prefix}")
    return found


def _table_name(file: str, device: str) -> str | None:
    """Name of the table that a file holds; None if it is none, or of another device."""
    stem = file.removesuffix(".gz")
    if not stem.endswith(".csv"):
        return None
    *prefix, name = stem.removesuffix(".csv").split(".")
    name = _ALIASES.get(name, name)
    return name if name in COLUMNS and ".".join(prefix) in ("", device) else None


def read_table(path: Path, name: str) -> Table:
    """One table, checked: columns there, numbers positive and finite, at least one row.

    Raises:
        CalibrationError: With file, line and what is wrong.
    """
    opener: Callable[..., Any] = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8", newline="") as file:
            numbered = [(i, row) for i, row in enumerate(csv.reader(file), 1) if _is_row(row)]
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise CalibrationError(f"{path}: cannot be read: {error}") from None
    if len(numbered) < 2:
        raise CalibrationError(f"{path}: has no rows")
    header = [column.strip() for column in numbered[0][1]]
    missing = [column for column in COLUMNS[name] if column not in header]
    if missing:
        raise CalibrationError(
            f"{path}: line {numbered[0][0]}: column '{missing[0]}' is missing; "
            f"expected {','.join(COLUMNS[name])}"
        )
    columns = _columns(path, header, numbered[1:])
    return Table(name, path, _renamed(columns))


def _is_row(row: Sequence[str]) -> bool:
    """Whether a line is neither empty nor a comment."""
    return bool(row) and not row[0].lstrip().startswith("#")


def _columns(
    path: Path, header: Sequence[str], numbered: Sequence[tuple[int, Sequence[str]]]
) -> dict[str, Any]:
    """Arrays by column, each number checked."""
    for line, row in numbered:
        if len(row) != len(header):
            raise CalibrationError(
                f"{path}: line {line}: {len(row)} values, but the header names {len(header)}"
            )
    columns: dict[str, Any] = {}
    for index, column in enumerate(header):
        texts = [row[index].strip() for _, row in numbered]
        if column in _TEXT:
            columns[column] = np.array(texts, dtype=object)
        elif column in _NUMBERS:
            lines = [line for line, _ in numbered]
            columns[column] = np.array(
                [_number(text, path, line, column) for text, line in zip(texts, lines, strict=True)]
            )
    return columns


_NUMBERS = {column for columns in COLUMNS.values() for column in columns} - _TEXT
"""Columns of numbers; further columns of a file are notes, and are left."""


def _number(text: str, path: Path, line: int, column: str) -> float:
    """A number above zero."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise CalibrationError(
            f"{path}: line {line}: {column} is '{text}', but must be a number above zero"
        )
    return value


def _renamed(columns: dict[str, Any]) -> dict[str, Any]:
    """The columns with number formats and collectives under the names of mpsim."""
    for column, names in (("dtype", _DTYPES), ("op", _OPS)):
        if column in columns:
            columns[column] = np.array([names.get(v, v) for v in columns[column]], dtype=object)
    return columns


def read_machine(folder: Path) -> dict[str, Any]:
    """What ``machine.yaml`` of a folder says: device, driver, libraries, date; empty if none."""
    path = folder / "machine.yaml"
    if not path.is_file():
        return {}
    tree = parse_yaml(path.read_text(encoding="utf-8"), where=str(path))
    if not isinstance(tree, dict):
        raise CalibrationError(f"{path}: expected a mapping with device, driver, date, ...")
    return tree
