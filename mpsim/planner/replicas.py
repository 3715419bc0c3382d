"""What replicas exchange, and the updates: for all stage sizes of a group of rows in one call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mpsim.cost.compiled import MOST_BUCKETS
from mpsim.cost.memory_state import stage_state
from mpsim.cost.passes import Machine
from mpsim.cost.stages import gathered_nbytes, gradient_nbytes, update_seconds
from mpsim.spec.plan import PlanSpec, bucket_nbytes
from mpsim.workload.layers import Layer

Floats = NDArray[np.float64]

_SUMS = {
    *("parameters", "gradients", "master_weights", "optimizer_state", "cast_weights"),
    *("quantised_weights", "gradient_buckets"),
}
"""Components of memory that grow with each layer."""
_SUMS_OF_PIPELINES = {"gathered_weights", "gradient_buffers"}
"""Those that do so where parameters stay gathered through the step."""
_UNSURE = {"offload_buffers"}
"""Those that no sum or largest of layers bounds."""


@dataclass(frozen=True, eq=False)
class Exchanged:
    """Seconds of what replicas exchange once a step, and of the update, by stage."""

    reduce: Floats  # (K, S) s
    gather: Floats  # (K, S) s
    update: Floats  # (K, S) s


@dataclass(frozen=True, eq=False)
class Replicas:
    """What the replicas of the stages of a cut exchange."""

    exchanges: tuple[Exchanged, ...]  # (Z,)
    buckets: Floats  # (K, S) gradient buckets that are ops of their own


def exchanged(sizes: Floats, machine: Machine) -> Floats:  # (3, U) s
    """Reduction and gather once a step, and the update, of stages of U sizes.

    Args:
        sizes: Parameters of each stage, those of all replicas and those of experts, (2, U).
        machine: Degrees and ZeRO; where parameters are gathered for each pass there is neither
            reduction nor gather. What ZeRO-2 without a pipeline scatters in each pass counts as
            nothing: a bound.
    """
    plan, count = machine.plan, sizes.shape[1]
    size = bucket_nbytes(plan, machine.training)
    reduce, gather = np.zeros(count), np.zeros(count)
    for parameters, axis in zip(sizes, ("data", "expert_data"), strict=True):
        if machine.gathers_each_pass:
            break
        wire = parameters * gradient_nbytes(1.0, machine)
        pieces = np.maximum(np.ceil(wire / size), 1.0)
        op = "all_reduce" if plan.zero == 0 else "reduce_scatter"
        if plan.compression.top_k is not None:
            op, wire = "all_gather", wire * plan.data * plan.context
        seconds = pieces * machine.exchange_array(op, axis, wire / pieces)
        if plan.zero != 2 or plan.pipeline > 1:
            reduce += np.where(parameters > 0, seconds, 0.0)
        if plan.zero:
            sent = parameters * gathered_nbytes(1.0, machine)
            gather += machine.exchange_array("all_gather", axis, sent)
    update = [update_seconds(dense, experts, machine) for dense, experts in sizes.T.tolist()]
    return np.stack([reduce, gather, np.array(update)])


def buckets(sizes: Floats, machine: Machine) -> Floats:  # (U,)
    """Gradient buckets of stages of these sizes that are ops of their own."""
    size = bucket_nbytes(machine.plan, machine.training)
    count = np.ceil(sizes.sum(axis=0) * gradient_nbytes(1.0, machine) / size)
    return np.asarray(np.clip(count, 1.0, float(MOST_BUCKETS)))


def each_pass(layers: Sequence[Layer], machine: Machine) -> tuple[Floats, Floats]:
    """Seconds of gathering each layer's parameters, and of scattering its gradients, (n,) each."""
    sizes = np.array([layer.parameters for layer in layers])
    wire = sizes * gradient_nbytes(1.0, machine)
    group = machine.plan.zero_group or machine.plan.data * machine.plan.context
    gather = machine.exchange_array("all_gather", "shard", sizes * gathered_nbytes(1.0, machine))
    scatter = machine.exchange_array("reduce_scatter", "shard", wire)
    scatter = scatter + machine.exchange_array("all_reduce", "shard_replicas", wire / group)
    return gather, scatter


def states(
    layers: Sequence[Layer], plan: PlanSpec, machine: Machine
) -> tuple[Floats, Floats]:  # (n,) B each
    """What the state of each layer adds to a device, and what a device holds once at the least."""
    found: dict[int, tuple[float, float]] = {}
    sums = _SUMS | (_SUMS_OF_PIPELINES if plan.pipeline > 1 else set())
    unsure = _UNSURE | ({"optimizer_state"} if machine.training.optimizer == "adafactor" else set())
    for layer in layers:
        if id(layer) not in found:
            # a copy of a tied table is held only where the table itself is not
            static = stage_state([replace(layer, tied_to=None)], plan, machine.training).static
            known = {name: nbytes for name, nbytes in static.items() if name not in unsure}
            adding = sum(nbytes for name, nbytes in known.items() if name in sums)
            found[id(layer)] = (adding, sum(known.values()) - adding)
    pairs = np.array([found[id(layer)] for layer in layers])
    return pairs[:, 0], pairs[:, 1]
