"""A scenario compiled: layers on stages, the order, the op graph, and the numbers of each op."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from mpsim.cost.clock import with_sustained_clock
from mpsim.cost.derived import applied, profile_of
from mpsim.cost.estimate import estimate
from mpsim.cost.memory import stage_memory
from mpsim.cost.passes import Machine, add
from mpsim.cost.stages import StageCost, gradient_nbytes, num_buckets, stage_costs, timed_layers
from mpsim.cost.topology import link_between
from mpsim.cost.work import Work
from mpsim.cost.worker import step_demand, worker_work
from mpsim.errors import ScenarioError, did_you_mean
from mpsim.schedule.check import check
from mpsim.schedule.data_parallel import lower_data_parallel
from mpsim.schedule.exchanges import Gathers, Reductions
from mpsim.schedule.graph import OpGraph
from mpsim.schedule.lowering import lower
from mpsim.schedule.ops import Kind, Order
from mpsim.schedule.orders import SCHEDULES, OpTimes, make_order
from mpsim.schedule.text import order_of, read_csv
from mpsim.spec.profile import Profile, load_profile
from mpsim.spec.scenario import Scenario
from mpsim.workload.build import build_layers
from mpsim.workload.layers import Layer
from mpsim.workload.partition import assign, partition

MOST_BUCKETS = 8
"""Gradient buckets of a stage that are ops of their own; more change no time and cost events."""

_kept_order = lru_cache(maxsize=4)(make_order)
_kept_graph = lru_cache(maxsize=4)(lower)
"""What the last predictions had in common: neither asks for hardware, and nothing changes them."""


@dataclass(frozen=True, eq=False)
class Compiled:
    """What a scenario amounts to before it is run. P devices, N ops."""

    scenario: Scenario
    machine: Machine
    stages: tuple[tuple[Layer, ...], ...]  # layers of each stage
    costs: tuple[StageCost, ...]  # one for each stage
    order: Order | None  # None for torch's DataParallel, which has no pipeline
    graph: OpGraph
    work: Work

    @cached_property
    def held(self) -> tuple[tuple[int, ...], ...]:
        """Stages that each device of the pipeline holds, (P,)."""
        compute = np.isin(self.graph.kind, (Kind.F, Kind.B, Kind.I))
        return tuple(
            tuple(np.unique(self.graph.stage[compute & (self.graph.device == device)]).tolist())
            for device in range(self.graph.num_devices)
        )


def machine_of(scenario: Scenario, profile: Profile | None = None) -> Machine:
    """Cluster, plan, training and profile of a scenario; the profile given, or its device's.

    Raises:
        ScenarioError: If the device or the link names a profile that does not exist.
    """
    device = scenario.cluster.device
    profile = applied(profile, device) if profile else profile_of(device)
    if scenario.cluster.node.link.profile:
        load_profile(scenario.cluster.node.link.profile)  # refused where there is none
    profile = with_sustained_clock(profile, device)
    return Machine(scenario.cluster, scenario.plan, scenario.training, profile)


def stages_of(scenario: Scenario, machine: Machine) -> tuple[tuple[Layer, ...], ...]:
    """The layers of each stage, as one device of each group holds them."""
    layers = build_layers(scenario.model, scenario.plan, scenario.training)
    seconds = None
    if scenario.plan.partition == "time":
        timed = timed_layers(layers, machine)
        seconds = [
            sum(timed[id(layer)].forward.values())
            + sum(timed[id(layer)].backward_input.values())
            + sum(timed[id(layer)].backward_weight.values())
            for layer in layers
        ]
    plan = scenario.plan
    slices = partition(layers, plan.stages, how=plan.partition, seconds=seconds)
    return tuple(assign(layers, slices, recompute_layers=plan.recompute_layers))


def compile_scenario(scenario: Scenario, profile: Profile | None = None) -> Compiled:
    """The op graph of a scenario and its numbers, with a profile or with that of its device.

    Raises:
        ScenarioError: If the plan cannot cut the model, or the schedule is unknown.
        ScheduleError: If the schedule does not take these numbers of devices and microbatches.
    """
    machine = machine_of(scenario, profile)
    if scenario.plan.data_parallel == "data_parallel":
        return _replicated_by_one_process(scenario, machine)
    stages = stages_of(scenario, machine)
    costs = tuple(stage_costs(stages, machine))
    if scenario.plan.schedule == "pipedream":
        costs = tuple(_updated_each_time(cost) for cost in costs)
    order = scheduled(scenario, costs, stages=stages, machine=machine)
    graph = _lowered(order, scenario, stages=stages, machine=machine)
    if machine.workers is not None:
        work = worker_work(step_demand(graph, stages, order=order), machine.workers.fit)
    else:
        work = estimate(graph, costs, machine)
    return Compiled(scenario, machine, stages, costs, order, graph, work)


def _replicated_by_one_process(scenario: Scenario, machine: Machine) -> Compiled:
    """Torch's DataParallel: the model on each device, the loss of the whole batch on the first.

    Raises:
        ScenarioError: If the plan asks of it what it does not do.
    """
    plan, training = scenario.plan, scenario.training
    if scenario.cluster.nodes > 1:
        raise ScenarioError(
            "plan.data_parallel", "torch's DataParallel is one process on one node; use ddp"
        )
    if scenario.microbatches > 1:
        whole = training.global_batch // plan.data
        raise ScenarioError(
            "training.microbatch",
            f"torch's DataParallel runs the whole batch at once: use {whole}, or ddp",
        )
    alone = replace(machine, plan=plan.model_copy(update={"data": 1}))
    layers = build_layers(scenario.model, alone.plan, training)
    together = training.model_copy(update={"microbatch": training.global_batch})
    loss = build_layers(scenario.model, alone.plan, together)[-1]
    last = len(layers) - (loss.parameters == 0 and len(layers) > 1)
    stages = (tuple(layers[:last]), (loss,) if last < len(layers) else ())
    costs = tuple(stage_costs(stages, alone))
    returned = costs[0].output_nbytes  # the loss's gradient goes back in the shape of the outputs
    costs = (costs[0], replace(costs[1], input_nbytes=returned))
    graph = lower_data_parallel(plan.data)
    work = estimate(graph, costs, machine)
    return Compiled(scenario, machine, stages, costs, None, graph, work)


def scheduled(
    scenario: Scenario,
    costs: Sequence[StageCost],
    *,
    stages: Sequence[Sequence[Layer]],
    machine: Machine,
) -> Order:
    """The order that the plan names, or that its CSV file holds."""
    plan = scenario.plan
    if plan.schedule.endswith(".csv"):
        return _order_of_file(scenario)
    if plan.schedule not in SCHEDULES:
        hint = did_you_mean(plan.schedule, SCHEDULES) or f"; known: {', '.join(SCHEDULES)}"
        raise ScenarioError("plan.schedule", f"no schedule '{plan.schedule}'{hint}")
    how: dict[str, Any] = {
        "num_devices": plan.pipeline,
        "num_microbatches": scenario.microbatches,
        "num_chunks": plan.chunks,
        "group_size": plan.group_size,
        "num_slices": plan.slices,
        "drain": plan.drain,
    }
    if not SCHEDULES[plan.schedule].searched:
        return _kept_order(plan.schedule, **how)
    return make_order(
        plan.schedule,
        **how,
        times=replace(op_times(costs), hop=_hop(costs, machine)),
        memory_limit=plan.memory_limit or _memory_limit(scenario, stages, machine),
        freed_at_input=1.0 if plan.release == "input" else 0.0,
    )


def _order_of_file(scenario: Scenario) -> Order:
    """The order that a CSV file holds, checked, and held against the plan's numbers."""
    plan, path = scenario.plan, Path(scenario.plan.schedule)
    try:
        rows = read_csv(path.read_text(encoding="utf-8"), name=path.name)
    except (OSError, UnicodeDecodeError) as error:
        raise ScenarioError("plan.schedule", f"{path} cannot be read: {error}") from None
    check(rows, name=path.name)
    order = order_of(rows, name=path.name)
    for what, have, want in (
        ("devices", order.num_devices, plan.pipeline),
        ("stages", order.num_stages, plan.stages),
        ("microbatches", order.num_microbatches, scenario.microbatches),
    ):
        if have != want:
            raise ScenarioError("plan.schedule", f"{path} has {have} {what}, the plan has {want}")
    return order


def _updated_each_time(cost: StageCost) -> StageCost:
    """A stage that is updated after every backward, as PipeDream does."""
    return replace(cost, backward_weight=add(cost.backward_weight, cost.update), update={})


def _memory_limit(
    scenario: Scenario, stages: Sequence[Sequence[Layer]], machine: Machine
) -> float | None:
    """Activations, in microbatches of a stage, that fit beside all else on the fullest device."""
    if not SCHEDULES[scenario.plan.schedule].searched or scenario.plan.chunks > 1:
        return None
    capacity, found = scenario.cluster.device.memory, []
    for stage in stages:
        memory = stage_memory(
            [stage], scenario.plan, scenario.training, context=scenario.cluster.device.reserved
        )
        chunk = memory.chunks[0]
        room = (capacity - sum(memory.outside.values())) / (1 + memory.fragmentation)
        room -= memory.static_nbytes + max(chunk.forward_transient, chunk.backward_transient)
        found.append(room / chunk.nbytes if chunk.nbytes else float("inf"))
    most = min(found)
    # a pipeline of p devices needs p in flight to run at all well: less is left to the fit check
    return max(most, float(machine.plan.pipeline)) if most < scenario.microbatches else None


def _hop(costs: Sequence[StageCost], machine: Machine) -> float:
    """Seconds of a transfer between the first two devices, for schedules that are searched."""
    if machine.plan.pipeline == 1:
        return 0.0
    link = link_between(0, 1, machine.plan, machine.cluster)
    return link.delay + costs[0].output_nbytes / link.rate


def op_times(costs: Sequence[StageCost]) -> OpTimes:
    """Mean seconds of the ops, for schedules that are searched."""
    count = len(costs)
    return OpTimes(
        forward=sum(sum(cost.forward.values()) for cost in costs) / count,
        input=sum(sum(cost.backward_input.values()) for cost in costs) / count,
        weight=sum(sum(cost.backward_weight.values()) for cost in costs) / count,
    )


def _lowered(
    order: Order, scenario: Scenario, *, stages: Sequence[Sequence[Layer]], machine: Machine
) -> OpGraph:
    """The graph: transfers, gradient exchange, gathers, the barrier as the plan has them."""
    plan = scenario.plan
    replicated = plan.data * plan.context > 1 and not machine.gathers_each_pass
    reductions: Reductions = "none"
    if replicated or order.weight_copies > 1:
        reductions = "last" if plan.overlap_data else "end"
    gathers: Gathers = "none"
    if replicated and plan.zero > 0:
        gathers = "start" if plan.overlap_data else "end"
    buckets = [
        min(MOST_BUCKETS, num_buckets(gradient_nbytes(size, machine), machine))
        for size in (sum(layer.parameters for layer in stage) for stage in stages)
    ]
    return _kept_graph(
        order,
        p2p=plan.p2p,
        reductions=reductions,
        gathers=gathers,
        buckets=tuple(buckets) if reductions == "last" else 1,
        barrier=plan.step_barrier and scenario.training.gradient_clipping,
    )
