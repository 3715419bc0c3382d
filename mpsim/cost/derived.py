"""Profiles of devices that nobody has measured: from the data sheet and the nearest fitted one."""

from __future__ import annotations

import math

from mpsim.cost.compute import peak_rate
from mpsim.spec.cluster import DeviceSpec
from mpsim.spec.profile import Profile, Sheet, load_profile, shipped_profiles


def profile_of(device: DeviceSpec) -> Profile:
    """The profile that times a device: the one its declaration names, or one derived.

    A profile named by a device with another data sheet is applied to that sheet, and called
    derived: a share of the peak rate stays a share of the other's peak rate.

    Raises:
        ScenarioError: If the declaration names a profile that does not exist.
    """
    if device.profile is None:
        return derived_profile(device)
    profile = load_profile(device.profile)
    return profile if distance(device, profile.sheet) < 0.02 else _applied(profile, device)


def derived_profile(device: DeviceSpec) -> Profile:
    """A profile from the data sheet: the shares and floors of the nearest fitted device.

    Nearest by ``distance``. Times between devices then scale by what binds: FLOPs by the peak
    rate, bytes by the memory bandwidth, waves by the number of multiprocessors; floors stay.
    """
    fitted = [load_profile(name) for name in shipped_profiles()]
    nearest = min(fitted, key=lambda profile: distance(device, profile.sheet))
    return _applied(nearest, device)


def distance(device: DeviceSpec, sheet: Sheet) -> float:
    """How unlike a device is to a data sheet: 0 for equal figures, 1 for a factor of e in one.

    The Euclidean norm of the logarithms of the ratios of peak rate per multiprocessor, of
    multiprocessors, half of that of bytes per FLOP, and 1/2 where one has 8-bit units and the
    other has not: kernels suit an architecture, and these figures tell architectures apart.
    """
    peak = sheet.peak.get("bf16") or next(iter(sheet.peak.values()))
    count = device.multiprocessors or sheet.multiprocessors
    mine = peak_rate(device, "bf16")
    parts = (
        math.log(mine / count / (peak / sheet.multiprocessors)),
        math.log(count / sheet.multiprocessors),
        0.5 * math.log(device.memory_bandwidth / mine / (sheet.memory_bandwidth / peak)),
        0.5 * (("fp8" in device.peak) != ("fp8" in sheet.peak)),
    )
    return math.hypot(*parts)


def _applied(profile: Profile, device: DeviceSpec) -> Profile:
    """The profile of one device with the data sheet of another, called derived."""
    sheet = Sheet.model_construct(
        peak=dict(device.peak),
        memory_bandwidth=device.memory_bandwidth,
        multiprocessors=device.multiprocessors or profile.sheet.multiprocessors,
    )
    gemm = dict(profile.gemm)
    if sheet.multiprocessors != profile.sheet.multiprocessors:
        gemm = {name: fit.model_copy(update={"tiling": None}) for name, fit in gemm.items()}
    return profile.model_copy(
        update={
            "gemm": gemm,
            "name": f"{profile.name}@{device.name}",
            "device": device.name,
            "kind": "derived",
            "source": f"data sheet of {device.name} ({device.source}); shares and floors of the "
            f"profile {profile.name}: {profile.source}",
            "tables": {},
            "residuals": [],
            "sheet": sheet,
        }
    )
