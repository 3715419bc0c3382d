"""``mpsim validate``: keys of its JSON, conditions, strictness, calibration, files it writes."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from mpsim.cli import main
from mpsim.cli.validate import select
from mpsim.errors import ScenarioError
from mpsim.validation.record_parts import RecordedCluster, RecordedModel, RecordedTraining
from mpsim.validation.records import Record

RUN = {
    "model": {"name": "m", "family": "gpt", "layers": 4, "hidden": 1024, "heads": 16,
              "vocab": 51200},
    "cluster": {"device": "a100-sxm-80gb", "devices": 8, "devices_per_node": 8,
                "intra_node": "nvlink3"},
    "plan": {"tensor": 2, "pipeline": 1, "context": 1, "data": 4, "schedule": "none",
             "precision": "bf16", "recompute": "none"},
    "training": {"global_batch": 16, "microbatch": 2, "sequence": 1024},
}  # fmt: skip


def runs(folder: Path, times: dict[str, float], *more: str) -> Path:
    """A file with one run of each measured time, and more lines."""
    file = folder / "runs.jsonl"
    lines = [
        json.dumps(
            {"id": name, "source": "s" + name[0], **RUN, "measured": {"step_time_s": seconds}}
        )
        for name, seconds in times.items()
    ]
    file.write_text("\n".join([*lines, *more]) + "\n")
    return file


def invoke(*arguments: object):
    """The command's result."""
    return CliRunner().invoke(main, ["validate", *map(str, arguments)], catch_exceptions=False)


def total_over_sources(tree: dict) -> dict:
    """The means over sources."""
    return tree["total"]["over_sources"]


def test_json_has_the_documented_keys(tmp_path: Path):
    file = runs(tmp_path, {"a1": 0.1, "b1": 0.2})
    done = invoke(file, "--json")
    assert done.exit_code == 0
    tree = json.loads(done.output)
    assert list(tree["records"][0]) == [
        "id",
        "source",
        "predicted_step_time_s",
        "measured_step_time_s",
        "predicted_peak_memory_bytes",
        "measured_peak_memory_bytes",
        "skipped",
        "predicted_fits",
        "measured_fits",
        "assumptions",
    ]
    assert "plan.zero = 1" in tree["records"][0]["assumptions"]
    # each source counts once, and is counted
    assert total_over_sources(tree)["count"] == 2
    assert set(tree["sources"]) == {"sa", "sb"}
    total = tree["total"]
    assert total["records"] == 2
    first, second = tree["records"]
    # equal runs have equal predictions, so the errors follow from the two measured times
    predicted = first["predicted_step_time_s"]
    assert second["predicted_step_time_s"] == predicted
    errors = [abs(predicted / 0.1 - 1), abs(predicted / 0.2 - 1)]
    assert total["step_time"]["mean"] == pytest.approx(sum(errors) / 2)


def test_text_names_sources_worst_rows_and_what_they_are_made_of(tmp_path: Path):
    done = invoke(runs(tmp_path, {"a1": 0.1, "b1": 5.0}))
    assert done.exit_code == 0
    for part in (
        "Step time",
        "sa",
        "sb",
        "Worst rows",
        "b1:",
        "compute",
        "assumed: ",
        "plan.zero = 1",
    ):
        assert part in done.output


def test_conditions_choose_records(tmp_path: Path):
    file = runs(tmp_path, {"a1": 0.1, "b1": 0.2})
    kept = json.loads(invoke(file, "--json", "--where", "source=sb").output)
    assert [row["id"] for row in kept["records"]] == ["b1"]
    every = invoke(file, "--json", "--where", "gpu=a100-sxm-80gb", "--where", "plan.tensor=2")
    assert len(json.loads(every.output)["records"]) == 2
    wrong = invoke(file, "--where", "plan.tensr=2")
    assert wrong.exit_code == 2
    assert "did you mean 'tensor'" in wrong.stderr


def test_conditions_compare_values_as_text():
    record = Record.model_validate({"id": "r", **RUN, "measured": {"step_time_s": 1.0}})
    assert select([record], ["measured.oom=false", "plan.zero=null"]) == [record]
    assert select([record], ["training.global_batch=17"]) == []
    with pytest.raises(ScenarioError, match="write it as path=value"):
        select([record], ["plan.zero"])


def test_an_impossible_record_is_named_and_fails_only_under_strict(tmp_path: Path):
    bad = json.dumps({"id": "bad", **RUN, "measured": {"step_time_s": -1}})
    unknown = json.dumps(
        {"id": "odd", **RUN, "cluster": {**RUN["cluster"], "device": "x100"},
         "measured": {"step_time_s": 1.0}}
    )  # fmt: skip
    file = runs(tmp_path, {"a1": 0.1}, bad, unknown, "not json")
    lenient, strict = invoke(file), invoke(file, "--strict")
    assert (lenient.exit_code, strict.exit_code) == (0, 2)
    assert "runs.jsonl:2 (bad): measured.step_time_s" in lenient.output
    assert "odd: devices: no device 'x100'" in lenient.output
    assert "runs.jsonl:4: is not JSON" in lenient.output
    tree = json.loads(invoke(file, "--json").output)
    assert [problem["id"] for problem in tree["problems"]] == ["bad", ""]
    assert tree["records"][1]["skipped"].startswith("devices: no device 'x100'")
    assert tree["total"]["skipped"] == 1


def test_factors_fitted_on_some_rows_bring_equal_rows_right(tmp_path: Path):
    file = runs(tmp_path, {f"a{n}": 0.02 for n in range(30)})
    tree = json.loads(invoke(file, "--json", "--fit-on", "20").output)
    assert tree["total"]["records"] == 10
    before = json.loads(invoke(file, "--json").output)["total"]["step_time"]["mean"]
    # one kind of row leaves the prior on each factor a say, hence not exactly zero
    assert tree["total"]["step_time"]["mean"] < before / 5
    assert invoke(file, "--fit-on", "30").exit_code == 4


def test_series_and_plot(tmp_path: Path):
    file = runs(tmp_path, {"a1": 0.1, "a2": 0.2})
    assert invoke(file, "--series").exit_code == 2
    (tmp_path / "series.jsonl").write_text(
        json.dumps({"series": "s", "variable": "plan", "ids": ["a1", "a2"]}) + "\n"
    )
    plot = tmp_path / "scatter.png"
    done = invoke(file, "--series", "--plot", plot, "--json")
    tree = json.loads(done.output)
    # equal predictions where one run took twice as long: the ratio is off by a factor of two
    assert tree["series"]["all"]["ratio"] == pytest.approx(1.0)
    assert plot.stat().st_size > 1000


def test_without_files_and_without_published_runs_it_says_where_they_belong(monkeypatch, tmp_path):
    monkeypatch.setenv("MPSIM_DATA", str(tmp_path))
    done = invoke()
    assert done.exit_code == 2
    assert "no measured runs there" in done.stderr


def test_the_record_of_the_documentation_is_plausible_and_its_required_fields_are_marked(tmp_path):
    text = (Path(__file__).parents[2] / "docs" / "record-format.md").read_text()
    example = text.split("```json")[1].split("```")[0]
    file = tmp_path / "own.jsonl"
    file.write_text(" ".join(example.split()))
    (row,) = json.loads(invoke(file, "--json").output)["records"]
    # made up near the prediction: readers take it for the size of such a run
    assert row["predicted_step_time_s"] == pytest.approx(row["measured_step_time_s"], rel=0.15)
    peak = row["measured_peak_memory_bytes"]
    assert row["predicted_peak_memory_bytes"] == pytest.approx(peak, rel=0.15)
    parts = (Record, RecordedModel, RecordedCluster, RecordedTraining)
    for name, field in ((n, f) for part in parts for n, f in part.model_fields.items()):
        assert (f"`{name}`*" in text) is field.is_required(), name


@pytest.mark.parametrize(
    ("name", "what"),
    [("a.bmp", "ending"), ("none/a.png", "no folder"), ("folder.png", "is a folder")],
)
def test_a_picture_that_cannot_be_written_is_refused_before_the_work(
    monkeypatch, tmp_path, name, what
):
    (tmp_path / "folder.png").mkdir()
    monkeypatch.setattr("mpsim.cli.validate.compare_each", lambda *_, **__: pytest.fail("worked"))
    done = invoke(runs(tmp_path, {"a1": 0.1}), "--plot", tmp_path / name)
    assert done.exit_code == 2
    assert what in done.stderr


def test_conditions_that_nothing_meets_are_told_with_the_values_there_are(tmp_path: Path):
    file = runs(tmp_path, {"a1": 0.1, "b1": 0.2})
    done = invoke(file, "--where", "plan.tensor=abc")
    assert done.exit_code == 2
    assert "no record has plan.tensor=abc (values: 2)" in done.stderr
    both = invoke(file, "--where", "id=a1", "--where", "source=sb")
    assert both.exit_code == 2
    assert "no record meets all of id=a1, source=sb" in both.stderr


def test_nothing_to_predict_is_an_error(monkeypatch, tmp_path: Path):
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    done = invoke(empty)
    assert (done.exit_code, done.stdout) == (2, "")
    assert "holds no measured-run record" in done.stderr
    file = runs(tmp_path, {"a1": 0.1})
    left_out = invoke(runs(tmp_path, {}, "not json"))
    assert left_out.exit_code == 2
    assert "is not JSON" in left_out.output
    file = runs(tmp_path, {f"a{n}": 0.02 for n in range(25)})
    rest = invoke(file, "--fit-on", file)
    assert rest.exit_code == 2
    assert "leaves no record to score" in rest.stderr
    monkeypatch.setattr("mpsim.cli.validate.compare_each", lambda *_, **__: pytest.fail("worked"))
    profile = invoke(file, "--profile", "nope")
    assert profile.exit_code == 2
    assert "no profile 'nope'" in profile.stderr


def test_more_stages_than_layers_are_left_out_at_once(tmp_path: Path):
    def line(name: str, **plan: int) -> str:
        tree = {"id": name, **RUN, "measured": {"step_time_s": 1.0}}
        cluster = {**RUN["cluster"], "devices": 64}
        plan = {"tensor": 1, "context": 1, "data": 64 // plan["pipeline"], **plan}
        training = {"global_batch": 64, "sequence": 1024}
        return json.dumps(tree | {"cluster": cluster, "plan": plan, "training": training})

    file = runs(
        tmp_path, {"a1": 0.1}, line("deep", pipeline=64), line("cut", pipeline=2, chunks=10**9)
    )
    done = invoke(file)
    assert "deep: plan.pipeline: 64 stages for 4 layers" in done.output
    assert "cut: plan.chunks: 2000000000 stages (2 x 1000000000) for 4 layers" in done.output


def test_tables_say_how_many_rows_the_profile_was_fitted_on(tmp_path: Path):
    (tmp_path / "gemm.csv").write_text("dtype,m,n,k,ms\nbfloat16,4096,4096,4096,0.6\n")
    done = invoke("--tables", tmp_path, "--profile", "a100_sxm")
    assert "a100_sxm was fitted on" in done.output
    assert "rows of gemm" in done.output
    tree = json.loads(invoke("--tables", tmp_path, "--profile", "a100_sxm", "--json").output)
    assert list(tree["fitted_rows"]) == ["gemm"]
    derived = json.loads(invoke("--tables", tmp_path, "--profile", "h20", "--json").output)
    assert derived["fitted_rows"] == {}
