"""Quick outcomes equal those of the full report."""

import numpy as np
import pytest

from mpsim.errors import MpsimError
from mpsim.planner.evaluate import Runner, device_memory, evaluate, run
from mpsim.schedule.orders import SCHEDULES
from mpsim.simulation import simulate
from mpsim.spec.reader import changed, load


def scenario(**changes):
    fields = {
        "cluster.nodes": 2,
        "plan.tensor": 2,
        "plan.pipeline": 4,
        "plan.data": 2,
    }
    return load("gpt3_bf16.yaml", fields | changes)


@pytest.mark.parametrize("chunks", [1, 2])
@pytest.mark.parametrize("schedule", sorted(SCHEDULES))
def test_step_and_memory_are_those_of_the_report(schedule, chunks):
    for zero, release in ((0, "weight"), (1, "input"), (3, "weight")):
        fields = {
            "plan.schedule": schedule, "plan.chunks": chunks, "plan.zero": zero,
            "plan.release": release, "training.global_batch": 32,
        }  # fmt: skip
        try:
            one = scenario(**fields)
            report = simulate(one, engine="fast")
        except MpsimError:
            continue
        outcome = evaluate(one)
        assert outcome.step == pytest.approx(report.step_time, rel=1e-12)
        assert outcome.memory == pytest.approx(report.fullest.reserved, rel=1e-9)
        assert outcome.fits == report.fits
        reserved = [device.reserved for device in report.devices]
        assert device_memory(run(one)[0]) == pytest.approx(np.array(reserved), rel=1e-9)


def test_a_runner_gives_what_single_runs_give():
    runner = Runner(size=2)
    base = scenario(**{"training.global_batch": 16})
    for bandwidth in ("100 GB/s", "300 GB/s"):
        for schedule in ("1f1b", "zb_h1", "zb_auto", "gpipe"):
            one = changed(
                base, {"cluster.node.link.bandwidth": bandwidth, "plan.schedule": schedule}
            )
            done = runner.run(one)
            outcome = evaluate(one)
            assert done.step == outcome.step
            assert done.memory == outcome.memory


def test_a_shared_link_is_run_by_events():
    fields = {"plan.tensor": 1, "plan.pipeline": 4, "plan.data": 2, "cluster.nodes": 1}
    one = load("gpt3_fp32.yaml", {
        **fields, "cluster.node.shared_uplink": True, "training.global_batch": 8,
    })  # fmt: skip
    assert evaluate(one).step == simulate(one, engine="events").step_time
