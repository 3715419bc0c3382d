"""Results on disk: one line a point, appended as they come, so that nothing computed is lost."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from mpsim.errors import ScenarioError

Row = Mapping[str, Any]


def cache_folder() -> Path:
    """Where result files go that nobody names: ``$XDG_CACHE_HOME/mpsim`` or ``~/.cache/mpsim``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mpsim"


@dataclass
class Results:
    """The rows of one grid: a header line with the grid's key, then a line for each point."""

    path: Path
    key: str
    rows: dict[int, Row] = field(default_factory=dict)  # place → row

    @contextmanager
    def appending(self) -> Iterator[IO[str]]:
        """The file, open at its end; a line that was cut off by an interruption is ended first."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = not self.path.exists() or not self.path.stat().st_size
        with self.path.open("a+", encoding="utf-8") as file:
            if new:
                file.write(json.dumps({"grid": self.key}) + "\n")
            elif not _ends_with_newline(self.path):
                file.write("\n")
            yield file

    def add(self, file: IO[str], place: int, row: Row) -> None:
        """Keep a row, on disk first."""
        file.write(json.dumps({"place": place, **row}) + "\n")
        self.rows[place] = row


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def open_results(path: Path, key: str) -> Results:
    """The results of a grid that a file holds so far; none if it does not exist.

    Raises:
        ScenarioError: If the file holds the results of another grid, or something else.
    """
    results = Results(path, key)
    if not path.exists() or not path.stat().st_size:
        return results
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    header = _record(lines[0])
    if header is None or "grid" not in header:
        raise ScenarioError(str(path), "is no result file of mpsim; it is left as it is")
    if header["grid"] != key:
        raise ScenarioError(
            str(path),
            "holds the results of another scenario, grid or version; name another file, or "
            "delete this one",
        )
    for line in lines[1:]:
        record = _record(line)
        if record is not None and isinstance(record.get("place"), int):
            results.rows[record.pop("place")] = record
    return results


def _record(line: str) -> dict[str, Any] | None:
    """The mapping of a line; None for one that was cut off."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None
