"""``mpsim calibrate``: the file it writes, what it prints, and what it refuses."""

import datetime

import pytest
from click.testing import CliRunner

from mpsim.cli import main
from mpsim.spec.profile import dump_profile, load_profile, shipped_profiles

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
