"""The waterfall by hand on small graphs: each cause costs what its removal saves."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpsim.cost.work import Link, Work
from mpsim.engine import longest_path
from mpsim.report import explain
from mpsim.schedule.lowering import lower
from mpsim.schedule.ops import Kind
from mpsim.schedule.orders import make_order
from mpsim.simulation import simulate

SENDS = (Kind.SEND_F, Kind.SEND_B)


def pipeline(schedule="gpipe", *, devices=2, microbatches=2, chunks=1):
    order = make_order(
        schedule, num_devices=devices, num_microbatches=microbatches, num_chunks=chunks
    )
    return lower(order, step=False, barrier=False)


def work(graph, forward, backward, *, hop=0.0, exchange=0.0):
    """Seconds of passes by stage, of a transfer, of an exchange in each backward."""
    parts = {name: np.zeros(graph.num_ops) for name in ("compute", "tensor exchange", "transfers")}
    for kind, seconds in ((Kind.F, forward), (Kind.B, backward)):
        ops = graph.kind == kind
        parts["compute"][ops] = np.array(seconds)[graph.stage[ops]]
    parts["tensor exchange"][graph.kind == Kind.B] = exchange
    parts["transfers"][np.isin(graph.kind, SENDS)] = hop
    none = np.full(graph.num_ops, -1, np.int32)
    return Work(sum(parts.values()), np.zeros(graph.num_ops), none, (), parts)


def waterfall(graph, numbers):
    step = float(longest_path.run(graph, numbers).end.max())
    return step, explain.waterfall(graph, numbers, step, run=longest_path.run)


def test_a_uniform_pipeline_has_compute_and_bubble():
    graph = pipeline()
    step, found = waterfall(graph, work(graph, [1, 1], [2, 2]))
    # (m + p - 1) (f + b) = 3 x 3; each device computes m (f + b) = 6
    assert step == 9
    assert found == {"compute": pytest.approx(6), "bubble": pytest.approx(3)}


def test_one_device_has_compute_alone():
    graph = pipeline(devices=1)
    step, found = waterfall(graph, work(graph, [1], [2]))
    assert (step, found) == (6, {"compute": 6})


def test_transfers_cost_what_they_put_on_the_critical_path():
    graph = pipeline()
    step, found = waterfall(graph, work(graph, [1, 1], [2, 2], hop=0.25))
    # the first forward and the last backward wait for one hop each
    assert step == 9.5
    assert found["transfers"] == pytest.approx(0.5)
    assert found["bubble"] == pytest.approx(3)


def test_a_transfer_behind_compute_costs_nothing():
    graph = pipeline(microbatches=8)
    _, one = waterfall(graph, work(graph, [1, 1], [2, 2], hop=0.25))
    graph = pipeline(microbatches=16)
    _, two = waterfall(graph, work(graph, [1, 1], [2, 2], hop=0.25))
    assert one["transfers"] == pytest.approx(two["transfers"]) == pytest.approx(0.5)


def test_stages_of_unequal_work_are_imbalance():
    graph = pipeline()
    step, found = waterfall(graph, work(graph, [2, 1], [4, 2]))
    # device 0 computes 12 without a pause but for 1F and 1B of the other: 2 + 2 + 1 + 2 + 4 + 4
    assert step == 15
    # levelled: f = 1.5, b = 3: 3 x 4.5 = 13.5; mean compute 2 x 4.5 = 9
    assert found == {
        "compute": pytest.approx(9),
        "imbalance": pytest.approx(1.5),
        "bubble": pytest.approx(4.5),
    }


def test_exchanges_inside_ops_count_once_a_microbatch_on_the_critical_path():
    graph = pipeline()
    step, found = waterfall(graph, work(graph, [1, 1], [2, 2], exchange=0.5))
    assert step == 9 + 3 * 0.5  # m + p - 1 backward ops in a row
    assert found["tensor exchange"] == pytest.approx(1.5)
    assert found["bubble"] == pytest.approx(3)


def test_exchanges_share_what_they_cost_together_by_their_seconds():
    graph = pipeline()
    numbers = work(graph, [1, 1], [2, 2], exchange=0.5)
    other = np.where(graph.kind == Kind.F, 0.25, 0.0)
    parts = {**numbers.parts, "expert exchange": other}
    both = Work(numbers.seconds + other, numbers.nbytes, numbers.link, (), parts)
    _, found = waterfall(graph, both)
    assert found["tensor exchange"] == pytest.approx(2 * found["expert exchange"])
    assert found["tensor exchange"] + found["expert exchange"] == pytest.approx(3 * 0.75)


def test_bytes_of_a_transfer_are_among_the_transfers():
    graph = pipeline()
    numbers = work(graph, [1, 1], [2, 2])
    sends = np.isin(graph.kind, SENDS)
    link = np.where(sends, 0, -1).astype(np.int32)
    wide = Work(numbers.seconds, np.where(sends, 8.0, 0.0), link, (Link("l", 16.0),), numbers.parts)
    step, found = waterfall(graph, wide)
    assert (step, found["transfers"]) == (10, pytest.approx(1))


@settings(max_examples=40, deadline=None)
@given(
    schedule=st.sampled_from(["naive", "gpipe", "1f1b", "eager_1f1b"]),
    devices=st.integers(1, 4),
    microbatches=st.integers(1, 6),
    data=st.data(),
)
def test_causes_are_never_negative_and_sum_to_the_step(schedule, devices, microbatches, data):
    seconds = st.lists(st.floats(0.1, 3), min_size=devices, max_size=devices)
    graph = pipeline(schedule, devices=devices, microbatches=microbatches)
    numbers = work(
        graph,
        data.draw(seconds),
        data.draw(seconds),
        hop=data.draw(st.floats(0, 1)),
        exchange=data.draw(st.floats(0, 1)),
    )
    step, found = waterfall(graph, numbers)
    assert sum(found.values()) == pytest.approx(step, rel=1e-12)
    assert all(value >= -1e-9 * step for value in found.values())


def test_phases_sum_to_the_step(small):
    report = simulate(small({"plan.pipeline": 2, "plan.data": 2}))
    assert sum(report.phase_seconds.values()) == pytest.approx(report.step_time, rel=1e-9)
    assert list(report.phase_seconds) == [
        "forward",
        "backward",
        "update",
        "gradient exchange",
        "synchronisation",
    ]


def test_phases_by_hand():
    graph = pipeline()
    numbers = work(graph, [1, 1], [2, 2])
    found = explain.phases(graph, longest_path.run(graph, numbers), numbers)
    assert found == {
        "forward": 2,
        "backward": 4,
        "update": 0,
        "gradient exchange": 0,
        "synchronisation": 3,
    }


def test_an_asynchronous_schedule_has_no_bubble(small):
    report = simulate(small({"plan.schedule": "pipedream"}))
    assert "bubble" not in report.waterfall
    assert sum(report.waterfall.values()) == pytest.approx(report.step_time, rel=1e-9)
