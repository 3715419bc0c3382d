"""A scenario compiled with what it has in common with another: for the many variants of one."""

from __future__ import annotations

from dataclasses import replace

from mpsim.cost.compiled import Compiled, compile_scenario, machine_of, stages_of
from mpsim.cost.estimate import estimate
from mpsim.cost.stages import stage_costs
from mpsim.schedule.orders import SCHEDULES
from mpsim.spec.plan import PlanSpec
from mpsim.spec.scenario import Scenario

_NOT_ORDERED_BY = {"recompute", "recompute_layers", "recompute_modules", "attention", "offload"}
"""Fields of a plan that change what the ops take, not which there are nor what they wait for."""


def recompiled(like: Compiled, scenario: Scenario) -> Compiled:
    """A scenario compiled as :func:`compile_scenario` does, sharing what follows from equal parts.

    The layers follow from model, plan and training, the order and graph from their numbers: those
    that differ in hardware alone share all of it, those that differ in what is recomputed or kept
    on the host the order and graph. Nothing is shared where an order or partition is searched by
    times, where workers were measured, and with torch's DataParallel.

    Args:
        like: A scenario compiled already.
        scenario: The one wanted.

    Raises:
        ScenarioError, ScheduleError: If the plan cannot be carried out.
    """
    before, plan = like.scenario, scenario.plan
    machine = machine_of(scenario)
    if (
        not _structured_alike(before, scenario)
        or like.order is None
        or machine.workers is not None
        or like.machine.workers is not None
    ):
        return compile_scenario(scenario)
    stages = like.stages if before.plan == plan else stages_of(scenario, machine)
    costs = tuple(stage_costs(stages, machine))
    work = estimate(like.graph, costs, machine)
    return replace(like, scenario=scenario, machine=machine, stages=stages, costs=costs, work=work)


def _structured_alike(one: Scenario, other: Scenario) -> bool:
    """Whether two scenarios have the same order and graph."""
    entry = SCHEDULES.get(other.plan.schedule)
    if entry is None or entry.searched or "time" in (one.plan.partition, other.plan.partition):
        return False
    if other.plan.schedule == "pipedream" or other.plan.data_parallel == "data_parallel":
        return False
    if one.model != other.model or one.training != other.training:
        return False
    return one.plan == other.plan or _ordering(one.plan) == _ordering(other.plan)


def _ordering(plan: PlanSpec) -> PlanSpec:
    """A plan without what does not order its ops."""
    return plan.model_copy(update=dict.fromkeys(_NOT_ORDERED_BY))
