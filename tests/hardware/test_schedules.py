"""Every schedule of mpsim that torch can run, run: the unsplit model's loss and gradients."""

import pytest

from mpsim.errors import ScheduleError
from mpsim.hardware.agreement import check_pipeline
from mpsim.hardware.models import count_layers, deal, layer_stack
from mpsim.hardware.pipeline import PipelineJob
from mpsim.hardware.schedules import runnable, torch_text
from mpsim.schedule.orders import make_order

MODEL = layer_stack(8, 4)
ORDERS = runnable(2, 8)


def test_torch_runs_all_but_the_schedules_it_has_no_way_for():
    bidirectional = {"dualpipe", "chimera", "bitpipe"}
    sliced = {"seq_1f1b", "terapipe"}
    asynchronous = {"pipedream", "pipedream_2bw"}
    assert not (bidirectional | asynchronous) & ORDERS.keys()
    for name in sliced & ORDERS.keys():  # of one slice they are 1F1B and GPipe
        assert ORDERS[name].num_slices == 1
    assert {
        *("naive", "gpipe", "1f1b", "eager_1f1b", "interleaved_1f1b", "looped_bfs", "zb_h1"),
        *("zb_h2", "zb_auto", "interleaved_zb", "zb_v", "v_half", "v_min", "1f1b_v", "dualpipe_v"),
    } <= ORDERS.keys()


@pytest.mark.parametrize("name", sorted(ORDERS))
def test_schedule_runs_in_torch_and_gives_the_unsplit_gradients(pair, name):
    order = ORDERS[name]
    counts = deal(count_layers(MODEL), order.num_stages)
    job = PipelineJob(MODEL, counts, torch_text(order), order.num_microbatches, batch=16)
    agreement = check_pipeline(pair, job)
    assert agreement.holds, agreement


def test_text_of_an_order_is_torchs():
    text = torch_text(make_order("1f1b", num_devices=2, num_microbatches=3))
    assert text == "0F0,0F1,0B0,0F2,0B1,0B2\n1F0,1B0,1F1,1B1,1F2,1B2"
    overlapped = torch_text(make_order("dualpipe_v", num_devices=2, num_microbatches=4))
    assert "(" in overlapped
    assert ")OVERLAP_F_B" in overlapped


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pipedream", "synchronous schedules only"),
        ("chimera", "no bidirectional schedules"),
        ("dualpipe", "no bidirectional schedules"),
    ],
)
def test_orders_that_torch_cannot_run_are_refused(name, message):
    with pytest.raises(ScheduleError, match=message):
        torch_text(make_order(name, num_devices=2, num_microbatches=4))
