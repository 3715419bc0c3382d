"""Fits of measured workers: parameters of made steps found again, and what goes into a profile."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from mpsim.calibration.cells import ask, read_cells
from mpsim.calibration.machine import FOLDS, _folds, fit_machine, step_errors
from mpsim.calibration.machine_fit import START, fit_workers, step_seconds
from mpsim.cost.worker import demand_seconds, step_facts, worker_step_seconds
from mpsim.errors import CalibrationError
from mpsim.report.interval import demand_interval
from mpsim.schedule.orders import make_order
from mpsim.schedule.text import rows_of, write_csv
from mpsim.spec.model import Network
from mpsim.spec.profile import dump_profile, load_profile
from mpsim.spec.workers import WorkerFit

TRUTH = WorkerFit.of(
    {name: value * factor for (name, value), factor in zip(
        START.items(), np.random.default_rng(3).uniform(0.5, 2.0, len(START)), strict=True
    )} | {"slice": 50e-3}
)  # fmt: skip
LETTERS = ("F", "B", "I", "W")


def network(width):
    pair = [{"type": "linear", "inputs": width, "outputs": width}, {"type": "relu"}]
    layers = [*(pair * 8), {"type": "mse"}]
    return Network.model_validate({"name": f"stack {width}", "input": [width], "network": layers})


def record(width, schedule, microbatches, *, batch=64, noise=0.0, generator=None):
    """A step as the runner writes it, with the times that the truth gives."""
    chunks = 2 if schedule.startswith("interleaved") else 1
    order = make_order(schedule, num_devices=2, num_microbatches=microbatches, num_chunks=chunks)
    text = write_csv(rows_of(order)).strip()
    counts = [16 // (2 * chunks)] * (2 * chunks)
    model = network(width)
    asked, _ = ask(model, counts, text, batch=batch, microbatch=batch // microbatches, sequence=1)
    luck = (lambda: 1.0) if generator is None else (lambda: float(generator.lognormal(0, noise)))
    kernels, host = demand_seconds(asked.passes, TRUTH)
    split = any(letter in text for letter in "IW")
    ops = {}
    for row, seconds in enumerate(kernels + host):
        letter = LETTERS[row % 4]
        if seconds > 0 and (letter == "F" or (letter in "IW") == split):
            ops[f"{row // 4}{letter}"] = float(seconds) * luck()
    ops |= {"0SEND_F": TRUTH.send, "1RECV_F": TRUTH.receive}
    step = worker_step_seconds(asked, TRUTH) * luck()
    return {
        "id": f"{model.name} {schedule} m{microbatches} round 1",
        "mpsim_model": model.model_dump(mode="json"),
        "layer_counts": counts,
        "order": text,
        "training": {"global_batch": batch, "microbatch": batch // microbatches, "sequence": 1},
        "step_times_s": [step] * 3,
        "op_seconds": ops,
    }


GRID = [
    (width, schedule, microbatches)
    for width in (64, 256)
    for schedule in ("gpipe", "1f1b", "zb_h1", "interleaved_1f1b")
    for microbatches in (2, 8, 16)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Made measurements with a spread of 3 %."""
    place, generator = tmp_path_factory.mktemp("measured"), np.random.default_rng(0)
    lines = [json.dumps(record(*cell, noise=0.03, generator=generator)) for cell in GRID]
    (place / "steps.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (place / "machine.yaml").write_text(
        "device: made CPU\nworkers: [cpu, cpu]\ntorch: none\ndate: 2026-01-31\nnoise: 0.01\n",
        encoding="utf-8",
    )
    return place


@pytest.fixture(scope="module")
def cells(folder):
    return read_cells(folder / "steps.jsonl")


@pytest.fixture(scope="module")
def fit(cells):
    return fit_workers(cells)


@pytest.fixture(scope="module")
def profile(folder):
    return fit_machine(folder, name="made")


def test_steps_are_read_as_they_were_made(cells):
    assert len(cells) == len(GRID)
    assert {cell.facts["microbatches"] for cell in cells} == {2.0, 8.0, 16.0}
    assert {cell.facts["width"] for cell in cells} == {64.0, 256.0}
    assert all(cell.spread == 0 for cell in cells)


def test_steps_of_a_fit_are_within_their_noise(cells, fit):
    errors = [abs(np.log(step_seconds(cell, fit.worker) / cell.seconds)) for cell in cells]
    assert np.median(errors) < 0.03  # the noise put on
    assert max(errors) < 0.12


@pytest.mark.parametrize("name", ["forward", "backward", "send", "receive"])
def test_well_determined_parameters_are_found_again(fit, name):
    deviation = np.sqrt(fit.covariance[fit.names.index(name), fit.names.index(name)])
    off = abs(np.log(getattr(fit.worker, name) / getattr(TRUTH, name)))
    assert off < 4 * deviation + 0.1
    assert off < 0.5


def test_a_step_not_fitted_is_predicted(fit):
    asked = record(128, "1f1b", 16)
    order, counts = asked["order"], asked["layer_counts"]
    demand, _ = ask(network(128), counts, order, batch=64, microbatch=4, sequence=1)
    truth = worker_step_seconds(demand, TRUTH)
    assert worker_step_seconds(demand, fit.worker) == pytest.approx(truth, rel=0.12)


def test_the_covariance_is_symmetric_and_not_negative(fit):
    assert np.allclose(fit.covariance, fit.covariance.T)
    assert np.linalg.eigvalsh(fit.covariance).min() > -1e-9


def test_too_few_steps_are_refused(cells):
    with pytest.raises(CalibrationError, match="3 measured steps are too few to fit"):
        fit_workers(cells[:3])


def test_residuals_are_of_fits_without_the_cell(profile, cells):
    residuals = np.array(profile.workers.residuals)
    assert residuals.shape == (len(cells),)
    assert 0 < np.median(np.abs(residuals)) < 0.08


def test_a_fold_holds_all_steps_of_its_networks(cells):
    widths = [float(index % 9) for index in range(len(cells))]
    networks = [
        replace(cell, facts={**cell.facts, "width": width})
        for cell, width in zip(cells, widths, strict=True)
    ]
    folds = _folds(networks, np.random.default_rng(0)).tolist()
    of = dict(zip(widths, folds, strict=True))
    assert [of[width] for width in widths] == folds
    assert sorted(set(folds)) == list(range(FOLDS))


def test_few_networks_are_held_out_step_by_step(cells):
    folds = _folds(cells, np.random.default_rng(0))
    assert np.bincount(folds, minlength=FOLDS).tolist() == [len(cells) // FOLDS] * FOLDS


def test_errors_of_known_residuals():
    found = step_errors(np.log(np.array([0.9, 1.0, 1.1, 1.3])))
    assert found.cells == 4
    assert found.within_15 == 0.75  # 1/1.3 is 23 % below, 1/0.9 is 11 % above
    assert found.median == pytest.approx(0.101, abs=2e-3)


def test_a_profile_is_written_and_read_back(profile, tmp_path):
    assert profile.kind == "measured"
    assert profile.device == "made CPU"
    assert profile.workers.errors.cells == len(GRID)
    path = tmp_path / "made.yaml"
    path.write_text(dump_profile(profile), encoding="utf-8")
    again = load_profile(str(path))
    assert again.workers.fit == profile.workers.fit
    assert again.workers.fit_range == profile.workers.fit_range


def test_an_interval_holds_the_step_and_widens_outside_the_range(profile):
    workers = profile.workers
    asked = record(128, "1f1b", 16)
    order, counts = asked["order"], asked["layer_counts"]
    demand, stages = ask(network(128), counts, order, batch=64, microbatch=4, sequence=1)
    facts = step_facts(demand, stages)
    inside = demand_interval(demand, facts, workers, seed=0)
    low, high = inside.bounds
    assert low < worker_step_seconds(demand, TRUTH) < high
    assert not inside.beyond
    far = demand_interval(demand, facts | {"width": 4096.0}, workers, seed=0)
    assert far.beyond == {"width": pytest.approx(np.log(16))}
    assert far.bounds[1] / far.bounds[0] > 3 * high / low


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{\n", "line 1: no record of a step"),
        ('{"id": "x"}', "'x' is no step to fit: there is no 'mpsim_model'"),
        ("[]\n", "line 1: no record of a step"),
        ("{}\n", "line 1: no record of a step: there is no 'id'"),
    ],
)
def test_files_that_are_no_steps_are_refused(tmp_path, line, complaint):
    path = tmp_path / "steps.jsonl"
    path.write_text(line, encoding="utf-8")
    with pytest.raises(CalibrationError, match=complaint):
        read_cells(path)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"step_times_s": []}, "step_times_s must be a list of seconds, one at least"),
        ({"step_times_s": None}, "step_times_s must be a list of seconds"),
        ({"step_times_s": [1.0, -1.0]}, r"step_times_s.1 must be .* more than zero, not -1.0"),
        ({"step_times_s": [0.0]}, r"step_times_s.0 must be .* more than zero, not 0.0"),
        ({"step_times_s": [math.nan]}, r"step_times_s.0 must be .* not nan"),
        ({"step_times_s": ["1"]}, r"step_times_s.0 must be a number of seconds.* not '1'"),
        ({"op_seconds": {"0F": -1e-3}}, r"op_seconds.0F must be .* zero or more, not -0.001"),
        ({"op_seconds": {"1B": math.inf}}, r"op_seconds.1B must be .* not inf"),
        ({"op_seconds": [1.0]}, "op_seconds must be seconds by kind of op"),
    ],
)
def test_times_that_cannot_be_are_refused_with_line_and_field(tmp_path, change, complaint):
    path = tmp_path / "steps.jsonl"
    good = record(64, "1f1b", 2)
    path.write_text("".join(json.dumps(each) + "\n" for each in (good, good | change)))
    with pytest.raises(CalibrationError, match=rf"steps\.jsonl: line 2: {complaint}"):
        read_cells(path)


def test_a_last_line_that_was_cut_off_is_left_out(tmp_path):
    path = tmp_path / "steps.jsonl"
    whole = json.dumps(record(64, "1f1b", 2))
    path.write_text(f"{whole}\n{whole[:500]}")
    (cell,) = read_cells(path)
    assert cell.name == "stack 64 1f1b m2"
    path.write_text(f"{whole[:500]}\n{whole}")
    with pytest.raises(CalibrationError, match="line 1: no record of a step"):
        read_cells(path)


def test_what_is_no_text_is_refused(tmp_path):
    path = tmp_path / "steps.jsonl"
    path.write_bytes(b"\xff\xfe\n")
    with pytest.raises(CalibrationError, match=r"is not text \(UTF-8\)"):
        read_cells(path)


def test_ops_too_short_for_the_clock_are_left_out(tmp_path):
    path = tmp_path / "steps.jsonl"
    step = record(64, "1f1b", 2)
    step["op_seconds"] |= {"0SEND_F": 0.0, "0STEP": 0.0}
    path.write_text(json.dumps(step))
    (cell,) = read_cells(path)
    assert "SEND" not in cell.messages
    assert not np.isfinite(cell.updates[0])


def test_a_folder_without_steps_is_refused(tmp_path):
    with pytest.raises(CalibrationError, match=r"holds no steps\.jsonl"):
        fit_machine(tmp_path, name="none")
