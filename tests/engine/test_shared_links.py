"""Transfers that divide a link, and devices that fail: what only the event engine models."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpsim.cost.work import Link, Work
from mpsim.engine import events, longest_path
from mpsim.engine.events import Failure
from mpsim.engine.links import SharedLink
from mpsim.schedule.data_parallel import lower_data_parallel
from mpsim.schedule.lowering import lower
from mpsim.schedule.ops import Kind
from mpsim.schedule.orders import make_order


def ends(arrivals, *, bandwidth):
    """End of each transfer ``(begin, nbytes)`` on one shared link."""
    link, found = SharedLink(bandwidth), {}
    pending = sorted(range(len(arrivals)), key=lambda index: arrivals[index][0])
    while len(found) < len(arrivals):
        if pending and arrivals[pending[0]][0] <= link.next_end():
            index = pending.pop(0)
            link.join(index, nbytes=arrivals[index][1], now=arrivals[index][0])
        else:
            now = link.next_end()
            found[link.leave(now)] = now
    return [found[index] for index in range(len(arrivals))]


def test_a_transfer_alone_has_the_whole_link():
    assert ends([(3.0, 8.0)], bandwidth=2.0) == [7.0]


def test_two_equal_transfers_take_twice_as_long():
    assert ends([(0.0, 8.0), (0.0, 8.0)], bandwidth=2.0) == [8.0, 8.0]


def test_a_late_transfer_slows_the_first_only_from_then_on():
    # The first moves 4 of 8 bytes alone by 2 s, the rest at half speed by 6 s; then the second,
    # which has moved 4 of 12 bytes, has the link to itself for 4 s.
    assert ends([(0.0, 8.0), (2.0, 12.0)], bandwidth=2.0) == [6.0, 10.0]


def test_an_idle_link_ends_nothing():
    assert SharedLink(1.0).next_end() == float("inf")


transfer = st.tuples(st.floats(0, 10), st.floats(0.01, 10))


@settings(max_examples=100, deadline=None)
@given(st.lists(transfer, min_size=1, max_size=8), st.floats(0.1, 10))
def test_sharing_loses_no_bytes_and_gains_none(arrivals, bandwidth):
    found = ends(arrivals, bandwidth=bandwidth)
    for (begin, nbytes), end in zip(arrivals, found, strict=True):
        assert end >= begin + nbytes / bandwidth * (1 - 1e-12)
    # By small steps of equal shares (Euler): an implementation with nothing in common.
    left = np.array([nbytes for _, nbytes in arrivals])
    begins = np.array([begin for begin, _ in arrivals])
    moments = np.unique(np.concatenate([begins, found]))
    for now, then in pairwise(moments):
        under_way = (begins <= now) & (np.array(found) > now)
        if under_way.any():
            left[under_way] -= bandwidth / under_way.sum() * (then - now)
    assert np.allclose(left, 0.0, atol=1e-9)  # bytes; sums of some 20 steps of up to 10 bytes


def two_senders(bandwidth, latency):
    """Two shards sent from device 0 to 1 and 2 over one link, and nothing else of length."""
    graph = lower_data_parallel(3)
    seconds, nbytes = np.zeros(graph.num_ops), np.zeros(graph.num_ops)
    moves = graph.kind == Kind.SCATTER
    moves &= graph.stage == 0
    seconds[moves], nbytes[moves] = latency, 6.0
    link = np.where(graph.peer >= 0, 0, -1).astype(np.int32)
    return graph, Work(seconds, nbytes, link, (Link("uplink", bandwidth, shared=True),)), moves


def test_latency_is_not_shared_and_bandwidth_is():
    graph, work, moves = two_senders(bandwidth=2.0, latency=1.0)
    assert events.run(graph, work).end[moves].tolist() == [7.0, 7.0]
    assert longest_path.run(graph, work).end[moves].tolist() == [4.0, 4.0]


@pytest.fixture(name="pipeline")
def fixture_pipeline(seconds_of):
    graph = lower(make_order("gpipe", num_devices=2, num_microbatches=2))
    return graph, seconds_of(graph, forward=1, backward=1)


def begins(graph, timeline, device):
    compute = np.isin(graph.kind, (Kind.F, Kind.B)) & (graph.device == device)
    return list(zip(timeline.begin[compute].tolist(), timeline.end[compute].tolist(), strict=True))


def test_work_under_way_on_a_failing_device_is_lost(pipeline):
    graph, work = pipeline
    timeline = events.run(graph, work, failures=[Failure(1, begin=1.5, seconds=2.0)])
    assert begins(graph, timeline, 1) == [(3.5, 4.5), (4.5, 5.5), (5.5, 6.5), (6.5, 7.5)]


def test_work_under_way_may_pause_instead(pipeline):
    graph, work = pipeline
    failure = Failure(1, begin=1.5, seconds=2.0, loses_work=False)
    timeline = events.run(graph, work, failures=[failure])
    assert begins(graph, timeline, 1) == [(1.0, 4.0), (4.0, 5.0), (5.0, 6.0), (6.0, 7.0)]


def test_nothing_begins_on_a_device_that_is_down(pipeline):
    graph, work = pipeline
    timeline = events.run(graph, work, failures=[Failure(0, begin=0.0, seconds=4.0)])
    assert begins(graph, timeline, 0)[0] == (4.0, 5.0)


def test_a_failure_while_idle_costs_nothing(pipeline):
    graph, work = pipeline
    timeline = events.run(graph, work, failures=[Failure(1, begin=0.0, seconds=1.0)])
    assert timeline.makespan == longest_path.run(graph, work).makespan
