"""``mpsim schedule`` as its user calls it."""

import json
import os
import subprocess
import sys

import pytest
from click.testing import CliRunner

from mpsim.cli import main


def run(*arguments, code=0, **options):
    result = CliRunner().invoke(main, ["schedule", *map(str, arguments)], **options)
    assert result.exit_code == code, result.output
    return result.output


def asked(name="1f1b", stages=4, microbatches=8):
    return [name, "--stages", stages, "--microbatches", microbatches]


def test_text_has_grid_bubbles_memory_messages_and_weights():
    output = run(*asked())
    assert "1f1b: 4 stages on 4 devices, 8 microbatches, placement loop" in output
    assert "device 3          F0 B0─── F1 B1─── F2 B2───" in output
    assert "makespan     33         bubble 9 (27.27%), work 24" in output
    assert "0            24         9          4         4          8" in output
    assert "messages     48 in all: fwd 0->1 8" in output
    assert "weights      one copy on a device" in output


def test_asynchronous_schedules_show_their_steady_state_and_versions():
    output = run(*asked("pipedream"))
    assert "steady state 3          a microbatch, bubble 0" in output
    assert "versions kept 4, 3, 2, 1" in output


def test_json_has_the_measures():
    output = run(*asked("zb_v", 2, 4), "--times", "F=3,I=3,W=2", "--hop", 0.5, "--json")
    record = json.loads(output)
    assert (record["makespan"], record["span"]) == (68.5, 68.0)  # a row of the golden timings
    assert record["busy"] == [64.0, 64.0]
    assert record["peak_activations"] == {"freed_at_I": [4, 4], "freed_at_W": [4, 4]}
    assert record["p2p"] == {"fwd 0->1": 4, "bwd 0->1": 4, "fwd 1->0": 4, "bwd 1->0": 4}
    assert record["ops"][1][:4] == ["1F0", "2F0", "1F1", "2F1"]
    assert (record["makespan_bubble"], record["span_bubble"]) == (4.5, 4.0)
    assert record["weight_copies"] == 1


def test_json_writes_fused_pairs_in_brackets():
    record = json.loads(run(*asked("dualpipe"), "--times", "F=1,B=2,FB=2.5", "--json"))
    assert "(0F3+3B5)" in record["ops"][0]
    assert record["weight_copies"] == 2


@pytest.mark.parametrize(
    ("text", "makespan"),
    [("F=1,B=2", 33), ("F=1,I=1,W=1", 33), ("f=1, b=2, i=1.5", 33), ("F=2,B=1,W=1", 33)],
)
def test_times_are_given_by_letter(text, makespan):
    assert json.loads(run(*asked(), "--times", text, "--json"))["makespan"] == makespan


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("F", "'F' is not a time such as F=1"),
        ("F=fast", "'F=fast' is not a time such as F=1"),
        ("Q=1", "'Q' is none of F, B, I, W and FB"),
        ("F=-1", "times must be numbers of 0 or more"),
        ("B=2,I=1,W=2", "B=2 is not I + W (1 + 2)"),
        ("B=2,I=3", "B=2 is not I + W (3 + -1)"),
    ],
)
def test_times_that_make_no_sense_are_refused(text, message):
    assert message in run(*asked(), "--times", text, code=2)


def test_csv_goes_out_and_comes_back(tmp_path):
    path = tmp_path / "order.csv"
    run(*asked("zb_v"), "--csv", path)
    here, there = (json.loads(run(*what, "--json")) for what in (asked("zb_v"), [path]))
    assert there.pop("schedule") == "order"
    assert here.pop("schedule") == "zb_v"
    assert here == there


def test_csv_with_communication_is_timed_as_well(tmp_path):
    path = tmp_path / "order.csv"
    path.write_text(run(*asked("1f1b", 2, 2), "--csv", "-", "--comms"))
    assert path.read_text().splitlines()[1].startswith("1UNSHARD,1RECV_F0,1F0,1RECV_F1,1B0")
    assert json.loads(run(path, "--json"))["makespan"] == 9


def test_csv_from_standard_input():
    assert "makespan     3 " in run("-", input="0F0,0B0\n")


def test_a_wrong_csv_is_refused_with_a_mark(tmp_path):
    path = tmp_path / "own.csv"
    path.write_text("0F0,0B0\n1B0,1F0\n")
    output = run(path, code=2)
    assert "own.csv: 1B0 stands before its input 1F0" in output
    assert "^^^ here" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (asked("1f1bb"), "'1f1bb' is not a schedule; did you mean '1f1b'?"),
        ([*asked("interleaved_1f1b", 4, 10), "--chunks", 2],
         "m=10 must be a multiple of p=4, or use group size 5"),
        (["1f1b"], "1f1b needs --stages and --microbatches"),
        ([], "name a schedule or a CSV file"),
        (["--compare", "all"], "--compare needs --stages and --microbatches"),
        ([*asked("", 4, 8)[1:], "--compare", "1f1b,zb_h1,gpip"],
         "error: --compare: 'gpip' is not a schedule; did you mean 'gpipe'?"),
        ([*asked("", 4, 8)[1:], "--compare", "1f1b,xyz"],
         "error: --compare: 'xyz' is not a schedule; there are naive, gpipe,"),
        (["nothere.csv"], "nothere.csv: No such file"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_exits_with_two(arguments, message):
    assert message in run(*arguments, code=2)


def test_plot_is_written(tmp_path):
    run(*asked("zb_h1"), "--plot", tmp_path / "order.svg")
    assert "<svg" in (tmp_path / "order.svg").read_text()


def test_comparison_ranks_and_explains():
    output = run("--compare", "all", "--stages", 4, "--microbatches", 9, "--memory-limit", 6)
    lines = output.splitlines()
    names = [line.split()[0] for line in lines[1 : lines.index("")]]
    assert names[0] == "pipedream"
    assert names.index("zb_h1") < names.index("1f1b") < names.index("naive")
    assert "gpipe                holds 9 microbatches, over 6" in output
    assert "interleaved_1f1b     m=9 must be a multiple of p=4" in output


def test_comparison_of_some_as_json():
    output = run(
        "--compare", "1f1b,gpipe", "--stages", 4, "--microbatches", 8, "--json", "--hop", 0.5
    )
    rows = json.loads(output)["schedules"]
    assert [row["schedule"] for row in rows] == ["gpipe", "1f1b"]
    assert rows[0]["makespan"] == 36


def test_comparison_of_all_is_quick():
    """Two seconds are promised for 16 devices and 128 microbatches, start-up included. Processor
    time is taken, which other work on the machine hardly changes, and half as much again allowed.
    """
    command = [sys.executable, "-m", "mpsim", "schedule", "--compare", "all"]
    before = os.times()
    subprocess.run(
        [*command, "--stages", "16", "--microbatches", "128"], check=True, capture_output=True
    )
    after = os.times()
    assert after.children_user - before.children_user < 3


def test_a_file_with_other_numbers_than_asked_for_is_refused(tmp_path):
    path = tmp_path / "two.csv"
    path.write_text("0F0,0B0\n1F0,1B0\n")
    result = CliRunner().invoke(main, ["schedule", str(path), "--stages", "4"])
    assert result.exit_code == 2
    assert "has 2 stages, --stages says 4" in result.stderr
