"""What failures cost a long run: checkpoints, lost work, restarts; closed form and simulation.

Letters: M mean time between failures of the whole machine, R restart, C seconds of a checkpoint,
tau work between checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import numpy as np
import simpy

from mpsim.spec.model import Transformer
from mpsim.spec.scenario import Scenario
from mpsim.workload.parameters import parameter_count

_TYPE_BYTES = {"fp32": 4.0, "fp16": 2.0, "bf16": 2.0}
_STATES = {"sgd": 0, "momentum": 1, "adam": 2, "adafactor": 0}
_MIDDLE = 1.645
"""Standard deviations around the mean that hold the middle 90 % of a normal distribution."""


@dataclass(frozen=True)
class Reliability:
    """A machine that fails."""

    mtbf: float  # s of the whole machine, M; infinite: nothing fails
    restart: float  # s, R
    checkpoint: float  # s, C
    interval: float  # s of work between checkpoints, tau; infinite: none are written

    @property
    def goodput(self) -> float:
        """Share of the time that is work which counts."""
        return 1.0 / expected_seconds(1.0, self) if self.mtbf < math.inf else 1.0


def young_daly(mtbf: float, checkpoint: float) -> float:
    """Work between checkpoints that loses least.

        tau = sqrt(2 C M) (1 + sqrt(C / 2 M) / 3 + C / 18 M) - C,  M where C >= 2 M

    Source:
        Young, CACM 17(9), 1974; Daly, Future Generation Computer Systems 22(3), 2006, eq. 37.

    >>> round(young_daly(86400.0, 60.0), 1)
    3180.1
    """
    if mtbf == math.inf:
        return math.inf
    if checkpoint >= 2 * mtbf:
        return mtbf
    share = checkpoint / (2 * mtbf)
    interval = math.sqrt(2 * checkpoint * mtbf) * (1 + math.sqrt(share) / 3 + share / 9)
    # without a cost of checkpoints the best interval goes to nothing: keep a step's length of it
    return max(interval - checkpoint, 1.0)


def expected_seconds(work: float, machine: Reliability) -> float:
    """Mean time that some work takes.

        T = M exp(R / M) (exp((tau + C) / M) - 1) work / tau

    Exact for exponential failures that may also strike during checkpoints and restarts. The last,
    shorter interval counts in proportion.

    Source:
        Daly, Future Generation Computer Systems 22(3), 2006, eq. 20.
    """
    if machine.mtbf == math.inf:
        if machine.interval == math.inf:
            return work
        return work * (1 + machine.checkpoint / machine.interval)
    mtbf, segment = machine.mtbf, machine.interval + machine.checkpoint
    if segment / mtbf + machine.restart / mtbf > math.log(1e6):
        return math.inf
    lost = mtbf * math.exp(machine.restart / mtbf) * math.expm1(segment / mtbf)
    return lost * work / machine.interval


def spread(work: float, machine: Reliability) -> tuple[float, float]:
    """The middle 90 % of the time that some work takes.

    Failures come T / M times, a Poisson number; each costs R and, on average, half an interval, so
    that the variance of the sum is (T / M)(R² + R x + x² / 3) with x = tau + C.
    """
    mean = expected_seconds(work, machine)
    if machine.mtbf == math.inf or mean == math.inf:
        return mean, mean
    segment, restart = machine.interval + machine.checkpoint, machine.restart
    square = restart**2 + restart * segment + segment**2 / 3
    deviation = math.sqrt(mean / machine.mtbf * square)
    return max(work, mean - _MIDDLE * deviation), mean + _MIDDLE * deviation


def simulated_seconds(work: float, machine: Reliability, generator: np.random.Generator) -> float:
    """The time that some work takes in one simulated life of the machine, failures as events."""
    env = simpy.Environment()
    run = env.process(_run(env, work, machine))
    env.process(_fail(env, run, machine.mtbf, generator))
    env.run(until=run)
    return float(env.now)


def _run(
    env: simpy.Environment, work: float, machine: Reliability
) -> Generator[simpy.Event, Any, None]:
    """Intervals of work, each with its checkpoint; what a failure interrupts is done again."""
    left = work
    while left > 0:
        part = min(machine.interval, left)
        length = part + machine.checkpoint * part / machine.interval
        try:
            yield env.timeout(length)
            left -= part
        except simpy.Interrupt:
            yield from _restart(env, machine.restart)


def _restart(env: simpy.Environment, seconds: float) -> Generator[simpy.Event, Any, None]:
    """A restart, from the beginning if another failure strikes."""
    while True:
        try:
            yield env.timeout(seconds)
            return
        except simpy.Interrupt:
            continue


def _fail(
    env: simpy.Environment, run: simpy.Process, mtbf: float, generator: np.random.Generator
) -> Generator[simpy.Event, Any, None]:
    """Failures with exponential times between them."""
    while True:
        yield env.timeout(generator.exponential(mtbf))
        if run.is_alive:
            run.interrupt()


def checkpoint_nbytes(scenario: Scenario) -> float:
    """Bytes of a checkpoint: stored parameters, master weights, optimizer state.

    Models other than transformers are small: theirs counts as nothing.
    """
    if not isinstance(scenario.model, Transformer):
        return 0.0
    training = scenario.training
    each = _TYPE_BYTES[training.stored_type] + 4.0 * training.keeps_master_weights
    each += _STATES[training.optimizer] * _TYPE_BYTES[training.state_type]
    return each * parameter_count(scenario.model)


def reliability(scenario: Scenario) -> Reliability:
    """The machine of a scenario: every device fails at its own rate, and writes its share."""
    operation, devices = scenario.operation, scenario.cluster.devices
    mtbf = math.inf if operation.device_mtbf is None else operation.device_mtbf / devices
    checkpoint = checkpoint_nbytes(scenario) / (operation.checkpoint_bandwidth * devices)
    interval = operation.checkpoint_interval or young_daly(mtbf, checkpoint)
    return Reliability(mtbf, operation.restart, checkpoint, interval)
