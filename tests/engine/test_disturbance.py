"""Jitter: its mean, its spread, and the same luck for all."""

import numpy as np
import pytest

from mpsim.cost.work import Work
from mpsim.engine import events, longest_path
from mpsim.engine.disturbance import sample
from mpsim.schedule.lowering import lower
from mpsim.schedule.orders import make_order

OPS, SAMPLES = 50, 4000


def flat(num_ops=OPS):
    return Work(np.full(num_ops, 2.0), np.zeros(num_ops), np.full(num_ops, -1, np.int32))


def test_jitter_has_mean_one_and_the_variance_of_a_lognormal():
    sigma = 0.2
    factor = (
        sample(flat(), jitter=sigma, samples=SAMPLES, generator=np.random.default_rng(0)).seconds
        / 2.0
    )
    spread = np.sqrt(np.exp(sigma**2) - 1)
    # Four standard errors of 200,000 draws.
    assert factor.mean() == pytest.approx(1.0, abs=4 * spread / np.sqrt(factor.size))
    assert factor.std() == pytest.approx(spread, rel=0.02)


def test_no_jitter_changes_nothing():
    work = sample(flat(), jitter=0.0, samples=3, generator=np.random.default_rng(0))
    assert np.array_equal(work.seconds, np.full((OPS, 3), 2.0))


def test_the_same_generator_gives_the_same_luck_whatever_the_seconds():
    other = Work(flat().seconds * 3, flat().nbytes, flat().link)
    a, b = (
        sample(work, jitter=0.1, samples=5, generator=np.random.default_rng(7))
        for work in (flat(), other)
    )
    assert np.allclose(b.seconds, 3 * a.seconds, rtol=1e-15, atol=0)


def test_a_slow_device_slows_its_own_ops():
    graph = lower(make_order("gpipe", num_devices=3, num_microbatches=2))
    work = sample(
        flat(graph.num_ops), jitter=0.0, samples=2, generator=np.random.default_rng(0),
        graph=graph, slowness=[1.0, 1.5, 1.0],
    )  # fmt: skip
    assert np.all(work.seconds[graph.device == 1] == 3.0)
    assert np.all(work.seconds[graph.device != 1] == 2.0)


def test_a_device_that_is_slow_by_chance_is_so_for_all_its_ops():
    graph = lower(make_order("gpipe", num_devices=3, num_microbatches=2))
    work = sample(
        flat(graph.num_ops), jitter=0.0, samples=4, generator=np.random.default_rng(0),
        graph=graph, device_jitter=0.3,
    )  # fmt: skip
    for device in range(3):
        seconds = work.seconds[graph.device == device]
        assert np.all(seconds == seconds[0])
    assert len(np.unique(work.seconds)) == 12


@pytest.mark.parametrize("name", ["jitter", "device_jitter"])
def test_a_negative_spread_is_refused(name):
    with pytest.raises(ValueError, match="must not be negative"):
        sample(flat(), **{"jitter": 0.0, "samples": 1, name: -0.1}, generator=None)


def test_slow_devices_need_the_graph():
    with pytest.raises(ValueError, match="need the graph"):
        sample(flat(), jitter=0.0, samples=1, generator=np.random.default_rng(0), slowness=[2.0])


def test_both_engines_meet_the_same_luck():
    graph = lower(make_order("1f1b", num_devices=3, num_microbatches=6))
    work = sample(flat(graph.num_ops), jitter=0.2, samples=2, generator=np.random.default_rng(0))
    fast = longest_path.run(graph, work)
    for index in range(2):
        slow = events.run(graph, Work(work.seconds[:, index], work.nbytes, work.link))
        assert np.array_equal(slow.end, fast.sample(index).end)
