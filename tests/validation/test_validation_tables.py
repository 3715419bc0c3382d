"""Profiles scored on the silicon tables; derived ones on tables that they know nothing of."""

import pytest

from mpsim.cost.silicon import silicon
from mpsim.errors import CalibrationError, ScenarioError
from mpsim.report.residuals import residual_grid, residual_rows
from mpsim.spec.profile import shipped_profiles
from mpsim.validation.tables import score_tables


def overall(found):
    return {(r.table, r.what): r for r in found if r.region in ("above 1 GFLOP", "all")}


@pytest.mark.parametrize("name", shipped_profiles())
def test_a_shipped_profile_scores_on_its_tables(shared, name):
    # all rows, four fifths of them fitted on: a check of the scoring and of the shipped file
    found = overall(score_tables(shared / "data" / "silicon", name))
    assert {table for table, _ in found} == {"gemm", "attention_fwd", "collectives"}
    for (table, _), residual in found.items():
        assert residual.median <= (0.04 if table == "gemm" else 0.06)
        if table == "gemm":
            assert residual.p90 <= 0.12


def test_a_profile_derived_within_an_architecture_is_within_a_tenth(shared):
    # the tables of the GB200, predicted for the B200's sibling that its own tables never saw
    found = overall(score_tables(shared / "data" / "silicon", "b200_sxm", device="gb200"))
    for (table, _), residual in found.items():
        if table != "collectives":
            assert residual.median < 0.15


def test_a_device_of_the_zoo_may_be_named_as_tables_name_it():
    subject = silicon("h200_sxm")
    assert subject.device.name == "h200-sxm-141gb"
    assert subject.profile.kind == "derived"
    assert subject.link.name == "nvlink4"


def test_kernels_and_link_may_come_from_different_measurements():
    subject = silicon("gb300")
    assert subject.profile.name.startswith("b300_sxm")
    assert subject.profile.link.link == "nvl72"


def test_an_unknown_name_is_met_with_a_near_one():
    with pytest.raises(ScenarioError, match="no such profile or device; did you mean 'h100_sxm'"):
        silicon("h100_smx")


def test_a_folder_without_times_cannot_be_scored(tmp_path):
    (tmp_path / "launch.csv").write_text("what,us\nhost,5\n")
    with pytest.raises(CalibrationError, match="no table with times"):
        score_tables(tmp_path, "h100_sxm")


def test_plain_tables_are_scored_without_a_name(tmp_path):
    (tmp_path / "memory_bound.csv").write_text("op,bytes,ms\ncopy,1e9,1\nadd,1e9,2\n")
    found = score_tables(tmp_path, "h100_sxm")
    assert [(r.what, r.rows) for r in found] == [("add", 1), ("copy", 1)]
    assert residual_rows(found)[0]["table"] == "memory_bound"
    assert residual_grid(found, "title").row_count == 2
