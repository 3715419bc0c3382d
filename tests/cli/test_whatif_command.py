"""``mpsim whatif`` and ``mpsim compare`` as their user sees them."""

import json
import re

import pytest
from click.testing import CliRunner

from mpsim.cli import main


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def run(*arguments):
    return CliRunner().invoke(main, list(arguments))


GRID = [
    *("whatif", "gpt3_bf16.yaml", "--set", "training.global_batch=32"),
    *("--vary", "plan.pipeline=6,12", "--vary", "cluster.network.bandwidth=5GB/s:25GB/s:2"),
]


def test_a_grid_is_a_table_and_is_read_again_from_its_results(tmp_path):
    first = run(*GRID)
    assert first.exit_code == 0, first.output
    assert "data follows" in first.stderr
    assert "5 GB/s" in first.stdout
    again = run(*GRID)
    assert "4 of 4 points read from" in again.stderr
    assert again.stdout == first.stdout
    assert list((tmp_path / "cache" / "mpsim").glob("*.jsonl"))


def test_files_and_picture_are_written(tmp_path):
    files = {kind: tmp_path / f"rows.{kind}" for kind in ("csv", "json")}
    done = run(*GRID, "--csv", str(files["csv"]), "--json", str(files["json"]),
               "--plot", str(tmp_path / "rows.svg"))  # fmt: skip
    assert done.exit_code == 0, done.output
    rows = json.loads(files["json"].read_text())
    assert [row["status"] for row in rows] == ["ok"] * 4
    assert files["csv"].read_text().count("\n") == 5
    assert (tmp_path / "rows.svg").read_text().startswith("<?xml")
    assert json.loads(run(*GRID, "--json", "-").stdout) == rows


def test_sensitivity_names_what_binds_next():
    done = run("whatif", "gpt3_bf16.yaml", "--set", "training.global_batch=32", "--sensitivity")
    assert done.exit_code == 0, done.output
    assert "doubling the device peak rate gains" in done.output
    assert "neighbouring plans" in done.output
    values = json.loads(run("whatif", "gpt3_bf16.yaml", "--sensitivity", "--json", "-").stdout)
    assert values["parameters"][0]["parameter"] == "cluster.device.peak"


def test_compare_says_what_differs_and_what_it_costs():
    done = run("compare", "gpt3_fp32.yaml", "gpt3_bf16.yaml")
    assert done.exit_code == 0, done.output
    assert "training.precision" in done.output
    assert "what makes the difference in the step" in done.output
    found = json.loads(run("compare", "gpt3_fp32.yaml", "gpt3_bf16.yaml", "--json").stdout)
    assert found["fields"] == {"training.precision": ["fp32", "bf16"]}
    causes = sum(one["difference"] for one in found["step_by_cause_s"].values())
    assert causes == pytest.approx(found["numbers"]["step_time_s"]["difference"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["whatif", "gpt3_bf16.yaml"], "--vary: give at least one"),
        (["whatif", "gpt3_bf16.yaml", "--vary", "plan.pipelin=1"], "did you mean 'pipeline'?"),
        ([*GRID, "--plot", "a.txt"], "a.txt: the picture's ending must be .svg, .png or .pdf"),
        ([*GRID, "--executor", "dask"], "--address: is needed with --executor dask"),
        ([*GRID, "--address", "tcp://127.0.0.1:1"], "--address: goes with --executor dask"),
        (
            ["whatif", "gpt3_bf16.yaml", "--vary", "plan.schedule={a: 1},1f1b"],
            "--vary plan.schedule: '{a: 1}' is a mapping",
        ),
        (["compare", "gpt3_bf16.yaml", "gpt5.yaml"], "gpt5.yaml: no such file"),
    ],
)
def test_what_cannot_be_meant_is_said(arguments, message):
    done = run(*arguments)
    assert done.exit_code == 2, done.output
    assert message in done.stderr
    assert "Traceback" not in done.output


MODULE = """
from torch import nn

def build():
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
"""
SCENARIO = """
name: traced
model: {name: net, torch: "ownnet:build", input: [64]}
cluster: {device: a100-sxm-80gb, nodes: 1, node: {devices: 1, link: nvlink3}}
training: {global_batch: 32, microbatch: 32}
"""


@pytest.fixture
def torch_file(tmp_path):
    pytest.importorskip("torch", reason="torch modules are traced with torch")
    (tmp_path / "ownnet.py").write_text(MODULE)
    file = tmp_path / "own.yaml"
    file.write_text(SCENARIO)
    return str(file)


def test_a_torch_module_is_traced_wherever_a_scenario_is_read(torch_file):
    grid = run("whatif", torch_file, "--vary", "training.microbatch=16,32", "--json", "-")
    assert grid.exit_code == 0, grid.output
    assert [row["status"] for row in json.loads(grid.stdout)] == ["ok", "ok"]
    for command in (
        ["whatif", torch_file, "--sensitivity"],
        ["compare", torch_file, torch_file],
        ["plan", torch_file],
    ):
        done = run(*command)
        assert done.exit_code == 0, (command, done.output)


def test_traced_modules_are_counted_in_words(torch_file):
    split = ["--set", "cluster.node.devices=2", "--set", "plan.pipeline=2"]
    text = run("scenario", torch_file, *split).stdout
    assert "2 traced modules" in text
    assert "traceds" not in text


def test_where_no_point_can_be_simulated_that_is_an_error_and_tried_again(tmp_path):
    wrong = ["whatif", "gpt3_bf16.yaml", "--vary", "plan.pipeline=7,11", "--fill", "none"]
    first = run(*wrong)
    assert first.exit_code == 2, first.output
    assert "none of the 2 points can be simulated" in first.stderr
    again = run(*wrong)
    assert "points read from" not in again.stderr


def test_values_are_not_taken_for_pictures():
    done = run("whatif", "gpt3_bf16.yaml", "--vary", "plan.pipeline=a:b:c")
    assert "a:b:c" in done.stdout


def test_a_picture_without_a_folder_is_refused_before_the_work(tmp_path):
    done = run(*GRID, "--plot", str(tmp_path / "none" / "rows.svg"))
    assert done.exit_code == 2
    assert "there is no folder" in done.stderr


def test_a_comparison_reads_without_exponents_and_names_its_units():
    done = run("compare", "gpt3_fp32.yaml", "gpt3_bf16.yaml")
    for words in ("tokens per second", "samples per second", "memory as the driver shows it"):
        assert words in done.output
    assert not re.search(r"\de[+-]\d", done.output)
