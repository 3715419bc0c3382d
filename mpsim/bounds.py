"""Closed forms that a simulation is held against: Amdahl's law, bubbles, volumes, lower bounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def amdahl_speed_up(parallel_fraction: float, devices: float) -> float:
    """Speed-up of n devices when the fraction α of the work is divided over them.

        S = 1 / (1 - α + α / n)

    Source:
        Amdahl, "Validity of the single processor approach to achieving large scale computing
        capabilities", AFIPS 1967.

    >>> round(amdahl_speed_up(0.9, 10), 4)
    5.2632
    """
    return 1.0 / (1.0 - parallel_fraction + parallel_fraction / devices)


def amdahl_fraction(speed_up: float, devices: int) -> float:
    """The fraction α that a speed-up over n devices amounts to; the inverse of Amdahl's law.

        α = (1 - 1 / S) / (1 - 1 / n)

    A negative α means slower than one device. With one device nothing is divided: α = 0.

    >>> round(amdahl_fraction(amdahl_speed_up(0.75, 8), 8), 12)
    0.75
    """
    if devices == 1:
        return 0.0
    return (1.0 - 1.0 / speed_up) / (1.0 - 1.0 / devices)


def amdahl_limit(parallel_fraction: float) -> float:
    """Speed-up for any number of devices: 1 / (1 - α); infinite for α = 1.

    >>> amdahl_limit(0.75), amdahl_limit(1.0)
    (4.0, inf)
    """
    serial = 1.0 - parallel_fraction
    return float("inf") if serial <= 1e-15 else 1.0 / serial


def bubble_seconds(
    schedule: str,
    *,
    num_devices: int,
    num_microbatches: int,
    num_chunks: int,
    forward: float,
    input_gradient: float,
    weight_gradient: float,
    block: float | None = None,
) -> float | None:
    """Idle time of each device of a uniform pipeline without transfer times, s.

    p devices, m microbatches, v chunks; f, i, w of one op (of one chunk), b = i + w. Counted over
    the makespan, or over the span for schedules that are free of bubbles only in the span.

        naive           m (p - 1) (f + b)
        gpipe, 1f1b     (p - 1) (f + b), and so for eager_1f1b
        interleaved     (p - 1) (f + b) with f, b of one chunk, and so for looped_bfs, m ≥ p
        zb_h1           (p - 1) (f + i - w), for m ≥ p and w ≤ min(f, i)
        chimera         (p - 2) max(f, b) + (m/p - 1) (p - 2) |b - f|, for m a multiple of p
        dualpipe        (p/2 - 1) (X + b - 3 w), dualpipe_v (p - 1) (X + b - 3 w), X = one block

    Returns:
        Seconds, or None where no closed form is known for these numbers.

    Source:
        The papers named in :mod:`mpsim.schedule.orders`; each form was compared with a longest-path
        simulation over its range.
    """
    p, m, v = num_devices, num_microbatches, num_chunks
    f, i, w = forward, input_gradient, weight_gradient
    b = i + w
    small = w <= min(f, i)
    flush = (p - 1) * (f + b)
    forms: dict[str, tuple[bool, float]] = {
        "naive": (True, m * flush),
        "gpipe": (True, flush),
        "1f1b": (True, flush),
        "eager_1f1b": (True, flush),
        "interleaved_1f1b": (m % p == 0, flush),
        "looped_bfs": (m >= p, flush),
        "zb_h1": (m >= p and small, (p - 1) * (f + i - w)),
        "interleaved_zb": (m % p == 0 and small, (p - 1) * (f + i - w)),
        "chimera": (m % p == 0, (p - 2) * max(f, b) + (m // p - 1) * (p - 2) * abs(b - f)),
        "dualpipe": (f == i and w <= f, (p / 2 - 1) * ((block or f + b) + b - 3 * w)),
        "dualpipe_v": (f == i and w <= f, (p - 1) * ((block or f + b) + b - 3 * w)),
    }
    if p == 1:
        return 0.0
    holds, seconds = forms.get(schedule, (False, 0.0))
    return seconds if holds and v >= 1 else None


def cut_volume(cuts: Sequence[float], batch: float) -> float:
    """Bytes that a split by layers moves in a step: C = 2 Σ s_i b.

    Args:
        cuts: Size of the activation at each cut between devices for one sample, B.
        batch: Samples of the step.

    The factor 2 stands for the activation forward and its gradient, of equal size, backward.

    >>> cut_volume([80.0], 64)
    10240.0
    """
    return 2.0 * sum(cuts) * batch


def critical_lower_bound(
    stage_seconds: Sequence[float], num_microbatches: int, chain: float
) -> float:
    """No schedule of a step is faster: the busiest device's work, or one microbatch's way through.

    Args:
        stage_seconds: Compute of one microbatch on each device, s.
        num_microbatches: Microbatches of a step.
        chain: Compute of one microbatch through all stages, forward and backward to the input, s.
    """
    return max(max(stage_seconds) * num_microbatches, chain)


def roofline_seconds(flops: float, nbytes: float, peak: float, bandwidth: float) -> float:
    """The least time of a kernel: max(FLOPs / peak, bytes / bandwidth), s.

    Source:
        Williams, Waterman and Patterson, "Roofline: an insightful visual performance model",
        CACM 52(4), 2009.
    """
    return max(flops / peak, nbytes / bandwidth)


def amdahl_causes(
    waterfall: Mapping[str, float], one_device: float, devices: int
) -> dict[str, float]:
    """The serial fraction 1 - α divided among its causes.

    With T the step, n devices and T1 the step on one device, n T = T1 + Σ overheads, hence
    1 - α = Σ overheads / ((n - 1) T1): each cause has the share of its device-seconds.

    Args:
        waterfall: Seconds of the step that each overhead takes (per device, averaged).
        one_device: T1, s.
        devices: n.
    """
    if devices == 1:
        return dict.fromkeys(waterfall, 0.0)
    return {
        cause: seconds * devices / ((devices - 1) * one_device)
        for cause, seconds in waterfall.items()
    }
