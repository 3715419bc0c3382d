"""What an order is asked for, and how op positions become an order."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mpsim.schedule.ops import Ints, Kind, Order


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


@dataclass(frozen=True)
class Shape:
    """What an order is asked for. Letters of the docstrings: p devices, m microbatches, v chunks."""

    num_devices: int
    num_microbatches: int
    num_chunks: int = 1
    group_size: int | None = None  # microbatches (Chimera: pipelines) that are dealt together
    num_slices: int = 1
    drain: str = "ascending"
    times: OpTimes | None = None
    memory_limit: float | None = None  # activations of one stage and microbatch

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


class Codes(NamedTuple):
    """The list of one device as arrays of one length."""

    kind: NDArray[np.int8]
    stage: Ints
    microbatch: Ints
    slice: ArrayLike = -1
    block: ArrayLike = -1


def place(name: str, shape: Shape, families: Sequence[Family], **fields: Any) -> Order:
    """The order in which each op stands at its position; every device has as many ops."""
    devices = families[0].position.shape[0]
    length = sum(family.position.shape[1] for family in families)
    row = np.arange(devices, dtype=np.int32)[:, None] * length
    columns = {field: np.full(devices * length, -1, np.int32) for field in Family._fields}
    kind = np.empty(devices * length, np.int8)
    for family in families:
        at = (row + family.position).ravel()
        kind[at] = family.kind
        for field in ("stage", "microbatch", "slice", "block"):
            value = getattr(family, field)
            if isinstance(value, int) and value == -1:
                continue
            columns[field][at] = np.broadcast_to(value, family.position.shape).ravel()
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
        **fields,
    )


def join(name: str, shape: Shape, devices: Iterable[Codes], **fields: Any) -> Order:
    """The order made of one list a device; blocks are numbered within each device."""
    lists = list(devices)
    lengths = [len(codes.kind) for codes in lists]

    def column(field: str) -> Ints:
        parts = [
            np.broadcast_to(np.asarray(getattr(codes, field), np.int32), (length,))
            for codes, length in zip(lists, lengths, strict=True)
        ]
        return np.concatenate(parts).astype(np.int32, copy=False)

    return Order(
        schedule=name,
        num_stages=shape.num_stages,
        num_microbatches=shape.num_microbatches,
        kind=np.concatenate([codes.kind for codes in lists]).astype(np.int8, copy=False),
        stage=column("stage"),
        microbatch=column("microbatch"),
        slice=column("slice"),
        block=column("block"),
        starts=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32),
        **fields,
    )


def devices_of(shape: Shape) -> Ints:  # (P, 1)
    """Device indices as a column."""
    return np.arange(shape.num_devices, dtype=np.int32)[:, None]
