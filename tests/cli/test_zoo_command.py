"""``mpsim zoo`` as its user sees it."""

import json

import pytest
import yaml
from click.testing import CliRunner

from mpsim.cli import main
from mpsim.spec.cluster import DeviceSpec
from mpsim.spec.zoo import kinds, names


def run(*arguments):
    return CliRunner().invoke(main, ["zoo", *arguments])


def test_all_kinds_are_listed_with_their_sources():
    result = run()
    assert result.exit_code == 0
    for kind in kinds():
        assert f"{kind} ({len(names(kind))})" in result.output
    assert "NVIDIA A100 80GB data sheet, 2021" in result.output


@pytest.mark.parametrize("kind", kinds())
def test_a_kind_is_listed_whole_with_no_name_cut(kind):
    result = run(kind)
    assert result.exit_code == 0
    for name in names(kind):
        assert f" {name} " in result.output


def test_a_device_shows_memory_peaks_and_power():
    row = next(line for line in run("devices").output.splitlines() if " h100-sxm-80gb " in line)
    for cell in ("79.11 GiB", "3350 GB/s", "66.9 / 989.4 / 1979", "700 W", "h100_sxm"):
        assert cell in row


def test_a_model_shows_its_exact_parameters():
    row = next(line for line in run("models").output.splitlines() if " gpt3-175b " in line)
    assert "174,604,259,328" in row


def test_a_cluster_shows_its_links_and_price():
    row = next(line for line in run("clusters").output.splitlines() if " aws-p4d " in line)
    for cell in ("a100-sxm-40gb", "8 x nvlink3", "efa-50", "4.0963 USD/hour"):
        assert cell in row


def test_pcie_shows_its_lanes():
    row = next(line for line in run("links").output.splitlines() if " pcie4-x8 " in line)
    assert "gen 4 x8" in row


def test_shown_entry_is_yaml_that_a_scenario_may_hold():
    result = run("show", "a100-sxm-80gb")
    assert result.exit_code == 0
    assert DeviceSpec.model_validate(yaml.safe_load(result.output)).memory_bandwidth == 2039e9


def test_shown_model_tells_its_parameters_and_size():
    assert (
        "# 6,738,415,616 parameters, as published; 27 GB in fp32" in run("show", "llama2-7b").output
    )
    assert "parameters, from its dimensions" in run("show", "gpt3-175b").output


def test_kind_and_name_show_one_entry():
    output = run("devices", "gb200").output
    assert output.startswith("# devices: gb200")
    assert "# profiles" not in output


def test_json_has_the_entries_by_kind_and_name():
    listed = json.loads(run("links", "--json").output)
    assert list(listed) == ["links"]
    assert listed["links"]["nvlink4"]["bandwidth"] == "450 GB/s"
    assert set(json.loads(run("--json").output)) == set(kinds())
    assert json.loads(run("show", "gpt2", "--json").output)["models"]["gpt2"]["layers"] == 12


def test_help_keeps_its_examples_on_lines_of_their_own():
    lines = run("--help").output.splitlines()
    assert "  mpsim zoo models                   one kind" in lines


MESSAGES = [
    (["devics"], "error: zoo: no kind 'devics'; did you mean 'devices'?"),
    (["show", "deepsek-v3"], "error: zoo: no entry 'deepsek-v3'; did you mean 'deepseek-v3'?"),
    (["show"], "error: zoo show: give the name of an entry, as in: show llama2-7b"),
    (["models", "gtp2"], "error: models: no model 'gtp2' in the zoo; did you mean 'gpt2'?"),
    (["show", "qqqqq"], "error: zoo: no entry 'qqqqq'"),
]


@pytest.mark.parametrize(("arguments", "message"), MESSAGES)
def test_message(arguments, message):
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.output.strip() == message
