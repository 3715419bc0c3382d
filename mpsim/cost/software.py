"""What a generation of training software adds to the kernel times of a profile.

A profile speaks of kernels in a benchmark. Training software launches each through layers of
Python, runs attention kernels of its own time, and multiplies the experts' small matrices one
group after another. These few constants are the only ones fitted on measured training steps; each
names the rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from mpsim.cost.compute import peak_rate
from mpsim.spec.cluster import DeviceSpec
from mpsim.workload.layers import Kernel


@dataclass(frozen=True)
class Software:
    """A generation of training software.

    Attributes:
        dispatches: Eager dispatches (``profile.launch.dispatch``) that the host spends on one
            kernel as the layers count them: a module's Python, autograd's bookkeeping, and small
            operators that are counted as one.
        attention: Time of fused attention over that of the profile's kernels, on devices for whose
            multiprocessors the kernels were written.
        attention_since_hopper: The same on Hopper, where kernels written for Ampere leave the
            asynchronous matrix units idle.
        experts: Time of the experts' matrix products over that of one batched product.
    """

    dispatches: float
    attention: float = 1.0
    attention_since_hopper: float = 1.0
    experts: float = 1.0


SOFTWARE = {
    "torch": Software(dispatches=4.0, attention=1.07, attention_since_hopper=1.74),
    "fsdp": Software(dispatches=4.0, attention=1.07, attention_since_hopper=1.74),
    "megatron": Software(dispatches=15.0, experts=1.1),
    "legacy_megatron": Software(dispatches=14.9),
}
"""Constants by ``training.framework``, fitted by ``benchmarks/fit_software.py`` on the measured
runs that docs/validation.md names; the dispatches of FSDP and torch, where no row is bound by the
host, are a default."""

HOST_SHARPNESS = 3.1
"""Exponent p of (device^p + host^p)^(1/p), the time of a pass: the host runs ahead of the device,
but not always far enough."""


HOPPER_RATE = 989.4e12 / 132
"""FLOP/s of a multiprocessor of the H100 in 16 bits."""

_BEYOND_HOPPER = 1.25
"""Rate of a multiprocessor over the H100's above which torch brings kernels made for it: cuDNN's
come first on Blackwell (torchtitan, models/attention.py: ``has_cuda_capability(10, 0)``)."""


def slowdown(kernel: Kernel, software: Software, device: DeviceSpec) -> float:
    """Time of a kernel in training software over that of the profile's kernel.

    Attention written for Ampere draws the same rate from each multiprocessor wherever it runs. It
    lags behind the profile's kernels by the rate of the device's own: fully on Hopper, not at all
    on Ampere, Ada, H20 and consumer boards, whose multiprocessors are no faster.
    """
    if kernel.kind == "attention":
        rate = peak_rate(device, "bf16") / (device.multiprocessors or math.inf) / HOPPER_RATE
        lag = software.attention_since_hopper * rate if rate < _BEYOND_HOPPER else 0.0
        return max(software.attention, lag)
    if kernel.kind == "gemm" and kernel.name.startswith("expert_"):
        return software.experts
    return 1.0


def pass_seconds(device: float, host: float) -> float:
    """Seconds of a pass whose kernels take ``device`` and whose launches take ``host`` seconds.

    >>> pass_seconds(1.0, 0.0), round(pass_seconds(1.0, 1.0), 3)
    (1.0, 1.251)
    """
    longer, shorter = max(device, host), min(device, host)
    if longer == 0:
        return 0.0
    return float(longer * (1 + (shorter / longer) ** HOST_SHARPNESS) ** (1 / HOST_SHARPNESS))
