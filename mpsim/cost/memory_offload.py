"""What passes between device and host when part of the state is kept in host memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mpsim.cost.memory_state import parameter_counts, shard_groups
from mpsim.spec.plan import PlanSpec, TrainingSpec
from mpsim.workload.layers import Layer
from mpsim.workload.sharding import TYPE_BYTES


@dataclass(frozen=True)
class HostTransfers:
    """Bytes between one device and its host; those of one microbatch, and of the update."""

    forward: float = 0.0
    backward: float = 0.0
    update: float = 0.0


def host_transfers(
    layers: Sequence[Layer], plan: PlanSpec, training: TrainingSpec
) -> HostTransfers:
    """Transfers of one stage (or of all stages of a device) under the plan's offload.

    - activations: out after the forward pass, back before the backward one.
    - weights: in before each pass; gradients stay.
    - optimizer: gradients out, updated weights back, once a step; each device those that it
      updates, the share of its ZeRO group (ZeRO-Offload, arXiv:2101.06840).

    The update itself then runs on the host; its time is not counted here.
    """
    counts, (dense, expert) = parameter_counts(layers), shard_groups(plan)
    forward = backward = update = 0.0
    stored = TYPE_BYTES[training.stored_type]
    if "activations" in plan.offload:
        kept = sum(saved.nbytes for layer in layers for saved in layer.saved)
        forward, backward = forward + kept, backward + kept
    if "weights" in plan.offload:
        weights = counts.nbytes(stored)
        forward, backward = forward + weights, backward + weights
    if "optimizer" in plan.offload:
        each = stored + TYPE_BYTES[training.gradient_type or training.stored_type]
        over = (dense, expert) if plan.zero else (1, 1)
        update = counts.nbytes(each, dense_over=over[0], expert_over=over[1])
    return HostTransfers(forward, backward, update)
