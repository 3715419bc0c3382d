"""Measurements: their tables, their interruption and their resumption."""

import csv
import json
import os
import statistics
import subprocess
import sys
import time

import pytest
import yaml

from mpsim.errors import CalibrationError, ScenarioError
from mpsim.hardware import cells, links, measure, visits
from mpsim.hardware.clocks import Offset, offset_to_first
from mpsim.hardware.devices import Machine, place
from mpsim.hardware.kernels import gemm, layer, memory_bound
from mpsim.hardware.memory import available_memory
from mpsim.hardware.models import layer_stack
from mpsim.hardware.records import append_json, append_rows, op_medians, read_json_lines
from mpsim.hardware.runtime import OpEvent
from mpsim.hardware.runtime_costs import runtime_costs
from mpsim.hardware.timing import relative_mad, summarise
from mpsim.spec.model import Network

LAPTOP = place(("cpu", "cpu"), Machine(gpus=(), cores=(0, 1)))
PAIR_OF_GPUS = place(("cuda:0", "cuda:1"), Machine(gpus=("A100", "A100"), cores=(0, 1)))
GPU_AND_CPU = place(("cuda:0", "cpu"), Machine(gpus=("H200",), cores=(0, 1)))


def test_medians_and_spread():
    timing = summarise([1.0, 2.0, 3.0, 4.0, 100.0])
    assert timing.seconds == 3.0
    assert timing.samples == 5
    # the median distance from 3 is 1; 1.4826 makes it a normal distribution's deviation
    assert timing.spread == pytest.approx(1.4826 / 3)
    assert relative_mad([0.0, 0.0]) == 0.0


def test_clocks_of_one_machine_need_no_correction(pair):
    offsets = pair.run(offset_to_first)
    assert [offset.correction for offset in offsets] == [0.0, 0.0]
    assert offsets[0].seconds == 0.0
    assert 0 < offsets[1].uncertainty < 0.1
    assert abs(offsets[1].seconds) < 0.1


def test_clocks_apart_by_more_than_a_message_are_corrected():
    assert Offset(2.0, 1e-4).correction == 2.0
    assert Offset(5e-5, 1e-4).correction == 0.0


def test_larger_work_takes_longer(pair):
    small, large = (
        min(timing.seconds for timing in pair.run(gemm, 0.05, "fp32", 64, 64, k))
        for k in (64, 4096)
    )
    assert large > 8 * small
    small, large = (
        min(timing.seconds for timing in pair.run(memory_bound, 0.05, "copy", nbytes))
        for nbytes in (2**16, 2**24)
    )
    assert large > 16 * small


def test_a_probe_sees_another_process_on_its_core(pair):
    quiet = pair.run(links.probe, 0.1)
    code = f"""
import os
os.sched_setaffinity(0, os.sched_getaffinity({pair.pids[0]}))
while True:
    pass
"""
    rival = subprocess.Popen([sys.executable, "-c", code])
    try:
        time.sleep(0.3)
        probes = pair.run(links.probe, 0.3)
    finally:
        rival.kill()
        rival.wait()
    # two processes share a core by halves; less where the machine is busy already
    assert probes[0].stolen > 0.25
    assert all(0 <= probe.stolen < 1 for probe in quiet)


@pytest.mark.parametrize("op", cells.COLLECTIVES)
def test_collectives_and_messages_are_timed(pair, op):
    for timing in pair.run(links.collective, 0.02, op, 4096):
        assert 1e-6 < timing.seconds < 1


def test_a_message_both_ways_takes_less_than_two_messages_and_more_than_one(pair):
    one = max(timing.seconds for timing in pair.run(links.sendrecv, 0.2, 2**22))
    both = max(timing.seconds for timing in pair.run(links.sendrecv_both, 0.2, 2**22))
    # the copies of both directions share the two cores; wide for a machine that is not idle
    assert 0.5 * one < both < 5 * one


def test_passes_of_a_layer_are_told_apart(pair):
    network = Network.model_validate(
        {"input": [256], "network": [{"type": "linear", "inputs": 256, "outputs": 256}]}
    )
    times = pair.run(layer, 0.1, network, 256)[0]
    assert set(times) == {"fwd", "bwd_input", "bwd_weight", "bwd"}
    assert times["bwd"].seconds > times["bwd_input"].seconds
    assert times["bwd"].seconds > times["bwd_weight"].seconds


def test_overlap_has_both_alone_and_both_together(pair):
    for result in pair.run(links.overlap, 0.2, 64, 2**18):
        assert set(result) == {"compute", "comm", "compute_with_comm", "comm_with_compute"}
        assert all(value > 0 for value in result.values())


def test_runtime_costs_name_every_action(pair):
    costs = runtime_costs(pair, 0.4)
    wanted = {f"pair_{kind}" for kind in "FBIW"} | {"gap", "setup", "finish"}
    wanted |= {f"action_{kind}" for kind in ("SEND_F", "SEND_B", "RECV_F", "RECV_B")}
    assert wanted <= costs.keys()
    for what in wanted:
        assert 0 < costs[what].seconds < 0.1, what


@pytest.mark.parametrize("placement", [LAPTOP, PAIR_OF_GPUS, GPU_AND_CPU])
def test_cells_are_many_named_once_and_always_in_the_same_order(placement):
    planned = cells.plan_cells(placement)
    keys = [cell.key for cell in planned]
    assert len(keys) == len(set(keys))
    assert keys == [cell.key for cell in cells.plan_cells(placement)]
    assert {cell.table for cell in planned} >= {"gemm", "collectives", "layers", "steps", "launch"}
    # any half of the order has a fair share of every large table
    half = [cell.table for cell in planned[: len(planned) // 2]]
    for table in ("gemm", "steps", "collectives"):
        whole = sum(cell.table == table for cell in planned)
        assert 0.3 * whole < half.count(table) < 0.7 * whole
    assert ("host_copy" in half) == ("cpu" not in placement.devices or placement is GPU_AND_CPU)


def test_steps_cover_schedules_microbatches_widths_and_splits():
    steps = [cell.arguments for cell in cells.plan_cells(LAPTOP) if cell.table == "steps"]
    assert {schedule for schedule, _ in steps} == set(cells.STEP_SCHEDULES)
    assert {job.microbatches for _, job in steps} == set(cells.MICROBATCHES)
    assert len({job.model.name for _, job in steps}) >= 6
    assert any(job.counts[0] != job.counts[-1] for _, job in steps)
    assert len(steps) >= 100


def test_a_step_that_does_not_divide_is_no_cell():
    assert cells.step_job(layer_stack(8, 8), "1f1b", 3, batch=64) is None
    assert cells.step_job(layer_stack(8, 8), "1f1b", 4, batch=64).counts == (8, 8)
    assert cells.step_job(layer_stack(8, 8), "1f1b", 4, batch=64, shift=1).counts == (10, 6)


def test_ops_are_summed_up_by_stage_and_letter():
    events = [
        OpEvent(0, "0F0", 0, 0.0, 0.0, 1.0),
        OpEvent(0, "0F1", 0, 1.0, 2.0, 5.0),
        OpEvent(0, "0SEND_F1", 0, 5.0, 5.0, 5.5),
        OpEvent(0, "STEP", 0, 6.0, 6.0, 6.25),
    ]
    assert op_medians(events) == {"0F": 2.0, "0SEND_F": 0.5, "0STEP": 0.25}


def test_a_line_cut_off_is_left_out(tmp_path):
    path = tmp_path / "records.jsonl"
    append_json(path, {"a": 1})
    with path.open("a") as file:
        file.write('{"a": 2')
    assert read_json_lines(path) == [{"a": 1}]
    assert read_json_lines(tmp_path / "none.jsonl") == []


@pytest.mark.parametrize("tail", ['{"a": 2', '{"a": 2}', "", " " * 200_000])
def test_a_record_after_a_line_cut_off_is_not_lost(tmp_path, tail):
    path = tmp_path / "records.jsonl"
    append_json(path, {"a": 1})
    with path.open("a") as file:
        file.write(tail)
    append_json(path, {"a": 3})
    assert read_json_lines(path) == [{"a": 1}, {"a": 3}]


def test_the_first_line_cut_off_is_dropped(tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_text('{"a"')
    append_json(path, {"a": 1})
    assert read_json_lines(path) == [{"a": 1}]


@pytest.mark.parametrize("tail", ["fp32,1,2", "fp32,1,2,3,0.5,0,cpu,0.1,3,1", ""])
def test_a_row_after_one_cut_off_is_not_lost(tmp_path, tail):
    row = {"dtype": "fp32", "m": 1, "n": 2, "k": 3, "ms": 0.5, "worker": 0}
    append_rows(tmp_path, "gemm", [row])
    with (tmp_path / "gemm.csv").open("a", newline="") as file:
        file.write(tail)
    append_rows(tmp_path, "gemm", [row | {"m": 7}])
    with (tmp_path / "gemm.csv").open(newline="") as file:
        assert [made["m"] for made in csv.DictReader(file)] == ["1", "7"]


def test_a_header_cut_off_is_written_again(tmp_path):
    (tmp_path / "gemm.csv").write_text("dtype,m")
    append_rows(tmp_path, "gemm", [{"dtype": "fp32", "m": 1}])
    with (tmp_path / "gemm.csv").open(newline="") as file:
        assert [made["m"] for made in csv.DictReader(file)] == ["1"]


def test_a_start_that_fails_leaves_nothing_in_the_way(tmp_path, few_cells, monkeypatch):
    folder = tmp_path / "machine"

    def fail(self, rank):
        raise CalibrationError("worker 0 failed joining the group")

    with monkeypatch.context() as patch:
        patch.setattr(measure.Workers, "_start", fail)
        with pytest.raises(CalibrationError, match="joining the group"):
            measure.measure(folder, devices="cpu,cpu")
    assert not folder.exists()
    folder.mkdir()  # what is there of a start that was killed is no measurement
    (folder / "machine.yaml").write_text("workers: [cpu, cpu]\n")
    measure._check(folder, LAPTOP, resume=False)


def test_three_devices_are_refused_before_anything_is_made(tmp_path):
    with pytest.raises(ScenarioError, match="--devices: two, not three"):
        measure.measure(tmp_path / "machine", devices="cpu,cpu,cpu")
    assert not (tmp_path / "machine").exists()


def test_a_worker_that_fails_leaves_a_hint_where_to_go_on(tmp_path, few_cells, monkeypatch):
    def fail(self, precision):
        raise CalibrationError("worker 1 was killed")

    monkeypatch.setattr(measure._Session, "run", fail)
    with pytest.raises(CalibrationError) as caught:
        measure.measure(tmp_path / "m", devices="cpu,cpu")
    kept = f"what was measured is in {tmp_path / 'm'}/: go on with --resume"
    assert str(caught.value) == f"worker 1 was killed\n{kept}"


def test_memory_that_is_there_is_less_than_all_there_is():
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < available_memory("cpu") <= whole


SMALL = {
    "gemm": ("gemm fp32 16x64x64", ("fp32", 16, 64, 64)),
    "memory_bound": ("copy 4096", ("copy", 4096)),
    "collectives": ("sendrecv 1024", ("sendrecv", 1024)),
    "launch": ("launch", ()),
}


@pytest.fixture
def few_cells(monkeypatch):
    """A plan of few cells, one of them a step."""
    job = cells.step_job(layer_stack(16, 8), "1f1b", 2, batch=8)
    planned = [cells.Cell(table, key, arguments) for table, (key, arguments) in SMALL.items()]
    planned.append(cells.Cell("steps", "step", ("1f1b", job)))
    network = Network.model_validate(
        {"name": "linear", "input": [8], "network": [{"type": "linear", "inputs": 8, "outputs": 8}]}
    )
    planned.append(cells.Cell("layers", "layer", (network, 4)))
    monkeypatch.setattr(measure, "plan_cells", lambda placement, only=None: planned)
    monkeypatch.setattr(measure, "MOST_ROUNDS", measure.ROUNDS)
    monkeypatch.setattr(measure, "OVERHEAD", 0.98)  # 30 ms a cell of a budget that is not reached
    return planned


def test_an_interrupted_measurement_keeps_what_it_has_and_goes_on(tmp_path, few_cells):
    folder = tmp_path / "machine"
    seen = []

    def interrupt(progress):
        seen.append(progress.message)
        if len(seen) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure.measure(folder, devices="cpu,cpu", budget=20, progress=interrupt)
    assert len(read_json_lines(folder / "done.jsonl")) == 3
    assert yaml.safe_load((folder / "machine.yaml").read_text())["cells"] == 3
    with pytest.raises(CalibrationError, match="holds measurements already; resume them"):
        measure.measure(folder, devices="cpu,cpu", budget=2)

    result = measure.measure(folder, devices="cpu,cpu", budget=20, resume=True)
    assert result.complete
    assert (result.cells, result.planned) == (6, 6)
    made = [(visit["cell"], visit["round"]) for visit in read_json_lines(folder / "done.jsonl")]
    assert len(made) == len(set(made)) == 12
    check_tables(folder)


COLUMNS = {  # the documented formats
    "gemm": "dtype,m,n,k,ms",
    "memory_bound": "op,bytes,ms",
    "collectives": "op,gpus,bytes,ms,link",
    "launch": "what,us",
    "layers": "layer,batch,fwd_ms,bwd_input_ms,bwd_weight_ms",
}


def check_tables(folder):
    for table, columns in COLUMNS.items():
        with (folder / f"{table}.csv").open() as file:
            rows = list(csv.DictReader(file))
        # two rounds of two workers; a message is of both
        assert len(rows) >= (2 if table == "collectives" else 4)
        for row in rows:
            assert set(columns.split(",")) <= row.keys()
            assert all(float(row[c]) > 0 for c in row.keys() & {"ms", "us", "fwd_ms", "bwd_ms"})
    (first, second) = read_json_lines(folder / "steps.jsonl")
    assert (first["round"], second["round"]) == (1, 2)
    median = statistics.median(first["step_times_s"])
    assert first["measured"]["step_time_s"] == pytest.approx(median, abs=1e-9)
    assert first["plan"]["schedule"] == "1f1b"
    assert {"0F", "1B", "0STEP"} <= first["op_seconds"].keys()
    Network.model_validate(first["mpsim_model"])
    # weights of half of the stack, their gradients, and some activations
    assert min(first["peak_bytes"]) > 2 * 4 * (16 * 16 + 16) * 4
    with (folder / "layers.csv").open() as file:
        row = next(csv.DictReader(file))
    Network.model_validate(json.loads(row["spec"]))
    machine = yaml.safe_load((folder / "machine.yaml").read_text())
    assert machine["workers"] == ["cpu", "cpu"]
    assert machine["torch"].startswith("2.")


def test_measurements_of_another_placement_are_not_mixed(tmp_path, few_cells):
    folder = tmp_path / "machine"
    folder.mkdir()
    (folder / "machine.yaml").write_text("workers: [cuda:0, cuda:1]\n")
    with pytest.raises(CalibrationError, match="was measured with workers"):
        measure.measure(folder, devices="cpu,cpu", resume=True)
    (folder / "machine.yaml").unlink()
    (folder / "gemm.csv").write_text("dtype,m,n,k,ms\n")
    with pytest.raises(CalibrationError, match=r"holds tables, but no machine\.yaml"):
        measure.measure(folder, devices="cpu,cpu")


def test_a_spent_budget_is_told(tmp_path, few_cells):
    told = []
    result = measure.measure(tmp_path, devices="cpu,cpu", budget=0.2, progress=told.append)
    assert not result.complete
    assert told[-1].message == "the budget is spent; resume to measure what is missing"
    assert measure.estimate_seconds(60.0) == 60.0 + measure.START


def test_noise_is_told_and_measured_longer(tmp_path, few_cells, monkeypatch):
    told = []
    monkeypatch.setattr(measure, "PROBE_EVERY", 0.0)
    monkeypatch.setattr(measure, "MOST_ROUNDS", measure.ROUNDS + 1)
    # no machine scatters by less than nothing
    measure.measure(tmp_path, devices="cpu,cpu", budget=20, precision=-1.0, progress=told.append)
    assert any("more than -100.0%, measuring longer" in progress.message for progress in told)
    rounds = {visit["round"] for visit in read_json_lines(tmp_path / "done.jsonl")}
    assert rounds == {1, 2, 3}


def test_every_kind_of_cell_can_be_visited():
    assert {cell.table for cell in cells.plan_cells(GPU_AND_CPU)} <= visits._VISITS.keys()
