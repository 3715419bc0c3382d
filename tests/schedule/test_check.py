"""A wrong order is refused, with the grid and a mark on an op that is to blame."""

from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpsim.errors import ScheduleError
from mpsim.schedule.check import check, stuck
from mpsim.schedule.ops import Op
from mpsim.schedule.orders import make_order
from mpsim.schedule.text import cell_text, read_csv, rows_of

GOOD = "0F0,0F1,0B0,0B1\n1F0,1B0,1F1,1B1"


def complaint(text):
    with pytest.raises(ScheduleError) as error:
        check(read_csv(text), name="own.csv")
    return error.value


def marked(grid):
    """The op that the carets stand under."""
    lines = grid.splitlines()
    under = next(number for number, line in enumerate(lines) if line.endswith(" here"))
    return lines[under - 1][lines[under].index("^") :].split()[0]


def test_a_right_order_is_let_through():
    check(read_csv(GOOD))


@pytest.mark.parametrize(
    ("text", "message", "mark"),
    [
        (
            "0F0,0F1,0B0\n1F0,1B0,1F1,1B1",
            "own.csv: 0B1 is missing (or 0I1 and 0W1)",
            "0F1",
        ),
        ("0F0,0B0,0B1\n1F0,1B0,1F1,1B1", "own.csv: 0F1 is missing", "0B1"),
        ("0F0,0F1,0B0,0B1\n1F0,1I0,1F1,1B1", "own.csv: 1W0 is missing for 1I0", "1I0"),
        (
            "0F0,0F1,0B0,0B1\n1F0,1B0,1F1,1B1,1W1",
            "own.csv: 1W1 stands beside 1B1, which holds it",
            "1W1",
        ),
        ("0F0,0F1,0B0,0B1,0B0\n1F0,1B0,1F1,1B1", "0B0 stands twice, first on device 0", "0B0"),
        ("0F0,0F1,0B0,0B1\n1B0,1F0,1F1,1B1", "1B0 stands before its input 1F0", "1B0"),
        ("0F0,0B0\n1F0,1W0,1I0", "1W0 stands before its input 1I0", "1W0"),
        ("0F0,0B0,1B0\n1F0", "1B0 is on device 0, but its forward is on device 1", "1B0"),
        (
            "0F0,0F1,1F1,1B1,0B0,0B1\n1F0,1B0",
            "stage 1 is on devices 0, 1, other stages on 1",
            "1F0",
        ),
        ("0F0.0,0F0.1,0B0.0,0B0.1", "0B0.0 stands before its input 0B0.1", "0B0.0"),
        ("0F0,(1F0+1B0),0B0", "1B0 stands before its input 1F0", "(1F0+1B0)"),
    ],
)
def test_an_order_that_cannot_be_is_refused(text, message, mark):
    error = complaint(text)
    assert message in error.what
    assert marked(error.grid) == mark
    assert str(error) == f"{error.what}\n{error.grid}"


def test_a_circle_of_waits_is_found_and_told():
    error = complaint("0F0,0B0,0F1,0B1\n1F1,1F0,1B0,1B1")
    assert error.what == (
        "own.csv: deadlock: device 0 at 0B0 waits for 1B0 of device 1; "
        "device 1 at 1F1 waits for 0F1 of device 0"
    )
    assert marked(error.grid) == "0B0"


def test_an_empty_file_holds_no_order():
    with pytest.raises(ScheduleError, match=r"own\.csv holds no op"):
        check(read_csv(""), name="own.csv")


SENT = "0F0,0SEND_F0,0F1,0SEND_F1,0RECV_B0,0B0,0RECV_B1,0B1\n"
TAKEN = "1RECV_F0,1F0,1RECV_F1,1B0,1SEND_B0,1F1,1B1,1SEND_B1"


def test_transfers_in_step_are_let_through():
    check(read_csv(SENT + TAKEN))


@pytest.mark.parametrize(
    ("old", "new", "message", "mark"),
    [
        (
            TAKEN,
            "1RECV_F1,1RECV_F0,1F0,1B0,1SEND_B0,1F1,1B1,1SEND_B1",
            "device 1 receives 1RECV_F1 from device 0, which sends what is meant for 1RECV_F0",
            "1RECV_F1",
        ),
        (
            "1RECV_F0,1F0",
            "1F0,1RECV_F0",
            "1F0 stands before its input 1RECV_F0",
            "1F0",
        ),
        ("0SEND_F1,", "", "1RECV_F1 has no 0SEND_F1", "1RECV_F1"),
        ("1RECV_F1,", "", "1F1 needs 0F1 of device 0, but 1RECV_F1 is missing", "1F1"),
        ("0F1,0SEND_F1", "0SEND_F1,0F1", "0SEND_F1 stands before its input 0F1", "0SEND_F1"),
        ("0B1", "0B1,0SEND_B1", "0SEND_B1 goes to no stage", "0SEND_B1"),
        ("1B1,1SEND_B1", "1B1,1SEND_B1,1RECV_B1", "nothing is sent to 1RECV_B1", "1RECV_B1"),
    ],
)
def test_transfers_out_of_step_are_refused(old, new, message, mark):
    error = complaint((SENT + TAKEN).replace(old, new))
    assert message in error.what
    assert marked(error.grid) == mark


def test_sends_that_meet_no_receive_are_a_circle():
    """Both devices receive before they send: with no buffers, neither goes on."""
    error = complaint("0F0,0RECV_B0,0SEND_F0,0B0\n1RECV_F0,1F0,1B0,1SEND_B0")
    assert error.what == (
        "own.csv: deadlock: device 0 at 0RECV_B0 waits for 1SEND_B0 of device 1; "
        "device 1 at 1RECV_F0 waits for 0SEND_F0 of device 0"
    )


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(["1f1b", "gpipe", "zb_h1", "interleaved_1f1b", "zb_v", "chimera"]),
    swap=st.tuples(st.integers(0, 3), st.integers(0, 10**6)),
)
def test_an_order_with_two_ops_swapped_runs_or_is_refused(name, swap):
    """Never a hang, and what is let through runs."""
    rows = rows_of(make_order(name, num_devices=4, num_microbatches=4))
    device, at = swap[0], swap[1] % (len(rows[swap[0]]) - 1)
    row = rows[device]
    row[at], row[at + 1] = row[at + 1], row[at]
    try:
        check(rows)
    except ScheduleError:
        return
    assert not stuck(rows)


def test_brute_force_and_check_agree_on_every_order_of_a_device(brute_force):
    first = "0F0,0B0,0F1,0B1"
    for second in permutations(["1F0", "1B0", "1F1", "1B1"]):
        rows = read_csv(f"{first}\n{','.join(second)}")
        timed = brute_force([[cell_text(cell) for cell in row] for row in rows], 1, 1, 1)
        try:
            check(rows)
            fine = True
        except ScheduleError:
            fine = False
        assert fine != timed.stuck


def test_an_op_reads_back_from_a_complaint():
    error = complaint("0F0,0B0\n1B0,1F0")
    assert Op.parse(marked(error.grid)) == Op.parse("1B0")
