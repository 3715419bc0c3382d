"""Where order meets cost: the seconds and bytes of each op of a graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from mpsim.cost.passes import Machine, Parts, add
from mpsim.cost.stages import StageCost
from mpsim.cost.topology import link_between, node_of
from mpsim.cost.work import Floats, Ints, Link, Work
from mpsim.schedule.graph import OpGraph
from mpsim.schedule.ops import Kind

_NORM_BYTES = 8.0
"""Bytes that a global gradient norm exchanges: one number, and whether any gradient overflowed."""


def estimate(graph: OpGraph, costs: Sequence[StageCost], machine: Machine) -> Work:
    """The numbers of an op graph.

    Compute ops take the seconds of their stage, a part of a cut op its share; ``B`` is input and
    weight gradient together. A transfer takes its link's latency and carries the stage's output,
    backward the gradient of its input, of the same size; a sequence slice carries its share.

    Args:
        graph: The ops.
        costs: One for each stage.
        machine: Cluster, plan, training, profile.

    Returns:
        Seconds, bytes, links and parts of each op.
    """
    tables: dict[Kind, Sequence[Parts]] = {
        Kind.F: [cost.forward for cost in costs],
        Kind.B: [add(cost.backward_input, cost.backward_weight) for cost in costs],
        Kind.I: [cost.backward_input for cost in costs],
        Kind.W: [cost.backward_weight for cost in costs],
        Kind.STEP: _of_device([cost.update for cost in costs], graph),
        Kind.REDUCE_GRAD: [{"gradient exchange": cost.reduce} for cost in costs],
        Kind.UNSHARD: [{"parameter gather": cost.gather} for cost in costs],
    }
    share = 1.0 / (np.maximum(graph.num_parts, 1) * _slices(graph))
    parts: dict[str, Floats] = {}
    for kind, table in tables.items():
        _fill(parts, graph, kind, table=table, share=share)
    norm = machine.exchange_seconds("all_reduce", "pipeline", _NORM_BYTES)
    _fill(parts, graph, Kind.BARRIER, table=[{"gradient norm": norm}], share=share)
    link, links, latency = _links(graph, machine)
    seconds = sum(parts.values(), start=np.zeros(graph.num_ops)) + latency
    parts["transfers"] = latency
    return Work(seconds, _transfer_nbytes(graph, costs), link, links, parts)


def _slices(graph: OpGraph) -> int:
    """Sequence slices of the schedule."""
    return int(graph.slice.max(initial=-1)) + 1 or 1


def _of_device(updates: Sequence[Parts], graph: OpGraph) -> list[Parts]:
    """Updates of all stages of each device, at the index of the stage that its update names."""
    forward = graph.kind == Kind.F
    place = np.zeros((graph.num_devices, graph.num_stages), np.bool_)
    place[graph.device[forward], graph.stage[forward]] = True
    return [add(*(updates[stage] for stage in np.flatnonzero(row).tolist())) for row in place]


def _fill(
    parts: dict[str, Floats],
    graph: OpGraph,
    kind: Kind,
    *,
    table: Sequence[Parts],
    share: Floats,
) -> None:
    """Add the seconds of the ops of one kind to the arrays of each part."""
    ops = np.flatnonzero(graph.kind == kind)
    if not len(ops):
        return
    if kind is Kind.STEP:
        row = graph.device[ops]
    elif kind is Kind.BARRIER:
        row = np.zeros(len(ops), dtype=np.int32)
    else:
        row = graph.stage[ops]
    for name in dict.fromkeys(name for entry in table for name in entry):
        seconds = np.array([entry.get(name, 0.0) for entry in table])
        if seconds.any():
            array = parts.setdefault(name, np.zeros(graph.num_ops))
            array[ops] += seconds[row] * share[ops]


def _transfer_nbytes(graph: OpGraph, costs: Sequence[StageCost]) -> Floats:
    """Bytes of each transfer.

    Between stages the stage's output, or the gradient of its input. In torch's DataParallel the
    inputs, weights, outputs, their gradients and the weights' gradients.
    """
    output = np.array([cost.output_nbytes for cost in costs])
    of_kind = {
        Kind.SEND_F: output,
        Kind.SEND_B: np.concatenate([output[:1], output[:-1]]),
        Kind.SCATTER: np.array([cost.input_nbytes for cost in costs]),
        Kind.BROADCAST: np.array([cost.weight_nbytes for cost in costs]),
        Kind.GATHER: output,
        Kind.REDUCE_GRAD: np.array([cost.gradient_nbytes for cost in costs]),
    }
    nbytes = np.zeros(graph.num_ops)
    for kind, of_stage in of_kind.items():
        ops = (graph.kind == kind) & (graph.peer >= 0)
        nbytes[ops] = of_stage[graph.stage[ops]]
    return nbytes / _slices(graph)


def _links(graph: OpGraph, machine: Machine) -> tuple[Ints, tuple[Link, ...], Floats]:
    """Link of each transfer, the links, and each transfer's latency.

    Every directed pair of devices has a link of its own, except where the devices of a node share
    one uplink.
    """
    index = np.full(graph.num_ops, -1, dtype=np.int32)
    latency = np.zeros(graph.num_ops)
    transfers = np.flatnonzero(graph.peer >= 0)
    found: dict[str, tuple[int, Link]] = {}
    pairs = graph.device[transfers].astype(np.int64) * graph.num_devices + graph.peer[transfers]
    for pair in np.unique(pairs).tolist():
        a, b = divmod(pair, graph.num_devices)
        chosen = transfers[pairs == pair]
        spec = link_between(a, b, machine.plan, machine.cluster)
        inside = spec is not machine.cluster.network
        shared = inside and machine.cluster.node.shared_uplink
        node = node_of(a, machine.plan, machine.cluster.node.devices)
        name = f"{spec.name}, node {node}" if shared else f"{spec.name}, {a} to {b}"
        number, _ = found.setdefault(name, (len(found), Link(name, spec.rate, shared)))
        index[chosen] = number
        latency[chosen] = spec.delay
    return index, tuple(link for _, link in found.values()), latency


def sent_bytes(graph: OpGraph, work: Work) -> Mapping[str, float]:
    """Bytes over each link in the step, by the link's name."""
    total = np.bincount(
        work.link[work.link >= 0],
        weights=work.nbytes[work.link >= 0],
        minlength=len(work.links),
    )
    return {link.name: float(nbytes) for link, nbytes in zip(work.links, total, strict=True)}
