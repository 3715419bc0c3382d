"""Scores, ratios and calibration, against hand calculation."""

import dataclasses
import json
from pathlib import Path

import pytest

from mpsim.errors import CalibrationError, ScenarioError
from mpsim.validation.comparison import Comparison
from mpsim.validation.fit import apply_factors, calibrate, choose, fit_factors
from mpsim.validation.records import Record
from mpsim.validation.residual import fit_residual
from mpsim.validation.series import Series, read_series, score_series
from mpsim.validation.statistics import (
    Score,
    by_source,
    over_sources,
    summarise,
    worst,
)


def row(
    name: str,
    *,
    predicted: float | None = None,
    measured: float | None = None,
    source: str = "s",
    oom: bool = False,
    **more: object,
) -> Comparison:
    """A comparison of two step times."""
    record = Record.model_validate(
        {
            "id": name,
            "source": source,
            "model": {"name": "m", "family": "gpt", "layers": 2, "hidden": 8, "heads": 2},
            "cluster": {"device": "d", "devices": 1, "devices_per_node": 1},
            "training": {"global_batch": 1, "sequence": 8},
            "measured": {
                "step_time_s": measured,
                "oom": oom,
                "peak_memory_bytes": more.pop("measured_memory", None),
            },
        }
    )
    return Comparison(record, step_time=predicted, **more)


def test_a_score_is_what_one_gets_by_hand():
    # errors +10 %, -20 %, +50 %, 0 %
    score = Score.of([0.1, -0.2, 0.5, 0.0])
    assert score.count == 4
    assert score.median == pytest.approx(0.15)
    assert score.mean == pytest.approx(0.2)
    assert score.within_10 == 0.5
    assert score.within_20 == 0.75
    assert score.bias == pytest.approx(0.1)


def test_a_score_of_nothing_has_no_figures():
    assert dataclasses.astuple(Score.of([])) == (0, None, None, None, None, None)


def test_errors_are_relative_to_what_was_measured():
    assert row("a", predicted=3.0, measured=2.0).step_time_error == pytest.approx(0.5)
    assert row("a", predicted=3.0).step_time_error is None
    assert row("a", measured=3.0).step_time_error is None
    full = row("a", memory=90.0, measured_memory=100.0)
    assert full.memory_error == pytest.approx(-0.1)


def test_a_summary_counts_rows_skipped_rows_and_what_did_not_fit():
    rows = [
        row("a", predicted=1.1, measured=1.0, fits=True),
        row("b", predicted=1.0, measured=1.0, fits=False),
        row("c", oom=True, fits=True),
        row("d", oom=True, fits=False),
        row("e", measured=1.0, skipped="no such device"),
    ]
    summary = summarise(rows)
    assert (summary.records, summary.skipped, summary.step_time.count) == (5, 1, 2)
    assert (summary.oom_missed, summary.oom_found, summary.false_alarms) == (1, 1, 1)
    assert summary.step_time.mean == pytest.approx(0.05)
    assert summary.undecided == 0
    assert summarise([row("f", predicted=1.0, oom=True)]).undecided == 1


def test_each_source_counts_once_over_sources():
    rows = [row(str(n), predicted=1.1, measured=1.0, source="big") for n in range(9)]
    rows += [row("z", predicted=1.5, measured=1.0, source="small")]
    sources = by_source(rows)
    assert list(sources) == ["big", "small"]
    assert summarise(rows).step_time.mean == pytest.approx(0.14)
    assert over_sources(sources).mean == pytest.approx(0.3)
    assert over_sources({}).count == 0


def test_half_as_long_is_as_bad_as_twice_as_long():
    rows = [row("twice", predicted=1.9, measured=1.0), row("half", predicted=0.5, measured=1.0)]
    assert [item.record.id for item in worst(rows, 2)] == ["half", "twice"]
    assert worst([row("none")], 3) == []


def test_ratios_within_a_series_are_free_of_a_common_factor():
    # predictions are all twice too long, but one pair is also swapped
    rows = [
        row("a", predicted=2.0, measured=1.0),
        row("b", predicted=4.0, measured=2.0),
        row("c", predicted=3.9, measured=2.1),
        row("d", predicted=9.0),
    ]
    score = score_series([Series("s", "plan", ("a", "b", "c", "d", "gone"))], rows)
    assert set(score) == {"plan", "all"}
    # pairs ab (exact), ac (2/3.9 for 1/2.1: +7.7 %), bc (4/3.9 for 2/2.1: +7.7 %)
    assert score["all"].ratio == pytest.approx(2 / 3.9 * 2.1 - 1)
    assert score["all"].count == 1
    assert score["all"].pairs == 3
    assert score["all"].ranked == pytest.approx(2 / 3)


def test_runs_within_the_noise_have_no_rank():
    rows = [row("a", predicted=2.0, measured=1.0), row("b", predicted=1.0, measured=1.02)]
    score = score_series([Series("s", "v", ("a", "b"))], rows)["all"]
    assert (score.count, score.pairs, score.ranked) == (1, 0, None)


def test_series_are_read_line_by_line(tmp_path: Path):
    file = tmp_path / "series.jsonl"
    line = json.dumps({"series": "s1", "variable": "plan.data", "ids": ["a", "b"]})
    file.write_text(line + "\n\n")
    assert read_series(file) == [Series("s1", "plan.data", ("a", "b"))]
    file.write_text(line + '\n{"series": 1}\n')
    with pytest.raises(ScenarioError, match=r"series\.jsonl:2: a series is an object"):
        read_series(file)


def made_of(name: str, compute: float, launch: float, measured: float) -> Comparison:
    """A row whose step is kernels and launches."""
    parts = {"compute": compute, "launch": launch}
    return row(name, predicted=compute + launch, measured=measured, parts=parts)


def test_factors_of_the_causes_are_found_from_their_sums():
    # truth: kernels take 1.2 and launches 0.7 times what is predicted
    shapes = [(1.0, 0.1), (2.0, 1.0), (0.5, 0.6), (3.0, 0.2), (1.0, 1.5), (0.2, 1.0)] * 10
    rows = [
        made_of(str(n), compute, launch, 1.2 * compute + 0.7 * launch)
        for n, (compute, launch) in enumerate(shapes)
    ]
    factors = fit_factors(rows)
    # the prior pulls toward one by far less than a percent with sixty rows
    assert factors["kernels"] == pytest.approx(1.2, rel=0.01)
    assert factors["launches"] == pytest.approx(0.7, rel=0.02)
    # what no row speaks of stays where it was
    assert factors["tensor exchange"] == pytest.approx(1.0)
    fitted = apply_factors(rows[0], factors)
    assert fitted.step_time_error == pytest.approx(0.0, abs=0.01)
    assert fitted.step_time == pytest.approx(sum(fitted.parts.values()))


def test_one_wild_row_does_not_move_the_factors():
    rows = [made_of(str(n), 1.0, 0.2, 1.32) for n in range(30)]
    wild = made_of("wild", 1.0, 0.2, 12.0)
    with_wild, without = fit_factors([*rows, wild]), fit_factors(rows)
    assert with_wild["kernels"] == pytest.approx(without["kernels"], rel=0.01)


def test_rows_to_fit_on_are_drawn_and_some_are_left():
    rows = [made_of(str(n), 1.0, 0.0, 1.0) for n in range(5)] + [row("none")]
    chosen = choose(rows, 3)
    assert len({item.record.id for item in chosen}) == 3
    assert [item.record.id for item in choose(rows, 3)] == [item.record.id for item in chosen]
    with pytest.raises(CalibrationError, match="only 5 have a step time"):
        choose(rows, 5)
    with pytest.raises(CalibrationError, match="none of the rows"):
        fit_factors([row("none")])
    assert apply_factors(row("none"), {}) == row("none")


def of_shape(name: str, hidden: int, tensor: int, error: float) -> Comparison:
    """A row of a model width and tensor degree whose prediction is off by a share."""
    base = made_of(name, 1.0, 0.0, 1.0 / (1 + error))
    record = base.record.model_dump()
    record["model"]["hidden"] = hidden
    record["cluster"] = {"device": "d", "devices": tensor, "devices_per_node": 8}
    record["plan"] |= {"tensor": tensor, "pipeline": 1, "context": 1, "data": 1}
    return dataclasses.replace(base, record=Record.model_validate(record))


def test_runs_with_the_same_kernels_share_their_error():
    errors = {(1024, 1): 0.2, (1024, 2): -0.1, (2048, 1): 0.05, (2048, 2): -0.2, (4096, 4): 0.1}
    rows = [
        of_shape(f"{shape}-{n}", *shape, error) for shape, error in errors.items() for n in range(4)
    ]
    residual = fit_residual(rows)
    assert residual is not None
    for shape, error in errors.items():
        seen = of_shape("new", *shape, error)
        # four rows of a shape, noise a tenth of the signal: shrunk by a few percent of the error
        assert residual.factor(seen.record) == pytest.approx(1 / (1 + error), abs=0.03)


def test_a_run_unlike_all_seen_keeps_its_prediction():
    rows = [of_shape(str(n), 1024 + n % 2, 1, 0.3) for n in range(12)]
    residual = fit_residual(rows)
    assert residual is not None
    far = of_shape("far", 16384, 8, 0.0)
    assert residual.factor(far.record) == pytest.approx(1.0, abs=1e-6)


def test_a_handful_of_rows_teach_no_correction():
    rows = [made_of(str(n), 1.0, 0.2, 1.3) for n in range(5)]
    assert fit_residual(rows) is None
    calibration = calibrate(rows)
    assert (
        calibration.apply(rows[0]).step_time
        == apply_factors(rows[0], calibration.factors).step_time
    )
    assert calibration.apply(row("none")) == row("none")
