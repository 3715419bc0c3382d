"""What the lowering passes add to an order, and what waits for what."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpsim.errors import ScheduleError
from mpsim.schedule.graph import COLLECTIVE, RECEIVE, STREAMS
from mpsim.schedule.lowering import lower
from mpsim.schedule.ops import COMPUTE_KINDS, Kind, Op, Order
from mpsim.schedule.orders import make_order


def written(*devices, stages=None, slices=1):
    """The order of a text a device: ``0F0 (1F0+2B1)``."""
    ops, block, starts = [], [], [0]
    for text in devices:
        for number, group in enumerate(text.split()):
            fused = group.startswith("(")
            for name in group.strip("()").split("+"):
                ops.append(Op.parse(name))
                block.append(number if fused else -1)
        starts.append(len(ops))
    column = {
        name: np.array([getattr(op, name) for op in ops], np.int32)
        for name in ("stage", "microbatch", "slice")
    }
    return Order(
        schedule="written",
        num_stages=stages or int(column["stage"].max()) + 1,
        num_microbatches=int(column["microbatch"].max()) + 1,
        kind=np.array([op.kind for op in ops], np.int8),
        **column,
        block=np.array(block, np.int32),
        starts=np.array(starts, np.int32),
        num_slices=slices,
    )


def name(graph, op):
    """An op with its device, and its part where it has one: ``0:2F0``, ``0:2REDUCE_GRAD/1``."""
    part = f"/{graph.part[op]}" if graph.part[op] >= 0 else ""
    return f"{graph.device[op]}:{graph.op(op)}{part}"


def waits(graph):
    """By op, the ops on other streams that it waits for; ops that wait for none are left out."""
    found = {}
    for op in range(graph.num_ops):
        preds = graph.pred[graph.pred_starts[op] : graph.pred_starts[op + 1]]
        if len(preds):
            found[name(graph, op)] = sorted(name(graph, pred) for pred in preds)
    return found


def on_stream(graph, stream):
    return [name(graph, op) for op in np.flatnonzero(graph.stream == stream)]


def bare(order, **how):
    return lower(order, **{"step": False, "barrier": False} | how)


TWO = written("0F0 0F1 0B0 0B1", "1F0 1B0 1F1 1B1")


def test_compute_ops_wait_for_transfers_and_transfers_for_producers():
    assert waits(bare(TWO)) == {
        "0:0SEND_F0": ["0:0F0"],
        "0:0SEND_F1": ["0:0F1"],
        "1:1F0": ["0:0SEND_F0"],
        "1:1F1": ["0:0SEND_F1"],
        "1:1SEND_B0": ["1:1B0"],
        "1:1SEND_B1": ["1:1B1"],
        "0:0B0": ["1:1SEND_B0"],
        "0:0B1": ["1:1SEND_B1"],
    }


def test_transfers_of_a_channel_follow_one_another_and_channels_do_not():
    graph = bare(TWO)
    streams = np.unique(graph.stream[graph.peer >= 0])
    assert [on_stream(graph, stream) for stream in streams] == [
        ["0:0SEND_F0", "0:0SEND_F1"],
        ["1:1SEND_B0", "1:1SEND_B1"],
    ]
    assert streams.min() >= STREAMS * 2
    assert graph.num_streams == STREAMS * 2 + 2


def test_without_channels_each_transfer_has_a_stream_of_its_own():
    graph = bare(TWO, p2p="latency")
    assert len(np.unique(graph.stream[graph.peer >= 0])) == 4


def test_a_v_has_no_transfer_at_its_turn():
    graph = bare(written("0F0 3F0 3B0 0B0", "1F0 2F0 2B0 1B0"))
    sent = {str(graph.op(op)) for op in np.flatnonzero(graph.peer >= 0)}
    assert sent == {"0SEND_F0", "2SEND_F0", "3SEND_B0", "1SEND_B0"}


def test_a_stage_on_two_devices_sends_from_where_the_microbatch_is():
    down = "0F0 1F1 1B1 0B0"
    up = "1F0 1B0 0F1 0B1"
    graph = bare(written(down, up))
    ends = {
        str(graph.op(op)): (int(graph.device[op]), int(graph.peer[op]))
        for op in np.flatnonzero(graph.peer >= 0)
    }
    assert ends == {
        "0SEND_F0": (0, 1),
        "1SEND_B0": (1, 0),
        "0SEND_F1": (1, 0),
        "1SEND_B1": (0, 1),
    }


def test_weights_wait_for_inputs_on_their_device_by_their_stream():
    assert waits(bare(written("0F0 0I0 0W0"))) == {}


def test_slices_of_a_sequence_stay_in_order_by_their_stream():
    graph = bare(written("0F0.0 0F0.1 0B0.1 0B0.0", "1F0.0 1F0.1 1B0.1 1B0.0", slices=2))
    assert waits(graph)["1:1F0.1"] == ["0:0SEND_F0.1"]
    assert waits(graph)["0:0B0.0"] == ["1:1SEND_B0.0"]


def test_a_fused_block_waits_for_the_inputs_of_both_and_yields_both_at_its_end():
    graph = bare(written("0F0 0F1 0B0 0B1", "1F0 (1F1+1B0) 1B1"))
    found = waits(graph)
    assert found["1:1F1"] == ["0:0SEND_F1"]
    assert found["1:1SEND_B0"] == ["1:1B0"]
    graph = bare(written("0F0 0F1 (0F2+0B0) 0B1 0B2", "1F0 1B0 1F1 1B1 1F2 1B2"))
    assert waits(graph)["0:0F2"] == ["1:1SEND_B0"]
    assert waits(graph)["0:0SEND_F2"] == ["0:0B0"]


class TestBatched:
    """Groups of blocking transfers, in Megatron's way."""

    def test_a_send_and_a_receive_of_opposite_directions_are_one_group(self):
        found = waits(bare(TWO, p2p="batched"))
        # Device 0 between 0F1 and 0B0; device 1 between 1B0 and 1F1: both transfers at once.
        assert found["0:0SEND_F1"] == ["0:0F1", "1:1B0"]
        assert found["1:1SEND_B0"] == ["0:0F1", "1:1B0"]
        assert found["0:0B0"] == ["0:0SEND_F1", "1:1SEND_B0"]
        assert found["1:1F1"] == ["0:0SEND_F1", "1:1SEND_B0"]

    def test_a_send_and_a_receive_of_one_direction_are_two_groups_the_send_first(self):
        order = written("0F0 0F1 0B0 0B1", "1F0 1F1 1B0 1B1", "2F0 2B0 2F1 2B1")
        found = waits(bare(order, p2p="batched"))
        assert "1:1SEND_F0" in found["0:0SEND_F1"]  # device 1 receives once it has sent
        assert found["1:1F1"] == ["0:0SEND_F1", "1:1SEND_F0"]

    def test_the_sender_waits_for_its_receiver(self):
        found = waits(bare(TWO, p2p="batched"))
        assert found["0:0F1"] == ["0:0SEND_F0"]

    def test_messages_are_received_when_sent_where_senders_run_ahead(self):
        # In slots 0F1 ends at 2, when 1I0 is about to begin: device 1 takes it in before that.
        order = written("0F0 0F1 0I0 0W0 0I1 0W1", "1F0 1I0 1W0 1F1 1I1 1W1")
        found = waits(bare(order, p2p="batched"))
        assert found["1:1I0"] == ["0:0SEND_F1"]
        assert found["1:1F1"] == ["0:0SEND_F1"]

    def test_what_deadlocks_hints_at_transfers_that_do_not_block(self):
        order = make_order("eager_1f1b", num_devices=4, num_microbatches=8)
        with pytest.raises(ScheduleError, match=r"transfers block.*'serial'\): use 'async'"):
            lower(order, p2p="serial")


def test_serial_transfers_between_two_devices_agree_on_who_sends_first():
    found = waits(bare(TWO, p2p="serial"))
    assert found["1:1SEND_B0"] == ["0:0F1", "1:1B0"]  # the odd device sends first
    assert found["0:0SEND_F1"] == ["1:1SEND_B0", "1:1SEND_B0"]  # in turn, on both ends


class TestReductions:
    """Gradient exchange under the backward."""

    def test_buckets_are_reduced_under_the_parts_of_the_last_backward(self):
        graph = bare(written("0F0 0F1 0B0 0B1"), reductions="last", buckets=2)
        assert waits(graph) == {
            "0:0REDUCE_GRAD/0": ["0:0B1/0"],
            "0:0REDUCE_GRAD/1": ["0:0B1/1"],
        }
        assert on_stream(graph, 0) == ["0:0F0", "0:0F1", "0:0B0", "0:0B1/0", "0:0B1/1"]
        assert on_stream(graph, COLLECTIVE) == ["0:0REDUCE_GRAD/0", "0:0REDUCE_GRAD/1"]

    def test_a_split_backward_is_reduced_after_its_weights(self):
        graph = bare(written("0F0 0I0 0F1 0I1 0W0 0W1"), reductions="last", buckets=2)
        assert waits(graph)["0:0REDUCE_GRAD/0"] == ["0:0W1/0"]

    def test_the_parts_of_an_op_take_inputs_at_the_first_and_give_outputs_at_the_last(self):
        found = waits(bare(written("0F0 0B0", "1F0 1B0"), reductions="last", buckets=3))
        assert found["0:0B0/0"] == ["1:1SEND_B0"]
        assert found["1:1SEND_B0"] == ["1:1B0/2"]

    def test_stages_have_buckets_of_their_own(self):
        graph = bare(written("0F0 1F0 1B0 0B0"), reductions="last", buckets=[1, 3])
        assert on_stream(graph, COLLECTIVE) == [
            "0:1REDUCE_GRAD/0", "0:1REDUCE_GRAD/1", "0:1REDUCE_GRAD/2", "0:0REDUCE_GRAD/0",
        ]  # fmt: skip

    def test_without_overlap_one_reduction_a_stage_follows_all_compute(self):
        graph = bare(written("0F0 1F0 1B0 0B0"), reductions="end", buckets=4)
        assert waits(graph) == {"0:1REDUCE_GRAD/0": ["0:0B0"], "0:0REDUCE_GRAD/0": ["0:0B0"]}

    def test_sharded_gradients_are_reduced_under_every_backward(self):
        graph = bare(written("0F0 0B0 0F1 0B1"), reductions="each", buckets=2)
        assert len(on_stream(graph, COLLECTIVE)) == 4

    def test_copies_of_a_stage_wait_for_each_other(self):
        order = make_order("dualpipe", num_devices=2, num_microbatches=4)
        graph = bare(order, reductions="last", buckets=2)
        found = waits(graph)
        reductions = [op for op in found if "REDUCE" in op]
        assert len(reductions) == 2 * 2 * 2  # stages, devices, buckets
        for op in reductions:
            assert {wait[0] for wait in found[op]} == {"0", "1"}
            assert {wait[-2:] for wait in found[op]} == {op[-2:]}


class TestGathers:
    """Parameters of sharded optimizers and models."""

    def test_at_the_start_buckets_are_gathered_ahead_of_the_first_forward(self):
        graph = bare(written("0F0 0F1 0B0 0B1"), gathers="start", buckets=2)
        assert waits(graph) == {"0:0F0/0": ["0:0UNSHARD/0"], "0:0F0/1": ["0:0UNSHARD/1"]}
        assert on_stream(graph, RECEIVE) == ["0:0UNSHARD/0", "0:0UNSHARD/1"]

    def test_a_fully_sharded_model_is_gathered_for_each_use_one_bucket_ahead(self):
        graph = bare(written("0F0 0B0"), gathers="use", buckets=2)
        assert len(on_stream(graph, RECEIVE)) == 4
        gathers = np.flatnonzero(graph.kind == Kind.UNSHARD)
        ahead = [
            [name(graph, pred) for pred in graph.pred[graph.pred_starts[op] :][:1]]
            for op in gathers[2:]
        ]
        assert ahead == [["0:0F0/0"], ["0:0F0/1"]]

    def test_at_the_end_parameters_are_gathered_after_the_update(self):
        graph = lower(written("0F0 1F0 1B0 0B0"), gathers="end", barrier=False)
        assert [waits(graph)[op] for op in on_stream(graph, RECEIVE)] == [["0:-1STEP-1"]] * 2


class TestUpdate:
    """The barrier and the optimizer."""

    def test_the_barrier_waits_for_all_devices_and_all_updates_for_the_barrier(self):
        graph = lower(TWO, reductions="end")
        found = waits(graph)
        assert found["0:-1BARRIER-1"] == [
            "0:0B1", "0:0REDUCE_GRAD/0", "1:1B1", "1:1REDUCE_GRAD/0",
        ]  # fmt: skip
        assert found["0:-1STEP-1"] == found["1:-1STEP-1"] == ["0:-1BARRIER-1"]

    def test_without_a_barrier_each_update_waits_for_its_own_reductions(self):
        found = waits(lower(TWO, reductions="end", barrier=False))
        assert found["1:-1STEP-1"] == ["1:1REDUCE_GRAD/0"]

    def test_asynchronous_schedules_have_no_barrier(self):
        order = make_order("pipedream", num_devices=2, num_microbatches=4)
        assert not np.any(lower(order).kind == Kind.BARRIER)


@pytest.mark.parametrize(
    ("devices", "message"),
    [
        (("0F0 0B0", "1B0"), "1B0 needs its own forward, which no device runs"),
        (("0F0 0B0", "1F0"), "0B0 needs the backward of the stage after, which no device runs"),
        (("0B0", "1F0 1B0"), "1F0 needs the forward of the stage before, which no device runs"),
        (("0F0 0F0 0B0", "1F0 1B0"), "0F0 stands twice in the order"),
        (("0F0 0W0 0B0", "1F0 1B0 1W0 1W0"), "1W0 stands twice in the order"),
        (("0F0 1B0 0B0", "1F0"), "1B0 is on device 0, but its own forward is on device 1"),
        (
            ("0F0 0B0", "1B0 1F0"),
            "deadlock: each of these ops waits for the next, and the last for the first: 1B0, 1F0",
        ),
        (
            ("0F0 0B0 0F1 0B1", "1F0 1F1 1B0 1B1"),
            "deadlock: each of these ops waits for the next, and the last for the first: "
            "0B0, 1SEND_B0, 1B0, 1F1, 0SEND_F1, 0F1",
        ),
    ],
)
def test_what_cannot_be_run_is_refused(devices, message):
    order = written(*devices)
    with pytest.raises(ScheduleError) as caught:
        lower(order)
    assert caught.value.what == message
    assert caught.value.ops
    assert all(0 <= entry < len(order.kind) for entry in caught.value.ops)


@pytest.mark.parametrize("p2p", ["batched", "serial"])
@pytest.mark.parametrize("microbatches", [8, 12])
@pytest.mark.parametrize(
    ("schedule", "chunks"),
    [
        ("naive", 1), ("gpipe", 1), ("1f1b", 1), ("zb_h1", 1), ("zb_h2", 1), ("zb_auto", 1),
        ("dualpipe", 1), ("chimera", 1), ("interleaved_1f1b", 2), ("combined_1f1b", 2),
        ("looped_bfs", 2), ("interleaved_zb", 2), ("zb_v", 2), ("v_half", 2), ("v_min", 2),
        ("1f1b_v", 2), ("dualpipe_v", 2), ("bitpipe", 2), ("hanayo", 4),
    ],
)  # fmt: skip
def test_blocking_transfers_of_all_schedules_end(schedule, chunks, microbatches, p2p):
    order = make_order(schedule, num_devices=4, num_microbatches=microbatches, num_chunks=chunks)
    assert lower(order, p2p=p2p).num_ops > len(order.kind)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["naive", "gpipe", "1f1b", "zb_h1", "interleaved_1f1b", "dualpipe_v"]),
    st.integers(2, 4),
    st.integers(2, 3),
    st.sampled_from(["latency", "async"]),
    st.sampled_from(["none", "last", "each", "end"]),
    st.integers(1, 3),
)
def test_graphs_are_complete_and_topological(name, devices, groups, p2p, reductions, buckets):
    chunks = 2 if name in ("interleaved_1f1b", "dualpipe_v") else 1
    order = make_order(
        name, num_devices=devices, num_microbatches=groups * devices, num_chunks=chunks
    )
    graph = lower(order, p2p=p2p, reductions=reductions, buckets=buckets)
    place = np.empty(graph.num_ops, int)
    place[graph.topological] = np.arange(graph.num_ops)
    after = np.repeat(np.arange(graph.num_ops), np.diff(graph.pred_starts))
    assert np.all(place[graph.pred] < place[after])
    chained = np.flatnonzero(graph.previous >= 0)
    assert np.all(graph.previous[chained] < chained)
    assert np.all(place[graph.previous[chained]] < place[chained])
    assert np.array_equal(graph.stream[graph.previous[chained]], graph.stream[chained])
    compute = np.isin(graph.kind, COMPUTE_KINDS)
    assert np.sum(1 / graph.num_parts[compute]) == pytest.approx(len(order.kind))
    assert np.array_equal(np.unique(graph.entry[compute]), np.arange(len(order.kind)))
    # Every pair of neighbouring stages on two devices has a transfer a microbatch and direction.
    crossings = 2 * groups * devices * (devices * chunks - 1)
    if name == "dualpipe_v":
        crossings -= 2 * groups * devices  # its turn is on one device
    assert np.sum(graph.peer >= 0) == crossings
