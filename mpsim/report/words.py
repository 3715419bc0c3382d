"""What a report says in words: the parts of a step, and where its numbers come from."""

from __future__ import annotations

from mpsim.cost.compiled import Compiled
from mpsim.report.interval import worker_notes
from mpsim.schedule.orders import SCHEDULES
from mpsim.spec.model import Network
from mpsim.spec.plan import PlanSpec
from mpsim.units import format_count
from mpsim.workload.network import kept_whole

_LISTED = 8
"""Layers that a note names at most."""


def phase_texts(compiled: Compiled) -> dict[str, str]:
    """The six parts of a training step, in words."""
    plan, training = compiled.scenario.plan, compiled.scenario.training
    if compiled.order is None:
        return _data_parallel_texts(plan.data, training.optimizer)
    stages = len(compiled.stages)
    how = "given counts" if isinstance(plan.partition, list) else f"by {plan.partition}"
    each = plan.tensor * plan.data * plan.context
    exchange = {0: "all-reduce", 1: "reduce-scatter", 2: "reduce-scatter", 3: "reduce-scatter"}
    replicas = plan.data * plan.context
    return {
        "split": f"{sum(map(len, compiled.stages))} layers into "
        f"{format_count(stages, 'stage')} ({how})"
        + (f", each layer over {plan.tensor} devices" if plan.tensor > 1 else ""),
        "placement": f"{format_count(plan.pipeline, 'pipeline position')} of "
        + f"{format_count(each, 'device')} each"
        + (f", {plan.chunks} stages on each" if plan.chunks > 1 else ""),
        "forward": f"{format_count(compiled.scenario.microbatches, 'microbatch')} of "
        f"{training.microbatch}",
        "backward": "gradients of inputs and weights"
        + (f", {plan.recompute} recomputation" if plan.recompute != "none" else ""),
        "gradient exchange": f"{exchange[plan.zero]} over {replicas} replicas"
        if replicas > 1
        else "none: one replica",
        "update": f"{training.optimizer}"
        + (f", state over {replicas} replicas" if plan.zero and replicas > 1 else ""),
        "synchronisation": "waiting for other stages"
        + (", gradient norm over all" if training.gradient_clipping else ""),
    }


def _data_parallel_texts(devices: int, optimizer: str) -> dict[str, str]:
    """The six parts of a step of torch's DataParallel, in words."""
    return {
        "split": f"the batch into {devices} shards; each device has the whole model",
        "placement": "inputs and weights sent from device 0 to the others, in every step",
        "forward": "each device its shard; outputs gathered on device 0, which computes the loss",
        "backward": "output gradients scattered; each device its shard",
        "gradient exchange": "weight gradients sent to device 0 and summed there",
        "update": f"{optimizer}, on device 0 alone",
        "synchronisation": "waiting for device 0, and it for the others",
    }


def notes(compiled: Compiled) -> tuple[str, ...]:
    """What a reader should know of where the numbers come from."""
    profile = compiled.machine.profile
    told = [f"kernel times: profile {profile.name} ({profile.kind}, {profile.date})"]
    plan = compiled.scenario.plan
    if plan.tensor * plan.data * plan.context > 1:
        told.append(
            "one replica is simulated; its tensor, data and context peers run alike, at the same "
            "time"
        )
    if profile.workers is not None:
        told += worker_notes(compiled)
    return (*told, *_whole(compiled), *_unused(plan))


def _whole(compiled: Compiled) -> list[str]:
    """Layers of a network that tensor parallelism does not cut."""
    model, plan = compiled.scenario.model, compiled.scenario.plan
    if not isinstance(model, Network):
        return []
    return [
        f"model.network.{index} is whole on every device: plan.tensor = {plan.tensor} does not "
        f"divide its width of {width}"
        for index, width in list(kept_whole(model, plan).items())[:_LISTED]
    ]


def _unused(plan: PlanSpec) -> list[str]:
    """Options of the schedule that the plan states and its schedule does not use."""
    schedule = SCHEDULES.get(plan.schedule)
    if schedule is None:  # a CSV file holds its own order
        return []
    bounded = schedule.name in ("zb_auto", "zb_v_greedy")
    used = {
        "group_size": schedule.groups,
        "slices": schedule.slices,
        "drain": schedule.name == "gpipe",
        "memory_limit": bounded,
    }
    unused = PlanSpec()
    return [
        f"plan.{name} is not used by {schedule.name}"
        for name, uses in used.items()
        if not uses and getattr(plan, name) != getattr(unused, name)
    ]
