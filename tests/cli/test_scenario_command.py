"""``mpsim scenario`` as a user meets it: output, files, messages, exit codes."""

import itertools
import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from mpsim.cli import main
from mpsim.spec.reader import load, load_variants, scenario_folder, shipped_scenarios


def run(*arguments):
    """The command line's result; anything but its own exit is a failure of the test."""
    result = CliRunner().invoke(main, list(map(str, arguments)))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.fixture
def file(tmp_path):
    """A scenario file that is quick to simulate."""
    tree = {
        "name": "quick",
        "model": {"layers": 4, "hidden": 64, "heads": 4, "vocab": 128},
        "cluster": {"device": "a100-sxm-80gb", "node": {"devices": 2, "link": "nvlink3"}},
        "plan": {"pipeline": 2},
        "training": {"global_batch": 8, "sequence": 32},
    }
    path = tmp_path / "quick.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


OPEN = [name for name in shipped_scenarios() if name.startswith("plan_")]
"""Scenarios whose plan is left open."""


@pytest.mark.parametrize("name", shipped_scenarios())
def test_every_shipped_scenario_opens_with_a_comment(name):
    assert (scenario_folder() / name).read_text().startswith("# ")


@pytest.mark.parametrize("name", OPEN)
def test_an_open_plan_is_left_to_the_search(name):
    result = run("scenario", name)
    assert result.exit_code == 2
    assert "is left open ('auto'): `mpsim plan` searches it" in result.stderr


@pytest.mark.parametrize("name", [name for name in shipped_scenarios() if name not in OPEN])
def test_every_other_shipped_scenario_runs(name):
    result = run("scenario", name)
    assert result.exit_code == 0, result.output
    assert "a step" in result.output


def test_the_widest_fact_comes_first(file):
    lines = run("scenario", file).output.splitlines()
    assert "FITS" in lines[1]
    assert "a step" in lines[2]
    assert "samples/s" in lines[3]


def test_json_keys_carry_their_units(file):
    record = json.loads(run("scenario", file, "--json").stdout)
    assert record["fits"] is True
    assert record["step_time_s"] == pytest.approx(sum(record["waterfall_s"].values()), rel=1e-9)
    for key in ("step_time_s", "peak_memory_bytes", "tokens_per_s", "span_s"):
        assert record[key] > 0
    assert [device["index"] for device in record["device"]] == [0, 1]


def test_several_files_and_variants_give_a_list(file):
    records = json.loads(run("scenario", file, "two_layer_fc.yaml", "--json").stdout)
    assert [record["variant"] for record in records] == [
        "base",
        "by layer",
        "by columns",
        "by rows",
    ]


def test_the_same_scenario_and_seed_give_the_same_bytes(file):
    arguments = ("scenario", file, "--json", "--set", "disturbance.jitter=0.2", "--seed", "3")
    assert run(*arguments).stdout_bytes == run(*arguments).stdout_bytes


def test_set_overrides_with_units(file):
    fields = ("--set", "plan.pipeline=1", "--set", "plan.data=2")
    record = json.loads(run("scenario", file, "--json", *fields).stdout)
    assert len(record["device"]) == 1
    slow = run("scenario", file, "--json", "--set", "cluster.node.link.latency=1 s")
    assert json.loads(slow.stdout)["step_time_s"] > 1


def test_a_price_without_a_source_says_so(file):
    shown = run("scenario", file, "--set", "cluster.price=2 USD/h").stdout
    assert "a step (price given without a source)" in shown
    assert "None" not in shown


def test_a_trace_is_what_viewers_load(file, tmp_path):
    path = tmp_path / "trace.json"
    assert run("scenario", file, "--trace", path).exit_code == 0
    events = json.loads(path.read_text())["traceEvents"]
    spans = [event for event in events if event["ph"] == "X"]
    assert {"0F0", "1B7", "update"} <= {event["name"] for event in spans}
    assert all(event["dur"] >= 0 and {"pid", "tid", "ts"} <= event.keys() for event in spans)
    # ops of one thread follow one another
    for device in (0, 1):
        row = sorted(
            (event["ts"], event["ts"] + event["dur"])
            for event in spans
            if event["pid"] == device and event["tid"] == 0
        )
        assert all(b[0] >= a[1] - 1e-6 for a, b in itertools.pairwise(row))


@pytest.mark.parametrize("option", ["--plot", "--memory-plot"])
def test_pictures_are_written_and_are_the_same_each_time(file, tmp_path, option):
    for name in ("a.svg", "b.svg"):
        assert run("scenario", file, option, tmp_path / name).exit_code == 0
    first, second = ((tmp_path / name).read_bytes() for name in ("a.svg", "b.svg"))
    assert first == second
    assert ET.fromstring(first).tag.endswith("svg")
    png = tmp_path / "c.png"
    assert run("scenario", file, option, png).exit_code == 0
    assert png.read_bytes().startswith(b"\x89PNG")


def test_out_writes_everything(file, tmp_path):
    folder = tmp_path / "out"
    assert run("scenario", file, "--out", folder).exit_code == 0
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "quick.json",
        "quick.txt",
        "quick.trace.json",
        "quick.svg",
        "quick.memory.svg",
        "index.html",
    }


def test_what_does_not_fit_exits_3_with_need_have_and_remedies_that_fit(file):
    result = run("scenario", file, "--set", "cluster.device.memory=700 MiB")
    assert result.exit_code == 3
    assert "DOES NOT FIT" in result.stdout
    text = result.stderr
    assert "error: quick: does not fit: device 0, stage 0 needs" in text
    assert "has 700 MiB" in text
    assert "at its peak" in text


def test_remedies_are_single_changes_that_fit(tmp_path):
    big = ["scenario", "gpt3_bf16.yaml", "--set", "cluster.nodes=3", "--set", "plan.pipeline=3"]
    big += ["--set", "plan.data=1", "--set", "plan.recompute=none", "--set", "variants={}"]
    result = run(*big)
    assert result.exit_code == 3
    offered = [line.strip() for line in result.stderr.splitlines() if line.startswith("    ")]
    assert offered
    for line in offered:
        changes = line.split(": ")[0]
        sets = [part for change in _split(changes) for part in ("--set", change)]
        assert run(*big, *sets).exit_code == 0, line


def _split(changes):
    """Single ``path=value`` texts of an offered line."""
    return changes.replace(", cluster", "|cluster").replace(", plan", "|plan").split("|")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.yaml"], "error: nowhere.yaml: no such file"),
        (["gpt3_fp32.yaml", "--set", "plan.pipelin=4"], "did you mean 'pipeline'?"),
        (["gpt3_fp32.yaml", "--set", "plan.schedule=1f1c"], "plan.schedule: no schedule '1f1c'"),
        (["gpt3_fp32.yaml", "--set", "cluster.device=b100"], "cluster.device: no device 'b100'"),
        (["gpt3_fp32.yaml", "--set", "model=gpt3-175"], "did you mean 'gpt3-175b' or"),
        (["gpt3_fp32.yaml", "--set", "plan"], "write it as path=value"),
        (["gpt3_fp32.yaml", "--plot", "x.gif"], "x.gif: the picture's ending must be"),
        (["gpt3_fp32.yaml", "--plot", "none/x.svg"], "none/x.svg: there is no folder none"),
        (["gpt3_fp32.yaml", "--trace", "/nowhere/x.json"], "/nowhere/x.json"),
    ],
)
def test_bad_input_is_one_clear_message_and_exit_2(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run("scenario", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.output


def test_an_order_that_the_numbers_do_not_allow_is_refused(file):
    result = run(
        "scenario", file, "--set", "plan.schedule=interleaved_1f1b", "--set", "plan.chunks=2",
        "--set", "training.global_batch=1",
    )  # fmt: skip
    assert result.exit_code == 2


def test_an_unknown_command_gets_a_near_miss():
    result = run("scenaro")
    assert result.exit_code == 2
    assert "did you mean 'scenario'?" in result.stderr


def test_python_dash_m_works(file):
    done = subprocess.run(
        [sys.executable, "-m", "mpsim", "scenario", str(file), "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout)["fits"] is True


def test_the_schema_describes_every_field():
    schema = json.loads(run("schema").stdout)
    plan = schema["$defs"]["PlanSpec"]["properties"]
    assert all("description" in field for field in plan.values())
    assert "quantity" in schema["$defs"]["DeviceSpec"]["properties"]["memory"]["description"] or (
        schema["$defs"]["DeviceSpec"]["properties"]["memory"]["type"] == "string"
    )


def test_the_starter_runs_as_it_is(tmp_path):
    path = tmp_path / "mine.yaml"
    assert run("init", path).exit_code == 0
    assert run("init", path).exit_code == 2
    assert run("scenario", path).exit_code == 0
    assert len(load_variants(path)) == 3


def test_load_and_simulate_from_python(file):
    import mpsim

    report = mpsim.simulate(mpsim.load(file))
    assert report.fits
    assert report.step_time > 0
    assert load(Path(file)).plan.pipeline == 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("name='[/x]'", "[/x]"),
        ("cluster.device.memory=1 B", "DOES NOT FIT"),
    ],
)
def test_names_and_sizes_are_shown_as_they_are(file, override, message):
    assert message in run("scenario", file, "--set", override).stdout


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: " + "[" * 100_000, "is nested too deeply"),
        ("- " * 100_000, "is nested too deeply"),
        ("name: !!timestamp abc", "has a value that YAML cannot read"),
        ("name: !!bool abc", "has a value that YAML cannot read"),
    ],
    ids=["flow", "block", "timestamp", "bool"],
)
def test_hostile_yaml_is_refused(tmp_path, text, message):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    result = run("scenario", path)
    assert result.exit_code == 2
    assert message in result.stderr


def test_a_device_file_is_not_read_without_end():
    result = run("scenario", "/dev/zero")
    assert result.exit_code == 2
    assert "at most 2 MiB are read" in result.stderr


def test_fp32_attention_is_not_faster_than_the_silicon(file):
    fields = ["training.precision=fp32", "training.sequence=32768", "training.global_batch=2"]
    sets = [part for field in fields for part in ("--set", field)]
    found = json.loads(run("scenario", file, "--json", *sets).stdout)
    assert found["model_flops_utilisation"]["hardware"] < 1


def test_a_shard_group_must_divide_the_replicas(file):
    result = run("scenario", file, "--set", "plan={data: 2, zero: 3, zero_group: 3}")
    assert result.exit_code == 2
    assert "zero_group (3) must divide data x context (2)" in result.stderr
