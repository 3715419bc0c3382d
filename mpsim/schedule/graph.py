"""The compiled schedule: ops on streams, and what each waits for.

The contract of both engines: an op begins when the op before it on its stream, and all that it
waits for, have ended. Ops of one stream run in the order of their indices.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mpsim.schedule.ops import Ints, Kind, Op

COMPUTE, SEND, RECEIVE, COLLECTIVE = 0, 1, 2, 3
"""Streams of a device; stream id = 4 x device + one of these."""
STREAMS = 4
STREAM_NAMES = ("compute", "send", "receive", "collective")


@dataclass(frozen=True, eq=False)
class OpGraph:
    """Which ops, on which stream, waiting for what. Knows no seconds.

    Letters: N ops, E edges, P devices. A transfer between devices is one op (a send) on a stream
    of its directed channel; the receiver's op waits for it. What is earlier on the same stream
    is waited for by that alone, so no edge says it again.
    """

    num_devices: int
    num_stages: int
    num_microbatches: int
    kind: NDArray[np.int8]  # (N,) Kind
    stage: Ints  # (N,) -1: none
    microbatch: Ints  # (N,) -1: none
    slice: Ints  # (N,) sequence slice; -1: the whole sequence
    part: Ints  # (N,) gradient or parameter bucket, and the part of a compute op that goes with it
    num_parts: Ints  # (N,) parts that the compute op, or the stage's exchange, is cut into
    entry: Ints  # (N,) entry of the Order: the compute op, or the producer of a transfer; -1: none
    block: Ints  # (N,) fused block of the Order; -1: none
    device: Ints  # (N,) device that executes it
    peer: Ints  # (N,) receiving device of a transfer; -1: none
    stream: Ints  # (N,) 4 x device + COMPUTE, SEND, RECEIVE or COLLECTIVE, or beyond: channels
    pred_starts: Ints  # (N + 1,) edges of op n are pred[pred_starts[n] : pred_starts[n + 1]]
    pred: Ints  # (E,) ops that it waits for, those before it on its stream not among them
    topological: Ints  # (N,) op indices, each after all that it waits for and its stream's before
    previous: Ints  # (N,) op before it on its stream; -1: none
    num_streams: int

    @property
    def num_ops(self) -> int:
        """Number of ops, N."""
        return len(self.kind)

    def op(self, index: int) -> Op:
        """The op at an index, whose text is torch's.

        >>> str(Op(2, Kind.SEND_F, 0))
        '2SEND_F0'
        """
        stage, kind = int(self.stage[index]), Kind(int(self.kind[index]))
        return Op(stage, kind, int(self.microbatch[index]), int(self.slice[index]))
