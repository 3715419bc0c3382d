"""The terminal page: nothing wider than the page, the facts on it, variants side by side."""

import io
import re
from dataclasses import replace

import pytest
from rich.console import Console

from mpsim.report import text
from mpsim.report.metrics import Report
from mpsim.simulation import simulate
from mpsim.spec.reader import build, load, load_variants

FILES = ("gpt3_fp32.yaml", "two_device_mlp.yaml", "cnn_data_parallel.yaml", "hybrid.yaml")


@pytest.fixture(scope="module")
def reports() -> dict[str, Report]:
    return {name: simulate(load(name), engine="fast") for name in FILES}


@pytest.fixture(scope="module")
def variants() -> list[Report]:
    return [simulate(one, engine="fast") for one in load_variants("remedies.yaml")]


def page(report, width):
    file = io.StringIO()
    text.show(report, Console(file=file, width=width, highlight=False))
    return file.getvalue()


def side_by_side(reports, width):
    file = io.StringIO()
    text.compare(reports, Console(file=file, width=width, highlight=False))
    return file.getvalue()


def flat(page):
    """The words of a page, whatever its line breaks."""
    return " ".join(re.sub(r"[│╭╮╰╯─]", " ", page).split())


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("name", FILES)
def test_no_line_is_wider_than_the_page_and_no_word_is_cut(reports, name, width):
    shown = page(reports[name], width)
    assert max(map(len, shown.splitlines())) <= width
    assert "…" not in shown.replace("  …\n", "").replace(" …  ", "")


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_facts_are_on_the_page(reports, width):
    shown = flat(page(reports["gpt3_fp32.yaml"], width))
    for fact in (
        "GPT-3 175B in FP32",
        "FITS",
        "GiB of 79.15 GiB on position 0 (x16)",
        "s a step",
        "ktokens/s",
        "gpt3-175b (174.6 billion parameters), fp32, adam, batch 96 x 2048",
        "24 x 8 a100-sxm-80gb, nvlink3 inside, infiniband-hdr200 between nodes",
        "tensor 8, pipeline 12, data 2, full recomputation; 1f1b, 48 microbatches a replica",
        "(6N)",
        "Where the time goes",
        "bubble",
        "12 pipeline positions of 16 devices",
        "48 microbatches of 1",
        "Memory of position 0 (x16)",
        "optimizer state",
        "as the driver shows it",
        "closed form",
        "by C = 2 Σ s b",
    ):
        assert fact in shown, fact


def test_learned_positions_count_as_parameters_and_small_models_in_millions():
    tree = {
        "model": {"layers": 2, "hidden": 512, "heads": 8, "vocab": 1024, "position": "learned"},
        "cluster": "dgx-a100-80gb",
        "plan": {"data": 8},
        "training": {"global_batch": 8, "sequence": 2048},
    }
    shown = flat(page(simulate(build(tree), engine="fast"), 120))
    positions = 2048 * 512
    assert f"({_counted(tree) / 1e6:.4g} million parameters)" in shown
    assert _counted(tree) > 2 * 12 * 512**2 + 1024 * 512 + positions  # matrices, table, positions


def _counted(tree):
    """Parameters by an independent walk: those of the layers that the simulation builds."""
    stages = simulate(build(tree), engine="fast")
    whole = stages.devices[0].memory.at_peak["parameters"]
    return whole / 2  # 16 bits each


def test_a_run_slower_than_one_nth_of_one_device_has_no_alpha(reports):
    report = reports["gpt3_fp32.yaml"]
    amdahl = report.amdahl
    slow = replace(report, amdahl=replace(amdahl, speed_up=0.5 / amdahl.devices))
    shown = flat(page(slow, 120))
    assert "α is undefined" in shown
    assert "1 - α" not in shown
    assert "α is undefined" not in flat(page(report, 120))
    assert "undefined" in side_by_side([slow, report], 120)


def test_memory_of_variants_is_what_the_driver_shows(variants):
    assert "memory as the driver shows it" in flat(side_by_side(variants[:2], 120))


def test_one_is_not_called_many(reports):
    shown = flat(page(reports["two_device_mlp.yaml"], 100))
    assert "naive, 1 microbatch a replica" in shown
    assert "2 pipeline positions of 1 device" in shown
    assert "1 microbatches" not in shown
    assert "1 devices" not in shown


def test_a_layer_that_tensor_parallelism_leaves_whole_is_named():
    layers = [{"type": "linear", "inputs": a, "outputs": b} for a, b in ((10, 31), (31, 2))]
    fields = {"plan": {"tensor": 2}, "model": {"network": layers, "input": [10]}}
    tree = {"cluster": "two-cpu", "training": {"global_batch": 2, "precision": "fp32"}}
    told = "model.network.0 is whole on every device: plan.tensor = 2 does not divide its width of"
    assert [note for note in simulate(build(tree | fields)).notes if told in note] == [f"{told} 31"]
    uncut = simulate(build(tree | fields | {"plan": {"data": 2}}))
    assert "is whole" not in " ".join(uncut.notes)


def test_the_two_device_network_says_that_one_device_computes_at_a_time(reports):
    assert "busy at once at most 1 of 2" in flat(page(reports["two_device_mlp.yaml"], 80))


def test_the_waterfall_has_the_largest_first(reports):
    shown = page(reports["gpt3_fp32.yaml"], 80)
    part = shown[shown.index("Where the time goes") : shown.index("The parts of a step")]
    shares = [float(share) for share in re.findall(r"([\d.]+)%", part)]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(100, abs=0.1 * len(shares))  # each rounded


def test_memory_adds_up_to_what_the_driver_shows(reports):
    device = reports["gpt3_fp32.yaml"].fullest
    whole = device.memory.peak + device.fragmentation + sum(device.outside.values())
    assert whole == pytest.approx(device.reserved, rel=1e-12)
    assert device.fragmentation == pytest.approx(0.05 * device.memory.peak, rel=1e-9)


def test_what_does_not_fit_says_so(reports):
    one = simulate(load("gpt3_fp32.yaml", ["plan.recompute=none", "training.microbatch=4"]))
    shown = page(one, 80)
    assert "DOES NOT FIT" in shown
    assert not one.fits


def test_the_middle_of_many_devices_is_left_out():
    fields = ["plan.pipeline=40", "plan.tensor=1", "plan.data=1", "plan.sequence_parallel=false"]
    cluster = ["cluster.nodes=5", "training.global_batch=40"]
    shown = page(simulate(load("hybrid.yaml", [*fields, *cluster]), engine="fast"), 100)
    devices = shown[shown.index("Devices") : shown.index("Memory of")]
    named = re.findall(r"^ (\d+|…) ", devices, re.MULTILINE)
    assert named == [*map(str, range(8)), "…", *map(str, range(32, 40))]


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("count", [2, 3, 8])
def test_variants_side_by_side_fit_the_page(variants, count, width):
    chosen = variants[:count]
    shown = side_by_side(chosen, width)
    assert len(chosen) == count
    assert max(map(len, shown.splitlines())) <= width
    assert "…" not in shown
    words = re.sub(r"\s+", "", shown)
    assert "remedies" in words
    if count > 3:  # a line each
        assert shown.count("yes") == count
        assert "100%" in shown


def test_lines_that_differ_come_first(variants):
    shown = side_by_side(variants[:2], 100).splitlines()
    rows = [re.split(r"\s{2,}", line.strip()) for line in shown[4:] if line.strip()]
    differs = [row[1] != row[2] for row in rows if len(row) == 3]
    assert differs == sorted(differs, reverse=True)
    assert True in differs
    assert False in differs


def test_a_much_longer_step_is_a_multiple():
    reports = [simulate(one, engine="fast") for one in load_variants("gpt3_bf16.yaml")]
    assert re.search(r"FP32 .* x 1\d\.\d ", side_by_side(reports, 100))
