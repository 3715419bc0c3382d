"""How long ops take on a worker that computes what it launches: a core running a framework.

On such a worker host time and kernel time add up, and so do messages, which its core moves itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from mpsim.cost.passes import COMPUTE, LAUNCH, UPDATE, LayerSeconds, Steps
from mpsim.cost.turns import Turns, held_times, turns
from mpsim.cost.work import Floats, Ints, Link, Work
from mpsim.schedule.graph import OpGraph
from mpsim.schedule.ops import Kind, Order
from mpsim.spec.workers import WorkerFit
from mpsim.workload.layers import Kernel, Layer

_FUNCTIONS = ("gelu", "silu", "sigmoid", "tanh", "softmax", "cross_entropy", "binary", "loss")
"""Beginnings of the names of elementwise kernels that take an exponential or a logarithm."""

FORWARD, BACKWARD, INPUT, WEIGHT = range(4)
"""Rows of a table of op times, for F, B, I and W."""
ROW_OF_KIND = {Kind.F: FORWARD, Kind.B: BACKWARD, Kind.I: INPUT, Kind.W: WEIGHT}


@dataclass(frozen=True, eq=False)
class Demand:
    """What some passes ask of a worker. Letters: H passes, G products."""

    kind: Ints  # (H,) FORWARD, BACKWARD, INPUT, WEIGHT
    kernels: Floats  # (H,) kernels launched
    streamed: Floats  # (H,) B that elementwise kernels move
    functions: Floats  # (H,) elements that an exponential or a logarithm is taken of
    attention: Floats  # (H,) FLOP of fused attention
    attentions: Floats  # (H,) calls of fused attention
    losses: Floats  # (H,) 1 for forward passes of the last stage, else 0
    empty: Floats  # (H,) 1 where the pass does nothing at all, else 0
    owner: Ints  # (G,) pass of each product
    shape: Floats  # (G, 4) batch, m, n, k
    nbytes: Floats  # (G,) B of operands and result, of all equal products
    count: Floats  # (G,) equal products


def demand(passes: Sequence[tuple[int, Steps]]) -> Demand:
    """Sum up passes, each given with its kind; the last forward pass is that with the loss.

    Exchanges inside a pass are not counted: workers that run together have one stage each.
    """
    rows = np.zeros((len(passes), 6))
    products: list[tuple[int, Kernel]] = []
    for index, (_, steps) in enumerate(passes):
        for step in steps:
            if not isinstance(step, Kernel):
                continue
            rows[index, 0] += step.count
            if step.kind == "gemm":
                products.append((index, step))
            elif step.kind == "attention":
                rows[index, 3] += step.flops * step.count
                rows[index, 4] += step.count
            else:
                rows[index, 1] += step.nbytes * step.count
                if step.name.startswith(_FUNCTIONS):
                    rows[index, 2] += step.nbytes * step.count / 8  # reads and writes 4 B each
    forwards = [index for index, (kind, _) in enumerate(passes) if kind == FORWARD]
    rows[forwards[-1:], 5] = 1.0
    kernels = [kernel for _, kernel in products]
    return Demand(
        kind=np.array([kind for kind, _ in passes], np.int32),
        kernels=rows[:, 0],
        streamed=rows[:, 1],
        functions=rows[:, 2],
        attention=rows[:, 3],
        attentions=rows[:, 4],
        losses=rows[:, 5],
        empty=np.array([float(not steps) for _, steps in passes]),
        owner=np.array([index for index, _ in products], np.int32),
        shape=np.array([kernel.shape for kernel in kernels], float).reshape(-1, 4),
        nbytes=np.array([kernel.nbytes * kernel.count for kernel in kernels], float),
        count=np.array([kernel.count for kernel in kernels], float),
    )


def demand_seconds(asked: Demand, fit: WorkerFit) -> tuple[Floats, Floats]:
    """Seconds of passes in kernels, and on the host.

        product = 2 b m n k / rate x (1 + m½/m) (1 + n½/n) (1 + k½/k) + bytes / operands
        kernels = products + bytes / stream + elements / functions + FLOP / attention
        host    = that of the op + kernels launched x that of a kernel of such a pass
                  + attentions x views + that of the loss

    Caches are not told apart: the rates are those of a training step's mixture.

    Source:
        Hockney and Jesshope, "Parallel Computers 2", 1988 (n½, the length of half performance).
    """
    batch, m, n, k = asked.shape.T
    edges = (1 + fit.half_rows / m) * (1 + fit.half_columns / n) * (1 + fit.half_depth / k)
    products = asked.count * 2 * batch * m * n * k / fit.rate * edges + asked.nbytes / fit.operands
    kernels: Floats = (
        np.bincount(asked.owner, weights=products, minlength=len(asked.kind))
        + asked.streamed / fit.stream
        + asked.functions / fit.functions
        + asked.attention / fit.attention
    )
    own = np.array([fit.forward, fit.backward, fit.input_gradient, fit.weight_gradient])
    each = np.array([fit.kernel, fit.backward_kernel, fit.split_kernel, fit.split_kernel])
    beside = asked.attentions * fit.views + asked.losses * fit.loss
    host: Floats = (own[asked.kind] + asked.kernels * each[asked.kind] + beside) * (1 - asked.empty)
    return kernels, host


def stage_passes(layers: Sequence[Layer], *, first: bool) -> list[tuple[int, Steps]]:
    """The passes of a stage's ops F, B, I, W.

    A stage without a stage before it computes no gradient of its input: torch's runtime then leaves
    ``I`` empty and runs the whole backward pass in ``W``.
    """
    forward = tuple(step for layer in layers for step in layer.forward)
    inputs = tuple(step for layer in layers for step in layer.backward_input)
    weights = tuple(step for layer in layers for step in layer.backward_weight)
    both = inputs + weights
    return [
        (FORWARD, forward),
        (BACKWARD, both),
        (INPUT, () if first else inputs),
        (BACKWARD if first else WEIGHT, both if first else weights),
    ]


def tensors(layers: Sequence[Layer]) -> float:
    """Parameter tensors of some layers: gradients that a backward pass makes."""
    return float(
        sum(
            step.count
            for layer in layers
            for step in layer.backward_weight
            if isinstance(step, Kernel) and not step.name.endswith("_accumulate")
        )
    )


@dataclass(frozen=True, eq=False)
class HostWork:
    """What a worker's core does beside the passes, op by op. N ops."""

    sends: Floats  # (N,) messages begun after the op
    receives: Floats  # (N,) receives begun, charged to the op before the one that needs them
    moved: Floats  # (N,) B that the core moves for messages
    setups: Floats  # (N,) 1 at a worker's first op
    updates: Floats  # (N,) 1 at a worker's update
    waits: Floats  # (N,) messages waited for
    transfer: Floats  # (N,) 1 for transfers
    nbytes: Floats  # (N,) B of transfers


def host_work(graph: OpGraph, nbytes: Floats) -> HostWork:
    """Messages of a graph as work of the cores that begin and move them.

    Args:
        graph: The ops.
        nbytes: Bytes of each transfer, (N,).
    """
    count = graph.num_ops
    sends, receives, moved, setups, waits = (np.zeros(count) for _ in range(5))
    transfer = (graph.kind == Kind.SEND_F) | (graph.kind == Kind.SEND_B)
    compute = np.isin(graph.kind, (Kind.F, Kind.B, Kind.I, Kind.W))
    owner = np.repeat(np.arange(count), np.diff(graph.pred_starts))
    crosses = transfer[graph.pred]
    consumer, message = owner[crosses], graph.pred[crosses]
    # the receive is begun before the wait: it delays the op before, or the first op itself
    before = np.where(graph.previous[consumer] >= 0, graph.previous[consumer], consumer)
    np.add.at(receives, before, 1.0)
    np.add.at(moved, consumer, nbytes[message])
    np.add.at(waits, consumer, 1.0)
    feeds = transfer[owner] & compute[graph.pred]
    np.add.at(sends, graph.pred[feeds], 1.0)
    np.add.at(moved, graph.pred[feeds], nbytes[owner[feeds]])
    setups[compute & (graph.previous < 0)] = 1.0
    updates = (graph.kind == Kind.STEP).astype(float)
    return HostWork(sends, receives, moved, setups, updates, waits, transfer.astype(float), nbytes)


@dataclass(frozen=True, eq=False)
class StepDemand:
    """What a step asks of its workers. Letters: N ops, H passes."""

    graph: OpGraph
    passes: Demand
    row: Ints  # (N,) pass of each compute op; -1: none
    host: HostWork
    turns: Turns
    tensors: Floats  # (N,) parameter tensors that an update touches
    updated: Floats  # (N,) B of their elements
    touched: Floats  # (N,) B of gradients at the first backward op of a stage in the step


def step_demand(
    graph: OpGraph,
    stages: Sequence[Sequence[Layer]],
    *,
    order: Order | None = None,
    parameter_bytes: float = 4.0,
) -> StepDemand:
    """The demand of a graph, lowered from an order, whose stages are these layers."""
    passes = [
        one for index, layers in enumerate(stages) for one in stage_passes(layers, first=index == 0)
    ]
    row = np.full(graph.num_ops, -1, np.int32)
    for kind, place in ROW_OF_KIND.items():
        ops = graph.kind == kind
        row[ops] = 4 * graph.stage[ops] + place
    count, updated = np.zeros(graph.num_ops), np.zeros(graph.num_ops)
    update = {int(graph.device[op]): op for op in np.flatnonzero(graph.kind == Kind.STEP)}
    held = {(int(graph.stage[op]), int(graph.device[op])) for op in np.flatnonzero(row >= 0)}
    for stage, device in held:
        if device in update:
            count[update[device]] += tensors(stages[stage])
            parameters = sum(layer.parameters for layer in stages[stage])
            updated[update[device]] += parameter_bytes * parameters
    touched = np.zeros(graph.num_ops)
    for op in np.flatnonzero((graph.kind == Kind.B) | (graph.kind == Kind.W))[::-1].tolist():
        mine = (graph.stage == graph.stage[op]) & (touched > 0)
        touched[mine] = 0.0
        touched[op] = parameter_bytes * sum(layer.parameters for layer in stages[graph.stage[op]])
    output = np.array([layers[-1].output_nbytes for layers in stages])
    nbytes = np.where(graph.kind == Kind.SEND_F, output[graph.stage], 0.0)
    back = graph.kind == Kind.SEND_B
    nbytes[back] = output[graph.stage[back] - 1]
    work = host_work(graph, nbytes)
    return StepDemand(
        graph, demand(passes), row, work, turns(graph, order), count, updated, touched
    )


def step_parts(asked: StepDemand, fit: WorkerFit) -> dict[str, Floats]:
    """Seconds of each op by part: compute, launch, update, transfers; each (N,).

    Messages are host time of the cores at both ends, and what the network takes beside. The update
    scales gradients (reads and writes them), then reads them with the weights and writes those.
    """
    kernels, host = demand_seconds(asked.passes, fit)
    compute = (asked.row >= 0).astype(float)
    work, row = asked.host, np.maximum(asked.row, 0)
    beside = (
        work.sends * (fit.send + fit.gap)
        + work.receives * (fit.receive + fit.gap)
        + work.waits * fit.wake
        + work.moved / fit.copying
        + work.setups * fit.setup
        + compute * fit.gap
    )
    update = work.updates * fit.update + asked.tensors * fit.tensor + 5 * asked.updated / fit.stream
    return {
        COMPUTE: compute * kernels[row] + asked.touched / fit.fresh,
        LAUNCH: compute * host[row] + beside,
        UPDATE: update,
        "transfers": work.transfer * (fit.latency + work.nbytes / fit.bandwidth),
    }


def worker_step_seconds(asked: StepDemand, fit: WorkerFit) -> float:
    """Seconds of a step by the longest path, messages waiting for cores that compute."""
    lengths = sum(step_parts(asked, fit).values(), start=np.zeros(asked.graph.num_ops))
    end, _ = _played(asked, lengths, fit)
    return float(end.max())


def _played(asked: StepDemand, lengths: Floats, fit: WorkerFit) -> tuple[Floats, Floats]:
    """``held_times`` of a demand: receives follow the sends of an op, a request is a message."""
    tails = asked.host.receives * (fit.receive + fit.gap)
    return held_times(
        asked.graph, asked.turns, lengths, tails=tails, slice_=fit.slice, delay=fit.latency
    )


def worker_work(asked: StepDemand, fit: WorkerFit) -> Work:
    """The numbers of an op graph whose devices are measured workers.

    Every directed pair of workers has a link of its own; what cores spend on messages is host time
    of the ops at both ends.
    """
    graph, transfer = asked.graph, asked.host.transfer > 0
    parts = step_parts(asked, fit)
    lengths = sum(parts.values(), start=np.zeros(graph.num_ops))
    _, held = _played(asked, lengths, fit)
    parts["transfers"] = transfer * fit.latency + held
    pairs = graph.device.astype(np.int64) * graph.num_devices + graph.peer
    link = np.full(graph.num_ops, -1, np.int32)
    found = np.unique(pairs[transfer])
    link[transfer] = np.searchsorted(found, pairs[transfer])
    links = tuple(
        Link(f"{pair // graph.num_devices} to {pair % graph.num_devices}", fit.bandwidth)
        for pair in found.tolist()
    )
    seconds = sum(parts.values(), start=np.zeros(graph.num_ops))
    return Work(seconds, asked.host.nbytes * transfer, link, links, parts)


def worker_layer_seconds(layers: Iterable[Layer], fit: WorkerFit) -> dict[int, LayerSeconds]:
    """Seconds of the passes of each distinct layer by its ``id``, the ops' own host time apart."""
    found = {}
    for layer in {id(layer): layer for layer in layers}.values():
        passes = [(FORWARD, layer.forward), (BACKWARD, layer.backward_input)]
        kernels, host = demand_seconds(demand([*passes, (BACKWARD, layer.backward_weight)]), fit)
        own = np.array([fit.forward, fit.backward, fit.backward])
        parts = [
            {COMPUTE: float(a), LAUNCH: max(float(b - c), 0.0)}
            for a, b, c in zip(kernels, host, own, strict=True)
        ]
        found[id(layer)] = LayerSeconds(*parts)
    return found


def step_facts(asked: StepDemand, stages: Sequence[Sequence[Layer]]) -> dict[str, float]:
    """What the range of a fit is told by."""
    shape = asked.passes.shape
    sent = asked.host.nbytes[asked.host.transfer > 0]
    found = {
        "microbatches": float(asked.graph.num_microbatches),
        "stages": float(len(stages)),
        "devices": float(asked.graph.num_devices),
        "layers": float(max(len(stage) for stage in stages)),
    }
    if len(sent):
        found["message"] = float(sent.max())
    if len(shape):
        found["flops"] = float((2 * shape.prod(axis=1)).max())
        found["width"] = float(np.max(np.sort(shape[:, 1:], axis=1)[:, 1:]))
        found["rows"] = float(shape[:, 1:].min())
    return found
