"""Measures of orders: the golden timings, the published tables, and brute force."""

import json
import math

import pytest

from mpsim.errors import ScheduleError
from mpsim.report.grid import _legend, draw, strips
from mpsim.report.schedule_compare import Wanted, compare
from mpsim.report.schedule_measures import measure, peak_held, steady_period
from mpsim.schedule.orders import SCHEDULES, OpTimes, make_order
from mpsim.schedule.text import order_of, read_csv

NAMES = {
    "interleaved": "interleaved_1f1b",
    "eager1f1b": "eager_1f1b",
    "dualpipev": "dualpipe_v",
    "seq1f1b": "seq_1f1b",
}
"""What the timings call a schedule, and its name here."""


def test_golden_timings_are_reproduced(shared):
    rows = json.loads((shared / "schedules/golden/timings.json").read_text())["rows"]
    assert len(rows) == 272
    for row in rows:
        order = make_order(
            NAMES.get(row["schedule"], row["schedule"]),
            num_devices=row["p"],
            num_microbatches=row["m"],
            num_chunks=row["v"],
            num_slices=row["q"],
            group_size=row.get("N"),
        )
        times = OpTimes(row["tF"], row["tBi"], row["tW"], hop=row["tComm"], fused=row["tFB"])
        found = measure(order, times)
        # Sums of halves and wholes are exact, but a block of 0.75 (f + b) is dealt to its two
        # ops by a quotient: 1e-12 is some roundings.
        assert found.makespan == pytest.approx(row["makespan"], rel=1e-12), row
        assert found.span == pytest.approx(row["max_span"], rel=1e-12), row
        assert found.busy.tolist() == pytest.approx(list(row["busy"].values()), rel=1e-12), row
        at_weight, at_input = row["peak_act_free_at_W"], row["peak_act_free_at_I"]
        assert found.peaks_freed_at_weight.tolist() == list(at_weight.values()), row
        assert found.peaks_freed_at_input.tolist() == list(at_input.values()), row
        assert found.p2p == row["p2p"], row


def rate(seconds, work):
    return round((seconds - work) / seconds, 4)


def table_row(row):
    """Bubble rates of the hand-made orders and what an order needs to be asked for."""
    times = OpTimes(row["tF"], row["tB"], row["tW"], hop=row["tComm"])
    work = row["m"] * (times.forward + times.backward)
    asked = {"num_devices": row["p"], "num_microbatches": row["m"]}
    found = {
        "r1F1B": rate(measure(make_order("1f1b", **asked), times).makespan, work),
        "ZB_H1": rate(measure(make_order("zb_h1", **asked), times).makespan, work),
        "ZB_H2": rate(measure(make_order("zb_h2", **asked), times).span, work),
    }
    # Share of an activation freed at I, from the tables' own memory model (per token and layer).
    freed = 1 - 32 * row["h"] / (34 * row["h"] + 5 * row["a"] * 1024)
    return found, times, work, asked | {"freed_at_input": freed}


@pytest.mark.parametrize("number", [0, 1, 3, 6])
def test_table_of_the_zero_bubble_paper(shared, number):
    table = json.loads((shared / "schedules/golden/zb_paper_tables.json").read_text())["iclr"]
    row = table[number]
    found, times, work, asked = table_row(row)
    for column, limit in (("ZB_1p", row["p"]), ("ZB_2p", 2 * row["p"])):
        order = make_order("zb_auto", **asked, times=times, memory_limit=limit)
        found[column] = rate(measure(order, times).span, work)
    chunks = row["v_interleaved"]
    share = OpTimes(
        times.forward / chunks, times.input / chunks, times.weight / chunks, hop=times.hop
    )
    order = make_order("interleaved_1f1b", **asked, num_chunks=chunks)
    found["full_dep_1F1B_I"] = rate(measure(order, share).makespan, work)
    assert found == {column: row[column] for column in found}


@pytest.mark.parametrize("number", [0, 3, 6])
def test_table_of_the_controllable_memory_paper(shared, number):
    table = json.loads((shared / "schedules/golden/zb_paper_tables.json").read_text())["arxiv"]
    row = table[number]
    found, times, work, asked = table_row(row)
    chunk = OpTimes(*row["chunk_times_for_ZBV"], hop=times.hop)
    order = make_order("zb_v_greedy", **asked, times=chunk)
    found["ZBV"] = rate(measure(order, chunk).span, work)
    assert found == {column: row[column] for column in found}


@pytest.mark.parametrize("name", list(SCHEDULES))
@pytest.mark.parametrize("hop", [0.0, 0.5, 4.0])
def test_a_schedule_obeys_what_all_do(name, hop):
    """No device is busy for longer than the makespan, spans lie within it, one microbatch passes
    all stages, and slower hops or ops never make it shorter."""
    p, m = 4, 8
    order = make_order(name, num_devices=p, num_microbatches=m)
    times = OpTimes(3, 4, 2, hop=hop)
    found = measure(order, times)
    chain = order.num_stages * (times.forward + times.input) + times.weight
    assert found.makespan >= max(found.busy.max(), chain)
    assert found.span <= found.makespan
    assert found.busy.tolist() == [m * order.num_stages // p * 9] * p
    for slower in (OpTimes(3, 4, 2, hop=hop + 1), OpTimes(4, 4, 2, hop), OpTimes(3, 5, 3, hop)):
        assert measure(order, slower).makespan >= found.makespan


@pytest.mark.parametrize("c", [0, 1, 7])
@pytest.mark.parametrize("p", [2, 4])
def test_steady_period_of_an_asynchronous_schedule(p, c):
    """(f + b) + 2 c (p - 1) / p: p microbatches under way share a round trip."""
    period = steady_period(
        lambda m: make_order("pipedream", num_devices=p, num_microbatches=m),
        OpTimes(2, 3, 1, hop=c),
        num_devices=p,
    )
    assert period == pytest.approx(6 + 2 * c * (p - 1) / p, rel=1e-12)


def test_activations_are_held_by_shares():
    order = order_of(read_csv("0F0,0F1,0I0,0F2,0I1,0W0,0I2,0W1,0W2"), name="own")
    assert peak_held(order, freed_at_input=0.0).tolist() == [3.0]
    assert peak_held(order, freed_at_input=0.25).tolist() == [2.75]
    assert peak_held(order, freed_at_input=1.0).tolist() == [2.0]


def test_a_deadlocked_order_is_not_timed():
    order = order_of(read_csv("0F0,0B0,0F1,0B1\n1F1,1F0,1B0,1B1"), name="own")
    with pytest.raises(ScheduleError, match="deadlock"):
        measure(order, OpTimes())


def test_comparison_ranks_all_schedules_for_the_same_work():
    result = compare(Wanted(num_devices=4, num_microbatches=8, times=OpTimes(4, 4, 4)))
    assert {row.name for row in result.rows} | set(result.refused) == set(SCHEDULES)
    assert not result.refused
    makespans = [row.makespan for row in result.rows]
    assert makespans == sorted(makespans)
    assert {row.work for row in result.rows} == {96.0}
    bubbles = {row.name: row.makespan - row.work for row in result.rows}
    assert bubbles["1f1b"] == 3 * 12
    assert bubbles["interleaved_1f1b"] == 3 * 6
    assert bubbles["zb_h1"] == 3 * 4
    assert bubbles["pipedream"] == 0
    peaks = {row.name: row.peak for row in result.rows}
    assert (peaks["1f1b"], peaks["gpipe"], peaks["v_half"]) == (4, 8, 3)


def test_comparison_says_why_a_schedule_is_out():
    wanted = Wanted(num_devices=4, num_microbatches=10, times=OpTimes(), memory_limit=5)
    refused = compare(wanted, ["gpipe", "interleaved_1f1b", "zb_auto", "bitpip"]).refused
    assert refused["gpipe"] == "holds 10 microbatches, over 5"
    assert refused["interleaved_1f1b"].startswith("m=10 must be a multiple of p=4")
    assert "did you mean 'bitpipe'?" in refused["bitpip"]
    assert "zb_auto" not in refused


def test_grid_is_in_proportion_to_time():
    order = make_order("1f1b", num_devices=2, num_microbatches=2)
    lines = ["".join(piece.text for piece in strip) for strip in
             strips(measure(order, OpTimes(1, 1, 1)), width=80)]  # fmt: skip
    assert lines == ["F0 F1       B0───    B1─── ", "   F0 B0─── F1 B1─── "]


def test_grid_without_room_shows_letters_and_says_that_it_ends():
    order = make_order("zb_h1", num_devices=2, num_microbatches=8)
    lines = ["".join(piece.text for piece in strip) for strip in
             strips(measure(order, OpTimes()), width=30)]  # fmt: skip
    assert lines[0] == "FF·IWFIWFIWFIWFIWFIWFIWIW"
    assert lines[1] == "·FIFIWFIWFIWFIWFIWFIWFIWW"
    short = strips(measure(order, OpTimes()), width=10)
    assert "".join(piece.text for piece in short[0]) == "FF·IWFIWF…"


@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_picture_is_written(tmp_path, suffix):
    path = tmp_path / f"order.{suffix}"
    draw(measure(make_order("dualpipe", num_devices=4, num_microbatches=8), OpTimes()), path)
    head = path.read_bytes()[:200]
    assert (b"<?xml" in head) if suffix == "svg" else head.startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("1f1b", ["forward", "backward"]),
        ("zb_h1", ["forward", "input gradient", "weight gradient"]),
        (
            "dualpipe_v",
            [
                *("forward", "backward", "input gradient", "weight gradient"),
                "pale: second stage of a device",
            ],
        ),
    ],
)
def test_the_legend_tells_all_shades_apart(name, labels):
    entries = list(_legend(make_order(name, num_devices=4, num_microbatches=8)))
    assert [label for label, *_ in entries] == labels
    assert len({(colour, strength) for _, colour, strength in entries}) == len(labels)


def test_the_legend_of_many_stages_names_every_second():
    order = make_order("interleaved_1f1b", num_devices=4, num_microbatches=8, num_chunks=3)
    assert list(_legend(order))[-1][0] == "pale: every second stage of a device"


def test_no_time_makes_no_bubble():
    found = measure(make_order("1f1b", num_devices=2, num_microbatches=2), OpTimes(0, 0, 0))
    assert found.makespan == found.makespan_bubble == 0
    assert not math.isnan(found.span)
    assert strips(found, width=40)
