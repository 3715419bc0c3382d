"""Where the time goes: the step taken apart by removing one cause after the other."""

from __future__ import annotations

from collections.abc import Callable
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

    The step is simulated again without transfers between stages, then without one exchange after
    the other, those beside compute first, then with the work of equal kinds of ops levelled over
    the stages. Each difference is what its cause costs *on the critical path*: what hides behind
    compute costs nothing. What remains above the mean busy time of the devices is the pipeline's
    bubble.

    Args:
        graph: The ops.
        work: Their numbers.
        step: Seconds of the simulated step.
        run: The engine for the counterfactual runs.

    Returns:
        ``compute``, ``launch``, ``update`` (means over devices), the exchanges by name,
        ``transfers``, ``imbalance``, ``bubble``, s.
    """
    is_transfer = np.isin(graph.kind, TRANSFER_KINDS)
    left = replace(
        work,
        seconds=np.where(is_transfer, 0.0, work.seconds),
        nbytes=np.where(is_transfer, 0.0, work.nbytes),
    )
    before = _makespan(run(graph, left))
    removed = {"transfers": step - before}
    for part in _exchange_parts(graph, work):
        left = replace(left, seconds=left.seconds - work.parts[part])
        after = _makespan(run(graph, left))
        removed[part], before = before - after, after
    kernels = sum(
        (work.parts[part] for part in KERNEL_PARTS if part in work.parts),
        start=np.zeros(graph.num_ops),
    )
    level = replace(left, seconds=_levelled(graph, kernels), nbytes=np.zeros(graph.num_ops))
    balanced = min(_makespan(run(graph, level)), before)
    busy = {
        part: float(work.parts[part].sum()) / graph.num_devices
        for part in KERNEL_PARTS
        if part in work.parts and work.parts[part].any()
    }
    found = {**busy, **removed, "imbalance": before - balanced}
    # what is left, rounding included, so that the parts sum to the step exactly
    found["bubble"] = step - sum(found.values())
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


def _exchange_parts(graph: OpGraph, work: Work) -> list[str]:
    """Names of the exchanges: those that are ops of their own before those inside compute ops."""
    inside = np.isin(graph.kind, COMPUTE_KINDS)
    names = [
        part
        for part, seconds in work.parts.items()
        if part not in KERNEL_PARTS and part != "transfers" and seconds.any()
    ]
    return sorted(names, key=lambda part: bool(work.parts[part][inside].any()))


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
