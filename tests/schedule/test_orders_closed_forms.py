"""Makespans, spans and peaks of the orders against their closed forms, by brute force.

Times are whole numbers or halves, so sums are exact and equality is meant.
"""

from math import ceil

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from mpsim.schedule.orders import make_order
from mpsim.schedule.text import cell_text, rows_of

quick = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
seconds = st.integers(1, 12)
devices = st.integers(1, 7)
microbatches = st.integers(1, 16)


def lists_of(name, p, m, **asked):
    order = make_order(name, num_devices=p, num_microbatches=m, **asked)
    return [[cell_text(cell) for cell in row] for row in rows_of(order)]


@quick
@given(p=devices, m=st.integers(1, 6), f=seconds, b=seconds, c=st.integers(0, 9))
def test_naive_runs_one_device_at_a_time(brute_force, p, m, f, b, c):
    timed = brute_force(lists_of("naive", p, m), f, b, 0, hop=c)
    assert timed.makespan == m * (p * (f + b) + 2 * (p - 1) * c)
    assert timed.peaks("W") == [1] * p


@quick
@given(
    p=devices, m=microbatches, f=seconds, b=seconds, c=st.integers(0, 20),
    drain=st.sampled_from(["ascending", "descending"]),
)  # fmt: skip
def test_gpipe_pays_latency_once_in_either_drain(brute_force, p, m, f, b, c, drain):
    timed = brute_force(lists_of("gpipe", p, m, drain=drain), f, b, 0, hop=c)
    assert timed.makespan == (m + p - 1) * (f + b) + 2 * (p - 1) * c
    assert timed.peaks("W") == [m] * p


@quick
@given(p=devices, m=microbatches, f=seconds, b=seconds, c=st.integers(0, 100))
def test_1f1b_pays_a_round_trip_every_p_microbatches(brute_force, p, m, f, b, c):
    timed = brute_force(lists_of("1f1b", p, m), f, b, 0, hop=c)
    assert timed.makespan == (m + p - 1) * (f + b) + 2 * c * (p + m - 2 - ceil((m - 1) / p))
    assert timed.peaks("W") == [min(m, p - r) for r in range(p)]


@quick
@given(p=devices, m=microbatches, f=seconds, b=seconds)
def test_asynchronous_orders_are_1f1b_with_weight_versions(p, m, f, b):
    assert lists_of("pipedream", p, m) == lists_of("1f1b", p, m)
    order = make_order("pipedream", num_devices=p, num_microbatches=m)
    assert order.weight_versions == tuple(range(p, 0, -1))
    assert not order.synchronous
    if m >= p:
        order = make_order("pipedream_2bw", num_devices=p, num_microbatches=m)
        assert order.weight_versions == tuple([2] * (p - 1) + [1])


@quick
@given(p=devices, m=microbatches, f=seconds, b=seconds, data=st.data())
def test_eager_1f1b_hides_a_hop_of_half_an_op_pair(brute_force, p, m, f, b, data):
    c = data.draw(st.integers(0, (f + b) // 2))
    timed = brute_force(lists_of("eager_1f1b", p, m), f, b, 0, hop=c)
    assert timed.makespan == (m + p - 1) * (f + b) + 2 * (p - 1) * c
    assert timed.peaks("W") == [min(m, 2 * (p - r) - 1) for r in range(p)]


@quick
@given(p=st.integers(2, 6), v=st.integers(1, 4), k=st.integers(1, 3), f=seconds, b=seconds)
def test_interleaved_1f1b_divides_the_bubble_by_its_chunks(brute_force, p, v, k, f, b):
    m = k * p
    c = min(f, b) // 2
    lists = lists_of("interleaved_1f1b", p, m, num_chunks=v)
    ideal = (m * v + p - 1) * (f + b)
    assert brute_force(lists, f, b, 0).makespan == ideal
    timed = brute_force(lists, f, b, 0, hop=c)
    if v > 1 and p > 2:  # the range of the formula: wraps of more than one chunk
        assert timed.makespan == ideal + 2 * (v * p - 1) * c
    warmup = [2 * (p - r - 1) + (v - 1) * p for r in range(p)]
    assert timed.peaks("W") == [min(m * v, w + 1) for w in warmup]


@quick
@given(p=st.integers(2, 5), v=st.integers(2, 3), m=st.integers(2, 20), f=seconds, b=seconds,
       data=st.data())  # fmt: skip
def test_interleaved_1f1b_with_any_legal_group_hides_the_wraps(brute_force, p, v, m, f, b, data):
    sizes = [n for n in range(p, m + 1) if m % n == 0 or m % n >= p]
    assume(sizes)
    group = data.draw(st.sampled_from(sizes))
    lists = lists_of("interleaved_1f1b", p, m, num_chunks=v, group_size=group)
    ideal = (m * v + p - 1) * (f + b)
    assert brute_force(lists, f, b, 0).makespan == ideal
    if group > p and m % group == 0:
        c = min(1, (group - p) / p) * min(f, b)  # a hop no longer than an op
        assert brute_force(lists, f, b, 0, hop=c).makespan == pytest.approx(
            ideal + 2 * (p - 1) * c, rel=1e-12
        )


@quick
@given(p=st.integers(2, 6), v=st.integers(2, 3), k=st.integers(2, 3), f=seconds, b=seconds,
       overlap=st.sampled_from([0.7, 0.8, 0.9, 1.0]))  # fmt: skip
def test_combined_1f1b_saves_the_overlap_of_every_steady_pair(brute_force, p, v, k, f, b, overlap):
    m, block = k * p, max(f, b, overlap * (f + b))  # no block is shorter than either op
    lists = lists_of("combined_1f1b", p, m, num_chunks=v)
    expected = (m * v + p - 1) * (f + b) - (f + b - block) * (m * v - (v - 1) * p - 1)
    timed = brute_force(lists, f, b, 0, fused=block)
    assert timed.makespan == pytest.approx(expected, rel=1e-12)
    assert timed.peaks("W") == [2 * (p - r - 1) + (v - 1) * p + 2 for r in range(p)]


@quick
@given(p=st.integers(1, 6), v=st.integers(1, 3), m=microbatches, f=seconds, b=seconds,
       c=st.integers(0, 9))  # fmt: skip
def test_looped_bfs_pays_wraps_only_for_few_microbatches(brute_force, p, v, m, f, b, c):
    lists = lists_of("looped_bfs", p, m, num_chunks=v)
    ideal = (m * v + p - 1 if m >= p else p * v + m - 1) * (f + b)
    timed = brute_force(lists, f, b, 0)
    assert timed.makespan == ideal
    assert timed.peaks("W") == [m * v] * p
    if m >= p > 1:
        wraps = max(0, p * c - (m - p) * f) + max(0, p * c - (m - p) * b)
        expected = ideal + 2 * (p - 1) * c + (v - 1) * wraps
        assert brute_force(lists, f, b, 0, hop=c).makespan == expected


@quick
@given(p=devices, data=st.data(), f=seconds, i=seconds)
def test_zb_h1_fills_its_bubble_with_weights(brute_force, p, data, f, i):
    m, w = data.draw(st.integers(p, 20)), data.draw(st.integers(1, min(f, i)))
    timed = brute_force(lists_of("zb_h1", p, m), f, i, w)
    assert timed.makespan == m * (f + i + w) + (p - 1) * (f + i - w)
    assert timed.peaks("W") == [p] * p
    assert timed.peaks("I") == [p - r for r in range(p)]


@quick
@given(p=st.integers(1, 6), data=st.data(), f=st.integers(5, 15), i=st.integers(5, 15))
def test_zb_h1_pays_four_hops_a_device(brute_force, p, data, f, i):
    m, w = data.draw(st.integers(2 * p, 20)), data.draw(st.integers(5, min(f, i)))
    c = data.draw(st.integers(0, 2 * w // 5))
    timed = brute_force(lists_of("zb_h1", p, m), f, i, w, hop=c)
    assert timed.makespan == m * (f + i + w) + (p - 1) * (f + i - w) + 4 * (p - 1) * c


@quick
@given(p=st.integers(1, 6), data=st.data(), f=seconds, i=seconds, c=st.integers(0, 1))
def test_zb_h2_has_no_bubble_in_its_span(brute_force, p, data, f, i, c):
    w = data.draw(st.integers(1, min(f, i)))
    assume(2 * w <= f + i)
    m = data.draw(st.integers(max(1, 2 * p - 1 + c), 20))
    lists = lists_of("zb_h2", p, m)
    work = m * (f + i + w)
    timed = brute_force(lists, f, i, w)
    assert timed.makespan == work + (p - 1) * max(f + i - 2 * w, f)
    assert timed.peaks("W") == [2 * p - 1] * p
    assert timed.peaks("I") == [2 * (p - r) - 1 for r in range(p)]
    assume(c == 0 or min(w, f, i) >= 5)  # the range of the formula: a hop well below the ops
    assert brute_force(lists, f, i, w, hop=c).span == work + (p - 1) * (f + i + 2 * c - 2 * w)


@quick
@given(p=st.integers(1, 7), data=st.data(), i=seconds)
def test_zb_v_has_no_bubble_in_its_span(brute_force, p, data, i):
    f = data.draw(st.integers(1, i))
    w = data.draw(st.integers(1, f))
    m = data.draw(st.integers(2 * p - 1, 18))
    lists = lists_of("zb_v", p, m)
    timed = brute_force(lists, f, i, w)
    assert timed.span == 2 * m * (f + i + w) + 2 * (p - 1) * (i - w)
    assert timed.peaks("W") == [2 * p] * p
    even = brute_force(lists, f, f, f)
    assert even.span == 6 * m * f
    assert even.makespan == 6 * m * f + (p - 1) * f


@quick
@given(p=st.integers(2, 6), v=st.integers(1, 3), k=st.integers(1, 3), data=st.data(), f=seconds,
       i=seconds)  # fmt: skip
def test_interleaved_zb_fills_its_bubble_with_weights(brute_force, p, v, k, data, f, i):
    m, w = k * p, data.draw(st.integers(1, min(f, i)))
    timed = brute_force(lists_of("interleaved_zb", p, m, num_chunks=v), f, i, w)
    assert timed.makespan == m * v * (f + i + w) + (p - 1) * (f + i - w)
    assert timed.peaks("W") == [p * v] * p


@quick
@given(half=st.integers(1, 4), extra=st.integers(0, 4), data=st.data(), f=seconds)
def test_dualpipe_idles_as_its_readme_says_for_equal_passes(brute_force, half, extra, data, f):
    p, m = 2 * half, 4 * half + 2 * extra
    w = data.draw(st.integers(1, f))
    b = f + w
    block = data.draw(st.sampled_from([max(f, b), 0.75 * (f + b), f + b]))
    assume(block >= max(f, b))
    timed = brute_force(lists_of("dualpipe", p, m), f, f, w, fused=block)
    assert timed.most_idle == pytest.approx((half - 1) * (block + b - 3 * w), abs=1e-9)
    assert timed.peaks("W") == [p + 1] * p


@quick
@given(p=st.integers(1, 5), extra=st.integers(0, 6), data=st.data(), f=seconds)
def test_dualpipe_v_is_dualpipe_cut_in_half(brute_force, p, extra, data, f):
    w = data.draw(st.integers(1, f))
    b = f + w
    block = data.draw(st.sampled_from([max(f, b), 0.75 * (f + b), f + b]))
    assume(block >= max(f, b))
    timed = brute_force(lists_of("dualpipe_v", p, 2 * p + extra), f, f, w, fused=block)
    assert timed.most_idle == pytest.approx((p - 1) * (block + b - 3 * w), abs=1e-9)
    assert timed.peaks("W") == [2 * p + 1] * p


@quick
@given(half=st.integers(1, 4), k=st.integers(1, 4), f=seconds, b=seconds)
def test_chimera_idles_in_its_middle(brute_force, half, k, f, b):
    p = 2 * half
    lists = lists_of("chimera", p, k * p)
    timed = brute_force(lists, f, b, 0)
    bubble = (p - 2) * max(f, b) + (k - 1) * (p - 2) * abs(b - f)
    assert timed.makespan == k * p * (f + b) + bubble
    assert timed.peaks("W") == [half + 1 + min(r, p - 1 - r) for r in range(p)]
    assert max(timed.peaks("W")) == p


@quick
@given(half=st.integers(1, 4), k=st.integers(1, 3), f=seconds, b=seconds)
def test_bitpipe_idles_as_chimera_with_half_the_ops(brute_force, half, k, f, b):
    p = 2 * half
    timed = brute_force(lists_of("bitpipe", p, k * p), f, b, 0)
    bubble = (p - 2) * max(f, b) + (k - 1) * (p - 2) * abs(b - f)
    assert timed.makespan == 2 * k * p * (f + b) + bubble
    assert max(timed.peaks("W")) == 2 * p


@quick
@given(p=devices, m=st.integers(1, 8), q=st.integers(1, 4), f=seconds, b=seconds)
def test_slices_divide_the_bubble(brute_force, p, m, q, f, b):
    for name in ("seq_1f1b", "terapipe"):
        timed = brute_force(lists_of(name, p, m, num_slices=q), f, b, 0)
        assert timed.makespan == (m * q + p - 1) * (f + b)
        held = m * q if name == "terapipe" else None
        assert timed.peaks("W") == [held or min(m * q, p - r - 1 + q) for r in range(p)]


@pytest.mark.parametrize("p", [2, 3, 4, 5, 6, 7, 8, 12, 16])
def test_v_half_and_v_min_keep_their_memory_and_bubble(brute_force, p):
    m = 2 * p
    half = brute_force(lists_of("v_half", p, m), 1, 1, 1)
    expected = 1 if p == 2 else 3 * p - (7 if p % 2 == 0 else 4)
    assert half.span - 6 * m == expected
    assert max(half.peaks("W")) == 2 * ((p + 2) // 2)
    least = brute_force(lists_of("v_min", p, m), 1, 1, 1)
    assert least.span - 6 * m == 4 * p - (7 if p % 3 == 0 else 5)
    assert max(least.peaks("W")) == 2 * ((p + 4) // 3)


@pytest.mark.parametrize(("p", "m", "name", "rate"), [
    (4, 8, "v_half", 0.0947), (4, 12, "v_half", 0.0652),
    (8, 16, "v_min", 0.2202), (3, 8, "v_min", 0.0949),
])  # fmt: skip
def test_bubble_rates_that_the_authors_tool_prints(brute_force, p, m, name, rate):
    span = brute_force(lists_of(name, p, m), 1000, 1000, 1000, hop=1).span
    assert round((span - 6000 * m) / span, 4) == rate


@pytest.mark.parametrize(
    ("p", "bubble", "held"),
    [(2, 4, 2), (3, 8, 3), (4, 15, 3), (5, 18, 4), (6, 22, 5), (7, 30, 5), (8, 33, 6)],
)
def test_1f1b_v_holds_less_and_idles_less_than_1f1b(brute_force, p, bubble, held):
    m = 2 * p
    timed = brute_force(lists_of("1f1b_v", p, m), 1, 1, 1)
    assert timed.span - 6 * m == bubble
    assert max(timed.peaks("W")) == 2 * held


@pytest.mark.parametrize(("group", "held", "bubble"), [(2, 6, 8), (4, 8, 6)])
def test_grouped_interleaved_trades_memory_for_bubble(brute_force, group, held, bubble):
    lists = lists_of("grouped_interleaved", 4, 8, num_chunks=2, group_size=group)
    timed = brute_force(lists, 1, 1, 1)
    assert (max(timed.peaks("W")), timed.makespan - 48) == (held, bubble)


@quick
@given(p=devices, m=st.integers(1, 10), f=seconds, b=seconds)
def test_hanayo_with_one_wave_is_a_v_and_more_waves_idle_less(brute_force, p, m, f, b):
    order = make_order("hanayo", num_devices=p, num_microbatches=m, num_chunks=2)
    home = {int(s): int(d) for s, d in zip(order.stage, order.device, strict=True)}
    assert home == {s: min(s, 2 * p - 1 - s) for s in range(2 * p)}
    bubbles = []
    for waves in (1, 2, 4):
        lists = lists_of("hanayo", p, p, num_chunks=2 * waves)
        makespan = brute_force(lists, 1, 2, 0).makespan
        bubbles.append(makespan / (6 * waves * p))
    assert bubbles == sorted(bubbles, reverse=True)


@quick
@given(p=devices, f=seconds, b=seconds, c=st.integers(0, 9))
def test_one_microbatch_takes_the_same_in_all_loops_of_one_stage(brute_force, p, f, b, c):
    for name in ("naive", "gpipe", "1f1b", "eager_1f1b", "zb_h1", "zb_h2", "zb_auto"):
        timed = brute_force(lists_of(name, p, 1), f, b, 0, hop=c)
        assert timed.makespan == p * (f + b) + 2 * (p - 1) * c


def stage_times(data, p):
    return [data.draw(st.lists(seconds, min_size=p, max_size=p)) for _ in range(2)]


@quick
@given(p=st.integers(2, 6), m=st.integers(1, 9), c=st.integers(0, 9), data=st.data())
def test_gpipe_of_unequal_stages_waits_for_the_slowest(brute_force, p, m, c, data):
    f, b = stage_times(data, p)
    timed = brute_force(lists_of("gpipe", p, m), f, b, 0, hop=c)
    slowest = (m - 1) * (max(f) + max(b))
    assert timed.makespan == sum(f) + sum(b) + slowest + 2 * (p - 1) * c


@quick
@given(p=st.integers(1, 5), c=st.integers(0, 9), data=st.data())
def test_1f1b_of_unequal_stages_has_the_period_of_its_slowest_range(brute_force, p, c, data):
    """The period is the largest mean, over ranges of stages, of the work and two hops between."""
    f, b = stage_times(data, p)
    work = [sum(pair) for pair in zip(f, b, strict=True)]
    period = max(
        (sum(work[i : j + 1]) + 2 * c * (j - i)) / (j - i + 1)
        for i in range(p)
        for j in range(i, p)
    )
    # A slope over a multiple of every range's length, after the transient.
    few, more = (brute_force(lists_of("1f1b", p, m), f, b, 0, hop=c).makespan for m in (60, 120))
    assert (more - few) / 60 == pytest.approx(period, rel=1e-12)
    bound = max(120 * work[i] + sum(work[:i]) for i in range(p))
    assert more >= bound
