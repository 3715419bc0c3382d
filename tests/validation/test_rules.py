"""The rules hold on random scenarios, and each catches a cost that breaks it."""

import dataclasses
import importlib
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from click.testing import CliRunner

from mpsim.cli import main
from mpsim.cost import stages
from mpsim.cost.collectives import collective_seconds
from mpsim.cost.compiled import compile_scenario
from mpsim.cost.estimate import estimate
from mpsim.cost.peak import device_memory
from mpsim.cost.recompiled import recompiled
from mpsim.engine import longest_path, periodic
from mpsim.schedule.lowering import lower
from mpsim.schedule.orders import SCHEDULES, make_order
from mpsim.simulation import report_of, steady_step, step_seconds
from mpsim.spec.model import Network
from mpsim.spec.reader import build, changed, load
from mpsim.spec.zoo import names as zoo_names
from mpsim.validation import rules
from mpsim.validation.random_scenarios import random_scenario
from mpsim.validation.rules import RULES, Trial, broken

validate = importlib.import_module("mpsim.cli.validate")

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
    found = [random_scenario(generator) for _ in range(1200)]
    plans = [one.plan for one in found]
    assert {plan.zero for plan in plans} == {0, 1, 2, 3}
    assert {plan.recompute for plan in plans} == {"none", "selective", "full"}
    unsearched = {name for name, schedule in SCHEDULES.items() if not schedule.searched}
    assert {plan.schedule for plan in plans} == unsearched
    assert {one.cluster.device.name for one in found} == set(zoo_names("devices"))
    assert {one.training.precision for one in found} == {"bf16", "fp16", "fp32", "fp8"}
    for axis in ("tensor", "pipeline", "data", "context", "expert"):
        assert max(getattr(plan, axis) for plan in plans) > 1
    assert {kind for plan in plans for kind in plan.offload} >= {"optimizer", "activations"}
    convolutions = [one for one in found if isinstance(one.model, Network)]
    assert convolutions
    assert any(one.plan.pipeline > 1 for one in convolutions)


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

    def reported(compiled, *, engine="events"):
        return dataclasses.replace(report_of(compiled, engine=engine), **fields)

    monkeypatch.setattr(rules, "report_of", reported)


def test_causes_that_do_not_sum_to_the_step_are_caught(monkeypatch):
    planted(monkeypatch, waterfall={"compute": 1.0})
    [violation] = broken(of(), ("sums",))
    assert violation.text.startswith("the causes sum to 1.0 s, the step is ")


def test_recomputation_that_is_free_is_caught(monkeypatch):
    real = step_seconds

    def seconds(compiled):
        return real(compiled) * (2.0 if compiled.scenario.plan.recompute == "none" else 1.0)

    monkeypatch.setattr(rules, "step_seconds", seconds)
    [violation] = broken(of(plan__recompute="full"), ("recomputation",))
    assert violation.text.startswith("full recomputation takes ")


def test_recomputation_that_holds_more_is_caught(monkeypatch):
    def held(compiled):
        return np.array([2.0 if compiled.scenario.plan.recompute == "full" else 1.0])

    monkeypatch.setattr(rules, "device_memory", held)
    [violation] = broken(of(plan__recompute="full"), ("recomputation",))
    assert violation.text == "full recomputation holds 2.0 B, none 1.0 B"


def test_a_peak_that_searches_take_otherwise_is_caught(monkeypatch):
    scenario = of(plan__schedule="zb_h1")
    assert names(scenario, ("peaks",)) == set()
    monkeypatch.setattr(rules, "device_memory", lambda compiled: device_memory(compiled) * 1.01)
    assert names(scenario, ("peaks",)) == {"peaks"}


def test_sharding_that_keeps_more_is_caught(monkeypatch):
    real = rules.stage_memory

    def held(chunks, plan, training):
        memory = real(chunks, plan, training)
        more = {
            name: nbytes * (9 if plan.zero == 3 else 1) for name, nbytes in memory.static.items()
        }
        return dataclasses.replace(memory, static=more)

    assert names(of(), ("sharding",)) == set()
    monkeypatch.setattr(rules, "stage_memory", held)
    assert names(of(), ("sharding",)) == {"sharding"}


def test_a_step_below_its_bound_is_caught():
    compiled = compile_scenario(of())
    report = report_of(compiled)
    quick = dataclasses.replace(report.timeline, end=report.timeline.end / 10)
    assert rules.lower_bound(Trial(compiled, report)) is None
    shorter = dataclasses.replace(report, timeline=quick)
    assert "is below the bound" in rules.lower_bound(Trial(compiled, shorter))


def test_a_larger_batch_that_is_faster_is_caught(monkeypatch):
    monkeypatch.setattr(rules, "step_seconds", lambda compiled: 1e-9)
    assert names(of(), ("larger_batch",)) == {"larger_batch"}


@pytest.mark.parametrize("schedule", ["1f1b", "zb_h1", "zb_auto", "pipedream"])
@pytest.mark.parametrize(
    "fields",
    [
        {"cluster.node.link.bandwidth": "900 GB/s"},
        {"cluster.device.memory_bandwidth": "9 TB/s"},
        {"plan.recompute": "full"},
        {"plan.offload": ["optimizer"]},
        {"training.global_batch": 64},
        {"plan.zero": 3},
    ],
)
def test_a_variant_that_shares_with_its_base_is_as_if_compiled_alone(schedule, fields):
    base = of(plan__schedule=schedule)
    other = changed(base, fields)
    shared, alone = recompiled(compile_scenario(base), other), compile_scenario(other)
    assert shared.scenario == other
    assert np.array_equal(shared.work.seconds, alone.work.seconds)
    assert np.array_equal(shared.work.nbytes, alone.work.nbytes)
    assert np.array_equal(device_memory(shared), device_memory(alone))


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
    monkeypatch.setitem(RULES, "planted", lambda trial: f"{type(trial).__name__} is wrong")
    monkeypatch.setattr("mpsim.cli.verify.broken", lambda one: broken(one, ("planted",)))
    result = CliRunner().invoke(main, ["verify", str(path)])
    assert result.exit_code == 1
    assert f"planted: {Trial.__name__} is wrong\n" in result.stderr
    assert "hidden: 256" in result.stderr


@pytest.mark.parametrize("arguments", [["--scenarios", "0"], ["nowhere.yaml"], ["--seed", "-1"]])
def test_what_cannot_be_verified_is_refused(arguments):
    result = CliRunner().invoke(main, ["verify", *arguments])
    assert result.exit_code == 2
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["verify", "--scenarios", "1000000"], " rules: 0 broken"),
    ],
)
def test_ctrl_c_prints_what_there_is(command, said):
    # a run in the background, as of a script, ignores Ctrl-C and hands that down
    process = subprocess.Popen(
        [sys.executable, "-m", "mpsim", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    time.sleep(6)
    os.killpg(process.pid, signal.SIGINT)
    out, errors = process.communicate(timeout=30)
    assert process.returncode == 130, errors
    assert "interrupted" in errors
    assert said in out
    assert "Traceback" not in errors


def three(stop):
    """Numbers that end with Ctrl-C."""
    yield 2, "c"
    yield 0, "a"
    if stop:
        raise KeyboardInterrupt


def test_validate_keeps_the_rows_that_it_has_when_interrupted(monkeypatch):
    monkeypatch.setattr(validate, "compare_each", lambda *_, **__: three(stop=True))
    assert validate._compared(["a", "b", "c"], None, None) == (["a", "c"], True)
    monkeypatch.setattr(validate, "compare_each", lambda *_, **__: three(stop=False))
    assert validate._compared(["a", "c"], None, None) == (["a", "c"], False)


def test_numbers_that_cannot_be_computed_with_break_a_rule(monkeypatch):
    def fails(_):
        raise ZeroDivisionError("division by zero")

    monkeypatch.setitem(RULES, "sums", fails)
    found = list(broken(load("two_device_mlp.yaml"), ("sums",)))
    assert [(one.rule, one.text) for one in found] == [("sums", "division by zero")]


WITHOUT_A_PERIOD = {
    "name": "without a period",
    "model": {
        "layers": 8, "hidden": 2048, "heads": 32, "kv_heads": 8, "gated_mlp": True, "vocab": 30336,
        "tied_embeddings": False, "experts": {"count": 8, "per_token": 2, "ffn": 256},
    },
    "cluster": {
        "device": "h800-sxm-80gb", "nodes": 16,
        "node": {
            "devices": 1, "host_link": "pcie4",
            "link": {"kind": "pcie", "bandwidth": "714.575 GB/s", "latency": "14.6 us"},
        },
        "network": {"bandwidth": "26.4058 GB/s", "latency": "3.04863 us"},
    },
    "plan": {
        "tensor": 2, "pipeline": 4, "context": 2, "schedule": "pipedream",
        "sequence_parallel": True, "context_exchange": "all_gather", "zero": 3,
        "overlap_tensor": True, "overlap_expert": True, "offload": ["weights"],
    },
    "training": {"global_batch": 8, "sequence": 512, "precision": "fp16", "optimizer": "sgd"},
}  # fmt: skip


def test_a_steady_state_without_a_period_is_that_of_a_plain_run():
    """Four stages of pipedream whose ends repeat at no distance that is looked for."""
    scenario = build(WITHOUT_A_PERIOD)
    compiled = compile_scenario(scenario)

    def longer(microbatches: int):
        order = make_order("pipedream", num_devices=4, num_microbatches=microbatches)
        graph = lower(order, p2p=scenario.plan.p2p, step=False, barrier=False)
        return graph, estimate(graph, compiled.costs, compiled.machine)

    run = periodic.run(longer, 10**6)
    assert not run.seconds_per_microbatch
    plain = longest_path.run(*longer(400)).end.max() / 400
    update = max(sum(cost.update.values()) for cost in compiled.costs)
    # filling and draining four stages are 1 % of 400 microbatches
    assert steady_step(compiled) == pytest.approx(8 * plain + update, rel=0.01)
    assert list(broken(scenario)) == []
