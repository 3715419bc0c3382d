"""Which figures kernels, launches, collectives and transfers rest on, and in which shares."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mpsim.cost.compute import (
    gemm_fit,
    kernel_seconds,
    nearest_precision,
    peak_rate,
    runs_scalar,
    scalar_fit,
)
from mpsim.cost.offload import HOST_MEMORY_BANDWIDTH, host_seconds
from mpsim.cost.overlap import EXCHANGE_SLOWDOWN, KERNEL_SLOWDOWN
from mpsim.cost.passes import Machine
from mpsim.cost.software import slowdown
from mpsim.cost.stages import gathered_nbytes, gradient_nbytes
from mpsim.cost.topology import group_of, link_between
from mpsim.cost.work import Work
from mpsim.report.sources import Figure, Kind, device_figure, from_text, link_figure
from mpsim.schedule.graph import OpGraph
from mpsim.spec.cluster import LinkSpec
from mpsim.spec.profile import Profile
from mpsim.units import format_seconds, format_si
from mpsim.workload.layers import Exchange, Kernel, Layer

Shares = dict[Figure, float]
"""Figures and the share of some seconds that rests on each; they sum to 1."""

Stages = Sequence[Sequence[Layer]]

_SOFTWARE = "constants of training software, fitted on measured steps (mpsim/cost/software.py)"
_OVERLAP = Figure(
    "slow-down of overlapped kernels and exchanges",
    f"{KERNEL_SLOWDOWN}, {EXCHANGE_SLOWDOWN}",
    "default",
    "measured on another machine: openfabric-systems/simllm, A100 hardware envelope v1",
)
_NOTHING = Figure("nothing that was timed", "", "default", "a part of the step without a cost")


def mixed(parts: Iterable[tuple[Mapping[Figure, float], float]]) -> Shares:
    """Shares of several parts, weighted by their seconds."""
    found: Shares = {}
    for shares, seconds in parts:
        for figure, share in shares.items():
            found[figure] = found.get(figure, 0.0) + share * seconds
    whole = sum(found.values())
    return {f: s / whole for f, s in found.items() if s} if whole else {_NOTHING: 1.0}


def _layered(first: Figure, *factors: tuple[Figure, float]) -> Shares:
    """A figure that makes seconds, and factors by which others lengthen them, one after another.

    Each bears the seconds that it adds: at 80 % of a bandwidth, 0.8 of the seconds rest on the
    bandwidth and 0.2 on the 80 %.
    """
    found, so_far = {first: 1.0}, 1.0
    for figure, factor in factors:
        added, so_far = so_far * (factor - 1), so_far * factor
        if added > 0:
            found[figure] = found.get(figure, 0.0) + added
    whole = sum(found.values())
    return {figure: seconds / whole for figure, seconds in found.items()}


def _fit_of(profile: Profile) -> tuple[Kind, str, str]:
    """Class, source and date of what a profile was fitted on; another device's is a guess."""
    if profile.kind == "derived":
        base = profile.name.partition("@")[0]
        return "guess", f"taken over from the profile {base} of another device", str(profile.date)
    rows = ", ".join(f"{count} rows of {table}" for table, count in profile.tables.items())
    kind: Kind = "measured" if profile.kind == "measured" else "fitted"
    return kind, f"profile {profile.name}: {profile.source} ({rows})", str(profile.date)


@dataclass(frozen=True)
class _Group:
    """Kernels that rest on the same figures."""

    kind: str  # gemm, attention, attention backward, memory
    precision: str  # of matrix products; attention runs in 16 bits
    factor: float  # what training software makes of their time


def kernel_figures(stages: Stages, machine: Machine) -> Shares:
    """What the kernels of the model rest on, by the seconds of each kind of kernel."""
    launches: dict[Kernel, int] = {}
    for layer in (layer for stage in stages for layer in stage):
        for step in (*layer.forward, *layer.backward_input, *layer.backward_weight):
            if isinstance(step, Kernel):
                launches[step] = launches.get(step, 0) + step.count
    kernels, device = list(launches), machine.cluster.device
    timed = kernel_seconds(kernels, machine.profile, device).tolist()
    groups: dict[_Group, tuple[float, float]] = {}
    for kernel, once in zip(kernels, timed, strict=True):
        kind = str(kernel.kind) if kernel.shape else "memory"
        if kind == "attention" and kernel.backward:
            kind = "attention backward"
        precision = kernel.precision if kind == "gemm" else "bf16"
        group = _Group(kind, precision, slowdown(kernel, machine.software, device))
        seconds, flops = groups.get(group, (0.0, 0.0))
        count = launches[kernel]
        groups[group] = seconds + count * once, flops + count * kernel.flops
    return mixed(
        (_of_group(group, seconds, flops, machine), group.factor * seconds)
        for group, (seconds, flops) in groups.items()
    )


def _of_group(group: _Group, seconds: float, flops: float, machine: Machine) -> Shares:
    """What one group rests on, whose kernels take so many seconds by the profile alone."""
    if group.kind == "memory":
        return memory_figures(machine)
    precision = group.precision
    scalar = group.kind == "gemm" and _runs_scalar(machine, precision)
    if scalar:
        precision, fit = "fp32", _scalar_products(machine, precision)
    else:
        fit = (_products if group.kind == "gemm" else _attention)(machine, precision)
    share = sustained_share(machine, precision)
    factors = [(_clock(machine, share), 1 / share)]
    seconds *= share
    if group.kind == "attention backward":
        rate = machine.profile.attention.backward_efficiency
        factors.append((_backward(fit, machine), 1 / rate))
        seconds *= rate
    what = f"time of {group.kind.split()[0]} kernels in {machine.training.framework}"
    factors.append((Figure(what, f"x{group.factor:g}", "fitted", _SOFTWARE), group.factor))
    if fit.kind != "guess" and not scalar:
        return _layered(fit, *factors)
    # without a fit of its own, the peak rate counts, and the other's share of it
    ideal = flops / peak_rate(machine.cluster.device, precision)
    beyond = seconds / ideal if ideal else 1.0
    device = machine.cluster.device
    if device.ceiling and not scalar:  # a measured share of the peak; the other's fit adds to it
        named = nearest_precision(precision, device.ceiling)
        share = device.ceiling[named]
        what = f"share of the {named} rate that the best product reaches"
        reached = device_figure(device, "ceiling", what, f"{share:.1%}")
        factors, beyond = [(reached, 1 / share), *factors], beyond * share
    return _layered(_peak(machine, precision), (fit, max(1.0, beyond)), *factors)


def _products(machine: Machine, precision: str) -> Figure:
    """The fit of matrix products; that of another device or format is a guess."""
    profile, device = machine.profile, machine.cluster.device
    used = nearest_precision(precision, profile.gemm)
    kind, source, date = _fit_of(profile)
    if kind != "guess" and used != precision and {used, precision} != {"fp16", "bf16"}:
        kind, source = "guess", f"taken over from {used}: {source}"
    best = max(profile.gemm[used].tiles.values())
    value = f"main loop at {best:.0%} of {format_si(peak_rate(device, precision), 'FLOP/s')}"
    return Figure(f"efficiency of {precision} products", value, kind, source, date)


_SCALAR = (
    "SCALAR_SHARE of mpsim/cost/compute.py, fitted on forward and backward passes of BERT and "
    "GPT-2 on V100 and H100 (NeuSight's measurements, arXiv:2407.13853)"
)


def _runs_scalar(machine: Machine, precision: str) -> bool:
    """Whether products are timed as ones outside the matrix units (``cost/compute.py``)."""
    own = "fp32" in machine.profile.gemm
    return not own and runs_scalar(precision, machine.cluster.device)


def _scalar_products(machine: Machine, precision: str) -> Figure:
    """The fit of products outside the matrix units; the rates of 16 bits say nothing of them."""
    device, profile = machine.cluster.device, machine.profile
    share = max(scalar_fit(gemm_fit(profile, precision), profile, device).tiles.values())
    rate = format_si(peak_rate(device, "fp32"), "FLOP/s")
    value = f"outside the matrix units: main loop at {share:.0%} of {rate}"
    return Figure(f"efficiency of {precision} products", value, "fitted", _SCALAR, "2024")


def _attention(machine: Machine, precision: str) -> Figure:
    """The fit of fused attention."""
    profile = machine.profile
    kind, source, date = _fit_of(profile)
    if kind == "fitted" and "attention_fwd" not in profile.tables:
        kind, source = "default", "no attention was measured on this device"
    value = f"{max(profile.attention.peak_fraction):.0%} of the {precision} peak"
    return Figure("efficiency of fused attention", value, kind, source, date)


def _backward(fit: Figure, machine: Machine) -> Figure:
    """The rate of attention's backward, fitted where it was measured."""
    rate = machine.profile.attention.backward_efficiency
    what, value = "rate of attention's backward", f"{rate:.0%} of the forward's"
    if "attention_bwd" in machine.profile.tables:
        return Figure(what, value, fit.kind, fit.source, fit.date)
    return Figure(what, value, "default", "FlashAttention-2, arXiv:2307.08691, section 4.1", "2023")


def _peak(machine: Machine, precision: str) -> Figure:
    """The data sheet's rate of matrix products."""
    device = machine.cluster.device
    named = nearest_precision(precision, device.peak)
    value = format_si(peak_rate(device, precision), "FLOP/s")
    return device_figure(device, f"peak.{named}", f"{named} rate of {device.name}", value)


def sustained_share(machine: Machine, precision: str) -> float:
    """Rate of matrix products in a long run over that of a short benchmark."""
    shares = machine.profile.sustained
    return shares[nearest_precision(precision, shares)] if shares else 1.0


def _clock(machine: Machine, share: float) -> Figure:
    """The sustained clock: by the power limit, or as the profile states."""
    source = machine.profile.sustained_source
    if "mpsim.cost.clock" in source:
        source += ", fitted on measured steps"
    return Figure("sustained clock", f"{share:.1%} of a benchmark's", "fitted", source)


def memory_figures(machine: Machine) -> Shares:
    """Kernels bound by memory: the data sheet's bandwidth, and the share of it that is reached."""
    memory, device = machine.profile.memory, machine.cluster.device
    value = format_si(device.memory_bandwidth, "B/s")
    what = f"memory bandwidth of {device.name}"
    sheet = device_figure(device, "memory_bandwidth", what, value)
    kind, source, date = _fit_of(machine.profile)
    if kind != "guess":
        default = memory.source.startswith("default")
        kind, source = "default" if default else kind, memory.source
    share = memory.bandwidth_fraction
    reached = Figure("share of it that kernels reach", f"{share:.0%}", kind, source, date)
    return _layered(sheet, (reached, 1 / share))


def launch_figures(machine: Machine) -> Shares:
    """Launches: the driver's time, and the framework's by its number of operators."""
    launch, software = machine.profile.launch, machine.software
    date = str(machine.profile.date)

    def figure(what: str, field: str, seconds: float) -> Figure:
        kind, source, _ = from_text(launch.source, field)
        default = kind == "default"
        value = format_seconds(seconds)
        return Figure(what, value, kind if default else "measured", source, "" if default else date)

    if getattr(machine.plan, "graphs", False):
        what = "device time between kernels of a graph"
        return {figure(what, "graph_node", launch.graph_node): 1.0}
    operators = Figure(
        f"operators for each kernel in {machine.training.framework}",
        f"{software.dispatches:g}",
        "fitted",
        _SOFTWARE,
    )
    dispatch = figure("host time of an operator", "dispatch", launch.dispatch)
    host = figure("host time of a launch", "host", launch.host)
    spent = launch.dispatch * software.dispatches
    both = _layered(dispatch, (operators, software.dispatches))
    return mixed([({host: 1.0}, launch.host), (both, spent)])


def exchange_figures(cause: str, stages: Stages, machine: Machine) -> Shares:
    """Collectives of a cause of the waterfall, such as ``tensor exchange``."""
    parts = [
        (_collective(op, axis, nbytes, machine=machine), float(count))
        for op, axis, nbytes, count in _exchanges(cause, stages, machine)
    ]
    shares = mixed((shares, seconds * count) for (shares, seconds), count in parts)
    if not _beside_compute(cause, machine):
        return shares
    return mixed([(shares, 1.0), ({_OVERLAP: 1.0}, 1.0)])


def _beside_compute(cause: str, machine: Machine) -> bool:
    """Whether what remains of an exchange comes out of the overlap factors."""
    plan = machine.plan
    if cause in ("gradient exchange", "parameter gather"):
        return plan.overlap_data and machine.gathers_each_pass
    return {"tensor exchange": plan.overlap_tensor, "expert exchange": plan.overlap_expert}.get(
        cause, False
    )


def _exchanges(
    cause: str, stages: Stages, machine: Machine
) -> Iterable[tuple[str, str, float, float]]:
    """(collective, axis, bytes, count) of the exchanges that a cause is made of."""
    dense = sum(layer.parameters - layer.expert_parameters for stage in stages for layer in stage)
    dense /= len(stages)
    match cause:
        case "gradient norm":
            yield "all_reduce", "pipeline", 8.0, 1.0
        case "gradient exchange":
            op = "all_reduce" if machine.plan.zero == 0 else "reduce_scatter"
            yield op, "data", gradient_nbytes(dense, machine), 1.0
        case "parameter gather":
            yield "all_gather", "data", gathered_nbytes(dense, machine), 1.0
    for layer in (layer for stage in stages for layer in stage):
        for step in (*layer.forward, *layer.backward_input, *layer.backward_weight):
            if isinstance(step, Exchange) and cause == f"{step.axis.replace('_', ' ')} exchange":
                yield step.op, step.axis, step.nbytes, float(step.count)


def _collective(op: str, axis: str, nbytes: float, *, machine: Machine) -> tuple[Shares, float]:
    """What a collective rests on, and its seconds."""
    node, network = machine.cluster.node, machine.cluster.network
    seconds = machine.exchange_seconds(op, axis, nbytes)
    latency = min(machine.exchange_seconds(op, axis, 1e-9), seconds)
    group = group_of(axis, machine.plan, node.devices)
    if group.spans_nodes and network is not None:
        return _of_link(network, latency, seconds, machine=machine), seconds
    fit, one = machine.link_fit(), machine.plan.collectives == "ring"
    if fit is None or node.shared_uplink or one or op not in fit.ops:
        return _of_link(node.link, latency, seconds, machine=machine), seconds
    kind, source, date = _fit_of(machine.profile)
    value = f"{len(fit.ops)} collectives by group and size"
    fitted = Figure(f"collectives over {fit.link}", value, kind, source, date)
    if abs(node.link.bandwidth / fit.bandwidth - 1) < 1e-3 and kind != "guess":
        return {fitted: 1.0}, seconds
    # another link's factors on this one's data sheet: half and half
    sheet = _of_link(node.link, latency, seconds, machine=machine)
    return mixed([(sheet, 1.0), ({fitted: 1.0}, 1.0)]), seconds


def _of_link(link: LinkSpec, latency: float, seconds: float, *, machine: Machine) -> Shares:
    """What a link's seconds rest on: its latency; its bandwidth and the share that is reached."""
    cluster = machine.cluster
    late = link_figure(link, "latency", format_seconds(link.latency), cluster=cluster)
    rate = format_si(link.bandwidth, "B/s")
    wide = link_figure(link, "bandwidth", rate, cluster=cluster)
    reached = link_figure(link, "efficiency", f"{link.efficiency:.0%}", cluster=cluster)
    both = _layered(wide, (reached, 1 / link.efficiency))
    return mixed([({late: 1.0}, latency), (both, max(seconds - latency, 0.0))])


def transfer_figures(graph: OpGraph, work: Work, machine: Machine) -> Shares:
    """Transfers between stages, by the seconds over each link."""
    seconds, parts = work.durations(), []
    ops = np.flatnonzero(graph.peer >= 0)
    for pair in np.unique(np.stack([graph.device[ops], graph.peer[ops]]), axis=1).T.tolist():
        mine = ops[(graph.device[ops] == pair[0]) & (graph.peer[ops] == pair[1])]
        whole, late = float(seconds[mine].sum()), float(work.seconds[mine].sum())
        link = link_between(pair[0], pair[1], machine.plan, machine.cluster)
        parts.append((_of_link(link, late, whole, machine=machine), whole))
    return mixed(parts)


def host_figures(stages: Stages, machine: Machine) -> Shares:
    """Offload: the host link, the overlap factors, the memory of the host."""
    link = machine.cluster.node.host_link
    if link is None:
        return {_NOTHING: 1.0}
    alone = [host_seconds(stage, machine) for stage in stages]
    training = machine.training
    microbatches = training.global_batch // (training.microbatch * machine.plan.data)
    passes = microbatches * sum(one.forward + one.backward for one in alone)
    update = sum(one.update for one in alone)
    latency = min(link.latency * len(stages), passes + update)
    shares = _of_link(link, latency, passes + update, machine=machine)
    parts = [(shares, passes + update)]
    if machine.plan.overlap_data:
        parts += [({_OVERLAP: 1.0}, passes)]
    if update:
        value = format_si(HOST_MEMORY_BANDWIDTH, "B/s")
        source = "two sockets of eight channels of DDR4-3200 (mpsim/cost/offload.py)"
        host = Figure("memory bandwidth of a node's host", value, "default", source)
        parts += [({host: 1.0}, update)]
    return mixed(parts)
