"""How long the ops of a stage take: its layers, with sharded parameters gathered around them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from mpsim.cost.offload import exposed, host_seconds, host_update
from mpsim.cost.overlap import overlapped
from mpsim.cost.passes import (
    UPDATE,
    LayerSeconds,
    Machine,
    Parts,
    add,
    layer_seconds,
)
from mpsim.cost.worker import worker_layer_seconds
from mpsim.spec.plan import bucket_nbytes
from mpsim.workload.layers import Kernel, Layer

TYPE_BYTES = {"fp32": 4.0, "fp16": 2.0, "bf16": 2.0, "fp8": 1.0}
"""Bytes of a stored number."""

_FOREACH_ADAM = 20.0
"""Numbers that torch's Adam moves for a parameter (torch/optim/adam.py, ``_multi_tensor_adam``):
weight decay 2, lerp 3, mul 2, addcmul 3, sqrt 2, div 2, add 2, addcdiv 4."""

_INDEX_BYTES = 4.0
"""Bytes of the index that goes with each entry of a top-k gradient."""


@dataclass(frozen=True)
class StageCost:
    """Seconds of the ops of one stage on one device, for one microbatch or one step."""

    forward: Parts
    backward_input: Parts
    backward_weight: Parts
    output_nbytes: float  # B that the next stage receives for a microbatch
    reduce: float  # s of the gradient exchange after the last backward; 0 if none
    gather: float  # s of gathering updated parameters
    update: Parts  # s of the optimizer
    reduce_nbytes: float  # B of gradients exchanged by one device
    gather_nbytes: float  # B of parameters gathered by one device
    input_nbytes: float = 0.0  # B of the first layer's input for a microbatch
    weight_nbytes: float = 0.0  # B of the stored parameters
    gradient_nbytes: float = 0.0  # B of the gradients on the wire


def stage_costs(stages: Sequence[Sequence[Layer]], machine: Machine) -> list[StageCost]:
    """The cost of each stage.

    Args:
        stages: The layers of each stage, as one device holds them.
        machine: Cluster, plan, training, profile.
    """
    timed = layer_seconds((layer for stage in stages for layer in stage), machine)
    names = [tuple(map(id, stage)) for stage in stages]
    distinct = dict(zip(names, stages, strict=True))  # most stages hold the same layers
    known = {
        name: _offloaded(_stage_cost(stage, timed, machine), stage, machine)
        for name, stage in distinct.items()
    }
    return [known[name] for name in names]


def timed_layers(layers: Sequence[Layer], machine: Machine) -> dict[int, LayerSeconds]:
    """Seconds of each distinct layer by its ``id``, by the kind of profile that the machine has."""
    if machine.workers is not None:
        return worker_layer_seconds(layers, machine.workers.fit)
    return layer_seconds(layers, machine)


def _stage_cost(
    layers: Sequence[Layer], timed: Mapping[int, LayerSeconds], machine: Machine
) -> StageCost:
    """The cost of one stage."""
    seconds = [timed[id(layer)] for layer in layers]
    forward = add(*(one.forward for one in seconds))
    backward_input = add(*(one.backward_input for one in seconds))
    backward_weight = add(*(one.backward_weight for one in seconds))
    if machine.gathers_each_pass:
        forward = add(forward, _gathered_forward(layers, seconds, machine))
        backward_input = add(backward_input, _gathered_backward(layers, seconds, machine))
    elif machine.scatters_each_pass:
        backward_input = add(backward_input, _scattered_backward(layers, seconds, machine))
    dense = sum(layer.parameters - layer.expert_parameters for layer in layers)
    experts = sum(layer.expert_parameters for layer in layers)
    exchanged = gradient_nbytes(dense, machine)
    return StageCost(
        forward=forward,
        backward_input=backward_input,
        backward_weight=backward_weight,
        output_nbytes=_sent_nbytes(layers[-1], machine) if layers else 0.0,
        reduce=_reduce_seconds(dense, experts, machine),
        gather=_gather_seconds(dense, experts, machine),
        update={UPDATE: update_seconds(dense, experts, machine)},
        reduce_nbytes=0.0 if machine.gathers_each_pass else exchanged,
        gather_nbytes=gathered_nbytes(dense, machine) if _gathers_once(machine) else 0.0,
        input_nbytes=layers[0].input_nbytes if layers else 0.0,
        weight_nbytes=_stored(dense + experts, machine),
        gradient_nbytes=gradient_nbytes(dense + experts, machine),
    )


def _offloaded(cost: StageCost, layers: Sequence[Layer], machine: Machine) -> StageCost:
    """The cost with what passes between device and host."""
    if not machine.plan.offload:
        return cost
    host, forward, backward = host_seconds(layers, machine), cost.forward, cost.backward_input
    update = cost.update
    if "optimizer" in machine.plan.offload:
        update = host_update(host.update, _total(update), machine)
    return replace(
        cost,
        forward=add(forward, exposed(host.forward, _total(forward), machine)),
        backward_input=add(backward, exposed(host.backward, _total(backward), machine)),
        update=update,
    )


def _sent_nbytes(layer: Layer, machine: Machine) -> float:
    """Bytes that one device sends of a stage's output.

    Legacy Megatron cuts what tensor peers hold alike, each sends its part, and the receivers
    gather it inside their node (arXiv:2104.04473, section 4.1); that gather is not counted.
    """
    plan = machine.plan
    cut = machine.training.framework == "legacy_megatron" and not plan.sequence_parallel
    return layer.output_nbytes / (plan.tensor if cut else 1)


def _stored(parameters: float, machine: Machine) -> float:
    """Bytes of parameters as they are stored."""
    return parameters * TYPE_BYTES[machine.training.stored_type]


def gathered_nbytes(parameters: float, machine: Machine) -> float:
    """Bytes of parameters on the wire: as stored, or cast for 16-bit compute before they leave."""
    wide = machine.training.precision in ("fp32", "tf32")
    return min(_stored(parameters, machine), parameters * (4.0 if wide else 2.0))


def _gathers_once(machine: Machine) -> bool:
    """Whether updated parameters are gathered once a step."""
    return machine.plan.zero > 0 and not machine.gathers_each_pass


def gradient_nbytes(parameters: float, machine: Machine) -> float:
    """Bytes of the gradients of some parameters on the wire, compression included."""
    training, compression = machine.training, machine.plan.compression
    kind = compression.type or training.gradient_type or training.stored_type
    if compression.top_k is None:
        return parameters * TYPE_BYTES[kind]
    return parameters * compression.top_k * (TYPE_BYTES[kind] + _INDEX_BYTES)


def num_buckets(nbytes: float, machine: Machine) -> int:
    """Buckets of so many bytes of gradients."""
    return math.ceil(nbytes / bucket_nbytes(machine.plan, machine.training)) or 1


def _reduce_seconds(dense: float, experts: float, machine: Machine) -> float:
    """Seconds of the gradient exchange of a stage over its replicas, bucket after bucket.

    All-reduce without sharding, reduce-scatter with it. Top-k gradients differ in their places on
    each replica and are gathered, not summed: n times the kept entries arrive. Within ZeRO-3, and
    ZeRO-2 with several microbatches, the exchange is part of each backward pass.
    """
    plan = machine.plan
    if machine.gathers_each_pass or machine.scatters_each_pass:
        return 0.0
    total = 0.0
    for parameters, axis in ((dense, "data"), (experts, "expert_data")):
        nbytes = gradient_nbytes(parameters, machine)
        if not nbytes:
            continue
        buckets = num_buckets(nbytes, machine)
        op = "all_reduce" if plan.zero == 0 else "reduce_scatter"
        if plan.compression.top_k is not None:
            op, nbytes = "all_gather", nbytes * plan.data * plan.context
        total += buckets * machine.exchange_seconds(op, axis, nbytes / buckets)
    return total


def _gather_seconds(dense: float, experts: float, machine: Machine) -> float:
    """Seconds of gathering the updated parameters once a step (ZeRO-1 and -2)."""
    if not _gathers_once(machine):
        return 0.0
    return machine.exchange_seconds(
        "all_gather", "data", gathered_nbytes(dense, machine)
    ) + machine.exchange_seconds("all_gather", "expert_data", gathered_nbytes(experts, machine))


def _one_by_one(machine: Machine) -> bool:
    """Whether each matrix is exchanged by itself: DeepSpeed's ZeRO-3 as it was in 2021."""
    return machine.gathers_each_pass and machine.training.framework == "legacy_megatron"


def _sharded_seconds(op: str, nbytes: float, layer: Layer, machine: Machine) -> float:
    """Seconds of a collective over the shards of a layer.

    One call for the layer; in 2021 one for each matrix (DeepSpeed 0.3, partition_parameters.py:
    ``_allgather_param``, ``_reduce_scatter_gradient``), whose buffers are lists of one tensor for
    each rank that torch copies one by one (ProcessGroupNCCL.cpp: ``allgather``): a launch each.
    """
    if not _one_by_one(machine):
        return machine.exchange_seconds(op, "shard", nbytes)
    products = (step for step in layer.backward_weight if isinstance(step, Kernel))
    calls = max(1, sum(step.count for step in products if step.kind == "gemm"))
    ranks = machine.plan.zero_group or machine.plan.data * machine.plan.context
    launch = machine.profile.launch
    copies = ranks * (launch.host + launch.dispatch)
    return calls * (machine.exchange_seconds(op, "shard", nbytes / calls) + copies)


def _gathers(layers: Sequence[Layer], machine: Machine) -> list[float]:
    """Seconds of gathering each layer's parameters (ZeRO-3)."""
    found: dict[int, float] = {}
    for layer in layers:
        if id(layer) not in found:
            nbytes = gathered_nbytes(layer.parameters, machine)
            found[id(layer)] = _sharded_seconds("all_gather", nbytes, layer, machine)
    return [found[id(layer)] for layer in layers]


def _scatters(layers: Sequence[Layer], machine: Machine) -> list[float]:
    """Seconds of scattering each layer's summed gradients (ZeRO-3), over all replicas."""
    found: dict[int, float] = {}
    for layer in layers:
        if id(layer) not in found:
            nbytes = gradient_nbytes(layer.parameters, machine)
            shard = _sharded_seconds("reduce_scatter", nbytes, layer, machine)
            group = machine.plan.zero_group or machine.plan.data * machine.plan.context
            rest = machine.exchange_seconds("all_reduce", "shard_replicas", nbytes / group)
            found[id(layer)] = shard + rest
    return [found[id(layer)] for layer in layers]


def _gathered_forward(
    layers: Sequence[Layer], seconds: Sequence[LayerSeconds], machine: Machine
) -> dict[str, float]:
    """What gathering parameters adds to a forward pass: the first, and each next beside a layer."""
    gathers = _gathers(layers, machine)
    compute = [sum(one.forward.values()) for one in seconds]
    return {"parameter gather": _exposed(compute, gathers, machine)}


def _gathered_backward(
    layers: Sequence[Layer], seconds: Sequence[LayerSeconds], machine: Machine
) -> dict[str, float]:
    """What gathering parameters again and scattering gradients adds to a backward pass.

    From the last layer to the first: beside a layer's backward the layer before it is gathered and
    the gradients of the layer after it are scattered. Where matrices come one by one, they are
    dropped after the forward pass that recomputation repeats, and come once more.
    """
    gathers, scatters = _gathers(layers, machine)[::-1], _scatters(layers, machine)[::-1]
    compute = [
        sum(one.backward_input.values()) + sum(one.backward_weight.values()) for one in seconds
    ][::-1]
    beside = [g + s for g, s in zip([*gathers[1:], 0.0], [0.0, *scatters[:-1]], strict=True)]
    if not machine.plan.overlap_data:
        times = 2 if _one_by_one(machine) and machine.plan.recompute == "full" else 1
        return {"parameter gather": times * sum(gathers), "gradient exchange": sum(scatters)}
    both = sum(overlapped(c, x) - c for c, x in zip(compute, beside, strict=True))
    whole = gathers[0] + scatters[-1] + both
    share = sum(gathers) / max(sum(gathers) + sum(scatters), 1e-30)
    return {"parameter gather": whole * share, "gradient exchange": whole * (1 - share)}


def _scattered_backward(
    layers: Sequence[Layer], seconds: Sequence[LayerSeconds], machine: Machine
) -> dict[str, float]:
    """What scattering gradients adds to a backward pass: each beside the layer before it."""
    scatters = _scatters(layers, machine)[::-1]
    compute = [
        sum(one.backward_input.values()) + sum(one.backward_weight.values()) for one in seconds
    ][::-1]
    if not machine.plan.overlap_data:
        return {"gradient exchange": sum(scatters)}
    beside = [0.0, *scatters[:-1]]
    hidden = sum(overlapped(c, x) - c for c, x in zip(compute, beside, strict=True))
    return {"gradient exchange": scatters[-1] + hidden}


def _exposed(compute: Sequence[float], exchanges: Sequence[float], machine: Machine) -> float:
    """Seconds that exchanges add when each runs beside the compute before it."""
    if not machine.plan.overlap_data:
        return sum(exchanges)
    following = [*exchanges[1:], 0.0]
    return exchanges[0] + sum(overlapped(c, x) - c for c, x in zip(compute, following, strict=True))


def update_seconds(dense: float, experts: float, machine: Machine) -> float:
    """Seconds of the optimizer's update on one device: bytes over memory bandwidth.

    Each updated parameter reads its gradient, reads and writes its fp32 master (or itself) and each
    kept number of state, and writes the stored parameter. Clipping reads the gradients once more.
    torch's own Adam is not one kernel but a pass for each of its operations (``foreach``, its
    default), see ``_FOREACH_ADAM``.
    """
    training, plan = machine.training, machine.plan
    shard = plan.zero_group or plan.data * plan.context if plan.zero else 1
    replicas = max(1, plan.data * plan.context * plan.tensor // plan.expert) if plan.zero else 1
    parameters = dense / shard + experts / min(shard, replicas)
    stored = TYPE_BYTES[training.stored_type]
    gradient = TYPE_BYTES[training.gradient_type or training.stored_type]
    states = {"sgd": 0, "momentum": 1, "adam": 2, "adafactor": 0}[training.optimizer]
    state = 2 * states * TYPE_BYTES[training.state_type]
    weight = 2 * 4.0 + stored if training.keeps_master_weights else 2 * stored
    nbytes = parameters * (gradient + state + weight)
    torch = training.framework == "torch" and not training.keeps_master_weights
    if torch and training.optimizer == "adam":
        nbytes = parameters * _FOREACH_ADAM * stored
    if training.gradient_clipping:
        nbytes += (dense + experts) * gradient
    memory = machine.profile.memory
    rate = memory.bandwidth_fraction * machine.cluster.device.memory_bandwidth
    return memory.floor + nbytes / rate


def microbatch_seconds(cost: StageCost) -> float:
    """Seconds of a stage's forward and backward passes of one microbatch."""
    return sum(map(_total, (cost.forward, cost.backward_input, cost.backward_weight)))


def _total(parts: Parts) -> float:
    return sum(parts.values())
