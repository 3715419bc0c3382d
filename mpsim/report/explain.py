"""Where the time goes: the step taken apart by removing one cause after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from mpsim.cost.work import Work
from mpsim.engine.timeline import Timeline
from mpsim.report.metrics import COMPUTE_KINDS, KERNEL_PARTS, TRANSFER_KINDS
from mpsim.schedule.graph import OpGraph
from mpsim.schedule.ops import Kind

Floats = NDArray[np.float64]
Engine = Callable[[OpGraph, Work], Timeline]


def waterfall(graph: OpGraph, work: Work, step: float, *, run: Engine) -> dict[str, float]:
    """Seconds of the step by cause; they sum to the step.

    The step is simulated again without transfers between stages, then without exchanges, then with
    the work of equal kinds of ops levelled over the stages. Each difference is what its cause costs
    *on the critical path*: a transfer that hides behind compute costs nothing. What remains above
    the mean busy time of the devices is the pipeline's bubble.

    Args:
        graph: The ops.
        work: Their numbers.
        step: Seconds of the simulated step.
        run: The engine for the counterfactual runs.

    Returns:
        ``compute``, ``launch``, ``update`` (means over devices), the exchanges by name,
        ``transfers``, ``imbalance``, ``bubble``, s.
    """
    kernels = sum(
        (work.parts[part] for part in KERNEL_PARTS if part in work.parts),
        start=np.zeros(graph.num_ops),
    )
    is_transfer = np.isin(graph.kind, TRANSFER_KINDS)
    no_transfers = replace(
        work,
        seconds=np.where(is_transfer, 0.0, work.seconds),
        nbytes=np.where(is_transfer, 0.0, work.nbytes),
    )
    only_kernels = replace(no_transfers, seconds=kernels, nbytes=np.zeros(graph.num_ops))
    level = replace(only_kernels, seconds=_levelled(graph, kernels))
    without_transfers = _makespan(run(graph, no_transfers))
    without_exchanges = _makespan(run(graph, only_kernels))
    balanced = min(_makespan(run(graph, level)), without_exchanges)
    busy = {
        part: float(work.parts[part].sum()) / graph.num_devices
        for part in KERNEL_PARTS
        if part in work.parts and work.parts[part].any()
    }
    found = dict(busy)
    exchanges = max(without_transfers - without_exchanges, 0.0)
    found |= _shares(_exchange_parts(work), exchanges)
    found["transfers"] = max(step - without_transfers, 0.0)
    found["imbalance"] = without_exchanges - balanced
    found["bubble"] = max(balanced - sum(busy.values()), 0.0)
    rest = step - sum(found.values())
    # shared links and samples can shift the runs against each other by rounding: keep the sum exact
    found["bubble"] += rest
    return {cause: seconds for cause, seconds in found.items() if abs(seconds) > 1e-12 * step}


def steady_waterfall(graph: OpGraph, work: Work, step: float) -> dict[str, float]:
    """Seconds of a step in the steady state of an asynchronous schedule, by cause.

    Nothing is flushed, so there is no bubble: what the mean device does not compute or exchange, it
    waits for the slowest stage and for round trips.
    """
    on_compute = np.isin(graph.kind, COMPUTE_KINDS)
    found = {
        part: float(seconds[on_compute].sum()) / graph.num_devices
        for part, seconds in work.parts.items()
        if seconds[on_compute].any()
    }
    found["waiting"] = step - sum(found.values())
    return {cause: seconds for cause, seconds in found.items() if abs(seconds) > 1e-12 * step}


def _makespan(timeline: Timeline) -> float:
    """End of the last op, s."""
    return float(timeline.end.max())


def _levelled(graph: OpGraph, seconds: Floats) -> Floats:
    """Each op's seconds replaced by the mean over all ops of its kind."""
    level = seconds.copy()
    for kind in COMPUTE_KINDS:
        ops = graph.kind == kind
        # the parts of a split last backward keep their shares of one whole op
        whole = ops & (graph.part < 0)
        for chosen in (whole, ops & ~whole):
            if chosen.any():
                level[chosen] = seconds[chosen].mean()
    return level


def _exchange_parts(work: Work) -> dict[str, float]:
    """Device-seconds of each exchange: those inside compute ops and the collectives."""
    return {
        part: float(seconds.sum())
        for part, seconds in work.parts.items()
        if part not in KERNEL_PARTS and part != "transfers" and seconds.any()
    }


def _shares(weights: Mapping[str, float], total: float) -> dict[str, float]:
    """A total divided in proportion to weights."""
    whole = sum(weights.values())
    return {name: total * weight / whole for name, weight in weights.items()} if whole else {}


def phases(graph: OpGraph, timeline: Timeline, work: Work) -> dict[str, float]:
    """Seconds of the parts of a training step that take time, means over the devices.

    ``forward``, ``backward`` (input and weight gradients with their exposed exchanges),
    ``gradient exchange`` (what runs after a device's last backward op), ``update``, and
    ``synchronisation`` (all else: waiting for other stages). They sum to the step.
    """
    step, count = float(timeline.end.max()), graph.num_devices
    groups = {
        "forward": (Kind.F,),
        "backward": (Kind.B, Kind.I, Kind.W),
        "update": (Kind.STEP,),
    }
    found = {
        name: float((timeline.end - timeline.begin)[np.isin(graph.kind, kinds)].sum() / count)
        for name, kinds in groups.items()
    }
    exposed = 0.0
    for device in range(count):
        mine = graph.device == device
        backward = mine & np.isin(graph.kind, groups["backward"])
        reduce = mine & (graph.kind == Kind.REDUCE_GRAD)
        if reduce.any() and backward.any():
            last = float(timeline.end[backward].max())
            exposed += max(float(timeline.end[reduce].max()) - last, 0.0) / count
    found["gradient exchange"] = exposed
    found["synchronisation"] = max(step - sum(found.values()), 0.0)
    return found
