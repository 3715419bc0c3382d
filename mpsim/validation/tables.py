"""A profile scored on tables of kernels and collectives that it was not fitted on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from mpsim.cost.silicon import Silicon, silicon
from mpsim.cost.tables import predicted_seconds, residuals
from mpsim.errors import CalibrationError
from mpsim.spec.profile import Residual
from mpsim.spec.tables import Table, read_folder


def score_tables(folder: Path, name: str, *, device: str | None = None) -> list[Residual]:
    """Errors of a profile on the tables of a folder, by table, number format or collective, region.

    Args:
        folder: Tables in the documented formats.
        name: A profile (shipped, or a file), or a device of the zoo, whose profile is derived from
            its data sheet where it has none.
        device: Name before the dot of the tables, where the folder holds several devices; null:
            the tables without such a name, or those of ``name``.

    Raises:
        ScenarioError: If there is no such profile or device.
        CalibrationError: If a table cannot be read, or none can be predicted.
    """
    subject = silicon(name)
    prefix = device if device is not None else _prefix(folder, name)
    found = _scores(read_folder(folder, device=prefix).values(), subject)
    if not found:
        raise CalibrationError(f"{folder}: no table with times of kernels or collectives")
    return found


def fitted_rows(name: str, found: Sequence[Residual]) -> dict[str, int]:
    """Rows that a profile was fitted on, of the tables that it was scored on; none if derived.

    Whether they are among the rows scored depends on whether the folder is that of the fit, which
    a table does not say.
    """
    profile = silicon(name).profile
    scored = {residual.table for residual in found}
    own = {} if profile.kind == "derived" else profile.tables
    return {table: count for table, count in own.items() if table in scored and count}


def _prefix(folder: Path, name: str) -> str:
    """Name before the dot of the tables of a folder: that of the profile, or the only one."""
    parts = [path.name.removesuffix(".gz").split(".") for path in folder.glob("*.csv*")]
    prefixes = {part[0] for part in parts if len(part) == 3}
    return next(iter(prefixes)) if len(prefixes) == 1 else Path(name).stem


def _scores(tables: Iterable[Table], subject: Silicon) -> list[Residual]:
    """Errors on each table with times."""
    found: list[Residual] = []
    for table in tables:
        if "ms" in table.columns:
            predicted = predicted_seconds(table, subject.profile, subject.device, link=subject.link)
            found += residuals(table, predicted)
    return found
