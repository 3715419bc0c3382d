"""Scenario in, report out: the picture of the design, step by step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from mpsim.bounds import amdahl_causes, bubble_seconds, cut_volume
from mpsim.cost.compiled import Compiled, compile_scenario, machine_of, op_times
from mpsim.cost.estimate import estimate, sent_bytes
from mpsim.cost.exchanged import exchanged_nbytes
from mpsim.cost.memory import stage_memory
from mpsim.cost.passes import LAUNCH, UPDATE
from mpsim.cost.stages import microbatch_seconds, stage_costs
from mpsim.cost.work import Work
from mpsim.engine import events, longest_path, periodic
from mpsim.engine.disturbance import sample
from mpsim.engine.timeline import Timeline
from mpsim.errors import ScenarioError
from mpsim.report import explain
from mpsim.report.interval import on_workers, step_interval
from mpsim.report.memory import memory_use
from mpsim.report.metrics import (
    Amdahl,
    DeviceUse,
    Report,
    Traffic,
    Utilisation,
    busy_seconds,
)
from mpsim.report.words import notes, phase_texts
from mpsim.schedule.graph import OpGraph
from mpsim.schedule.lowering import lower
from mpsim.schedule.orders import make_order
from mpsim.spec.model import Transformer
from mpsim.spec.plan import PlanSpec
from mpsim.spec.profile import Profile
from mpsim.spec.scenario import Scenario
from mpsim.workload.build import build_layers
from mpsim.workload.flops import model_flops
from mpsim.workload.layers import Layer
from mpsim.workload.parameters import parameter_count

ENGINES: dict[str, Callable[[OpGraph, Work], Timeline]] = {
    "events": events.run,
    "fast": longest_path.run,
}


def simulate(
    scenario: Scenario, *, engine: str = "events", profile: Profile | None = None
) -> Report:
    """Simulate one step of a scenario.

    Args:
        scenario: As :func:`mpsim.load` gives it.
        engine: ``events`` (SimPy; links are shared) or ``fast`` (longest path).
        profile: Fitted parameters in place of those of the scenario's device; with measured
            workers, they also take the place of the cluster.

    Returns:
        The report; whether it fits is in ``report.fits``.

    Raises:
        ScenarioError, ScheduleError: If the plan cannot be carried out.
    """
    if not isinstance(scenario, Scenario):
        what = type(scenario).__name__
        raise ScenarioError("", f"simulate takes a scenario, as mpsim.load gives it, not a {what}")
    if engine not in ENGINES:
        raise ScenarioError("", f"no engine '{engine}'; there are {', '.join(ENGINES)}")
    placed = on_workers(scenario, profile) if profile else scenario
    return report_of(compile_scenario(placed, profile), engine=engine)


def report_of(compiled: Compiled, *, engine: str = "events") -> Report:
    """The report of a compiled scenario, run by an engine.

    Raises:
        ScenarioError: If the step takes no time, or forever.
    """
    timeline = ENGINES[engine](compiled.graph, compiled.work)
    if not 0 < float(timeline.end.max()) < float("inf"):
        raise ScenarioError("", f"a step takes {float(timeline.end.max())} s: nothing to simulate")
    return _report(compiled, timeline, engine)


def step_seconds(compiled: Compiled) -> float:
    """Seconds of the step by the fast engine, without a report: what rules need."""
    return float(longest_path.run(compiled.graph, compiled.work).end.max())


def _report(compiled: Compiled, timeline: Timeline, engine: str) -> Report:
    """All numbers of a simulated step."""
    scenario, graph, work = compiled.scenario, compiled.graph, compiled.work
    step, steady = float(timeline.end.max()), steady_step(compiled)
    if steady is None:
        causes = explain.waterfall(graph, work, step, run=longest_path.run)
    else:
        step, causes = steady, explain.steady_waterfall(graph, work, steady)
    one = one_device_seconds(scenario, compiled.machine.profile)
    return Report(
        scenario=scenario,
        order=compiled.order,
        graph=graph,
        work=work,
        timeline=timeline,
        devices=_devices(compiled, timeline, step),
        engine=engine,
        waterfall=causes,
        phases=phase_texts(compiled),
        phase_seconds=explain.phases(graph, timeline, work),
        amdahl=_amdahl(scenario, causes, step, one),
        bubble_formula=_bubble_formula(compiled),
        traffic=_traffic(compiled),
        utilisation=_utilisation(scenario, step),
        minimum_devices=minimum_devices(scenario),
        profile=compiled.machine.profile,
        interval=_interval(compiled),
        notes=notes(compiled),
        steady_step=steady,
    )


def steady_step(compiled: Compiled) -> float | None:
    """Seconds that a step's microbatches take in the steady state; None for flushed schedules.

    The same pipeline over ever more microbatches settles into a period (max-plus algebra, see
    ``engine/periodic.py``); its seconds per microbatch times those of a step.
    """
    order = compiled.order
    if order is None or order.synchronous:
        return None
    plan, scenario = compiled.scenario.plan, compiled.scenario

    def longer(microbatches: int) -> tuple[OpGraph, Work]:
        order = make_order(plan.schedule, num_devices=plan.pipeline, num_microbatches=microbatches)
        graph = lower(order, p2p=plan.p2p, step=False, barrier=False)
        return graph, estimate(graph, compiled.costs, compiled.machine)

    run = periodic.run(longer, 10**6)
    update = max(sum(cost.update.values()) for cost in compiled.costs)
    # a plain run has no period: its ends weigh a millionth
    each = run.seconds_per_microbatch or run.makespan / run.num_microbatches
    return each * scenario.microbatches + update


def one_device_seconds(scenario: Scenario, profile: Profile | None = None) -> float:
    """Seconds of the step on one imaginary device, large enough for the whole model.

    The same microbatches, one after the other, without exchanges or transfers, and one update.
    """
    alone = PlanSpec(
        recompute=scenario.plan.recompute,
        recompute_modules=scenario.plan.recompute_modules,
        attention=scenario.plan.attention,
        fused=scenario.plan.fused,
        schedule="naive",
    )
    machine = replace(machine_of(scenario, profile), plan=alone)
    layers = build_layers(scenario.model, alone, scenario.training)
    cost = stage_costs([layers], machine)[0]
    microbatches = scenario.training.global_batch // scenario.training.microbatch
    return microbatches * microbatch_seconds(cost) + sum(cost.update.values())


def _devices(compiled: Compiled, timeline: Timeline, step: float) -> tuple[DeviceUse, ...]:
    """Time and memory of each device of the pipeline."""
    scenario, graph, order = compiled.scenario, compiled.graph, compiled.order
    versions = order.weight_versions if order else None
    compute, exchange = busy_seconds(graph, compiled.work)
    found = []
    for device, stages in enumerate(compiled.held):
        parts = stage_memory(
            [compiled.stages[stage] for stage in stages],
            scenario.plan,
            scenario.training,
            context=scenario.cluster.device.reserved,
        )
        memory = memory_use(
            graph,
            timeline,
            parts,
            device=device,
            stages=stages,
            versions=versions[device] if versions else 1,
            release=scenario.plan.release,
        )
        found.append(
            DeviceUse(
                index=device,
                stages=stages,
                layers=_held_text([compiled.stages[stage] for stage in stages]),
                compute=float(compute[device]),
                exchange=float(exchange[device]),
                idle=max(step - float(compute[device] + exchange[device]), 0.0),
                memory=memory,
                reserved=parts.shown(memory.peak),
                outside=parts.outside,
            )
        )
    return tuple(found)


_HELD = {"transformer": "layer", "traced": "traced module"}
"""What a device holds, where the kind of the layer is no noun."""


def _held_text(stages: Sequence[Sequence[Layer]]) -> str:
    """Layers that a device holds, as text: ``embedding, 8 layers``."""
    counts: dict[str, int] = {}
    for stage in stages:
        for layer in stage:
            name = _HELD.get(layer.kind) or layer.kind.replace("_", " ")
            counts[name] = counts.get(name, 0) + 1
    plural = {name: name if name.endswith("s") else name + "s" for name in counts}
    return ", ".join(
        f"{count} {plural[name]}" if count > 1 else name for name, count in counts.items()
    )


def _amdahl(scenario: Scenario, causes: Mapping[str, float], step: float, one: float) -> Amdahl:
    """Amdahl's law at the simulated speed-up, and what keeps α from 1."""
    devices = scenario.cluster.devices
    useful = ("compute", LAUNCH, UPDATE)
    overheads = {name: seconds for name, seconds in causes.items() if name not in useful}
    overheads["smaller pieces"] = sum(causes.get(name, 0.0) for name in useful) - one / devices
    return Amdahl(
        devices=devices,
        one_device=one,
        speed_up=one / step,
        causes=amdahl_causes(overheads, one, devices),
    )


def _bubble_formula(compiled: Compiled) -> float | None:
    """Idle fraction of the closed form at the mean op times; None where there is none."""
    times, plan = op_times(compiled.costs), compiled.scenario.plan
    if compiled.order is None:
        return None
    seconds = bubble_seconds(
        plan.schedule,
        num_devices=plan.pipeline,
        num_microbatches=compiled.scenario.microbatches,
        num_chunks=plan.chunks,
        forward=times.forward,
        input_gradient=times.input,
        weight_gradient=times.weight,
    )
    if seconds is None:
        return None
    ideal = compiled.scenario.microbatches * plan.chunks * (times.forward + times.backward)
    return seconds / (seconds + ideal)


def _traffic(compiled: Compiled) -> Traffic:
    """Bytes between stages, counted and by formula, and those of collectives."""
    graph = compiled.graph
    moved = graph.peer >= 0
    return Traffic(
        measured=float(compiled.work.nbytes[moved].sum()),
        formula=_cut_formula(compiled),
        by_link=dict(sent_bytes(graph, compiled.work)),
        exchanges=exchanged_nbytes(compiled.stages, compiled.costs, compiled.machine)
        if compiled.order
        else {},
    )


def _cut_formula(compiled: Compiled) -> float:
    """Bytes that one replica moves by C = 2 Σ s_i b over the cuts between devices.

    torch's DataParallel instead sends each copy its inputs, the weights and the gradient of its
    outputs, and gets back outputs and gradients of the weights.
    """
    scenario, costs = compiled.scenario, compiled.costs
    if compiled.order is None:
        model = costs[0]
        once = model.input_nbytes + model.weight_nbytes + model.gradient_nbytes
        return (scenario.plan.data - 1) * (once + 2 * model.output_nbytes)
    place = compiled.order.placement  # (num_stages, num_microbatches)
    micro, crossed = scenario.training.microbatch, place[:-1] != place[1:]
    return sum(
        cut_volume([cost.output_nbytes / micro], micro * int(crossed[stage].sum()))
        for stage, cost in enumerate(costs[:-1])
    )


def _utilisation(scenario: Scenario, step: float) -> Utilisation | None:
    """Model FLOP/s over the peak, by convention; transformers only."""
    if not isinstance(scenario.model, Transformer):
        return None
    flops = model_flops(scenario.model, scenario.plan, scenario.training)
    peak = scenario.cluster.device.peak[scenario.training.precision]
    whole = step * peak * scenario.cluster.devices
    batch = scenario.training.global_batch
    return Utilisation(
        six_n=batch * flops.six_n / whole,
        with_attention=batch * flops.with_attention / whole,
        hardware=batch * flops.hardware / whole,
        peak=peak,
    )


def minimum_devices(scenario: Scenario) -> dict[str, int]:
    """The memory wall: devices at the least for the weights alone, and with optimizer state.

    Bytes of a parameter: stored weight; and gradient (SGD); and two fp32 numbers (Adam), with an
    fp32 master copy where weights are of 16 bits. Activations are not counted.
    """
    if not isinstance(scenario.model, Transformer):
        return {}
    device = scenario.cluster.device
    room = device.memory - device.reserved
    count = parameter_count(scenario.model)
    stored = 4.0 if scenario.training.stored_type == "fp32" else 2.0
    master = 0.0 if stored == 4 else 4.0
    sizes = {"weights": stored, "SGD": 2 * stored, "Adam": 2 * stored + master + 8.0}
    return {name: int(np.ceil(count * nbytes / room)) for name, nbytes in sizes.items()}


def _interval(compiled: Compiled) -> tuple[float, float] | None:
    """The middle 90 % of the step: of measured workers, or over samples of the declared jitter."""
    if compiled.machine.workers is not None:
        return step_interval(compiled).bounds
    chance = compiled.scenario.disturbance
    if chance.jitter == 0:
        return None
    generator = np.random.default_rng(compiled.scenario.seed)
    jittered = sample(
        compiled.work, jitter=chance.jitter, samples=chance.samples, generator=generator
    )
    steps = longest_path.run(compiled.graph, jittered).end.max(axis=0)
    low, high = np.quantile(steps, (0.05, 0.95))
    return float(low), float(high)
