"""Gradient reductions, parameter gathers, the barrier and the update: what data parallelism adds.

An exchange is one op a bucket. Its compute op is cut into as many parts, so that part k waits for
the gather of bucket k, and the reduction of bucket k for part k: both run beside compute.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mpsim.schedule.ops import Ints, Kind, Order

Reductions = Literal["none", "last", "each", "end"]
"""When gradients are reduced: never; in buckets under the last backward of each stage; under every
backward (sharded gradients that are not accumulated); one a stage after all compute ops."""
Gathers = Literal["none", "start", "use", "end"]
"""When parameters are gathered: never; at the start of the step, ahead of the first forward of
each stage, in buckets; before every forward and backward, in buckets, one bucket ahead (fully
sharded); after the update."""


def weight_producers(order: Order) -> NDArray[np.bool_]:  # (N,)
    """Entries that end with gradients of weights: whole backwards, and ``W``."""
    return np.equal(order.kind, Kind.B) | np.equal(order.kind, Kind.W)


def parameter_users(order: Order) -> NDArray[np.bool_]:  # (N,)
    """Entries that need the parameters: all but ``W``."""
    return np.not_equal(order.kind, Kind.W)


def first_and_last(order: Order) -> tuple[Ints, Ints]:
    """First forward, and last op that yields gradients, of each stage of each device.

    Returns:
        Two lists of entries in ascending order; stages without such an op are absent.
    """
    size = order.num_devices * order.num_stages
    group = order.device * order.num_stages + order.stage
    forward = np.flatnonzero(order.kind == Kind.F)[::-1]
    backward = np.flatnonzero(weight_producers(order))
    found = []
    for entries in (forward, backward):
        last = np.full(size, -1, np.int32)
        last[group[entries]] = entries  # of repeated indices numpy keeps the last
        found.append(np.sort(last[last >= 0]))
    return found[0], found[1]


def num_parts(
    order: Order, *, buckets: Sequence[int] | int, reductions: Reductions, gathers: Gathers
) -> Ints:  # (N,)
    """Parts that each entry is cut into; 1: whole."""
    if reductions not in ("last", "each") and gathers not in ("start", "use"):
        return np.ones(len(order.kind), np.int32)
    of_stage = np.broadcast_to(np.asarray(buckets, np.int32), order.num_stages)
    cut = np.zeros(len(order.kind), np.bool_)
    first, last = first_and_last(order)
    if reductions == "last":
        cut[last] = True
    elif reductions == "each":
        cut |= weight_producers(order)
    if gathers == "start":
        cut[first] = True
    elif gathers == "use":
        cut |= parameter_users(order)
    return np.where(cut, of_stage[order.stage], 1).astype(np.int32)


def reduced_entries(order: Order, reductions: Reductions) -> Ints:
    """Entries whose gradients are reduced, in the order of the collective streams."""
    if reductions == "none":
        return np.empty(0, np.int32)
    if reductions == "each":
        return np.flatnonzero(weight_producers(order)).astype(np.int32)
    return first_and_last(order)[1]


def gathered_entries(order: Order, gathers: Gathers) -> Ints:
    """Entries whose parameters are gathered before (``end``: after) them."""
    if gathers == "none":
        return np.empty(0, np.int32)
    if gathers == "use":
        return np.flatnonzero(parameter_users(order)).astype(np.int32)
    return first_and_last(order)[0]
