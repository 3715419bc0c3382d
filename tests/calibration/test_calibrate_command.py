"""``mpsim calibrate``: the file it writes, what it prints, and what it refuses."""

import datetime
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from mpsim.calibration.machine_fit import START
from mpsim.cli import main
from mpsim.cli.measuring import show_machine, shown_value
from mpsim.spec.profile import dump_profile, load_profile, shipped_profiles
from mpsim.spec.workers import WorkerFit, Workers

GEMM = "dtype,m,n,k,ms\n" + "".join(
    f"fp32,{m},{n},{k},{2 * m * n * k / 1e12 * 1e3 + 0.01}\n"
    for m in (64, 256, 1024)
    for n in (64, 512, 2048)
    for k in (64, 512, 4096)
)
"""Products at 1 TFLOP/s after 10 us."""


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "measured"
    made.mkdir()
    (made / "gemm.csv").write_text(GEMM)
    (made / "launch.csv").write_text("what,us\nhost,5\n")
    (made / "machine.yaml").write_text("device: a laptop\ndate: 2026-01-31\ndriver: none\n")
    return made


def run(*arguments):
    return CliRunner().invoke(main, ["calibrate", *map(str, arguments)])


def test_a_profile_is_written_and_read_back(folder, tmp_path):
    out = tmp_path / "mine.yaml"
    done = run("--from", folder, "--device", "mine", "--out", out)
    assert done.exit_code == 0, done.output
    assert f"wrote {out}" in done.output.replace("\n", "")
    assert "errors on rows held out" in done.output
    profile = load_profile(str(out))
    assert (profile.name, profile.device, profile.kind) == ("mine", "a laptop", "measured")
    assert profile.date == datetime.date(2026, 1, 31)
    assert profile.source == "device a laptop; driver none"
    assert profile.launch.host == pytest.approx(5e-6)
    assert profile.fit_range["gemm"]["k"] == (64, 4096)
    # two dozen rows determine the parameters loosely
    assert profile.residuals[0].table == "gemm"
    assert profile.residuals[0].median < 0.25


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("gemm.csv", "dtype,m,n,k,ms\nfp32,1,1,1,0\n", "gemm.csv: line 2: ms is '0'"),
        ("machine.yaml", "date: soon\n", "machine.yaml: date: 'soon' is no day"),
        ("gemm.csv", GEMM.replace("fp32", "int4"), "unknown number format among int4"),
    ],
)
def test_bad_measurements_end_with_code_4_and_lose_nothing(folder, tmp_path, file, text, message):
    out = tmp_path / "mine.yaml"
    out.write_text("what was there before\n")
    (folder / file).write_text(text)
    done = run("--from", folder, "--device", "mine", "--out", out)
    assert done.exit_code == 4
    assert message in done.output
    assert "Traceback" not in done.output
    assert out.read_text() == "what was there before\n"


def test_a_folder_that_is_not_there(tmp_path):
    done = run("--from", tmp_path / "nowhere", "--device", "mine")
    assert done.exit_code == 4
    assert "no such folder" in done.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--from", "x", "--device", "nope x/../y"), "--device: 'nope x/../y' is no name"),
        (("--device", " "), "--device: ' ' is no name"),
        (("--out", "nowhere/m.yaml"), "--out: nowhere/m.yaml: there is no folder nowhere"),
        (("--devices", "cpu,cpu,cpu"), "--devices: two, not three: cpu,cpu,cpu"),
        (("--devices", "cpu"), "--devices: 'cpu' is one device, but two workers are needed"),
        (("--devices", "tpu,cpu"), "--devices: 'tpu' is not a device"),
        (("--devices", ""), "--devices: '' is not a device"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_made(
    arguments, message, tmp_path, monkeypatch
):
    pytest.importorskip("torch", reason="torch is not installed")
    monkeypatch.chdir(tmp_path)
    done = run(*arguments)
    assert done.exit_code == 2
    assert message in done.output
    assert not list(tmp_path.iterdir())


def test_ctrl_c_ends_with_130_and_says_where_the_measurements_are(tmp_path, monkeypatch):
    measure = pytest.importorskip("mpsim.hardware.measure", reason="torch is not installed")

    def interrupt(folder, **named):
        raise KeyboardInterrupt

    monkeypatch.setattr(measure, "measure", interrupt)
    monkeypatch.chdir(tmp_path)
    early = run("--devices", "cpu,cpu")
    assert early.exit_code == 130
    assert "interrupted" in early.output
    (tmp_path / "machine.measured").mkdir()
    (tmp_path / "machine.measured" / "done.jsonl").touch()
    done = run("--devices", "cpu,cpu")
    assert done.exit_code == 130
    assert "stopped; what was measured is in machine.measured/: go on with --resume" in done.output


def test_collectives_without_a_link_are_told_and_not_listed(folder, tmp_path):
    (folder / "collectives.csv").write_text("op,gpus,bytes,ms\nall_reduce,2,1024,0.1\n")
    done = run("--from", folder, "--device", "mine", "--out", tmp_path / "mine.yaml")
    assert done.exit_code == 0, done.output
    assert "collectives were not fitted: name their link with --link" in done.output
    assert "of collectives" not in done.output


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("fresh", 6.46e9, "6.46 GB/s"),
        ("functions", 157e6, "157 M elements/s"),
        ("rate", 80e9, "80 GFLOP/s"),
        ("half_rows", 4.0, "4"),
        ("wake", 2e-5, "20 us"),
    ],
)
def test_parameters_are_shown_with_their_units(name, value, shown):
    assert shown_value(name, value) == shown


def test_parameters_that_are_not_determined_are_marked_and_counted(capsys):
    workers = Workers.model_construct(
        fit=WorkerFit.of(START),
        names=["fresh", "functions", "wake"],
        covariance=np.diag([0.01, 4.0, 4.0]).tolist(),
        errors=None,
    )
    profile = load_profile("h100_sxm").model_copy(update={"workers": workers})
    show_machine(profile, Path("machine.yaml"), 1.0)
    told = " ".join(capsys.readouterr().out.split())
    assert "4 GB/s │ 10%" in told
    assert "(500 M elements/s) │ not determined" in told
    assert "too short to determine 2 of 3 parameters: measure longer" in told


@pytest.mark.parametrize("name", shipped_profiles())
def test_a_shipped_profile_is_small_and_survives_a_round_trip(name, tmp_path):
    profile = load_profile(name)
    text = dump_profile(profile)
    assert len(text) < 60_000
    path = tmp_path / "again.yaml"
    path.write_text(text)
    assert load_profile(str(path)) == profile


@pytest.mark.parametrize("name", shipped_profiles())
def test_a_shipped_profile_states_where_it_comes_from_and_keeps_the_bars(name):
    profile = load_profile(name)
    assert "Apache-2.0" in profile.source
    assert profile.tables["gemm"] > 10_000
    found = {
        (r.table, r.what): r for r in profile.residuals if r.region in ("above 1 GFLOP", "all")
    }
    for (table, _), residual in found.items():
        if table == "gemm":
            assert residual.median <= 0.04
            assert residual.p90 <= 0.12
        else:
            assert residual.median <= 0.06
    assert len(found) >= 6
