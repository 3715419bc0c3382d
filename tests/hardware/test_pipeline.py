"""Schedules run by torch's runtime: gradients of the unsplit model, and times that make sense."""

import pytest
import torch

from mpsim.errors import CalibrationError, ScheduleError
from mpsim.hardware.devices import Machine, place
from mpsim.hardware.faults import Faults
from mpsim.hardware.models import (
    TWO_DEVICE_MLP,
    block_stack,
    build,
    layer_stack,
    loss_of,
    make_batch,
)
from mpsim.hardware.pipeline import PipelineJob, owners_of, run_pipeline
from mpsim.hardware.workers import Workers

GPIPE = "0F0,0F1,0F2,0F3,0B0,0B1,0B2,0B3\n1F0,1F1,1F2,1F3,1B0,1B1,1B2,1B3"
GPIPE_DESCENDING = "0F0,0F1,0F2,0F3,0B3,0B2,0B1,0B0\n1F0,1F1,1F2,1F3,1B3,1B2,1B1,1B0"
ONE_F_ONE_B = "0F0,0F1,0B0,0F2,0B1,0F3,0B2,0B3\n,1F0,1B0,1F1,1B1,1F2,1B2,1F3,1B3"
ZB_H1 = "0F0,0F1,0I0,0W0,0F2,0I1,0W1,0I2,0W2\n1F0,1I0,1F1,1I1,1W0,1F2,1I2,1W1,1W2"
INTERLEAVED = "0F0,0F1,2F0,2F1,2B0,2B1,0B0,0B1\n1F0,1F1,3F0,3B0,3F1,3B1,1B0,1B1"
V_PLACED = (
    "0F0,0F1,3F0,3I0,3F1,3I1,0I0,3W0,0I1,3W1,0W0,0W1\n"
    "1F0,2F0,1F1,2F1,2I0,1I0,2I1,1I1,2W0,1W0,2W1,1W1"
)
OVERLAPPED = (
    "0F0,3F0,(0F1;3B0)OVERLAP_F_B,3F1,0B0,3B1,0B1\n1F0,2F0,(1F1;2B0)OVERLAP_F_B,2F1,1B0,2B1,1B1"
)


def unsplit(job):
    """Loss and gradients of the whole model on the whole batch."""
    model = build(job.model, job.seed)
    inputs, target = make_batch(job.model, job.batch, seed=job.seed, sequence=job.sequence)
    loss = loss_of(job.model)(model(inputs), target)
    loss.backward()
    return loss.item(), {name: value.grad for name, value in model.named_parameters()}


def assert_equal_gradients(run, job):
    loss, gradients = unsplit(job)
    # 1e-5 of the largest entry: fp32 sums of microbatches in another order
    assert run.losses[-1] == pytest.approx(loss, rel=1e-5)
    assert run.gradients.keys() == gradients.keys()
    for name, gradient in gradients.items():
        scale = gradient.abs().max().item()
        torch.testing.assert_close(run.gradients[name], gradient, rtol=1e-5, atol=1e-5 * scale)


@pytest.mark.parametrize(
    ("schedule", "microbatches", "stages"),
    [
        pytest.param("0F0,0B0\n1F0,1B0", 1, 2, id="naive"),
        pytest.param(GPIPE, 4, 2, id="gpipe"),
        pytest.param(GPIPE_DESCENDING, 4, 2, id="gpipe-descending"),
        pytest.param(ONE_F_ONE_B, 4, 2, id="1f1b"),
        pytest.param(ZB_H1, 3, 2, id="zb_h1"),
        pytest.param(INTERLEAVED, 2, 4, id="interleaved"),
        pytest.param(V_PLACED, 2, 4, id="zb_v"),
        pytest.param(OVERLAPPED, 2, 4, id="overlapped"),
    ],
)
def test_schedule_gives_the_gradients_of_the_unsplit_model(pair, schedule, microbatches, stages):
    counts = {2: (5, 3), 4: (2, 2, 2, 2)}[stages]
    job = PipelineJob(layer_stack(16, 4), counts, schedule, microbatches, batch=12)
    run = run_pipeline(pair, job)
    assert_equal_gradients(run, job)
    ops = {event.op for event in run.events if event.op[1] in "FBIW"}
    wanted = schedule.replace("(", "").replace(")OVERLAP_F_B", "").replace(";", ",")
    assert ops == {cell for row in wanted.split("\n") for cell in row.split(",") if cell}


def test_transformer_and_two_device_mlp_run_split(pair):
    for model, sequence in ((block_stack(32, 2), 8), (TWO_DEVICE_MLP, 1)):
        counts = (2, 2) if sequence > 1 else (2, 3)
        job = PipelineJob(model, counts, GPIPE, 4, batch=8, sequence=sequence)
        assert_equal_gradients(run_pipeline(pair, job), job)


def test_text_with_communication_runs(pair):
    text = "0F0,0SEND_F0,0RECV_B0,0B0\n1RECV_F0,1F0,1B0,1SEND_B0"
    job = PipelineJob(layer_stack(8, 2), (2, 2), text, 1, batch=4, communication=True)
    assert_equal_gradients(run_pipeline(pair, job), job)


def test_four_workers_run_one_pipeline():
    text = "\n".join(
        ",".join([f"{stage}F{m}" for m in range(4)] + [f"{stage}B{m}" for m in range(4)])
        for stage in range(4)
    )
    job = PipelineJob(layer_stack(16, 4), (2, 2, 2, 2), text, 4, batch=8)
    placement = place(("cpu",) * 4, Machine(gpus=(), cores=(0, 1)))
    assert "sharing 2 core(s)" in placement.warning
    with Workers(placement, timeout=60) as workers:
        assert_equal_gradients(run_pipeline(workers, job), job)


def test_events_are_causal_and_fill_the_step(pair):
    job = PipelineJob(
        layer_stack(128, 4), (4, 4), ONE_F_ONE_B, 4, batch=256, steps=3, warmup=1, learning_rate=0.1
    )
    run = run_pipeline(pair, job)
    assert len(run.step_seconds) == len(run.losses) == 3
    assert run.losses[2] < run.losses[0]
    assert not run.gradients
    for step in range(3):
        events = {
            event.op: event for event in run.events if event.step == step and event.op != "STEP"
        }
        for microbatch in range(4):
            # a forward of the second stage cannot be ready before the first stage has sent
            assert events[f"1F{microbatch}"].ready >= events[f"0SEND_F{microbatch}"].begin
            assert events[f"0B{microbatch}"].ready >= events[f"1SEND_B{microbatch}"].begin
        for event in events.values():
            assert event.begin <= event.ready <= event.end
        last = max(event.end for event in run.events if event.step == step)
        first = min(event.begin for event in run.events if event.step == step and event.worker == 0)
        assert run.step_seconds[step] >= last - first


def test_sleep_in_a_stage_is_seen_in_its_forward_ops_alone(pair):
    job = PipelineJob(
        layer_stack(32, 4), (4, 4), GPIPE, 4, batch=32, warmup=1, faults=Faults(sleep={1: 0.02})
    )
    run = run_pipeline(pair, job)
    for event in run.events:
        slow = event.op.startswith("1F")
        assert (event.seconds >= 0.02) == slow


def test_throttled_link_is_seen_as_waiting_of_the_receiver(pair):
    # 8 x 64 floats at 51.2 kB/s: 40 ms a message
    job = PipelineJob(
        layer_stack(64, 4),
        (4, 4),
        GPIPE,
        4,
        batch=32,
        warmup=1,
        faults=Faults(throttle={0: 8 * 64 * 4 / 0.04}),
    )
    run = run_pipeline(pair, job)
    waited = {event.op: event.waited for event in run.events}
    assert all(waited[f"1F{microbatch}"] > 0.03 for microbatch in range(4))
    assert_equal_gradients(run, job)


def test_extra_launches_lengthen_their_stage(pair):
    job = PipelineJob(
        layer_stack(32, 4),
        (4, 4),
        GPIPE,
        4,
        batch=32,
        warmup=1,
        faults=Faults(launches={0: 20_000}),
    )
    run = run_pipeline(pair, job)
    seconds = {event.op: event.seconds for event in run.events}
    assert min(seconds[f"0F{m}"] for m in range(4)) > 2 * max(seconds[f"1F{m}"] for m in range(4))


def test_peak_memory_of_gpipe_is_that_of_more_microbatches(pair):
    kept = {}
    for microbatches in (1, 4):
        rows = [[f"{s}{kind}{m}" for kind in "FB" for m in range(microbatches)] for s in (0, 1)]
        text = "\n".join(",".join(row) for row in rows)
        job = PipelineJob(
            layer_stack(64, 4), (4, 4), text, microbatches, 64 * microbatches, memory=True
        )
        kept[microbatches] = run_pipeline(pair, job).peak_bytes[0]
    # a microbatch keeps its two ReLU outputs; a linear output is freed when the ReLU has run
    activations = 2 * 64 * 64 * 4
    assert 3 * activations <= kept[4] - kept[1] < 4 * activations


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0F0,0X0\n1F0,1B0", "'0X0' is not an op such as 2F0"),
        ("0F0,1F0,1B0,0B0\n1F1", "stage 1 lies on workers 0 and 1; torch's runtime holds each"),
        ("0F0.1\n1F0", "'0F0.1': torch's runtime does not cut the sequence"),
        ("0F0,0B0\n2F0,2B0", r"the schedule has stages \[0, 2\], but there are 2"),
    ],
)
def test_text_that_cannot_be_run_is_refused(text, message):
    with pytest.raises(ScheduleError, match=message):
        owners_of(text, 2)


def test_jobs_that_do_not_divide_are_refused():
    with pytest.raises(CalibrationError, match=r"stages have \(3, 3\) layers, but the model has 8"):
        PipelineJob(layer_stack(8, 4), (3, 3), GPIPE, 4, batch=8)
    with pytest.raises(CalibrationError, match="batch of 6 cannot be cut into 4 equal"):
        PipelineJob(layer_stack(8, 4), (4, 4), GPIPE, 4, batch=6)
