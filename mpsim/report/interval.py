"""How sure a prediction for measured workers is: the interval of the step and its grounds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mpsim.cost.compiled import Compiled
from mpsim.cost.work import Floats
from mpsim.cost.worker import StepDemand, step_demand, step_facts, worker_step_seconds
from mpsim.spec.cluster import ClusterSpec, DeviceSpec, LinkSpec, NodeSpec
from mpsim.spec.profile import Profile
from mpsim.spec.scenario import Scenario
from mpsim.spec.workers import WorkerFit, Workers

SAMPLES = 2000
"""Draws; more move the ends of the interval by less than a fiftieth of its width."""

WIDENING = 0.5
"""Standard deviation that a fact beyond the fitted range adds, for each factor of e beyond it."""


@dataclass(frozen=True, eq=False)
class StepInterval:
    """The step under parameters drawn from their covariance, and the spread of real steps."""

    steps: Floats  # (S,) s
    beyond: Mapping[str, float]  # fact outside the fitted range → logarithm of the factor beyond

    @property
    def bounds(self) -> tuple[float, float]:
        """The middle 90 %, s."""
        low, high = np.quantile(self.steps, (0.05, 0.95)).tolist()
        return low, high


def step_interval(compiled: Compiled) -> StepInterval:
    """The interval of a compiled scenario on measured workers."""
    workers = compiled.machine.workers
    assert workers is not None
    asked = step_demand(compiled.graph, compiled.stages, order=compiled.order)
    facts = step_facts(asked, compiled.stages)
    return demand_interval(asked, facts, workers, seed=compiled.scenario.seed)


def demand_interval(
    asked: StepDemand, facts: Mapping[str, float], workers: Workers, *, seed: int
) -> StepInterval:
    """Steps of measured workers: what the fit leaves open, and what it has been wrong by.

        step = longest path x exp(gradient . drawn parameters + residual drawn
                                  + (session + widening) z)

    Parameters are drawn from the covariance of their logarithms, and propagated to first order:
    one that the cells did not determine has no slope here either, unless this scenario leaves
    their range. Residuals are those of cells that their fit had not seen, run-to-run spread
    included, of the calibration's own session; another one is as a whole a little faster or slower.
    Outside the fitted range the interval widens with the distance.

    Args:
        asked: What the step asks.
        facts: What the range of the fit is told by.
        workers: The fit, its covariance, its residuals.
        seed: Of the draws.
    """
    generator = np.random.default_rng(seed)
    beyond = workers.outside(facts)
    slope, step = _slopes(asked, workers)
    deviation = math.sqrt(max(float(slope @ workers.matrix @ slope), 0.0))
    exponent = generator.choice(np.array(workers.residuals or (0.0,)), SAMPLES)
    exponent = exponent + deviation * generator.standard_normal(SAMPLES)
    exponent += SESSION * generator.standard_normal(SAMPLES)
    exponent += WIDENING * math.fsum(beyond.values()) * generator.standard_normal(SAMPLES)
    return StepInterval(step * np.exp(exponent), beyond)


def _slopes(asked: StepDemand, workers: Workers) -> tuple[Floats, float]:
    """Slope of the step's logarithm by each parameter's, and the step, s."""
    values = workers.fit.values
    step = worker_step_seconds(asked, workers.fit)
    slopes = [
        np.log(
            worker_step_seconds(
                asked, WorkerFit.of(values | {name: values[name] * float(np.exp(_SMALL))})
            )
            / step
        )
        / _SMALL
        for name in workers.names
    ]
    return np.array(slopes), step


SESSION = 0.03
"""Deviation between the logarithms of steps in two sessions on one machine: three calibrations of a
quiet machine within 70 minutes had 122 steps in common, which were as a whole 2.1 % shorter, equal
and 2.1 % longer than their mean (a deviation of 2.1 % each, and a root of 2 for two sessions)."""

_SMALL = 0.01
"""Relative change of a parameter by which slopes are taken."""


def worker_notes(compiled: Compiled) -> list[str]:
    """What a reader should know of a prediction for measured workers."""
    profile = compiled.machine.profile
    workers = compiled.machine.workers
    if workers is None:
        return ["the plan is not a pipeline alone: its collectives are those of the textbook"]
    notes = []
    if workers.errors is not None:
        errors = workers.errors
        notes.append(
            f"on {errors.cells} held-out steps of {profile.device} predictions were off by "
            f"{errors.median:.1%} at the median, {errors.p90:.0%} at the ninetieth percentile"
        )
    facts = step_facts(
        step_demand(compiled.graph, compiled.stages, order=compiled.order), compiled.stages
    )
    for name in workers.outside(facts):
        low, high = workers.fit_range[name]
        notes.append(
            f"outside the fitted range: {name} {facts[name]:g}, fitted from {low:g} to {high:g}; "
            "the interval is widened"
        )
    return notes


def on_workers(scenario: Scenario, profile: Profile) -> Scenario:
    """The scenario on the measured workers: as many of them as the plan has devices.

    A precision that was not measured becomes the one that was. A profile without workers leaves
    the scenario as it is.
    """
    if profile.workers is None:
        return scenario
    fit, sheet = profile.workers.fit, profile.sheet
    device = DeviceSpec.model_construct(
        name=profile.device,
        memory=profile.workers.memory,
        memory_bandwidth=sheet.memory_bandwidth,
        peak=dict(sheet.peak),
        vector_peak=None,
        multiprocessors=sheet.multiprocessors,
        power=None,
        reserved=0.0,
        profile=None,
        source=profile.source,
    )
    link = LinkSpec.model_construct(
        name="messages",
        kind="loopback",
        bandwidth=min(fit.bandwidth, fit.copying),
        latency=fit.latency + fit.wake,
        efficiency=1.0,
        source=profile.source,
    )
    cluster = ClusterSpec.model_construct(
        name=profile.name,
        device=device,
        nodes=1,
        node=NodeSpec.model_construct(devices=scenario.plan.devices, link=link),
        source=profile.source,
    )
    training = scenario.training
    if training.precision not in sheet.peak:
        only = next(iter(sheet.peak))
        training = training.model_copy(update={"precision": only, "parameter_type": None})
    return scenario.model_copy(update={"cluster": cluster, "training": training})
