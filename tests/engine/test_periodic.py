"""Long runs extrapolated from short ones, against plain runs of the same length."""

from math import ceil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpsim.cost.work import Work
from mpsim.engine import longest_path, periodic
from mpsim.errors import MpsimError
from mpsim.schedule.lowering import lower
from mpsim.schedule.ops import COMPUTE_KINDS, Kind
from mpsim.schedule.orders import make_order

PERIODIC = {
    "naive": {},
    "gpipe": {},
    "1f1b": {},
    "eager_1f1b": {},
    "interleaved_1f1b": {"num_chunks": 2},
    "zb_h1": {},
    "zb_h2": {},
    "interleaved_zb": {"num_chunks": 2},
    "zb_v": {"num_chunks": 2},
    "seq_1f1b": {"num_slices": 2},
}
DEVICES = 4


def builder(name, table, hop, *, devices=DEVICES, **lowering):
    """Runs of a schedule with seconds by (stage, kind) and of each transfer."""

    def build(microbatches):
        order = make_order(
            name, num_devices=devices, num_microbatches=microbatches, **PERIODIC.get(name, {})
        )
        graph = lower(order, **lowering)
        seconds = np.zeros(graph.num_ops)
        compute = np.isin(graph.kind, COMPUTE_KINDS)
        seconds[compute] = table[graph.stage[compute], graph.kind[compute]]
        seconds[graph.kind == Kind.REDUCE_GRAD] = 0.5
        seconds[graph.peer >= 0] = hop
        seconds /= graph.num_parts
        none = np.full(graph.num_ops, -1, np.int32)
        return graph, Work(seconds, np.zeros(graph.num_ops), none)

    return build


def random_table(seed, *, dyadic, stages=2 * DEVICES):
    """Seconds by stage and kind; eighths, whose sums are exact, or any."""
    generator = np.random.default_rng(seed)
    if dyadic:
        return generator.integers(1, 32, (stages, 4)) / 8, generator.integers(0, 16) / 8
    return generator.uniform(0.5, 2, (stages, 4)), generator.uniform(0, 1)


def largest_difference(long, build):
    """Of begins and ends of all compute ops and of the makespan, relative to the plain run's."""
    graph, work = build(long.num_microbatches)
    plain = longest_path.run(graph, work)
    worst = abs(long.makespan - plain.makespan)
    for kind in COMPUTE_KINDS:
        for stage in range(graph.num_stages):
            for cut in range(max(int(graph.slice.max()), 0) + 1):
                ops = (graph.kind == kind) & (graph.stage == stage)
                ops &= (np.maximum(graph.slice, 0) == cut) & (graph.num_parts == 1)
                if ops.any():
                    at = graph.microbatch[ops]
                    begin, end = (f(kind, stage, at, cut) for f in (long.begin, long.end))
                    worst = max(
                        worst, abs(begin - plain.begin[ops]).max(), abs(end - plain.end[ops]).max()
                    )
    return worst / plain.makespan


@pytest.mark.parametrize("name", PERIODIC)
def test_dyadic_seconds_are_extrapolated_to_the_last_bit(name):
    build = builder(name, *random_table(5, dyadic=True))
    long = periodic.run(build, 1200, window=64, unit=DEVICES)
    assert long.is_extrapolated
    assert largest_difference(long, build) == 0.0


@settings(max_examples=20, deadline=None)
@given(
    st.sampled_from(sorted(PERIODIC)),
    st.integers(0, 2**32 - 1),
    st.integers(200, 300),
    st.sampled_from(["latency", "async"]),
)
def test_random_seconds_and_hops_are_extrapolated(name, seed, quarter, p2p):
    build = builder(name, *random_table(seed, dyadic=False), p2p=p2p)
    long = periodic.run(build, DEVICES * quarter, window=64, unit=DEVICES)
    # Sums of 1e4 ops rounded to 1e-16 each, whether or not a period is found.
    assert largest_difference(long, build) < 1e-12


@pytest.mark.parametrize("microbatches", [9_997, 10_000])
def test_ten_thousand_microbatches_of_1f1b(microbatches):
    build = builder("1f1b", *random_table(2, dyadic=True))
    long = periodic.run(build, microbatches)
    assert long.is_extrapolated
    assert largest_difference(long, build) == 0.0


def test_a_million_microbatches_take_what_the_closed_form_says():
    p, m, c = 8, 1_000_000, 0.25
    build = builder("1f1b", np.tile([1.0, 2.0, 0.0, 0.0], (p, 1)), c, devices=p, p2p="latency")
    long = periodic.run(build, m)
    assert long.makespan == (m + p - 1) * 3 + 2 * c * (p + m - 2 - ceil((m - 1) / p))
    assert long.seconds_per_microbatch == 3 + 2 * c * (p - 1) / p
    assert long.begin(Kind.F, 0, 0) == 0.0
    assert long.end(Kind.B, 0, m - 1) == long.makespan


def test_reductions_and_updates_after_a_long_run_are_extrapolated():
    build = builder("1f1b", *random_table(4, dyadic=True), reductions="last", buckets=4)
    long = periodic.run(build, 1000, window=64)
    assert long.is_extrapolated
    assert largest_difference(long, build) == 0.0


def test_the_steady_period_is_that_of_the_slowest_range_of_stages():
    (table, hop), p = random_table(11, dyadic=False, stages=DEVICES), DEVICES
    long = periodic.run(builder("1f1b", table, hop, p2p="latency"), 5000)
    both = table[:, Kind.F] + table[:, Kind.B]
    slowest = max(
        (both[i : j + 1].sum() + 2 * hop * (j - i)) / (j - i + 1)
        for i in range(p)
        for j in range(i, p)
    )
    assert long.seconds_per_microbatch == pytest.approx(slowest, rel=1e-12)


def test_a_run_within_the_window_is_run_plainly():
    build = builder("1f1b", *random_table(0, dyadic=True))
    long = periodic.run(build, 50)
    assert not long.is_extrapolated
    assert largest_difference(long, build) == 0.0


def changing(microbatches):
    """A schedule whose seconds depend on the microbatch: nothing repeats."""
    graph, work = builder("gpipe", *random_table(0, dyadic=True))(microbatches)
    return graph, Work(work.seconds * (2 + np.sin(graph.microbatch**2)), work.nbytes, work.link)


def test_without_a_period_the_run_is_plain_and_says_so():
    long = periodic.run(changing, 400, window=32)
    assert not long.is_extrapolated
    assert largest_difference(long, changing) == 0.0


def test_without_a_period_a_run_too_long_is_refused():
    with pytest.raises(MpsimError, match="no steady period within 256 microbatches"):
        periodic.run(changing, 10**9, window=32)


def test_an_op_that_does_not_exist_has_no_times():
    long = periodic.run(builder("1f1b", *random_table(0, dyadic=True)), 2000)
    with pytest.raises(KeyError, match="no W of stage 0"):
        long.begin(Kind.W, 0, 0)


@pytest.mark.parametrize("heaviest", range(DEVICES))
def test_one_heavy_stage_is_periodic_wherever_it_stands(heaviest):
    # a bottleneck that waits for nobody repeats with every microbatch, while the others look
    # several microbatches ahead
    table = np.array([[0.00605, 0.0198, 0.01, 0.01]] * (2 * DEVICES))
    table[heaviest] *= 1.107
    build = builder("1f1b", table, 1.9e-6)
    long = periodic.run(build, 4000, window=64)
    graph, work = build(4000)
    assert long.is_extrapolated
    assert long.makespan == pytest.approx(longest_path.run(graph, work).makespan, rel=1e-12)
