"""What a calibration is of: the data sheet, the link and the profile to start from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from mpsim.cost.derived import derived_profile
from mpsim.cost.silicon import device_named, node_link
from mpsim.errors import CalibrationError, did_you_mean
from mpsim.spec.cluster import DeviceSpec, LinkSpec
from mpsim.spec.profile import Profile, Sheet, load_profile, shipped_profiles
from mpsim.spec.tables import Table
from mpsim.spec.zoo import load_entry, names


@dataclass(frozen=True)
class Target:
    """A device to be fitted.

    Attributes:
        device: Name of the device.
        sheet: Its data sheet.
        link: Link of its collectives; None: they cannot be fitted.
        base: Profile that fills in what was not measured.
    """

    device: str
    sheet: Sheet
    link: LinkSpec | None
    base: Profile


def target(
    name: str,
    tables: Mapping[str, Table],
    machine: Mapping[str, Any],
    *,
    link: str | None = None,
) -> Target:
    """The target that a name speaks of.

    The data sheet is that of the zoo's device of the name; else that under ``sheet`` in
    ``machine.yaml``; else one made from the tables, whose peak rates are the best ones measured.

    Args:
        name: A device of the zoo, a shipped profile, or any new name.
        tables: What was measured.
        machine: What ``machine.yaml`` says.
        link: Link of the zoo; null: that of the first cluster of the zoo with the device.

    Raises:
        CalibrationError: If the data sheet cannot be read or made, or the link is unknown.
    """
    device = device_named(name)
    sheet = _sheet_of(device) if device else _given_sheet(machine) or _made_sheet(tables)
    base = load_profile(name) if name in shipped_profiles() else derived_profile(_device(sheet))
    label = device.name if device else str(machine.get("device", name))
    return Target(label, sheet, _link(link, device), base)


def _sheet_of(device: DeviceSpec) -> Sheet:
    """The figures of a device."""
    return Sheet.model_construct(
        peak=dict(device.peak),
        memory_bandwidth=device.memory_bandwidth,
        multiprocessors=device.multiprocessors or 1,
    )


def _device(sheet: Sheet) -> DeviceSpec:
    """A device of the figures, as ``derived_profile`` wants it."""
    return DeviceSpec.model_construct(
        name="device", memory=0.0, source="data sheet", vector_peak=None, **dict(sheet)
    )


def _given_sheet(machine: Mapping[str, Any]) -> Sheet | None:
    """The data sheet under ``sheet`` in ``machine.yaml``."""
    given = machine.get("sheet")
    if given is None:
        return None
    try:
        return Sheet.model_validate(given)
    except ValidationError as error:
        item = error.errors(include_url=False)[0]
        place = ".".join(("machine.yaml", "sheet", *map(str, item["loc"])))
        what = item["msg"].removeprefix("Value error, ")
        raise CalibrationError(f"{place}: {what}") from None


def _made_sheet(tables: Mapping[str, Table]) -> Sheet:
    """A data sheet from the best rates measured; one multiprocessor, so that no waves show."""
    if "gemm" not in tables:
        raise CalibrationError(
            "the device is not in the zoo, and there is no gemm table to tell its rates; name a "
            "device of `mpsim zoo devices`, or write its sheet into machine.yaml"
        )
    table = tables["gemm"]
    m, n, k = table["m"], table["n"], table["k"]
    rate = 2 * m * n * k / table.seconds
    peak = {str(d): float(rate[table["dtype"] == d].max()) for d in set(table["dtype"])}
    streams = [float((4 * (m * k + k * n + m * n) / table.seconds).max())]
    if "memory_bound" in tables:
        streams = [float((tables["memory_bound"]["bytes"] / tables["memory_bound"].seconds).max())]
    given = {
        "peak": {name: f"{value!r} FLOP/s" for name, value in peak.items()},
        "memory_bandwidth": f"{max(streams)!r} B/s",
        "multiprocessors": 1,
    }
    try:
        return Sheet.model_validate(given)
    except ValidationError:
        known = ", ".join(sorted(peak))
        raise CalibrationError(
            f"{table.path}: has an unknown number format among {known}"
        ) from None


def _link(name: str | None, device: DeviceSpec | None) -> LinkSpec | None:
    """The link of the zoo, or that of the device's nodes."""
    if name is None:
        return node_link(device.name) if device else None
    if name not in names("links"):
        hint = did_you_mean(name, names("links")) or "; see `mpsim zoo links`"
        raise CalibrationError(f"no link '{name}' in the zoo{hint}")
    return LinkSpec.model_validate({"name": name, **load_entry("links", name)})
