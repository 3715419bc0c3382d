"""Lanes of a picture or trace: the streams of each device, and what ops are called."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mpsim.schedule.graph import OpGraph
from mpsim.schedule.ops import Ints, Kind

_COLLECTIVES = (Kind.UNSHARD, Kind.RESHARD, Kind.REDUCE_GRAD)
_COMPUTE = (Kind.F, Kind.B, Kind.I, Kind.W, Kind.STEP, Kind.BARRIER)

COLOURS = {
    Kind.F: "#4c78a8",
    Kind.B: "#e8894a",
    Kind.I: "#edc948",
    Kind.W: "#59a14f",
    Kind.SEND_F: "#9ecae9",
    Kind.RECV_F: "#9ecae9",
    Kind.SEND_B: "#f6c8a0",
    Kind.RECV_B: "#f6c8a0",
    Kind.UNSHARD: "#72b7b2",
    Kind.RESHARD: "#72b7b2",
    Kind.REDUCE_GRAD: "#b279a2",
    Kind.STEP: "#54504c",
    Kind.BARRIER: "#c9c2ba",
    Kind.SCATTER: "#9ecae9",
    Kind.BROADCAST: "#72b7b2",
    Kind.GATHER: "#f6c8a0",
}
"""Colour of each kind of op in pictures."""

KIND_NAMES = {
    Kind.F: "forward",
    Kind.B: "backward",
    Kind.I: "input gradient",
    Kind.W: "weight gradient",
    Kind.SEND_F: "send activation",
    Kind.RECV_F: "receive activation",
    Kind.SEND_B: "send gradient",
    Kind.RECV_B: "receive gradient",
    Kind.UNSHARD: "gather parameters",
    Kind.RESHARD: "free parameters",
    Kind.REDUCE_GRAD: "exchange gradients",
    Kind.STEP: "update",
    Kind.BARRIER: "gradient norm",
    Kind.SCATTER: "scatter",
    Kind.BROADCAST: "copy weights",
    Kind.GATHER: "gather",
}
"""What legends call each kind of op."""


@dataclass(frozen=True)
class Lane:
    """The ops of one kind of stream on one device, in the order of their begin."""

    device: int
    stream: int  # 0 compute, 1 transfers, 2 collectives
    name: str
    ops: Ints  # indices of ops
    first: bool  # whether it is the first lane of its device


def lanes(graph: OpGraph) -> Iterator[Lane]:
    """The lanes that have ops, device by device: compute, transfers, collectives."""
    group = np.ones(graph.num_ops, dtype=np.int8)
    group[np.isin(graph.kind, _COMPUTE)] = 0
    group[np.isin(graph.kind, _COLLECTIVES)] = 2
    for device in range(graph.num_devices):
        first = True
        for stream, name in enumerate(("compute", "transfers", "collectives")):
            ops = np.flatnonzero((graph.device == device) & (group == stream)).astype(np.int32)
            if len(ops):
                yield Lane(device, stream, name, ops, first)
                first = False


def op_label(graph: OpGraph, op: int) -> str:
    """What an op is called: ``2F0``, with its sequence slice after a dot where it has one."""
    kind = Kind(int(graph.kind[op]))
    return KIND_NAMES[kind] if kind in (Kind.STEP, Kind.BARRIER) else str(graph.op(op))
