"""What the power limit leaves of the clock in a long run."""

from __future__ import annotations

from mpsim.cost.compute import peak_rate
from mpsim.spec.cluster import DeviceSpec
from mpsim.spec.profile import Profile

EXPONENT = 0.5
"""γ of clock ∝ power^γ: power goes with frequency times voltage squared, and voltage nearly with
frequency."""

FULL_CLOCK = {
    "a100_sxm": 0.62e12,
    "h100_sxm": 0.8e12,
    "b200_sxm": 1.41e12,
    "b300_sxm": 1.41e12,
    "gb200": 1.41e12,
    "rtx_pro_6000_server": 1.41e12,
}
"""Dense 16-bit FLOP for each joule that matrix products of a long run may take at the full clock,
by the profile whose silicon the device has."""


def sustained_clock(device: DeviceSpec, profile: Profile) -> float:
    """Clock of matrix products in a long run over that in a short benchmark.

        min(1, (power x e / peak)^γ)

    with e as in ``FULL_CLOCK``. Formats below 16 bits are throttled alike: a product of half the
    bits takes half the energy at twice the rate. Devices whose power is not declared, and profiles
    that state a sustained rate of their own, are left alone.
    """
    efficiency = FULL_CLOCK.get(profile.name.partition("@")[0])
    if device.power is None or efficiency is None:
        return 1.0
    return float(min(1.0, (device.power * efficiency / peak_rate(device, "bf16")) ** EXPONENT))


def with_sustained_clock(profile: Profile, device: DeviceSpec) -> Profile:
    """The profile with the sustained clock of a device, where it has none of its own."""
    if profile.sustained:
        return profile
    clock = sustained_clock(device, profile)
    return profile.model_copy(
        update={
            "sustained": dict.fromkeys(profile.gemm, clock),
            "sustained_source": f"power limit of {device.name}: mpsim.cost.clock",
        }
    )
