"""Which of several variants a command is about, and what becomes of degrees that a file states."""

import json

import pytest
from click.testing import CliRunner

from mpsim.cli import main
from mpsim.simulation import simulate
from mpsim.spec.reader import load_variants


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def run(*arguments):
    return CliRunner().invoke(main, list(arguments))


VARY = ("--vary", "cluster.network.bandwidth=25GB/s,100GB/s")
CHOSEN = "tensor 8 x data 8"


def test_a_what_if_of_a_file_with_variants_says_which_it_varies():
    done = run("whatif", "hybrid.yaml", *VARY)
    assert done.exit_code == 0, done.output
    said = " ".join(done.stderr.split())
    assert "this is 'tensor 8 x pipeline 4 x data 2', the first of 6 variants" in said
    assert f"'{CHOSEN}'" in said
    assert "tensor 8 x pipeline 4" in done.stdout


def test_a_what_if_varies_the_variant_that_is_named():
    done = run("whatif", "hybrid.yaml", *VARY, "--variant", CHOSEN, "--json", "-")
    assert done.exit_code == 0, done.output
    assert "variants" not in done.stderr
    slow = ["cluster.network.bandwidth=25GB/s"]
    one = next(one for one in load_variants("hybrid.yaml", slow) if one.variant == CHOSEN)
    step = json.loads(done.stdout)[0]["step_time_s"]
    assert step == pytest.approx(simulate(one, engine="fast").step_time, rel=1e-9)


def test_a_file_without_variants_says_nothing_of_them():
    done = run("whatif", "gpt3_fp32.yaml", "--vary", "training.microbatch=1")
    assert done.exit_code == 0, done.output
    assert len(load_variants("gpt3_fp32.yaml")) == 1
    assert "variant" not in done.stderr


@pytest.mark.parametrize(
    "command", [["whatif", "hybrid.yaml"], ["compare", "hybrid.yaml", "hybrid.yaml"]]
)
def test_a_variant_that_does_not_exist_is_an_error_with_the_names(command):
    done = run(*command, "--variant", "tensor 8 x data 9")
    assert done.exit_code == 2
    assert "no such variant in hybrid.yaml; did you mean 'tensor 8 x data 8'" in done.stderr


def test_two_variants_of_a_file_are_compared():
    done = run("compare", "hybrid.yaml", "hybrid.yaml", "--other", CHOSEN, "--json")
    fields = json.loads(done.stdout)["fields"]
    assert fields["plan.pipeline"] == [4, 1]
    assert fields["plan.data"] == [2, 8]


def test_a_network_has_no_tokens_in_what_ifs_and_comparisons():
    ddp = ["--variant", "DistributedDataParallel"]
    grid = run("whatif", "cnn_data_parallel.yaml", *ddp, "--vary", "training.microbatch=25,50")
    assert grid.exit_code == 0, grid.output
    assert "samples/s" in grid.stdout
    assert "tokens" not in grid.stdout
    done = run("compare", *["cnn_data_parallel.yaml"] * 2, *ddp, "--json")
    assert json.loads(done.stdout)["numbers"]["tokens_per_s"]["first"] is None


def test_stated_replicas_stay_and_the_counts_say_how_to_open_them():
    stated = run("plan", "gpt3_bf16.yaml", "--set", "plan.tensor=1..8")
    assert stated.exit_code == 0, stated.output
    text = " ".join(stated.output.split())
    assert "other replicas than those stated, plan.data=2 (open them: --set plan.data=auto)" in text
    opened = run("plan", "gpt3_bf16.yaml", "--set", "plan.tensor=1..8", "--set", "plan.data=auto")
    assert "4 legal" in opened.stdout
    assert "stated" not in opened.stdout


def test_stated_replicas_that_leave_no_plan_are_named_in_the_error():
    done = run("plan", "gpt3_bf16.yaml", "--set", "plan.tensor=[2, 4]")
    assert done.exit_code == 2
    assert "most fall to the rule 'other replicas than those stated, plan.data=2" in done.stderr


def test_a_what_if_says_what_follows_and_from_which_value():
    done = run("whatif", "gpt3_bf16.yaml", "--vary", "plan.pipeline=6", "--json", "-")
    said = " ".join(done.stderr.split())
    assert "data follows" in said
    assert "it is 2 in the scenario, where --fill none keeps it" in said
