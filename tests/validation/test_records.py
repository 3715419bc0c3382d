"""Reading measured-run records: strict, and every complaint with file, line and id."""

import json
from pathlib import Path

import pytest

from mpsim.errors import ScenarioError
from mpsim.validation.records import (
    Problem,
    Record,
    parse_record,
    read_records,
    record_files,
    value_at,
)

GOOD = {
    "id": "run-1",
    "model": {"name": "m", "family": "gpt", "layers": 4, "hidden": 64, "heads": 4},
    "cluster": {"device": "a100-sxm-80gb", "devices": 8, "devices_per_node": 8},
    "plan": {"tensor": 2, "pipeline": 2, "context": 1, "data": 2},
    "training": {"global_batch": 8, "sequence": 128},
    "measured": {"step_time_s": 1.5},
}


def edited(path: str, value: object) -> str:
    """The good record as a line, with the value at a dotted path replaced."""
    tree = json.loads(json.dumps(GOOD))
    *parents, last = path.split(".")
    node = tree
    for part in parents:
        node = node.setdefault(part, {})
    node[last] = value
    return json.dumps(tree)


@pytest.mark.parametrize(
    "path", ["notes", "unknown", "source", "plan", "completeness", "trust", "measured.oom"]
)
def test_null_is_as_good_as_leaving_out(path):
    record = parse_record(edited(path, None))
    assert isinstance(record, Record)
    tree = json.loads(edited(path, None))
    *parents, last = path.split(".")
    (tree[parents[0]] if parents else tree).pop(last)
    assert record == parse_record(json.dumps(tree))


def test_stages_must_be_as_many_as_the_pipeline_has():
    problem = parse_record(edited("plan.stage_layers", [1, 2, 1]))
    assert isinstance(problem, Problem)
    assert problem.what == "plan.stage_layers: 3 stages, the pipeline has 2"


def test_a_short_record_of_ones_own_run_is_enough():
    record = parse_record(json.dumps(GOOD))
    assert isinstance(record, Record)
    assert record.plan.degrees == (2, 2, 1, 2)
    assert record.source == "own"
    assert record.measured.step_time_s == 1.5


@pytest.mark.parametrize(
    ("path", "value", "what"),
    [
        ("model.layers", -1, "model.layers: input should be greater than or equal to 1, not -1"),
        ("model.layers", "4", 'model.layers: input should be a valid integer, not "4"'),
        ("model.layers", 4.5, "model.layers: input should be a valid integer, not 4.5"),
        ("model.layers", True, "model.layers: input should be a valid integer, not true"),
        ("model.lyers", 4, "model.lyers: unknown field"),
        ("measured.step_time_s", 0, "measured.step_time_s: input should be greater than 0, not 0"),
        ("measured.step_time_s", -2.0, "measured.step_time_s: input should be greater than 0"),
        ("plan.tensor", 3, "plan: the degrees give 12 devices, the cluster has 8"),
        ("plan.stage_layers", [1, 2], "plan.stage_layers: sum to 3, the model has 4 layers"),
        ("plan.zero", 4, "plan.zero: input should be less than or equal to 3, not 4"),
        (
            "measured.step_time_s",
            1e-300,
            "measured.step_time_s: 1e-300 s is shorter than the launch",
        ),
        ("measured.step_time_s", 1e300, "measured.step_time_s: input should be less than or equal"),
        ("cluster.devices_per_node", 10**9, "cluster.devices_per_node: input should be less than"),
        ("model.layers", 10**9, "model.layers: input should be less than or equal to 10000"),
        ("plan.expert", 4, "plan.expert: 4, but the model has no experts"),
        ("plan.stage_layers", [2, 0, 2, 0], "plan.stage_layers: stage 1 holds no layer"),
        (
            "plan.recompute_modules",
            ["transformer_layer:99_of_3"],
            "plan.recompute_modules: transformer_layer:99_of_3: 99 is not 1 to 3 layers",
        ),
        ("plan.recompute_modules", ["transformer_layer:0_of_0"], "plan.recompute_modules:"),
        ("training.microbatch", 3, "training.global_batch: 8 is not divisible by plan.data 2 x"),
        ("cluster.devices", None, "cluster.devices: input should be a valid integer, not null"),
    ],
)
def test_an_impossible_value_is_a_problem_of_its_record(path, value, what):
    problem = parse_record(edited(path, value), where="runs.jsonl:7")
    assert isinstance(problem, Problem)
    assert str(problem).startswith(f"runs.jsonl:7 (run-1): {what}")


def test_an_unlisted_name_is_refused_with_those_listed():
    problem = parse_record(edited("plan.precision", "int8"))
    assert isinstance(problem, Problem)
    assert "'bf16'" in problem.what
    assert 'not "int8"' in problem.what


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("{", "is not JSON"),
        ("[1]", "is not a JSON object"),
        ('{"id": "x", "model": NaN}', "NaN is no JSON number"),
        ('{"id": 3}', "id: input should be a valid string, not 3"),
        ("{}", "id: is missing"),
        ("[" * 100_000, "is not JSON"),
    ],
)
def test_a_line_that_is_no_record_says_why(line, what):
    problem = parse_record(line)
    assert isinstance(problem, Problem)
    assert what in problem.what


def test_a_bad_line_does_not_keep_the_others_from_being_read(tmp_path: Path):
    file = tmp_path / "runs.jsonl"
    second = edited("id", "run-2")
    file.write_text(f"{json.dumps(GOOD)}\n\nnot json\n{second}\n{second}\n")
    records, problems = read_records([file])
    assert [record.id for record in records] == ["run-1", "run-2"]
    assert [problem.where for problem in problems] == ["runs.jsonl:3", "runs.jsonl:5"]
    assert problems[1].what == "the id stands already in runs.jsonl:4"


def test_a_folder_gives_its_files_of_records_without_its_series(tmp_path: Path):
    (tmp_path / "b.jsonl").write_text(json.dumps(GOOD) + "\n")
    (tmp_path / "series.jsonl").write_text('{"series": "s", "variable": "v", "ids": ["run-1"]}\n')
    (tmp_path / "notes.md").write_text("text")
    assert record_files([tmp_path]) == [tmp_path / "b.jsonl"]


def test_a_path_without_records_is_an_error(tmp_path: Path):
    with pytest.raises(ScenarioError, match="holds no"):
        record_files([tmp_path])
    with pytest.raises(ScenarioError, match="no such file"):
        record_files([tmp_path / "gone.jsonl"])
    binary = tmp_path / "runs.jsonl"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ScenarioError, match="not text"):
        read_records([binary])


def test_a_value_is_found_by_its_dotted_path_and_gpu_is_short_for_the_device():
    assert value_at(GOOD, "plan.data") == 2
    assert value_at(GOOD, "gpu") == "a100-sxm-80gb"
    with pytest.raises(ScenarioError, match="did you mean 'pipeline'"):
        value_at(GOOD, "plan.pipelin")


def test_every_published_record_is_read(shared: Path):
    folder = shared / "data" / "measured"
    records, problems = read_records([folder])
    assert problems == []
    lines = sum(len(file.read_text().splitlines()) for file in folder.glob("*.jsonl")) - len(
        (folder / "series.jsonl").read_text().splitlines()
    )
    assert len(records) == lines


def test_embedding_and_head_may_have_stages_of_their_own():
    assert isinstance(parse_record(edited("plan.stage_layers", [0, 2, 2, 0])), Record)


def test_a_batch_that_its_source_does_not_state_need_not_divide():
    tree = json.loads(edited("training.microbatch", 3))
    assert isinstance(parse_record(json.dumps(tree)), Problem)
    for change in ({"unknown": ["training.microbatch"]}, {"completeness": "partial"}):
        assert isinstance(parse_record(json.dumps(tree | change)), Record)


def test_no_published_run_is_refused(shared):
    records, problems = read_records([shared / "data" / "measured"])
    assert problems == []
    assert len(records) >= 1485
