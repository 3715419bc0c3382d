"""What is said of a scenario that does not fit; the changes offered have been simulated and fit."""

import re

import pytest

from mpsim.errors import InfeasibleError
from mpsim.planner.remedies import infeasible, remedies_for
from mpsim.simulation import simulate
from mpsim.spec.reader import build, changed, parse_overrides

TREE = {
    "name": "too large",
    "model": {"layers": 16, "hidden": 2048, "heads": 16, "vocab": 32000},
    "cluster": {"base": "dgx-a100-80gb"},
    "plan": {"pipeline": 2, "data": 4},
    "training": {"global_batch": 32, "microbatch": 4, "sequence": 2048, "precision": "bf16"},
}


def tight(memory="16 GiB", **fields):
    return build(TREE, {"cluster.device.memory": memory, **fields})


@pytest.fixture(scope="module")
def error():
    return infeasible(simulate(tight()))


def test_the_error_says_need_have_place_and_components(error):
    assert isinstance(error, InfeasibleError)
    assert error.exit_code == 3
    assert error.need > error.have == 16 * 2**30
    assert re.fullmatch(r"position 0 \(x4\), stage 0", error.where)
    first, second, *rest = str(error).splitlines()
    assert first.startswith("too large: does not fit: position 0 (x4), stage 0 needs ")
    assert first.endswith("has 16 GiB")
    assert re.match(r"  at its peak \([\d.]+ m?s into the step\): ", second)
    assert rest[0] == "  smallest single changes that fit:"


def test_components_are_the_largest_first_and_sum_to_the_allocated_peak(error):
    sizes = list(error.components.values())
    assert sizes == sorted(sizes, reverse=True)
    assert sum(sizes) == pytest.approx(simulate(tight()).fullest.memory.peak, rel=1e-9)


def applied(scenario, remedy):
    """The scenario with a remedy's changes, as its text writes them."""
    texts = re.split(r", (?=plan\.|cluster\.|training\.)", remedy.partition(": ")[0])
    return changed(scenario, parse_overrides(texts))


@pytest.mark.parametrize("memory", ["10 GiB", "16 GiB", "20 GiB"])
def test_each_remedy_fits_when_it_is_written_as_it_stands(memory):
    scenario = tight(memory)
    remedies = remedies_for(scenario)
    assert 1 <= len(remedies) <= 4
    for remedy in remedies:
        report = simulate(applied(scenario, remedy), engine="fast")
        assert report.fits, remedy
        shown = re.search(r": ([\d.]+ GiB) a device, ", remedy)[1]
        assert float(shown.split()[0]) == pytest.approx(report.fullest.reserved / 2**30, rel=1e-3)


def test_changes_on_the_same_devices_come_before_more_devices():
    remedies = remedies_for(tight("16 GiB"))
    grown = ["cluster." in remedy for remedy in remedies]
    assert grown == sorted(grown)
    assert not grown[0]


def test_the_quickest_of_equal_devices_comes_first():
    scenario = tight("20 GiB")
    steps = [
        simulate(applied(scenario, remedy), engine="fast").step_time
        for remedy in remedies_for(scenario)
        if "cluster." not in remedy
    ]
    assert steps == sorted(steps)


def test_what_the_plan_has_already_is_not_offered():
    fields = {"plan.recompute": "full", "plan.zero": 3, "plan.offload": ["optimizer"]}
    remedies = remedies_for(tight("6 GiB", **fields))
    for taken in ("plan.recompute=", "plan.zero=", "plan.offload="):
        assert not any(remedy.startswith(taken) for remedy in remedies)


def test_nothing_is_offered_where_nothing_fits():
    error = infeasible(simulate(tight("1 GiB")))
    assert error.remedies == ()
    assert str(error).endswith("no single change fits; try several, or `mpsim plan --minimum`")
