"""Messages moved by the cores that compute, against steps played by hand."""

import numpy as np
import pytest

from mpsim.cost.turns import held_times, turns
from mpsim.schedule.lowering import lower
from mpsim.schedule.ops import Kind
from mpsim.schedule.orders import make_order

TRANSFER = 0.25  # s under way
NEVER = 1e9


def played(schedule, *, count, slice_=NEVER, delay=0.0, tail=0.0, num_devices=2):
    """Ends and holds by op text where F, B take 1 s, updates nothing, and messages TRANSFER."""
    order = make_order(schedule, num_devices=num_devices, num_microbatches=count)
    graph = lower(order)
    compute = (graph.kind == Kind.F) | (graph.kind == Kind.B)
    transfer = (graph.kind == Kind.SEND_F) | (graph.kind == Kind.SEND_B)
    lengths = compute * 1.0 + transfer * TRANSFER
    tails = compute * tail
    end, held = held_times(
        graph, turns(graph, order), lengths, tails=tails, slice_=slice_, delay=delay
    )
    names = [str(graph.op(op)) for op in range(graph.num_ops)]
    return dict(zip(names, end, strict=True)), dict(zip(names, held, strict=True))


def test_a_message_leaves_at_the_senders_first_wait():
    """The first stage computes until 2 before it waits: both its messages leave then or later."""
    end, held = played("gpipe", count=2)
    assert end["0F1"] == 2
    assert end["1F0"] == 2 + TRANSFER + 1
    assert held["0SEND_F0"] == 1


def test_a_slice_bounds_the_hold():
    end, held = played("gpipe", count=2, slice_=0.5)
    assert held["0SEND_F0"] == 0.5
    assert end["1F0"] == 1.5 + TRANSFER + 1


@pytest.mark.parametrize("delay", [0.0, 0.125])
def test_a_request_takes_its_delay(delay):
    """The receive of microbatch 1 stands behind the op on 0; its sender waits by then."""
    end, _ = played("gpipe", count=2, delay=delay)
    assert end["1F1"] == pytest.approx(end["1F0"] + delay + TRANSFER + 1)


def test_a_request_that_misses_the_wait_waits_for_the_next():
    """1F1B, two stages, three microbatches: stage 1 waits for F2 until TRANSFER after 0F2.

    Stage 0 turns to 0B1 as 0F2 ends, and asks for its message, which was made before. Heard within
    the wait, it is sent then; heard later, after stage 1 has run 1F2 and 1B2 without a wait.
    """
    early, _ = played("1f1b", count=3, delay=0.9 * TRANSFER)
    late, _ = played("1f1b", count=3, delay=1.1 * TRANSFER)
    assert early["1SEND_B1"] == pytest.approx(early["0F2"] + 0.9 * TRANSFER + TRANSFER)
    assert late["1SEND_B1"] == pytest.approx(late["1B2"] + TRANSFER)
    assert late["1B2"] == pytest.approx(late["0F2"] + TRANSFER + 2)


def test_a_message_begins_before_the_receives_that_follow_its_op():
    """Stage 1 has heard that B0 is asked for in its wait for F0."""
    end, held = played("gpipe", count=1, tail=0.1)
    assert held["1SEND_B0"] == pytest.approx(-0.1)
    assert end["0B0"] == pytest.approx(end["1B0"] - 0.1 + TRANSFER + 1)


def test_a_hold_is_no_less_than_minus_the_transfer():
    _, held = played("gpipe", count=1, tail=0.9)
    assert held["1SEND_B0"] == -TRANSFER


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b", "zb_h1", "interleaved_1f1b"])
@pytest.mark.parametrize("count", [4, 8])
def test_compiled_and_plain_play_alike(schedule, count, monkeypatch):
    found = {}
    for name, answer in (("plain", False), ("compiled", True)):
        monkeypatch.setattr("mpsim.cost.turns.pays", lambda _, answer=answer: answer)
        found[name] = played(schedule, count=count, delay=0.1, tail=0.05, slice_=1.5)
    for plain, other in zip(found["plain"], found["compiled"], strict=True):
        assert list(plain.values()) == pytest.approx(list(other.values()))


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b", "zb_h1", "interleaved_1f1b", "zb_v"])
def test_no_op_ends_before_what_it_needs_and_its_own_length(schedule):
    end, _ = played(schedule, count=6, num_devices=3, delay=0.1, slice_=2.0)
    graph = lower(make_order(schedule, num_devices=3, num_microbatches=6))
    owner = np.repeat(np.arange(graph.num_ops), np.diff(graph.pred_starts))
    lengths = {Kind.F: 1.0, Kind.B: 1.0, Kind.SEND_F: TRANSFER, Kind.SEND_B: TRANSFER}
    own = graph.kind[owner] != Kind.BARRIER
    for op, before in zip(owner[own].tolist(), graph.pred[own].tolist(), strict=True):
        length = lengths.get(Kind(int(graph.kind[op])), 0.0)
        assert end[str(graph.op(op))] >= end[str(graph.op(before))] + length - 1e-9
