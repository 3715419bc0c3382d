"""What the power limit leaves of the clock in a long run."""

from __future__ import annotations

from mpsim.cost.compute import peak_rate, runs_scalar
from mpsim.spec.cluster import DeviceSpec, Precision
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
    "rtx_pro_6000_server": 0.8e12,
}
"""Dense 16-bit FLOP for each joule that matrix products of a long run may take at the full clock,
by the profile whose silicon the device has. RTX PRO 6000: what its tables show, 480 TFLOP/s at
600 W without slowing; the H100's, of like lithography, is no lower. It bounds Ada boards (L4,
L40S)."""

SCALAR_ENERGY = 7.0
"""Energy of an fp32 multiply-add outside the matrix units over that of a 16-bit one inside: 3.1 by
the arithmetic alone (4.6 and 1.5 pJ: Horowitz, "Computing's energy problem", ISSCC 2014, figure
1.1.9), and more by the operands that it does not share. It slows no V100, A100 or H100; the
figure is that of an L4 of 72 W (forward and backward passes of BERT and GPT-2: NeuSight's
measurements, arXiv:2407.13853)."""


def sustained_clock(device: DeviceSpec, profile: Profile) -> float:
    """Clock of matrix products in a long run over that in a short benchmark.

        min(1, (power x e / peak)^γ)

    with e as in ``FULL_CLOCK``. Formats below 16 bits and tf32 are throttled alike: a product of
    half the bits takes half the energy at twice the rate. Devices whose power is not declared, and
    profiles that state a sustained rate of their own, are left alone.
    """
    return _clock(device, profile, peak_rate(device, "bf16"))


def scalar_clock(device: DeviceSpec, profile: Profile) -> float:
    """The same for fp32 products outside the matrix units: fewer FLOP/s of more energy each."""
    return _clock(device, profile, SCALAR_ENERGY * peak_rate(device, "fp32"))


def _clock(device: DeviceSpec, profile: Profile, demand: float) -> float:
    """Clock by the power limit, for a demand in FLOP/s of 16 bits that take as much energy."""
    efficiency = FULL_CLOCK.get(profile.name.partition("@")[0])
    if device.power is None or efficiency is None:
        return 1.0
    return float(min(1.0, (device.power * efficiency / demand) ** EXPONENT))


def with_sustained_clock(profile: Profile, device: DeviceSpec) -> Profile:
    """The profile with the sustained clock of a device, where it has none of its own."""
    if profile.sustained:
        return profile
    clock: dict[Precision, float] = dict.fromkeys(
        (*profile.gemm, "tf32"), sustained_clock(device, profile)
    )
    if runs_scalar("fp32", device):
        clock["fp32"] = scalar_clock(device, profile)
    return profile.model_copy(
        update={
            "sustained": clock,
            "sustained_source": f"power limit of {device.name}: mpsim.cost.clock",
        }
    )
