"""The rules hold on random scenarios, and each catches a cost that breaks it."""

import dataclasses

import numpy as np
import pytest
from click.testing import CliRunner

from mpsim.cli import main
from mpsim.cost import stages
from mpsim.cost.collectives import collective_seconds
from mpsim.report.metrics import Report
from mpsim.simulation import simulate
from mpsim.spec.reader import build
from mpsim.validation import rules
from mpsim.validation.random_scenarios import random_scenario
from mpsim.validation.rules import RULES, broken

TREE = {
    "model": {"layers": 4, "hidden": 512, "heads": 8, "vocab": 1024},
    "cluster": {"base": "dgx-a100-80gb", "nodes": 2},
    "plan": {"tensor": 2, "pipeline": 2, "data": 4},
    "training": {"global_batch": 32, "sequence": 256},
}


def of(**fields):
    return build(TREE, {path.replace("__", "."): value for path, value in fields.items()})


def names(scenario, only=tuple(RULES)):
    return {violation.rule for violation in broken(scenario, only)}


def test_every_rule_says_in_a_line_what_it_is():
    assert len(RULES) >= 12
    for rule in RULES.values():
        first = rule.__doc__.splitlines()[0]
        assert first[0].isupper()
        assert first.endswith(".")


def test_random_scenarios_break_no_rule():
    generator = np.random.default_rng([3, 0])
    found = [one for _ in range(25) for one in broken(random_scenario(generator))]
    assert [f"{one.rule}: {one.text}" for one in found] == []


def test_random_scenarios_depend_on_the_seed_alone():
    first, again, other = (
        [random_scenario(np.random.default_rng(seed)) for _ in range(5)] for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_random_scenarios_cover_the_range_of_declarations():
    generator = np.random.default_rng(0)
    found = [random_scenario(generator) for _ in range(300)]
    assert {one.plan.zero for one in found} == {0, 1, 2, 3}
    assert {one.plan.recompute for one in found} == {"none", "selective", "full"}
    assert len({one.plan.schedule for one in found}) >= 6
    assert len({one.cluster.device.name for one in found}) >= 4
    assert {one.training.precision for one in found} == {"bf16", "fp16", "fp32"}
    for axis in ("tensor", "pipeline", "data", "context"):
        assert max(getattr(one.plan, axis) for one in found) > 1
    assert any(one.plan.offload for one in found)


def slower_on_better_links(op, nbytes, *, link, **rest):
    """Collectives that take longer the more bandwidth a link has."""
    worse = link.model_copy(update={"bandwidth": 1e22 / link.bandwidth})
    return collective_seconds(op, nbytes, link=worse, **rest)


def test_a_collective_that_slows_with_bandwidth_is_caught(monkeypatch):
    scenario = of()
    assert names(scenario, ("more_link_bandwidth",)) == set()
    monkeypatch.setattr("mpsim.cost.passes.collective_seconds", slower_on_better_links)
    assert names(scenario, ("more_link_bandwidth",)) == {"more_link_bandwidth"}


def test_an_update_that_slows_with_memory_bandwidth_is_caught(monkeypatch):
    def planted(dense, experts, machine):
        return 1e-12 * machine.cluster.device.memory_bandwidth

    monkeypatch.setattr(stages, "update_seconds", planted)
    assert "more_memory_bandwidth" in names(of(), ("more_memory_bandwidth",))


def test_a_free_offload_is_caught(monkeypatch):
    scenario = of(plan__offload=["optimizer"])
    assert names(scenario, ("offloading",)) == set()
    monkeypatch.setattr(stages, "host_update", lambda *_: {})
    assert names(scenario, ("offloading",)) == {"offloading"}


def planted(monkeypatch, **fields):
    """Have the rules see a report with other figures than the simulation's."""

    def simulated(scenario, *, engine="events"):
        return dataclasses.replace(simulate(scenario, engine=engine), **fields)

    monkeypatch.setattr(rules, "simulate", simulated)


def test_causes_that_do_not_sum_to_the_step_are_caught(monkeypatch):
    planted(monkeypatch, waterfall={"compute": 1.0})
    [violation] = broken(of(), ("sums",))
    assert violation.text.startswith("the causes sum to 1.0 s, the step is ")


def test_recomputation_that_is_free_is_caught(monkeypatch):
    real = simulate

    def simulated(scenario, *, engine="events"):
        report = real(scenario, engine=engine)
        timeline = report.timeline
        slow = 2.0 if scenario.plan.recompute == "none" else 1.0
        longer = dataclasses.replace(timeline, end=timeline.end * slow)
        return dataclasses.replace(report, timeline=longer)

    monkeypatch.setattr(rules, "simulate", simulated)
    [violation] = broken(of(plan__recompute="full"), ("recomputation",))
    assert violation.text.startswith("full recomputation takes ")


def test_a_step_below_its_bound_is_caught(monkeypatch):
    report = simulate(of())
    quick = dataclasses.replace(report.timeline, end=report.timeline.end / 10)
    assert rules.lower_bound(report) is None
    assert "is below the bound" in rules.lower_bound(dataclasses.replace(report, timeline=quick))


def test_a_larger_batch_that_is_faster_is_caught(monkeypatch):
    monkeypatch.setattr(rules, "step_seconds", lambda scenario: 1e-9)
    assert names(of(), ("larger_batch",)) == {"larger_batch"}


def test_a_scenario_that_cannot_be_simulated_breaks_no_rule():
    assert names(of(plan__schedule="no such schedule")) == set()


def test_verify_passes_and_says_how_many():
    result = CliRunner().invoke(main, ["verify", "--scenarios", "60", "--seed", "11"])
    assert result.exit_code == 0, result.output
    assert result.stdout == f"60 scenarios, {len(RULES)} rules: 0 broken\n"


def test_verify_lists_its_rules():
    result = CliRunner().invoke(main, ["verify", "--list"])
    assert [line.split()[0] for line in result.stdout.splitlines()] == list(RULES)


def test_verify_takes_files_and_shows_what_breaks(tmp_path, monkeypatch):
    path = tmp_path / "one.yaml"
    path.write_text(
        "model: {layers: 4, hidden: 256, heads: 4, vocab: 1024}\n"
        "cluster: {device: a100-sxm-80gb, node: {devices: 2, link: nvlink3}}\n"
        "plan: {pipeline: 2}\n"
        "training: {global_batch: 4, sequence: 128}\n"
    )
    assert CliRunner().invoke(main, ["verify", str(path)]).exit_code == 0
    monkeypatch.setitem(RULES, "planted", lambda report: f"{type(report).__name__} is wrong")
    monkeypatch.setattr("mpsim.cli.verify.broken", lambda one: broken(one, ("planted",)))
    result = CliRunner().invoke(main, ["verify", str(path)])
    assert result.exit_code == 1
    assert f"planted: {Report.__name__} is wrong\n" in result.stderr
    assert "hidden: 256" in result.stderr


@pytest.mark.parametrize("arguments", [["--scenarios", "0"], ["nowhere.yaml"], ["--seed", "-1"]])
def test_what_cannot_be_verified_is_refused(arguments):
    result = CliRunner().invoke(main, ["verify", *arguments])
    assert result.exit_code == 2
    assert "Traceback" not in result.output
