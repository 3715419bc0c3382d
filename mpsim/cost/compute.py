"""How long the kernels of a layer take on a device, from its profile and its data sheet."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from mpsim.cost.attention import attention_seconds
from mpsim.cost.gemm import gemm_seconds
from mpsim.cost.work import Floats
from mpsim.spec.cluster import PRECISION_BYTES, DeviceSpec, Precision
from mpsim.spec.profile import GemmFit, Profile
from mpsim.workload.layers import Kernel

FALLBACK = {
    "nvfp4": "mxfp8",
    "mxfp8": "fp8",
    "fp8": "bf16",
    "bf16": "fp16",
    "fp16": "bf16",
    "tf32": "fp32",
    "fp32": "tf32",
}
"""Precision that stands in where a data sheet or a profile lacks one: the next wider format of the
same unit; fp16 and bf16 run at one rate on every tensor core since Ampere (NVIDIA A100 white
paper), and a device without fp8 units computes such products in 16 bits."""


def nearest_precision(precision: str, known: Collection[Precision]) -> Precision:
    """The precision itself, or the one that stands in for it; any, where none of the chain does.

    >>> nearest_precision("mxfp8", {"bf16": 1, "fp8": 2}), nearest_precision("fp8", {"fp32": 1})
    ('fp8', 'fp32')
    """
    tried: set[str] = set()
    while precision not in known and precision not in tried:
        tried.add(precision)
        precision = FALLBACK.get(precision, precision)
    return next((name for name in known if name == precision), next(iter(known)))


def peak_rate(device: DeviceSpec, precision: str) -> float:
    """Dense peak rate of matrix products, FLOP/s, of the precision or of its stand-in."""
    return device.peak[nearest_precision(precision, device.peak)]


def gemm_fit(profile: Profile, precision: str) -> GemmFit:
    """Parameters of matrix products of the precision, or of its stand-in."""
    return profile.gemm[nearest_precision(precision, profile.gemm)]


SCALAR_SHARE = {64: 0.93, 128: 0.72}
"""Share of the fp32 peak that the main loop of a product outside the matrix units reaches, by the
fp32 lanes of a multiprocessor: those of Volta and the A100 are fed in every cycle, the doubled ones
since (GA102, Ada, Hopper) by the same register files and are not. Forward and backward passes of
BERT and GPT-2 on V100 and H100 (NeuSight's measurements, arXiv:2407.13853)."""

_MOST_OF_64_LANES = 0.3e12
"""FLOP/s of a multiprocessor between 64 lanes (V100 and A100: 0.18e12) and 128 (H100: 0.51e12)."""


def runs_scalar(precision: str, device: DeviceSpec) -> bool:
    """Whether products of a precision run outside the matrix units.

    So do those of fp32 where the data sheet has no faster fp32 for matrices (as AMD's has), and
    those of tf32 on devices without it.
    """
    plain = device.vector_peak is None or device.peak.get("fp32", 0.0) <= device.vector_peak
    return precision in ("fp32", "tf32") and precision_of(precision, device) == "fp32" and plain


def precision_of(precision: str, device: DeviceSpec) -> str:
    """The precision in which a device runs products of one."""
    return nearest_precision(precision, device.peak)


def scalar_fit(fit: GemmFit, profile: Profile, device: DeviceSpec) -> GemmFit:
    """Products outside the matrix units, from the fit of 16 bits.

    Slow units hide what surrounds them: every tile's main loop is near the peak (see
    ``SCALAR_SHARE``), and the time that a tile takes to begin and to end is that of fewer elements
    of k, by the ratio of the peaks. The surfaces speak of the library's other kernels.
    """
    slower = peak_rate(device, "fp32") / peak_rate(device, "bf16")
    one = peak_rate(device, "fp32") / _multiprocessors(profile, device)
    share = SCALAR_SHARE[64 if one < _MOST_OF_64_LANES else 128]
    changed = {
        "tiles": dict.fromkeys(("128x128", "128x64", "64x64"), share),
        "prologue": fit.prologue * min(1.0, slower),
        "correction": None,
        "tiling": None,
    }
    # not model_copy, which would keep the candidates computed from the tiles before
    fields = {field: getattr(fit, field) for field in GemmFit.model_fields}
    return GemmFit.model_construct(**{**fields, **changed})


def kernel_seconds(
    kernels: Sequence[Kernel],
    profile: Profile,
    device: DeviceSpec,
    *,
    benchmark: bool = False,
) -> Floats:
    """Device seconds of one launch of each kernel (``count`` is the caller's to multiply by).

    Matrix products by ``cost/gemm.py``, fused attention by ``cost/attention.py``, anything else

        floor + bytes / (bandwidth_fraction x bandwidth), at least FLOPs / vector peak

    Host time of launches is not counted: see ``profile.launch``.

    Args:
        kernels: Any kernels, K of them.
        profile: Shares and floors.
        device: Data sheet that the shares are of; it may be another device than the profile's.
        benchmark: Whether to time what a benchmark's table shows, at its clock (see
            ``cost/gemm.py``), instead of the kernels of a long run at its sustained clock.

    Returns:
        Seconds, (K,).
    """
    seconds: Floats = np.zeros(len(kernels))
    groups: dict[tuple[str, str], list[int]] = {}
    for index, kernel in enumerate(kernels):
        kind = str(kernel.kind) if kernel.shape else "memory"
        groups.setdefault((kind, kernel.precision if kind == "gemm" else ""), []).append(index)
    for (kind, _), indices in groups.items():
        members = [kernels[index] for index in indices]
        if kind == "gemm":
            seconds[indices] = _gemms(members, profile, device, benchmark=benchmark)
        elif kind == "attention":
            seconds[indices] = _attentions(members, profile, device, benchmark=benchmark)
        else:
            seconds[indices] = _memory_bound(members, profile, device)
    return seconds


def _gemms(
    kernels: Sequence[Kernel], profile: Profile, device: DeviceSpec, *, benchmark: bool
) -> Floats:
    """Seconds of matrix products, all of one precision."""
    precision, fit = kernels[0].precision, gemm_fit(profile, kernels[0].precision)
    if "fp32" not in profile.gemm and runs_scalar(precision, device):
        precision, fit = "fp32", scalar_fit(fit, profile, device)
    return gemm_seconds(
        np.array([kernel.shape for kernel in kernels], float),
        fit,
        peak=peak_rate(device, precision),
        bandwidth=device.memory_bandwidth,
        multiprocessors=_multiprocessors(profile, device),
        element=PRECISION_BYTES[precision],
        clock=1.0 if benchmark else _clock(profile, precision),
        benchmark=benchmark,
    )


def _attentions(
    kernels: Sequence[Kernel], profile: Profile, device: DeviceSpec, *, benchmark: bool
) -> Floats:
    """Seconds of fused attention: in 16 bits, or by the peak of fp32 and tf32 where asked for."""
    wide = {"fp32", "tf32"}
    rates = np.array(
        [peak_rate(device, k.precision if k.precision in wide else "bf16") for k in kernels]
    )
    slower = peak_rate(device, "bf16") / rates
    return slower * attention_seconds(
        np.array([kernel.shape for kernel in kernels], float),
        np.array([kernel.causal for kernel in kernels]),
        np.array([kernel.backward for kernel in kernels]),
        profile.attention,
        peak=peak_rate(device, "bf16"),
        bandwidth=device.memory_bandwidth,
        multiprocessors=_multiprocessors(profile, device),
        clock=1.0 if benchmark else _clock(profile, "bf16"),
    )


def _memory_bound(kernels: Sequence[Kernel], profile: Profile, device: DeviceSpec) -> Floats:
    """Seconds of kernels that stream through memory; vector FLOPs only as a lower bound."""
    nbytes = np.array([kernel.nbytes for kernel in kernels], float)
    flops = np.array([kernel.flops for kernel in kernels], float)
    rate = profile.memory.bandwidth_fraction * device.memory_bandwidth
    vector = device.vector_peak or peak_rate(device, "fp32")
    return np.maximum(profile.memory.floor + nbytes / rate, flops / vector)


def _multiprocessors(profile: Profile, device: DeviceSpec) -> float:
    """Those of the device, or of the profile's where its sheet does not say."""
    return float(device.multiprocessors or profile.sheet.multiprocessors)


def _clock(profile: Profile, precision: str) -> float:
    """Sustained rate over that of a short benchmark."""
    shares = profile.sustained
    return shares[nearest_precision(precision, shares)] if shares else 1.0
