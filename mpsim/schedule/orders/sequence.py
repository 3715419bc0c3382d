"""Orders over slices of the sequence: Seq1F1B and TeraPipe.

A microbatch is cut into Q causal slices: a slice's forward follows that of the slice before, its
backward that of the slice after. Letters: p devices, m microbatches, r index of a device; f, b
seconds of the ops of one slice. Placement: stage r on device r. Slices of equal length are not of
equal time, since later slices attend to more. Weights once.
"""

from __future__ import annotations

import numpy as np

from mpsim.schedule.ops import Ints, Kind, Order
from mpsim.schedule.orders.build import Family, Shape, devices_of, place
from mpsim.schedule.orders.flat import forwards_and_backwards


def seq_1f1b(shape: Shape) -> Order:
    """Seq1F1B: 1F1B over slices, p - r - 2 + Q forwards ahead, backwards of a microbatch reversed.

    Makespan (m Q + p - 1)(f + b). Device r holds min(m Q, p - r - 1 + Q) slices. Legal for m >= 1.

    Source:
        Sun et al., "Seq1F1B", arXiv:2406.03488.
    """
    r, q = devices_of(shape), shape.num_slices
    count = shape.num_microbatches * q
    warmup = np.minimum(shape.num_devices - r - 2 + q, count)
    k = np.arange(count, dtype=np.int32)
    forward, backward = forwards_and_backwards(warmup, count)
    families = (
        Family(Kind.F, r, k // q, forward, _cut(k % q, q)),
        Family(Kind.B, r, k // q, backward, _cut(q - 1 - k % q, q)),
    )
    return place("seq_1f1b", shape, families)


def terapipe(shape: Shape) -> Order:
    """TeraPipe: GPipe over slices, all forwards, then all backwards in reverse.

    Makespan (m Q + p - 1)(f + b). All m Q slices are held. Legal for m >= 1.

    Source:
        Li et al., "TeraPipe", arXiv:2102.07988.
    """
    r, q = devices_of(shape), shape.num_slices
    count = shape.num_microbatches * q
    k = np.arange(count, dtype=np.int32)
    families = (
        Family(Kind.F, r, k // q, k + 0 * r, _cut(k % q, q)),
        Family(Kind.B, r, k // q, 2 * count - 1 - k + 0 * r, _cut(k % q, q)),
    )
    return place("terapipe", shape, families)


def _cut(index: Ints, num_slices: int) -> Ints | int:
    """The slices, or -1 where the sequence is whole."""
    return index if num_slices > 1 else -1
