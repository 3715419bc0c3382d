"""``mpsim export`` and ``mpsim import`` as their user sees them."""

import json

import pytest
import yaml
from click.testing import CliRunner

from mpsim.cli import main
from mpsim.spec.reader import load

SCENARIO = """
name: two stages
model: llama3-8b
cluster: {base: hgx-h100, nodes: 2}
plan: {tensor: 8, pipeline: 2, p2p: batched, schedule: 1f1b, offload: [weights]}
training: {global_batch: 16, sequence: 4096}
"""


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "scenario.yaml"
    path.write_text(SCENARIO)
    return path


def test_export_prints_the_flags_and_names_what_they_lack(file):
    result = run("export", file, "--to", "megatron")
    assert result.exit_code == 0
    assert "    --tensor-model-parallel-size 8 \\\n" in result.stdout
    assert "torchrun --nnodes 2 --nproc-per-node 8 pretrain_gpt.py" in result.stdout
    assert "not expressed: plan.offload = ['weights'] (the file has [])\n" in result.stderr
    assert "# not expressed: plan.offload = ['weights'] (the file has [])\n" in result.stdout


@pytest.mark.parametrize("target", ["megatron", "torchtitan", "deepspeed"])
def test_a_file_goes_out_and_comes_back(file, tmp_path, target):
    out, back = tmp_path / "out.txt", tmp_path / "back.yaml"
    assert run("export", file, "--to", target, "--out", out).exit_code == 0
    result = run("import", out, "--cluster", "hgx-h100", "--model", "llama3-8b", "--out", back)
    assert result.exit_code == 0, result.output
    before, after = load(file), load(back)
    for axis in ("tensor", "pipeline", "data", "context", "schedule", "chunks"):
        assert getattr(after.plan, axis) == getattr(before.plan, axis)
    assert after.microbatches == before.microbatches
    assert after.cluster == before.cluster


def test_torch_pipelining_has_a_schedule_and_a_script(file, tmp_path):
    result = run("export", file, "--to", "torch-pipelining", "--out", tmp_path / "run")
    assert result.exit_code == 0
    assert (tmp_path / "run.csv").read_text().startswith("0F0,0F1,")
    assert 'with_name("run.csv")' in (tmp_path / "run.py").read_text()


def test_set_overrides_the_scenario(file):
    result = run("export", file, "--to", "deepspeed", "--set", "training.global_batch=64")
    assert json.loads(result.stdout)["train_batch_size"] == 64


def test_import_prints_a_scenario_with_what_was_assumed(tmp_path):
    path = tmp_path / "config.json"
    config = {"model_type": "gpt2", "n_embd": 768, "n_head": 12, "n_layer": 12}
    path.write_text(json.dumps(config | {"n_positions": 1024, "vocab_size": 50257, "foo": 1}))
    result = run("import", path, "--cluster", "two-cpu", "--set", "training.precision=fp32")
    assert result.exit_code == 0
    assert "assumed: training.sequence = 1024" in result.stderr
    assert "not read: foo" in result.stderr
    assert "# not read: foo" in result.stdout
    tree = yaml.safe_load(result.stdout)
    assert tree["model"]["layers"] == 12
    assert tree["cluster"] == "two-cpu"


def test_the_model_of_a_deepspeed_file_may_be_a_config_json(tmp_path):
    path, config = tmp_path / "ds.json", tmp_path / "config.json"
    path.write_text('{"train_micro_batch_size_per_gpu": 1}')
    fields = {"model_type": "gpt2", "n_embd": 768, "n_head": 12, "n_layer": 12}
    config.write_text(json.dumps(fields | {"n_positions": 1024, "vocab_size": 50257}))
    result = run("import", path, "--model", config, "--cluster", "dgx-a100-80gb")
    assert result.exit_code == 0, result.output
    assert yaml.safe_load(result.stdout)["plan"]["data"] == 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("export", "nowhere.yaml", "--to", "megatron"), "error: nowhere.yaml: no such file"),
        (("export", "gpt3_fp32.yaml", "--to", "slurm"), "error: --to: 'slurm' is not one of"),
        (("import", "nowhere.json"), "error: nowhere.json: No such file or directory"),
        (("import", "."), "error: .: is a folder; give a file in it"),
    ],
)
def test_mistakes_are_messages_with_exit_code_2(arguments, message):
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe\x00", "is not text (UTF-8)"),
        (b"hello", "error: {path}: is none of Megatron-LM arguments, a torchtitan TOML"),
        (b" " * (8 * 2**20 + 1), "8 MiB is no launcher's file; at most 8 are read"),
        (b'{"model_type": "gpt2"}', "error: {path}: num_hidden_layers: is missing"),
        (b'{"train_batch_size": 8}', "error: {path}: model: a DeepSpeed configuration does not"),
        (b'{"a": ', "error: {path}: configuration: is not JSON: line 1, column 7"),
        (b"[training]\na = ", "error: {path}: job configuration: is not TOML: "),
        (b"--num-layers 3 'x", "error: {path}: line 1: the ' that stands there is not closed"),
        (b"--num-layers x", "error: {path}: --num-layers: expected a whole number"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused(tmp_path, content, message):
    path = tmp_path / "strange"
    path.write_bytes(content)
    result = run("import", path)
    assert result.exit_code == 2
    assert message.format(path=path) in result.stderr


def test_a_file_of_another_launcher_is_named_with_its_complaint(tmp_path):
    path = tmp_path / "run.sh"
    path.write_text("torchrun pretrain_gpt.py --num-layers 3\n")
    result = run("import", path, "--from", "deepspeed")
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {path}: configuration: is not JSON: line 1, column 1")


def test_a_model_that_cannot_be_read_is_named_with_its_complaint(tmp_path):
    path, config = tmp_path / "ds.json", tmp_path / "config.json"
    path.write_text('{"train_batch_size": 8}')
    config.write_text("{")
    result = run("import", path, "--model", config)
    assert result.exit_code == 2
    assert f"error: {config}: configuration: is not JSON" in result.stderr


def test_an_unknown_cluster_has_a_near_miss(tmp_path):
    path = tmp_path / "ds.json"
    path.write_text('{"train_batch_size": 8}')
    result = run("import", path, "--model", "gpt2", "--cluster", "hgx-h1000")
    assert result.exit_code == 2
    assert "did you mean 'hgx-h100'?" in result.stderr
