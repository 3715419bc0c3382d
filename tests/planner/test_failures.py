"""Failures: the closed form against a simulation of events, and what is known of the optimum."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from mpsim.planner.failures import (
    Reliability,
    checkpoint_nbytes,
    expected_seconds,
    reliability,
    simulated_seconds,
    spread,
    young_daly,
)
from mpsim.spec.reader import load

MACHINES = [
    Reliability(mtbf=5000.0, restart=300.0, checkpoint=40.0, interval=600.0),
    Reliability(mtbf=20000.0, restart=60.0, checkpoint=100.0, interval=2000.0),
    Reliability(mtbf=3000.0, restart=0.0, checkpoint=0.0, interval=900.0),
]


@pytest.mark.parametrize("machine", MACHINES)
def test_the_closed_form_agrees_with_events_within_one_percent(machine):
    work = 300 * machine.interval
    generator = np.random.default_rng(7)
    times = [simulated_seconds(work, machine, generator) for _ in range(60)]
    said = expected_seconds(work, machine)
    # the mean of 60 lives of hundreds of failures each has a standard error of some 0.3 %
    assert np.mean(times) == pytest.approx(said, rel=0.01)


def test_the_spread_holds_nine_lives_of_ten():
    machine, work = MACHINES[0], 60000.0
    generator = np.random.default_rng(3)
    times = np.array([simulated_seconds(work, machine, generator) for _ in range(300)])
    low, high = spread(work, machine)
    inside = np.mean((times >= low) & (times <= high))
    # 300 lives: three standard errors of a share of 0.9 are 0.05, and the normal is approximate
    assert 0.84 <= inside <= 0.97


@pytest.mark.parametrize(("mtbf", "checkpoint"), [(86400.0, 60.0), (3600.0, 30.0), (1e6, 600.0)])
def test_the_interval_of_young_and_daly_loses_least(mtbf, checkpoint):
    def cost(interval):
        return expected_seconds(1.0, Reliability(mtbf, 100.0, checkpoint, interval))

    best = minimize_scalar(cost, bounds=(1.0, mtbf), method="bounded").x
    said = young_daly(mtbf, checkpoint)
    # Daly's series leaves out terms of third order: the minimum is flat, its place is not
    assert said == pytest.approx(best, rel=0.02)
    assert cost(said) == pytest.approx(cost(best), rel=1e-5)


def test_nothing_is_lost_where_nothing_fails():
    machine = Reliability(math.inf, 600.0, 10.0, math.inf)
    assert expected_seconds(5.0, machine) == 5.0
    assert machine.goodput == 1.0
    assert young_daly(math.inf, 10.0) == math.inf
    assert spread(5.0, replace(machine, interval=100.0)) == (5.5, 5.5)


def test_a_machine_that_never_gets_done_takes_for_ever():
    assert expected_seconds(1e6, Reliability(10.0, 600.0, 60.0, 600.0)) == math.inf


def test_more_devices_fail_more_often_and_write_faster():
    small, large = (
        reliability(load("gpt3_bf16.yaml", {"cluster.nodes": nodes, "plan.data": nodes // 12}))
        for nodes in (24, 48)
    )
    assert large.mtbf == small.mtbf / 2
    assert large.checkpoint == small.checkpoint / 2
    assert small.goodput > large.goodput


def test_a_checkpoint_of_mixed_precision_adam_holds_fourteen_bytes_a_parameter():
    scenario = load("gpt3_bf16.yaml")
    # 2 stored, 4 master, 8 of Adam (arXiv:1910.02054, section 3.1, without gradients)
    assert checkpoint_nbytes(scenario) == pytest.approx(14 * 174.6e9, rel=1e-3)
