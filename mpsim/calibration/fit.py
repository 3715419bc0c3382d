"""A profile from measurement tables: fitted on most rows, judged on those held out."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any

import numpy as np

from mpsim.calibration.attentions import fit_attention
from mpsim.calibration.gemms import fit_gemm
from mpsim.calibration.links import fit_link
from mpsim.cost.tables import device_of, predicted_seconds, residuals
from mpsim.errors import CalibrationError
from mpsim.spec.cluster import LinkSpec, Precision
from mpsim.spec.profile import GemmFit, LaunchFit, MemoryFit, Profile, Residual, Sheet
from mpsim.spec.tables import Table
from mpsim.units import format_si

HELD_OUT = 0.2
"""Share of the rows of each table that no fit sees; the residuals of a profile are of these."""

_ORDER: tuple[Precision, ...] = ("bf16", "fp16", "fp32", "tf32", "fp8", "mxfp8", "nvfp4")
"""Precisions as they are fitted: wide ones first, for the narrow ones build on their floors."""


def fit_profile(
    tables: Mapping[str, Table],
    base: Profile,
    *,
    name: str,
    device: str,
    sheet: Sheet,
    link: LinkSpec | None = None,
    kind: str = "fitted",
    source: str,
    date: datetime.date,
    seed: int = 0,
) -> Profile:
    """The profile of a device from tables of it.

    What no table speaks of stays that of ``base``; a fit anew of a profile also keeps its kernels
    bound by memory, unless there is a table of them. Collectives without a link are left out, and
    the profile does not list them. A fifth of the rows of each table, drawn at
    random, is held out of every fit; the residuals are of those rows alone.

    Args:
        tables: By name, as ``read_folder`` gives them.
        base: The profile of the nearest known device.
        name: Name of the new profile.
        device: Device that it speaks of.
        sheet: Its data sheet.
        link: Link of its collectives; null: they are not fitted.
        kind: fitted (others' tables) or measured (own).
        source: Provenance, with the licence.
        date: Day of the fit.
        seed: Of the draw of the rows held out.

    Raises:
        CalibrationError: If a table has a precision that the data sheet has no peak rate for, or
            nothing in the tables can be fitted.
    """
    known = ", ".join(sorted(tables)) or "none"
    if link is None:
        tables = {key: table for key, table in tables.items() if key != "collectives"}
    split = {key: _split(table, seed) for key, table in tables.items()}
    fitted = {key: part for key, (part, _) in split.items()}
    parts: dict[str, Any] = {}
    if "gemm" in fitted:
        parts["gemm"] = _gemms(fitted["gemm"], sheet)
    if "attention_fwd" in fitted:
        backward = fitted.get("attention_bwd")
        parts["attention"] = fit_attention(
            fitted["attention_fwd"], sheet, backward=backward, base=base.attention
        )
    if base.name != name or "memory_bound" in fitted:
        parts |= _memory(fitted, sheet, source)
    if "launch" in fitted:
        parts["launch"] = _launch(fitted["launch"], base.launch, source)
    if link is not None and "collectives" in fitted:
        parts["link"] = fit_link(fitted["collectives"], link)
    if not parts:
        raise CalibrationError(f"nothing can be fitted from these tables: {known}")
    plain = {
        "name": name,
        "device": device,
        "kind": kind,
        "source": source,
        "date": date,
        "sheet": sheet,
        "residuals": [],
        "sustained": {},
        "link": base.link if base.name == name else None,
        "tables": {key: len(table) for key, table in fitted.items()},
        "fit_range": {key: _range(table) for key, table in tables.items()},
    }
    profile = base.model_copy(update={**plain, **parts})
    return profile.model_copy(update={"residuals": held_out_residuals(profile, split)})


def held_out_residuals(
    profile: Profile, split: Mapping[str, tuple[Table, Table]]
) -> list[Residual]:
    """Errors on the rows held out, by table, kind and region."""
    device = device_of(profile)
    found: list[Residual] = []
    for _, held in split.values():
        if "ms" in held.columns and len(held):
            predicted = predicted_seconds(held, profile, device)
            found += residuals(held, predicted)
    return found


def _split(table: Table, seed: int) -> tuple[Table, Table]:
    """Rows to fit on, and rows held out; a table of few rows is fitted whole."""
    if len(table) < 20:
        return table, table.rows(np.zeros(len(table), bool))
    held = np.random.default_rng(seed).random(len(table)) < HELD_OUT
    return table.rows(~held), table.rows(held)


def _gemms(table: Table, sheet: Sheet) -> dict[Precision, GemmFit]:
    """Matrix products of each precision of the table."""
    found: dict[Precision, GemmFit] = {}
    floor: float | None = None
    for precision in _ORDER:
        mask = table["dtype"] == precision
        if not mask.any():
            continue
        if precision not in sheet.peak:
            raise CalibrationError(
                f"{table.path}: has rows of {precision}, but the data sheet has no peak rate for "
                f"it; it has {', '.join(sheet.peak)}"
            )
        rows = table.rows(mask)
        _refuse_too_fast(rows, precision, sheet.peak[precision])
        found[precision] = fit_gemm(rows, precision, sheet, floor=floor)
        floor = floor if floor is not None else found[precision].floor
    if not found:
        kinds = ", ".join(sorted({str(kind) for kind in table["dtype"]}))
        raise CalibrationError(f"{table.path}: has none of {', '.join(_ORDER)}, only {kinds}")
    return found


def _refuse_too_fast(rows: Table, precision: str, peak: float) -> None:
    """Refuse products that run faster than the data sheet allows; a clock may be a tenth above it.

    Raises:
        CalibrationError: Naming the fastest product and what may be wrong.
    """
    rate = 2 * rows["m"] * rows["n"] * rows["k"] / rows.seconds
    fastest = int(np.argmax(rate))
    if rate[fastest] <= 1.1 * peak:
        return
    shape = " x ".join(f"{rows[name][fastest]:g}" for name in ("m", "n", "k"))
    raise CalibrationError(
        f"{rows.path}: the {precision} product {shape} runs at "
        f"{format_si(rate[fastest], 'FLOP/s')}, above the data sheet's "
        f"{format_si(peak, 'FLOP/s')}: is --device another one, or ms not in milliseconds?"
    )


def _memory(tables: Mapping[str, Table], sheet: Sheet, source: str) -> dict[str, MemoryFit]:
    """Kernels bound by memory: from their own table, else from the largest skinny products.

    The line floor + bytes / rate is the one of least relative error. A product of 64 columns
    streams its first operand once; those of a quarter gigabyte and more show the memory's rate.
    """
    if "memory_bound" in tables:
        table = tables["memory_bound"]
        weights = 1 / table.seconds
        design = np.column_stack([np.ones(len(table)), table["bytes"]]) * weights[:, None]
        (floor, slope), *_ = np.linalg.lstsq(design, np.ones(len(table)), rcond=None)
        share = 1 / max(slope, 1e-30) / sheet.memory_bandwidth
        return _memory_fit(share, max(floor, 0.0), f"measured: {source}")
    if "gemm" not in tables:
        return {}
    table = tables["gemm"]
    wide = (table["dtype"] == "bf16") & (np.minimum(table["m"], table["n"]) <= 64)
    m, n, k = table["m"], table["n"], table["k"]
    nbytes = 2 * (m * k + k * n + m * n)
    rows = wide & (nbytes >= 2**28)
    if rows.sum() < 3:
        return {}
    share = float(np.median(nbytes[rows] / table.seconds[rows])) / sheet.memory_bandwidth
    floor = float(table.seconds[table["dtype"] == "bf16"].min())
    return _memory_fit(
        share,
        floor,
        "rate: matrix products of 64 columns that stream 256 MiB or more; floor: "
        "the smallest matrix product",
    )


def _memory_fit(share: float, floor: float, source: str) -> dict[str, MemoryFit]:
    """The part of a profile."""
    fit = MemoryFit(
        bandwidth_fraction=float(f"{min(max(share, 1e-3), 1.0):.3g}"),
        floor=f"{floor:.3g} s",
        source=source,
    )
    return {"memory": fit}


def _launch(table: Table, base: LaunchFit, source: str) -> LaunchFit:
    """Host costs, by the names of the fields: host, dispatch, graph_node."""
    known = dict(zip(table["what"], (table["us"] * 1e-6).tolist(), strict=True))
    fields = {name: known[name] for name in ("host", "dispatch", "graph_node") if name in known}
    if not fields:
        raise CalibrationError(
            f"{table.path}: column 'what' has none of host, dispatch, graph_node"
        )
    return base.model_copy(update={**fields, "source": f"measured: {source}"})


def _range(table: Table) -> dict[str, tuple[float, float]]:
    """Smallest and largest value of each column of numbers."""
    return {
        name: (float(column.min()), float(column.max()))
        for name, column in table.columns.items()
        if column.dtype != object and name not in ("ms", "us")
    }
