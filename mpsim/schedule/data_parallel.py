"""torch's single-process DataParallel: the whole model on every device, driven by the first.

Source: torch.nn.parallel.DataParallel.forward: scatter, replicate, parallel_apply, gather.
"""

from __future__ import annotations

import numpy as np

from mpsim.schedule.draft import Draft
from mpsim.schedule.graph import COMPUTE, STREAMS, OpGraph
from mpsim.schedule.ops import Ints, Kind

MODEL, LOSS = 0, 1
"""Stages: the copy of the model on each device, and the loss on the first."""


def lower_data_parallel(num_devices: int) -> OpGraph:
    """One step of torch's DataParallel: n shards of the batch on n copies of the model.

    Device 0 sends each other device its shard of the inputs (``SCATTER``, stage 0), then the
    weights (``BROADCAST``); every device runs ``F``; outputs go to device 0 (``GATHER``), which
    computes the loss and its gradient (``F`` and ``B`` of stage 1), and sends the output gradients
    out (``SCATTER``, stage 1); every device runs ``B`` and sends its weight gradients to device 0
    (``REDUCE_GRAD`` with a peer), which updates the weights (``STEP``). The microbatch is the
    shard.

    Transfers of a directed pair of devices follow one another; pairs do not hinder each other
    unless their links are shared. A copy computes when its weights are there, device 0 when all
    are out, and gradients leave after the whole backward: nothing overlaps. What the one Python
    process itself takes is not counted: it belongs to the seconds of the ops.
    """
    devices = np.arange(num_devices, dtype=np.int32)
    others = devices[1:]
    draft = Draft(STREAMS * num_devices + 2 * len(others), capacity=10 * num_devices)
    out, back = (
        (STREAMS * num_devices + others - 1),
        (STREAMS * num_devices + others - 1) + len(others),
    )

    def compute(kind: Kind, stage: int, where: Ints) -> Ints:
        return draft.add(
            len(where), kind=kind, stage=stage, microbatch=where, device=where,
            stream=where * STREAMS + COMPUTE,
        )  # fmt: skip

    def send(kind: Kind, stage: int, *, to_first: bool) -> Ints:
        ends = (others, 0) if to_first else (0, others)
        return draft.add(
            len(others), kind=kind, stage=stage, microbatch=others, device=ends[0], peer=ends[1],
            stream=back if to_first else out,
        )  # fmt: skip

    send(Kind.SCATTER, MODEL, to_first=False)
    weights = send(Kind.BROADCAST, MODEL, to_first=False)
    forward = compute(Kind.F, MODEL, devices)
    outputs = send(Kind.GATHER, MODEL, to_first=True)
    loss = compute(Kind.F, LOSS, devices[:1])
    gradient = compute(Kind.B, LOSS, devices[:1])
    gradients = send(Kind.SCATTER, LOSS, to_first=False)
    backward = compute(Kind.B, MODEL, devices)
    reduced = send(Kind.REDUCE_GRAD, MODEL, to_first=True)
    update = compute(Kind.STEP, MODEL, devices[:1])
    draft.wait(forward[1:], weights)
    draft.wait(forward[0], weights)
    draft.wait(outputs, forward[1:])
    draft.wait(loss, outputs)
    draft.wait(gradients, gradient)
    draft.wait(backward[1:], gradients)
    draft.wait(reduced, backward[1:])
    draft.wait(update, reduced)
    return draft.graph(num_devices=num_devices, num_stages=2, num_microbatches=num_devices)
