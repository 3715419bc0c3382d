"""The fast engine against the closed forms of pipeline schedules (p devices, m microbatches)."""

from math import ceil

import numpy as np
import pytest

from mpsim.engine import longest_path
from mpsim.schedule.lowering import lower
from mpsim.schedule.orders import make_order

EXACT = 1e-12  # sums of at most a few thousand ops, rounded to 1e-16 each


def makespan(
    seconds_of, name, *, devices, microbatches, p2p="latency", chunks=1, slices=1, **times
):
    order = make_order(
        name,
        num_devices=devices,
        num_microbatches=microbatches,
        num_chunks=chunks,
        num_slices=slices,
    )
    graph = lower(order, p2p=p2p)
    return longest_path.run(graph, seconds_of(graph, **times)).makespan


def grid(devices, microbatches):
    return [(p, m) for p in devices for m in microbatches]


@pytest.mark.parametrize(("p", "m"), grid(range(1, 6), (1, 2, 5)))
@pytest.mark.parametrize("c", [0, 0.3, 4])
def test_naive_is_a_chain(seconds_of, p, m, c):
    found = makespan(seconds_of, "naive", devices=p, microbatches=m, hop=c)
    assert found == pytest.approx(m * (p * 3 + 2 * (p - 1) * c), rel=EXACT)


@pytest.mark.parametrize(("p", "m"), grid(range(1, 6), (1, 3, 8)))
@pytest.mark.parametrize("c", [0, 0.3, 4])
def test_gpipe_pays_latency_once_each_way(seconds_of, p, m, c):
    found = makespan(seconds_of, "gpipe", devices=p, microbatches=m, hop=c)
    assert found == pytest.approx((m + p - 1) * 3 + 2 * (p - 1) * c, rel=EXACT)


def test_gpipe_with_stages_of_their_own_times(seconds_of):
    generator = np.random.default_rng(0)
    for _ in range(60):
        p, m = generator.integers(1, 7), generator.integers(1, 10)
        f, b, c = generator.random(p), generator.random(p), generator.random()
        found = makespan(
            seconds_of, "gpipe", devices=p, microbatches=m, forward=f, backward=b, hop=c
        )
        expected = f.sum() + (m - 1) * f.max() + b.sum() + (m - 1) * b.max() + 2 * (p - 1) * c
        assert found == pytest.approx(expected, rel=EXACT)


@pytest.mark.parametrize(("p", "m"), grid(range(1, 9), (1, 2, 3, 7, 8, 16, 25)))
@pytest.mark.parametrize("c", [0, 0.3, 10])
def test_1f1b_pays_a_round_trip_every_p_microbatches(seconds_of, p, m, c):
    found = makespan(seconds_of, "1f1b", devices=p, microbatches=m, hop=c)
    expected = (m + p - 1) * 3 + 2 * c * (p + m - 2 - ceil((m - 1) / p))
    assert found == pytest.approx(expected, rel=EXACT)


@pytest.mark.parametrize("p", range(3, 9))
@pytest.mark.parametrize("m", range(2, 20))
@pytest.mark.parametrize("c", [0.1, 0.25, 0.5, 0.75, 1.0])
def test_1f1b_with_batched_transfers_pays_two_hops_a_microbatch(seconds_of, p, m, c):
    found = makespan(seconds_of, "1f1b", devices=p, microbatches=m, p2p="batched", hop=c)
    assert found == pytest.approx((m + p - 1) * 3 + (2 * (m + p) - 5) * c, rel=EXACT)


@pytest.mark.parametrize("m", range(2, 20))
def test_two_devices_with_batched_transfers_pay_one_hop_a_microbatch(seconds_of, m):
    found = makespan(seconds_of, "1f1b", devices=2, microbatches=m, p2p="batched", hop=0.5)
    assert found == pytest.approx((m + 1) * 3 + (m + 1) * 0.5, rel=EXACT)


@pytest.mark.parametrize("p", range(2, 9))
def test_one_microbatch_with_batched_transfers_is_a_chain(seconds_of, p):
    found = makespan(seconds_of, "1f1b", devices=p, microbatches=1, p2p="batched", hop=0.5)
    assert found == pytest.approx(p * 3 + (p - 1), rel=EXACT)


@pytest.mark.parametrize("p", [4, 5, 8])
def test_1f1b_with_serial_transfers_pays_four_hops_a_microbatch(seconds_of, p):
    spans = [
        makespan(seconds_of, "1f1b", devices=p, microbatches=m, p2p="serial", hop=0.125)
        for m in (40, 80)
    ]
    assert (spans[1] - spans[0]) / 40 == pytest.approx(3 + 4 * 0.125, rel=EXACT)


@pytest.mark.parametrize(("p", "m"), grid((2, 4), (4, 8)))
def test_async_equals_latency_while_channels_keep_up(seconds_of, p, m):
    spans = {
        p2p: makespan(seconds_of, "1f1b", devices=p, microbatches=m, p2p=p2p, hop=0.5)
        for p2p in ("async", "latency")
    }
    assert spans["async"] == spans["latency"]


def test_a_channel_that_does_not_keep_up_bounds_async_transfers(seconds_of):
    span = makespan(
        seconds_of, "gpipe", devices=2, microbatches=10, p2p="async", forward=1, backward=1, hop=5
    )
    # First forward; ten transfers in a row; last forward; and the same back, mirrored.
    assert span == 1 + 10 * 5 + 1 + 1 + 10 * 5 + 1


@pytest.mark.parametrize("p", [2, 3, 4])
@pytest.mark.parametrize("v", [1, 2, 3])
@pytest.mark.parametrize("k", [1, 3])
def test_interleaving_divides_the_bubble_by_the_chunks(seconds_of, p, v, k):
    found = makespan(seconds_of, "interleaved_1f1b", devices=p, microbatches=k * p, chunks=v)
    assert found == pytest.approx((k * p * v + p - 1) * 3, rel=EXACT)


@pytest.mark.parametrize("p", [2, 4])
@pytest.mark.parametrize("v", [2, 3])
def test_every_wrap_of_interleaving_exposes_its_hop(seconds_of, p, v):
    found = makespan(
        seconds_of, "interleaved_1f1b", devices=p, microbatches=2 * p, chunks=v, hop=0.5
    )
    assert found == pytest.approx((2 * p * v + p - 1) * 3 + 2 * (v * p - 1) * 0.5, rel=EXACT)


@pytest.mark.parametrize(("p", "m"), grid((2, 4), (2, 3, 8)))
def test_breadth_first_loops(seconds_of, p, m):
    found = makespan(seconds_of, "looped_bfs", devices=p, microbatches=m, chunks=2)
    expected = (m * 2 + p - 1) * 3 if m >= p else (p * 2 + m - 1) * 3
    assert found == pytest.approx(expected, rel=EXACT)


@pytest.mark.parametrize("p", [2, 3, 4])
@pytest.mark.parametrize("fused", [2.25, 2.5, 3.0])
def test_fused_blocks_last_as_long_as_they_are_given(seconds_of, p, fused):
    m, v = 3 * p, 2
    found = makespan(seconds_of, "combined_1f1b", devices=p, microbatches=m, chunks=v, fused=fused)
    expected = (m * v + p - 1) * 3 - (3 - fused) * (m * v - (v - 1) * p - 1)
    assert found == pytest.approx(expected, rel=EXACT)


@pytest.mark.parametrize(("p", "m"), grid((2, 4, 6), (6, 12)))
def test_zb_h1_fills_the_bubble_with_weights(seconds_of, p, m):
    f, i, w = 1.0, 1.25, 0.75
    found = makespan(seconds_of, "zb_h1", devices=p, microbatches=m, forward=f, input=i, weight=w)
    assert found == pytest.approx(m * (f + i + w) + (p - 1) * (f + i - w), rel=EXACT)


@pytest.mark.parametrize("name", ["seq_1f1b", "terapipe"])
@pytest.mark.parametrize("slices", [2, 3])
def test_slices_of_the_sequence_divide_the_bubble(seconds_of, name, slices):
    found = makespan(seconds_of, name, devices=4, microbatches=4, slices=slices)
    assert found == pytest.approx((4 * slices + 3) * 3, rel=EXACT)


@pytest.mark.parametrize(
    ("name", "chunks"), [("zb_h1", 1), ("zb_h2", 1), ("interleaved_1f1b", 2), ("looped_bfs", 2)]
)
@pytest.mark.parametrize("p2p", ["batched", "serial"])
def test_blocking_transfers_that_take_no_time_cost_none(seconds_of, name, chunks, p2p):
    spans = [
        makespan(
            seconds_of, name, devices=4, microbatches=8, chunks=chunks, p2p=way,
            input=1, weight=1,
        )
        for way in ("latency", p2p)
    ]  # fmt: skip
    assert spans[0] == spans[1]
