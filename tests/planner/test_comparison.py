"""Two reports compared."""

import pytest

from mpsim.planner.comparison import changed_fields, compare_reports
from mpsim.simulation import simulate
from mpsim.spec.reader import load


@pytest.fixture(scope="module")
def reports():
    changes = ({}, {"plan.zero": 1, "cluster.network.bandwidth": "10 GB/s"})
    return [simulate(load("gpt3_bf16.yaml", fields), engine="fast") for fields in changes]


def test_only_what_differs_is_listed(reports):
    fields = {path: (one, other) for path, one, other in compare_reports(*reports).fields}
    assert fields["plan.zero"] == (0, 1)
    assert set(fields) == {"plan.zero", "cluster.network.bandwidth"}


def test_a_table_that_only_one_device_has_is_listed_by_its_entries_alone():
    ceilings = ({}, {"bf16": 0.8})
    pair = [load("gpt3_bf16.yaml", {"cluster.device.ceiling": given}) for given in ceilings]
    assert list(changed_fields(*pair)) == [("cluster.device.ceiling.bf16", None, 0.8)]


def test_the_changes_of_all_causes_sum_to_that_of_the_step(reports):
    found = compare_reports(*reports)
    gap = reports[1].step_time - reports[0].step_time
    assert sum(one.change for one in found.causes) == pytest.approx(gap)
    sizes = [abs(one.change) for one in found.causes]
    assert sizes == sorted(sizes, reverse=True)


def test_numbers_are_those_of_the_reports(reports):
    numbers = {one.name: one for one in compare_reports(*reports).numbers}
    step = numbers["step_time_s"]
    assert (step.first, step.second) == tuple(report.step_time for report in reports)
    assert step.ratio == pytest.approx(reports[1].step_time / reports[0].step_time)
    assert numbers["usd_per_step"].change is None


def test_a_scenario_beside_itself_differs_in_nothing(reports):
    found = compare_reports(reports[0], reports[0])
    assert found.fields == ()
    assert all(not one.change for one in found.numbers)
