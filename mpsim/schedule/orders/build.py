"""What an order is asked for, and how op positions become an order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mpsim.errors import ScheduleError
from mpsim.schedule.ops import Ints, Kind, Order

Whole = NDArray[np.integer[Any]]
"""Whole numbers of any width."""


@dataclass(frozen=True)
class OpTimes:
    """Seconds of one op as it stands in the list (one stage, one microbatch, one slice).

    A whole backward takes ``input + weight``. Only ratios matter to the schedules that adapt to
    times. A fused block takes ``fused``; None: one after the other, ``forward + input + weight``.
    """

    forward: float = 1.0
    input: float = 1.0
    weight: float = 1.0
    hop: float = 0.0  # s, from the end of an op to its input's arrival on another device
    fused: float | None = None

    @property
    def backward(self) -> float:  # s
        """Seconds of a whole backward."""
        return self.input + self.weight


@dataclass(frozen=True)
class Shape:
    """What an order is asked for; in docstrings p devices, m microbatches, v chunks."""

    num_devices: int
    num_microbatches: int
    num_chunks: int = 1
    group_size: int | None = None  # microbatches dealt together (Chimera: pipelines)
    num_slices: int = 1
    drain: str = "ascending"
    times: OpTimes = OpTimes()
    memory_limit: float | None = None  # activations of one stage and microbatch
    freed_at_input: float = 0.5  # share of an activation that is freed at I, the rest at W

    @property
    def num_stages(self) -> int:
        """Stages over all devices."""
        return self.num_devices * self.num_chunks


class Family(NamedTuple):
    """All ops of one kind: what they are and where they stand. Letters: P devices, K ops each."""

    kind: Kind
    stage: ArrayLike  # broadcasts to (P, K)
    microbatch: ArrayLike  # broadcasts to (P, K)
    position: Ints  # (P, K) place in the device's list
    slice: ArrayLike = -1  # broadcasts to (P, K)
    block: ArrayLike = -1  # broadcasts to (P, K)


class Ops(NamedTuple):
    """The list of one device as arrays of one length, N."""

    kind: Whole  # (N,)
    stage: Whole  # (N,)
    microbatch: Whole  # (N,)
    block: Whole | None = None  # (N,) numbered within the device; None: nothing is fused


def place(
    name: str,
    shape: Shape,
    families: Sequence[Family],
    *,
    weight_versions: tuple[int, ...] | None = None,
    synchronous: bool = True,
) -> Order:
    """The order in which each op stands at its position; every device has as many ops."""
    devices = families[0].position.shape[0]
    length = sum(family.position.shape[1] for family in families)
    row = np.arange(devices, dtype=np.int32)[:, None] * length
    kind = np.empty(devices * length, np.int8)
    columns = {
        field: np.full(devices * length, -1, np.int32)
        for field in ("stage", "microbatch", "slice", "block")
    }
    for family in families:
        at = (row + family.position).ravel()
        kind[at] = family.kind
        for field, column in columns.items():
            value = getattr(family, field)
            if not isinstance(value, int):
                column[at] = np.broadcast_to(value, family.position.shape).ravel()
    return Order(
        schedule=name,
        num_stages=shape.num_stages,
        num_microbatches=shape.num_microbatches,
        kind=kind,
        stage=columns["stage"],
        microbatch=columns["microbatch"],
        slice=columns["slice"],
        block=columns["block"],
        starts=np.arange(devices + 1, dtype=np.int32) * np.int32(length),
        num_slices=shape.num_slices,
        weight_versions=weight_versions,
        synchronous=synchronous,
    )


def join(name: str, shape: Shape, devices: Sequence[Ops], *, weight_copies: int = 1) -> Order:
    """The order made of one list a device."""
    lengths = [len(ops.kind) for ops in devices]
    blocks = [
        np.full(length, -1) if ops.block is None else ops.block
        for ops, length in zip(devices, lengths, strict=True)
    ]
    return Order(
        schedule=name,
        num_stages=shape.num_stages,
        num_microbatches=shape.num_microbatches,
        kind=np.concatenate([ops.kind for ops in devices]).astype(np.int8),
        stage=np.concatenate([ops.stage for ops in devices]).astype(np.int32),
        microbatch=np.concatenate([ops.microbatch for ops in devices]).astype(np.int32),
        slice=np.full(sum(lengths), -1, np.int32),
        block=np.concatenate(blocks).astype(np.int32),
        starts=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32),
        weight_copies=weight_copies,
    )


def sort(
    name: str,
    shape: Shape,
    device: Whole,
    slot: Whole,
    ops: Ops,
    *,
    weight_copies: int = 1,
) -> Order:
    """The order in which each device runs its ops by rising slot.

    Args:
        name: Name of the schedule.
        shape: What was asked for.
        device: Device of each op, (N,).
        slot: Time slot of each op, (N,).
        ops: The ops of all devices, (N,).
        weight_copies: Copies of the weights that a device holds.
    """
    by = np.lexsort((slot, device))
    counts = np.bincount(device, minlength=shape.num_devices)
    return Order(
        schedule=name,
        num_stages=shape.num_stages,
        num_microbatches=shape.num_microbatches,
        kind=ops.kind[by].astype(np.int8),
        stage=ops.stage[by].astype(np.int32),
        microbatch=ops.microbatch[by].astype(np.int32),
        slice=np.full(len(by), -1, np.int32),
        block=np.full(len(by), -1, np.int32),
        starts=np.concatenate([[0], np.cumsum(counts)]).astype(np.int32),
        weight_copies=weight_copies,
    )


def devices_of(shape: Shape) -> Ints:  # (P, 1)
    """Device indices as a column."""
    return np.arange(shape.num_devices, dtype=np.int32)[:, None]


def counted(entries: Whole) -> Ints:
    """How many equal entries stand before each entry.

    >>> counted(np.array([7, 5, 7, 7, 5])).tolist()
    [0, 0, 1, 2, 1]
    """
    by = np.argsort(entries, kind="stable")
    counts = np.bincount(entries)
    before = np.cumsum(counts) - counts
    occurrence = np.empty(len(entries), np.int32)
    occurrence[by] = np.arange(len(entries)) - before[entries[by]]
    return occurrence


def require(condition: bool, what: str) -> None:
    """Refuse what cannot be had.

    Raises:
        ScheduleError: With ``what`` as its text, unless the condition holds.
    """
    if not condition:
        raise ScheduleError(what)


def multiples(number: int, of: int) -> str:
    """The multiples of a number next to another, to offer instead of it.

    >>> multiples(10, 4), multiples(3, 4)
    ('8 or 12', '4')
    """
    below = number // of * of
    return f"{below} or {below + of}" if below else str(of)
