"""What holds for every order: it can run, it says what it needs, it refuses what it cannot do."""

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpsim.errors import ScheduleError
from mpsim.report.schedule_measures import peak_held
from mpsim.schedule.check import check
from mpsim.schedule.ops import Kind
from mpsim.schedule.orders import SCHEDULES, OpTimes, make_order
from mpsim.schedule.text import order_of, rows_of

NAMES = """
naive gpipe 1f1b eager_1f1b pipedream pipedream_2bw interleaved_1f1b combined_1f1b looped_bfs zb_h1
zb_h2 zb_auto interleaved_zb zb_v v_half v_min 1f1b_v dualpipe dualpipe_v chimera bitpipe hanayo
seq_1f1b terapipe grouped_interleaved
"""


def test_all_schedules_are_there():
    assert set(NAMES.split()) <= set(SCHEDULES)


@pytest.mark.parametrize("name", list(SCHEDULES))
def test_each_schedule_says_what_is_legal_and_where_it_is_from(name):
    function = SCHEDULES[name].function
    text = f"{sys.modules[function.__module__].__doc__} {function.__doc__}"
    assert "legal" in function.__doc__.lower()
    assert SCHEDULES[name].source or name == "naive"
    assert "lacement" in text or "stage s on device s" in text or "Device r holds stages" in text


@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from(list(SCHEDULES)),
    p=st.integers(1, 8),
    m=st.integers(1, 24),
    chunks=st.integers(1, 4),
    slices=st.integers(1, 3),
    times=st.tuples(*[st.integers(1, 9)] * 3, st.integers(0, 5)),
)
def test_every_order_that_is_given_can_run(name, p, m, chunks, slices, times):
    known = SCHEDULES[name]
    try:
        order = make_order(
            name,
            num_devices=p,
            num_microbatches=m,
            num_chunks=chunks if known.chunks == "many" else None,
            num_slices=slices,
            times=OpTimes(*times[:3], hop=times[3]),
        )
    except ScheduleError:
        return  # the table below has what is refused
    rows = rows_of(order)
    check(rows)
    again = order_of(rows, name=name)
    for field in ("kind", "stage", "microbatch", "slice", "starts"):
        assert np.array_equal(getattr(order, field), getattr(again, field)), field
    assert np.array_equal(order.block >= 0, again.block >= 0)
    assert order.num_stages == again.num_stages == p * max(1, order.num_stages // p)
    assert (Kind.I in order.kind) <= known.splits_backward


@settings(max_examples=60, deadline=None)
@given(
    p=st.integers(1, 6),
    m=st.integers(1, 16),
    limit=st.integers(2, 40).map(lambda half: half / 2),
    times=st.tuples(*[st.integers(1, 9)] * 3, st.integers(0, 5)),
    freed=st.sampled_from([0.0, 0.25, 0.5, 1.0]),
)
def test_zb_auto_never_exceeds_its_memory_limit(p, m, limit, times, freed):
    order = make_order(
        "zb_auto",
        num_devices=p,
        num_microbatches=m,
        times=OpTimes(*times[:3], hop=times[3]),
        memory_limit=limit,
        freed_at_input=freed,
    )
    assert peak_held(order, freed_at_input=freed).max() <= limit + 1e-9


@pytest.mark.parametrize(
    ("name", "asked", "message"),
    [
        ("gpip", {}, "'gpip' is not a schedule; did you mean 'gpipe'?"),
        ("1f1b", {"num_chunks": 2}, "1f1b places one stage on a device, not 2: use chunks 1 "
         "(or the schedule interleaved_1f1b)"),
        ("zb_v", {"num_chunks": 3}, "zb_v places two stages on a device, not 3: use chunks 2"),
        ("interleaved_1f1b", {"num_microbatches": 10},
         "m=10 must be a multiple of p=4, or use group size 5"),
        ("interleaved_1f1b", {"num_microbatches": 3},
         "m=3 must be a multiple of p=4, or use group size 3"),
        ("interleaved_1f1b", {"group_size": 2}, "group size 2 is less than p=4 and deadlocks with "
         "m=8 microbatches: use group size 4"),
        ("interleaved_1f1b", {"group_size": 9}, "group size 9 exceeds m=8: use at most 8"),
        ("combined_1f1b", {"num_chunks": 1}, "needs 2 or more chunks on p=4 devices"),
        ("interleaved_zb", {"num_microbatches": 9},
         "m=9 must be a multiple of the 2 rounds of about p=4 microbatches: use 8 or 10"),
        ("pipedream_2bw", {"num_microbatches": 3}, "m=3 must be at least p=4"),
        ("dualpipe", {"num_devices": 5}, "p=5 must be even: use 4 or 6"),
        ("dualpipe", {"num_microbatches": 9}, "m=9 must be even and at least 2 p = 8: use 10"),
        ("dualpipe_v", {"num_microbatches": 7}, "m=7 must be at least 2 p = 8: use 8"),
        ("chimera", {"num_microbatches": 6}, "m=6 must be a multiple of p=4: use 4 or 8"),
        ("chimera", {"group_size": 3}, "pipelines (group size), 3, must be even and divide p=4"),
        ("bitpipe", {"num_microbatches": 2}, "m=2 must be a multiple of p=4: use 4"),
        ("hanayo", {"num_chunks": 3}, "chunks=3 must be even, two a wave: use 4"),
        ("zb_auto", {"memory_limit": 0.5}, "a memory limit of 0.5 holds no microbatch"),
        ("gpipe", {"num_microbatches": 0}, "microbatches must be 1 or more, not 0"),
    ],
)  # fmt: skip
def test_what_cannot_be_had_is_refused_with_what_can(name, asked, message):
    with pytest.raises(ScheduleError) as error:
        make_order(name, **({"num_devices": 4, "num_microbatches": 8} | asked))
    assert message in str(error.value)


@pytest.mark.parametrize(("name", "copies"), [
    ("1f1b", 1), ("zb_v", 1), ("dualpipe", 2), ("dualpipe_v", 1), ("chimera", 2), ("bitpipe", 2),
])  # fmt: skip
def test_weight_copies(name, copies):
    order = make_order(name, num_devices=4, num_microbatches=8)
    assert order.weight_copies == copies
    holders = {(int(s), int(d)) for s, d in zip(order.stage, order.device, strict=True)}
    assert len(holders) == copies * order.num_stages


def test_chimera_with_four_pipelines_holds_four_copies():
    order = make_order("chimera", num_devices=8, num_microbatches=8, group_size=4)
    assert order.weight_copies == 4
    holders = {(int(s), int(d)) for s, d in zip(order.stage, order.device, strict=True)}
    assert len(holders) == 4 * 8


def test_slices_are_those_of_sequence_schedules_alone():
    order = make_order("seq_1f1b", num_devices=2, num_microbatches=3, num_slices=4)
    assert (order.num_slices, set(order.slice.tolist())) == (4, {0, 1, 2, 3})
    whole = make_order("seq_1f1b", num_devices=2, num_microbatches=3)
    assert (whole.num_slices, set(whole.slice.tolist())) == (1, {-1})
    assert make_order("1f1b", num_devices=2, num_microbatches=3, num_slices=4).num_slices == 1


def test_slower_hops_change_a_searched_order_and_leave_others():
    slow = OpTimes(5, 6, 4, hop=9)
    for name, known in SCHEDULES.items():
        orders = [
            make_order(name, num_devices=4, num_microbatches=12, times=times)
            for times in (None, slow)
            if name not in ("grouped_interleaved", "chimera", "dualpipe")
        ]
        if orders and not known.searched:
            assert np.array_equal(orders[0].kind, orders[1].kind)


@pytest.mark.parametrize("name", ["zb_h1", "zb_v", "dualpipe"])
def test_weights_come_after_inputs_in_their_order(name):
    order = make_order(name, num_devices=4, num_microbatches=12)
    for begin, end in zip(order.starts[:-1], order.starts[1:], strict=True):
        kinds = order.kind[begin:end]
        ahead = np.cumsum((kinds == Kind.I).astype(int) - (kinds == Kind.W))
        assert ahead.min() >= 0
        assert ahead[-1] == 0
