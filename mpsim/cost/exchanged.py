"""Bytes that one device sends in collectives in a step, by axis."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from mpsim.cost.passes import Machine
from mpsim.cost.stages import StageCost, gathered_nbytes, gradient_nbytes
from mpsim.cost.topology import group_of
from mpsim.workload.layers import Exchange, Layer


def sent_by_ring(op: str, nbytes: float, size: int) -> float:
    """Bytes that each of n devices sends in a collective of N bytes along a ring.

    All-reduce 2 N (n - 1) / n; all-gather, reduce-scatter and all-to-all N (n - 1) / n; a
    broadcast or a send N. No device alone sends anything.

    Source:
        Patarasuk and Yuan, J. Parallel Distrib. Comput. 69(2), 2009.

    >>> sent_by_ring("all_reduce", 8.0, 4), sent_by_ring("all_gather", 8.0, 4)
    (12.0, 6.0)
    """
    if size == 1:
        return 0.0
    if op in ("send", "broadcast"):
        return nbytes
    return (2 if op == "all_reduce" else 1) * nbytes * (size - 1) / size


def exchanged_nbytes(
    stages: Sequence[Sequence[Layer]], costs: Sequence[StageCost], machine: Machine
) -> dict[str, float]:
    """Bytes that one device sends in a step, by axis, the mean over the pipeline's devices.

    Args:
        stages: The layers of each stage.
        costs: Their costs.
        machine: Cluster, plan, training.
    """
    training, plan = machine.training, machine.plan
    microbatches = training.global_batch // (training.microbatch * plan.data)
    sent: dict[str, float] = {}
    layers = {id(layer): layer for stage in stages for layer in stage}  # equal ones are one object
    times = Counter(id(layer) for stage in stages for layer in stage)
    for key, layer in layers.items():
        for exchange in _exchanges(layer):
            size = group_of(exchange.axis, plan, machine.cluster.node.devices).size
            nbytes = sent_by_ring(exchange.op, exchange.nbytes, size) * exchange.count * times[key]
            name = f"{exchange.axis.replace('_', ' ')} exchange"
            sent[name] = sent.get(name, 0.0) + nbytes * microbatches
    replicated = _replicated(stages, costs, machine, microbatches)
    if replicated:
        sent["gradients and parameters"] = replicated
    return {name: nbytes / plan.pipeline for name, nbytes in sent.items() if nbytes}


def _exchanges(layer: Layer) -> Iterable[Exchange]:
    """All exchanges of the passes of a layer."""
    for steps in (layer.forward, layer.backward_input, layer.backward_weight):
        yield from (step for step in steps if isinstance(step, Exchange))


def _replicated(
    stages: Sequence[Sequence[Layer]],
    costs: Sequence[StageCost],
    machine: Machine,
    microbatches: int,
) -> float:
    """Bytes of gradients, and of sharded parameters, that the devices of one pipeline send."""
    plan = machine.plan
    size = plan.data * plan.context
    if size == 1:
        return 0.0
    if machine.gathers_each_pass:
        # gathered before each forward and each backward, scattered after each backward
        parameters = sum(layer.parameters for stage in stages for layer in stage)
        passes = 2 * sent_by_ring("all_gather", gathered_nbytes(parameters, machine), size)
        passes += sent_by_ring("reduce_scatter", gradient_nbytes(parameters, machine), size)
        return passes * microbatches
    if machine.scatters_each_pass:
        passes = sum(sent_by_ring("reduce_scatter", cost.reduce_nbytes, size) for cost in costs)
        gathers = sum(sent_by_ring("all_gather", cost.gather_nbytes, size) for cost in costs)
        return gathers + passes * microbatches
    reduce = "all_reduce" if plan.zero == 0 else "reduce_scatter"
    gathered = sum(sent_by_ring("all_gather", cost.gather_nbytes, size) for cost in costs)
    if plan.compression.top_k is not None:
        return gathered + sum(cost.reduce_nbytes * (size - 1) for cost in costs)
    return gathered + sum(sent_by_ring(reduce, cost.reduce_nbytes, size) for cost in costs)
