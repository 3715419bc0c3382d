"""Ops of a schedule, and the order they stand in: arrays with a text that reads both ways.

An op is written as torch.distributed.pipelining does: stage, letter, microbatch (``2F0``), with a
sequence slice after a dot (``2F0.1``). ``B`` is the whole backward, ``I`` its part for the input
and ``W`` for the weights; papers on zero bubbles write ``B`` for ``I``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int32]


class Kind(IntEnum):
    """What an op does; the names are torch's."""

    F = 0
    B = 1
    I = 2  # noqa: E741  (torch's letter)
    W = 3
    SEND_F = 4
    RECV_F = 5
    SEND_B = 6
    RECV_B = 7
    UNSHARD = 8
    RESHARD = 9
    REDUCE_GRAD = 10
    STEP = 11
    """Optimizer update."""
    BARRIER = 12
    """Wait for all devices (gradient norm)."""
    SCATTER = 13
    """Inputs from the first device to another (torch's DataParallel)."""
    BROADCAST = 14
    """Weights from the first device to another."""
    GATHER = 15
    """Outputs or gradients from another device to the first."""


COMPUTE_KINDS = (Kind.F, Kind.B, Kind.I, Kind.W)

_STATE_KINDS = (Kind.UNSHARD, Kind.RESHARD, Kind.REDUCE_GRAD)
"""Ops of a whole stage, without a microbatch."""
_OP = re.compile(
    r"(\d+)(?:(SEND_F|RECV_F|SEND_B|RECV_B|F|B|I|W)(\d+)(?:\.(\d+))?"
    r"|(UNSHARD|RESHARD|REDUCE_GRAD))"
)


class Op(NamedTuple):
    """One entry of a schedule; its text reads both ways.

    >>> str(Op(2, Kind.F, 0)), Op.parse("5I3"), str(Op.parse("0F1.2"))
    ('2F0', Op(stage=5, kind=<Kind.I: 2>, microbatch=3, slice=-1), '0F1.2')
    """

    stage: int
    kind: Kind
    microbatch: int = 0
    slice: int = -1
    """Slice of the sequence; -1: the whole sequence."""

    def __str__(self) -> str:
        """The op as torch writes it."""
        if self.kind in _STATE_KINDS:
            return f"{self.stage}{self.kind.name}"
        cut = f".{self.slice}" if self.slice >= 0 else ""
        return f"{self.stage}{self.kind.name}{self.microbatch}{cut}"

    @classmethod
    def parse(cls, text: str) -> Op:
        """The op of a text such as ``2F0``.

        Raises:
            ValueError: If the text is not an op.
        """
        match = _OP.fullmatch(text.strip())
        if match is None:
            raise ValueError(f"'{text}' is not an op such as 2F0, 5I3, 0F1.2 or 1SEND_F0")
        stage, kind, microbatch, cut, whole = match.groups()
        if whole:
            return cls(int(stage), Kind[whole])
        return cls(int(stage), Kind[kind], int(microbatch), int(cut) if cut else -1)


@dataclass(frozen=True, eq=False)
class Order:
    """A compute-only schedule: which ops each device runs, in which order.

    The ops of device d are entries ``starts[d]:starts[d + 1]`` of the arrays. Two entries of one
    device with the same ``block`` (not -1) run as one overlapped block (``(2F6+1B0)``); they stand
    next to each other.

    Letters: N ops, P devices.
    """

    schedule: str  # name of the schedule
    num_stages: int
    num_microbatches: int
    kind: NDArray[np.int8]  # (N,) Kind
    stage: Ints  # (N,)
    microbatch: Ints  # (N,)
    slice: Ints  # (N,) -1 where the sequence is whole
    block: Ints  # (N,) -1 where not fused
    starts: Ints  # (P + 1,)
    num_slices: int = 1
    weight_copies: int = 1  # copies of the weights that a device holds (2: bidirectional)
    weight_versions: tuple[int, ...] | None = None  # by device, asynchronous schedules; None: 1
    synchronous: bool = True  # whether the pipeline is flushed before the update

    @property
    def num_devices(self) -> int:
        """Devices of the pipeline."""
        return len(self.starts) - 1

    @property
    def device(self) -> Ints:  # (N,)
        """Device of each op."""
        return np.repeat(np.arange(self.num_devices, dtype=np.int32), np.diff(self.starts))

    @property
    def placement(self) -> Ints:  # (num_stages, num_microbatches)
        """Device of each stage and microbatch; -1 where there is no forward."""
        forward = self.kind == Kind.F
        table = np.full((self.num_stages, self.num_microbatches), -1, np.int32)
        table[self.stage[forward], self.microbatch[forward]] = self.device[forward]
        return table
