"""Profiles of devices that nobody has measured: from the data sheet and the nearest fitted one."""

from __future__ import annotations

import math
from functools import cache

from mpsim.cost.compute import nearest_precision, peak_rate
from mpsim.spec.cluster import DeviceSpec, Precision
from mpsim.spec.profile import GemmFit, Profile, Sheet, load_profile, shipped_profiles
from mpsim.spec.zoo import load_entry, names


def profile_of(device: DeviceSpec) -> Profile:
    """The profile that times a device: the one its declaration names, or one derived.

    A profile named by a device with another data sheet is applied to that sheet, and called
    derived: a share of the peak rate stays a share of the other's peak rate, unless measured
    ceilings tell that the device does not reach it (see ``ceiling_ratio``). The name keeps the
    profile in place when figures of the sheet are changed.

    Raises:
        ScenarioError: If the declaration names a profile that does not exist.
    """
    if device.profile is None:
        return derived_profile(device)
    return applied(load_profile(device.profile), device)


def applied(profile: Profile, device: DeviceSpec) -> Profile:
    """A profile on the data sheet of a device: as it is, or called derived where they differ."""
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


def ceiling_ratio(device: DeviceSpec, profile: Profile, precision: Precision) -> float:
    """How far measured ceilings tell a device to fall short of one with the profile; 1: alike.

        (ceiling of the device / its peak) / (ceiling of the profile's device / its peak)

    1 where the device states no ceiling. The other's is that of its entry in the zoo, or else the
    share of the profile's best tile.

    Source:
        Bekman, "Maximum achievable matmul FLOPS" (ML Engineering, accelerators, 2025): the best
        shape of a search, by one program on all accelerators.
    """
    if not device.ceiling:
        return 1.0
    mine = device.ceiling[nearest_precision(precision, device.ceiling)]
    known = _zoo_ceilings(profile.device)
    other = known[nearest_precision(precision, known)] if known else None
    return mine / (other or max(profile.gemm[precision].tiles.values()))


@cache
def _zoo_ceilings(name: str) -> dict[Precision, float]:
    """Measured ceilings of a device of the zoo; none where there is no such device."""
    if name not in names("devices"):
        return {}
    return DeviceSpec.model_validate(load_entry("devices", name)).ceiling


def _rescaled(profile: Profile, device: DeviceSpec) -> dict[str, object]:
    """What a measured ceiling changes: the shares of products and attention, and no more clock.

    The best shapes of AMD and Intel parts run for 2 to 4 ms, again and again, so that the power
    limit is in their ceilings: MI300X and MI325X, the same silicon at 750 and 1000 W, differ by
    1.17, near the square root of the powers' ratio.
    """
    if not device.ceiling or profile.device == device.name:
        return {}
    gemm = {}
    for name, fit in profile.gemm.items():
        ratio = ceiling_ratio(device, profile, name)
        tiles = {tile: min(1.0, share * ratio) for tile, share in fit.tiles.items()}
        # not model_copy, which would keep the candidates computed from the tiles before
        fields = {field: getattr(fit, field) for field in GemmFit.model_fields}
        gemm[name] = GemmFit.model_construct(**{**fields, "tiles": tiles})
    ratio = ceiling_ratio(device, profile, next(iter(profile.gemm)))
    shares = tuple(min(1.0, share * ratio) for share in profile.attention.peak_fraction)
    return {
        "gemm": gemm,
        "attention": profile.attention.model_copy(update={"peak_fraction": shares}),
        "sustained": dict.fromkeys(profile.gemm, 1.0),
        "sustained_source": "in the measured ceiling of the device",
    }


def _applied(profile: Profile, device: DeviceSpec) -> Profile:
    """The profile of one device with the data sheet of another, called derived."""
    sheet = Sheet.model_construct(
        peak=dict(device.peak),
        memory_bandwidth=device.memory_bandwidth,
        multiprocessors=device.multiprocessors or profile.sheet.multiprocessors,
    )
    rescaled = _rescaled(profile, device)
    profile = profile.model_copy(update=rescaled)
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
            f"profile {profile.name}{' by the ratio of measured ceilings' if rescaled else ''}: "
            f"{profile.source}",
            "tables": {},
            "residuals": [],
            "sheet": sheet,
        }
    )
