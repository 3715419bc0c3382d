"""``mpsim check``, ``budget``, ``calibrate`` of this machine: real runs on two gloo processes."""

import json
import re
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from mpsim.calibration.machine_fit import START
from mpsim.cli import main
from mpsim.cli.check import _job, _signed, compare, prepared
from mpsim.cost.compiled import compile_scenario
from mpsim.cost.derived import derived_profile
from mpsim.simulation import simulate
from mpsim.spec.cluster import DeviceSpec
from mpsim.spec.profile import Sheet, dump_profile, load_profile
from mpsim.spec.reader import load
from mpsim.spec.workers import WorkerFit, Workers


@pytest.fixture(scope="module")
def profile_path(tmp_path_factory):
    """A profile with the start of the fit as its parameters: nothing here is measured."""
    sheet = Sheet.model_construct(peak={"fp32": 80e9}, memory_bandwidth=10e9, multiprocessors=1)
    spec = DeviceSpec.model_construct(
        name="cpu", memory=4e9, source="", vector_peak=None, **dict(sheet)
    )
    workers = Workers.model_construct(
        devices=["cpu", "cpu"],
        memory=4e9,
        versions={},
        fit=WorkerFit.of(START),
        names=[],
        covariance=[],
        residuals=(-0.1, 0.0, 0.1),
        fit_range={"microbatches": (1.0, 64.0)},
        errors=None,
    )
    base = derived_profile(spec)
    profile = base.model_copy(update={"name": "made", "kind": "measured", "workers": workers})
    path = tmp_path_factory.mktemp("profile") / "made.yaml"
    path.write_text(dump_profile(profile), encoding="utf-8")
    return path


def run(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments], catch_exceptions=False)


def test_a_scenario_with_a_measured_profile_has_an_interval(profile_path):
    done = run("scenario", "two_device_mlp.yaml", "--profile", profile_path, "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.output)
    low, high = told["step_time_interval_s"]
    assert low < told["step_time_s"] < high


def test_a_scenario_outside_the_fitted_range_is_flagged_and_wider(profile_path):
    profile = load_profile(str(profile_path))
    scenario = load("two_device_mlp.yaml")
    near = simulate(scenario, profile=profile)
    workers = profile.workers.model_copy(update={"fit_range": {"microbatches": (8.0, 64.0)}})
    far = simulate(scenario, profile=profile.model_copy(update={"workers": workers}))
    assert not [note for note in near.notes if "outside" in note]
    assert [note for note in far.notes if "outside the fitted range: microbatches 1" in note]
    assert far.interval[1] / far.interval[0] > near.interval[1] / near.interval[0]


@pytest.mark.parametrize("factor", [1.0, 0.97])
def test_budget_of_a_step_as_predicted_passes(profile_path, factor):
    step = simulate(load("two_device_mlp.yaml"), profile=load_profile(str(profile_path))).step_time
    measured = f"{step * factor * 1e3}ms"
    done = run("budget", "two_device_mlp.yaml", "--measured", measured, "--profile", profile_path)
    assert done.exit_code == 0, done.output
    assert ": inside" in done.output


def test_budget_of_a_slow_step_fails_and_says_what_a_step_is_made_of(profile_path):
    done = run("budget", "two_device_mlp.yaml", "--measured", "1.93s", "--profile", profile_path)
    assert done.exit_code == 1
    assert "OUTSIDE" in done.output
    assert "more than predicted" in done.output
    assert re.search(r"launch .*% of the prediction", done.output)


@pytest.mark.parametrize(
    ("arguments", "code", "complaint"),
    [
        (("budget", "two_device_mlp.yaml", "--measured", "1.93"), 2, "has no unit"),
        (("budget", "two_device_mlp.yaml", "--measured", "fast"), 2, "is not a quantity"),
        (("check", "two_device_mlp.yaml"), 4, "machine.yaml is not there: run `mpsim calibrate`"),
        (("check", "two_device_mlp.yaml", "--profile", "h100_sxm"), 4, "not the profile of a meas"),
        (("calibrate", "--budget", "0 s"), 2, "must be more than zero"),
    ],
)
def test_what_cannot_be_meant_is_told(arguments, code, complaint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run(*arguments)
    assert done.exit_code == code, done.output
    assert complaint in done.output


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ({"plan": {"tensor": 2}, "cluster": {"node": {"devices": 4}}}, "runs pipelines"),
        ({"plan": {"recompute": "full"}}, "without recomputation"),
    ],
)
def test_check_refuses_what_its_runner_does_not_do(profile_path, override, complaint):
    pairs = [
        *(f"{part}.{name}={value}" for part, fields in override.items() if part == "plan"
          for name, value in fields.items()),
        *(["cluster.node.devices=4"] if "cluster" in override else []),
    ]  # fmt: skip
    sets = [word for pair in pairs for word in ("--set", pair)]
    done = run("check", "two_device_mlp.yaml", "--profile", profile_path, *sets)
    assert done.exit_code == 2
    assert complaint in done.output


@pytest.mark.parametrize(
    ("arguments", "code", "complaint"),
    [
        (("--trace", "nowhere/x.json"), 2, "--trace: nowhere/x.json: there is no folder nowhere"),
        (("--trace", "."), 2, "--trace: . is a folder; name a file"),
        (("--devices", "cpu,cpu,cpu"), 2, "--devices: two, not three: cpu,cpu,cpu"),
        (("--devices", "cpu"), 2, "--devices: 'cpu' is one device, but two workers are needed"),
        (("--devices", "gpu,cpu"), 2, "--devices: 'gpu' is not a device"),
    ],
)
def test_check_tells_before_the_run(
    profile_path, arguments, code, complaint, tmp_path, monkeypatch
):
    workers = pytest.importorskip("mpsim.hardware.workers", reason="torch is not installed")
    monkeypatch.setattr(workers.Workers, "__enter__", lambda self: pytest.fail("started"))
    monkeypatch.chdir(tmp_path)
    done = run("check", "two_device_mlp.yaml", "--profile", profile_path, *arguments)
    assert done.exit_code == code, done.output
    assert complaint in done.output


def test_a_model_that_the_machine_has_no_memory_for_is_not_begun(profile_path, monkeypatch):
    workers = pytest.importorskip("mpsim.hardware.workers", reason="torch is not installed")
    monkeypatch.setattr(workers.Workers, "__enter__", lambda self: pytest.fail("started"))
    # a hidden layer of 2^18 by 2^18: 256 GiB of weights and as much of gradients on each stage
    side = 2**18
    layer = f"{{type: linear, inputs: {side}, outputs: {side}}}"
    done = run(
        "check", "two_device_mlp.yaml", "--profile", profile_path,
        "--set", f"model.input=[{side}]", "--set", f"model.network=[{layer}, {layer}]",
        "--set", "plan.partition=[1, 1]",
    )  # fmt: skip
    assert done.exit_code == 3, done.output
    assert re.search(r"needs 1(\.\d+)? TiB on cpu, this machine has \S+ [GM]iB", done.output)


def test_a_stage_with_the_loss_alone_is_told_what_to_write(profile_path):
    pytest.importorskip("torch", reason="torch is not installed")
    layer = "{type: linear, inputs: 10, outputs: 10}"
    sets = [
        f"model.network=[{', '.join([layer] * 5)}, {{type: mse}}]",
        "plan.pipeline=5",
        "cluster.node.devices=5",
        "plan.partition=layers",
    ]
    words = [word for each in sets for word in ("--set", each)]
    done = run("check", "two_device_mlp.yaml", "--profile", profile_path, *words)
    assert done.exit_code == 2, done.output
    assert "plan.partition: the last of 5 stages has the loss alone" in done.output
    assert "write plan.partition=[1, 1, 1, 1, 2]" in done.output
    words += ["--set", "model.network=[{type: linear, inputs: 10, outputs: 2}, {type: mse}]"]
    words += ["--set", "plan.pipeline=2", "--set", "cluster.node.devices=2"]
    done = run("check", "two_device_mlp.yaml", "--profile", profile_path, *words)
    assert done.exit_code == 2, done.output
    assert "each needs a layer: take fewer stages" in done.output


@pytest.mark.parametrize(
    ("seconds", "shown"), [(4.34e-19, "0 s"), (-1e-12, "0 s"), (2e-3, "+2 ms"), (-2e-3, "-2 ms")]
)
def test_what_no_clock_tells_is_shown_as_nothing(seconds, shown):
    assert _signed(seconds) == shown


@pytest.fixture(scope="module")
def pair():
    pytest.importorskip("torch", reason="torch is not installed")
    from mpsim.hardware.devices import Machine, place
    from mpsim.hardware.workers import Workers as Processes

    with Processes(place(("cpu", "cpu"), Machine(gpus=(), cores=(0, 1))), timeout=90) as processes:
        yield processes


def test_check_runs_the_simulated_schedule_and_explains_the_gap(profile_path, tmp_path):
    pytest.importorskip("torch", reason="torch is not installed")
    trace = tmp_path / "both.json"
    done = run(
        "check", "two_device_mlp.yaml", "--profile", profile_path, "--steps", 3,
        "--trace", trace, "--set", "training.microbatch=16", "--set", "plan.schedule=1f1b",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    for word in ("predicted", "measured", "transfer", "waiting", "skew", "unexplained"):
        assert word in done.output
    told = " ".join(done.output.split())
    assert told.count("the step at the lower quartile of 3, whose median is") == 1
    events = json.loads(Path(trace).read_text(encoding="utf-8"))["traceEvents"]
    names = {event["name"] for event in events if event["ph"] == "X"}
    assert {"0F0", "1B3", "0SEND_F0"} <= names
    assert {event["cat"] for event in events if event["ph"] == "X"} == {"predicted", "measured"}


def test_check_runs_a_loss_of_logits(profile_path):
    pytest.importorskip("torch", reason="torch is not installed")
    done = run(
        "check", "two_layer_fc.yaml", "--profile", profile_path, "--steps", 3,
        "--set", "training.global_batch=8", "--set", "training.microbatch=8",
        "--set", "model.input=[16]",
        "--set", "model.network=[{type: linear, inputs: 16, outputs: 32}, {type: sigmoid}, "
        "{type: linear, inputs: 32, outputs: 1}, {type: binary_cross_entropy}]",
    )  # fmt: skip
    assert done.exit_code == 0, done.output


def test_check_as_json_sums_its_causes_to_the_gap(profile_path):
    pytest.importorskip("torch", reason="torch is not installed")
    done = run("check", "two_device_mlp.yaml", "--profile", profile_path, "--steps", 3, "--json")
    told = json.loads(done.stdout)
    difference = told["measured_step_time_s"] - told["predicted_step_time_s"]
    assert sum(told["gap_s"].values()) == pytest.approx(difference, abs=1e-9)
    assert len(told["steps_s"]) == 3
    low, high = told["interval_s"]
    assert low < told["predicted_step_time_s"] < high
    assert told["devices_s"]["predicted"].keys() == told["devices_s"]["measured"].keys()


def _gap(pair, job, compiled, faults):
    from mpsim.hardware.pipeline import run_pipeline

    return compare(compiled, run_pipeline(pair, replace(job, faults=faults))).gap


# The clean run is the baseline: what its gap already holds is not the fault's. Large faults keep
# the noise of a busy machine below a tenth of them; the median of three runs is taken.
@pytest.mark.parametrize(
    ("fault", "cause"), [("sleep", "compute"), ("launches", "launch"), ("throttle", "transfer")]
)
def test_a_fault_in_a_real_run_is_attributed(pair, profile_path, fault, cause):
    from mpsim.hardware.faults import Faults

    scenario = load("two_device_mlp.yaml", ["training.microbatch=16", "plan.schedule=1f1b"])
    compiled = compile_scenario(*prepared(scenario, load_profile(str(profile_path))))
    job = _job(compiled, 5)
    faults = {
        "sleep": Faults(sleep={1: 0.05}),
        "launches": Faults(launches={1: 20_000}),  # some 2.5 us each
        "throttle": Faults(throttle={0: 16 * 20 * 4 / 0.05}),  # 50 ms for 16 rows of 20 floats
    }[fault]
    shares = []
    for _ in range(3):
        clean, faulty = (_gap(pair, job, compiled, each) for each in (Faults(), faults))
        grown = faulty.measured - clean.measured
        shares.append((faulty.causes[cause] - clean.causes[cause]) / grown)
        assert sum(faulty.causes.values()) == pytest.approx(faulty.seconds, abs=1e-9)
        assert grown > 0.1
    assert 0.9 <= statistics.median(shares) <= 1.1
