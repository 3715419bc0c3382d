"""What the step time rests on: shares that sum to 1, and the right class for each figure."""

import io
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from mpsim.report.ledger import Ledger, ledger, ledger_record, ledger_table
from mpsim.report.sources import KINDS, Figure, from_text
from mpsim.simulation import simulate
from mpsim.spec.reader import build, load

TREE = {
    "model": {"layers": 8, "hidden": 1024, "heads": 8, "vocab": 4096},
    "cluster": {"base": "dgx-a100-80gb", "nodes": 2},
    "plan": {"tensor": 2, "pipeline": 2, "data": 4},
    "training": {"global_batch": 32, "sequence": 512},
}


def of(fields=None, *, file=None):
    scenario = load(file, fields or {}) if file else build(TREE, fields or {})
    return simulate(scenario, engine="fast")


def figures(report):
    """Figure → seconds, by name."""
    return {figure.what: (figure, seconds) for figure, seconds in ledger(report).entries}


@settings(max_examples=25, deadline=None)
@given(
    device=st.sampled_from(["a100-sxm-80gb", "h100-sxm-80gb", "mi300x", "v100-sxm-32gb"]),
    zero=st.integers(0, 3),
    pipeline=st.sampled_from([1, 2]),
    overlap=st.booleans(),
    precision=st.sampled_from(["fp16", "fp32"]),
    offload=st.sampled_from([[], ["optimizer"], ["weights", "activations"]]),
)
def test_the_shares_sum_to_one_and_the_seconds_to_the_step(
    device, zero, pipeline, overlap, precision, offload
):
    fields = {
        "cluster.device": device,
        "plan.zero": zero,
        "plan.pipeline": pipeline,
        "plan.data": 8 // pipeline,
        "plan.overlap_data": overlap,
        "plan.overlap_tensor": overlap,
        "plan.offload": offload,
        "training.precision": precision,
    }
    report = of(fields)
    found = ledger(report)
    assert sum(found.shares.values()) == pytest.approx(1, abs=1e-12)
    assert found.step_time == pytest.approx(report.step_time, rel=1e-9)
    assert all(seconds >= 0 for _, seconds in found.entries)
    assert all(figure.source and figure.kind in KINDS for figure, _ in found.entries)


def test_a_device_with_a_profile_rests_on_its_fit():
    found = figures(of())
    products = found["efficiency of bf16 products"][0]
    assert products.kind == "fitted"
    assert products.source.startswith("profile a100_sxm: silicon tables of ai-dynamo")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", products.date)
    assert "bf16 rate of a100-sxm-80gb" not in found  # the fit stands for it
    assert found["collectives over nvlink3"][0].kind == "fitted"
    assert found["memory bandwidth of a100-sxm-80gb"][0].kind == "data sheet"
    assert found["host time of an operator"][0].kind == "default"


def test_a_device_without_a_profile_rests_on_its_data_sheet_and_a_guess():
    found = figures(of({"cluster.device": "mi300x"}))
    rate, products = found["bf16 rate of mi300x"][0], found["efficiency of bf16 products"][0]
    assert (rate.kind, products.kind) == ("data sheet", "guess")
    assert (rate.value, rate.source) == ("1.31 PFLOP/s", "AMD Instinct MI300X data sheet, 2023")
    assert products.source.startswith("taken over from the profile")


def test_products_outside_the_matrix_units_rest_on_a_fit_of_their_own():
    found = figures(of({"training.precision": "fp32"}))
    reached = found["efficiency of fp32 products"][0]
    # the A100's fp32 lanes, 64 a multiprocessor: a fit of its own, not the ceiling of 16 bits
    assert reached.kind == "fitted"
    assert "93% of 19.5 TFLOP/s" in reached.value
    assert "NeuSight" in reached.source
    assert not [name for name in found if name.startswith("share of the")]
    assert found["fp32 rate of a100-sxm-80gb"][0].kind == "data sheet"


DECLARED = [
    ({"cluster.network.bandwidth": "11 GB/s"}, "bandwidth of infiniband-hdr200", "11 GB/s"),
    ({"cluster.network.latency": "90 us"}, "latency of infiniband-hdr200", "90 us"),
    (
        {"cluster.device.memory_bandwidth": "1.5 TB/s"},
        "memory bandwidth of a100-sxm-80gb",
        "1.5 TB/s",
    ),
    (
        {"cluster.network": {"bandwidth": "5 GB/s", "latency": "9 us"}},
        "bandwidth of link",
        "5 GB/s",
    ),
]


@pytest.mark.parametrize(("fields", "what", "value"), DECLARED)
def test_what_the_user_wrote_is_declared(fields, what, value):
    figure, seconds = figures(of(fields))[what]
    expected = (value, "declared", "declared in the scenario")
    assert (figure.value, figure.kind, figure.source) == expected
    assert seconds > 0


def test_a_figure_of_the_zoos_cluster_is_not_declared():
    found = figures(
        of({"cluster": {"base": "dgx-1-v100", "nodes": 2}, "training.precision": "fp16"})
    )
    wide = found["bandwidth of infiniband-edr"][0]
    assert (wide.value, wide.kind) == ("6.25 GB/s", "data sheet")  # four ports for eight devices
    assert wide.source.startswith("NVIDIA DGX-1 data sheet")


def test_a_network_at_half_its_rate_bears_twice_the_seconds_of_bytes():
    fields = {"plan.tensor": 1, "plan.pipeline": 1, "plan.data": 16, "plan.overlap_data": False}
    both = [
        figures(of({**fields, "cluster.network.bandwidth": rate}))["bandwidth of infiniband-hdr200"]
        for rate in ("4 GB/s", "2 GB/s")
    ]
    # latency stays; that of further buckets counts among the bytes here
    assert both[1][1] == pytest.approx(2 * both[0][1], rel=0.04)


def test_a_share_of_a_bandwidth_bears_what_it_adds():
    found = figures(
        of({"cluster.network": {"bandwidth": "5 GB/s", "latency": "0 s", "efficiency": 0.8}})
    )
    wide, reached = found["bandwidth of link"][1], found["efficiency of link"][1]
    assert reached / (wide + reached) == pytest.approx(0.2, rel=1e-9)


def test_offload_rests_on_the_host_link_and_the_hosts_memory():
    found = figures(of({"plan.offload": ["optimizer"]}))
    assert found["bandwidth of pcie4"][0].kind == "data sheet"
    assert found["memory bandwidth of a node's host"][0].kind == "default"


TEXTS = [
    ("declared in the scenario", "bandwidth", "declared"),
    ("default: a copy within the memory of one machine", "latency", "default"),
    ("AWS p5 page, 2023; latency and efficiency: default", "efficiency", "default"),
    ("AWS p5 page, 2023; latency and efficiency: default", "bandwidth", "data sheet"),
    (
        "sheet, 2023; efficiency: 359 GB/s measured on a GB300; latency: default",
        "efficiency",
        "measured",
    ),
    ("host and graph_node: empty kernels on A100; dispatch: default", "dispatch", "default"),
]


@pytest.mark.parametrize(("source", "field", "kind"), TEXTS)
def test_the_class_of_a_field_is_read_from_its_source(source, field, kind):
    assert from_text(source, field)[0] == kind


def test_the_table_has_the_widest_share_first_and_each_source_once():
    console = Console(width=80, record=True, file=io.StringIO())
    found = ledger(of())
    console.print(ledger_table(found))
    text = console.export_text()
    shares = [float(share) for share in re.findall(r"^ +([\d.]+)%", text, re.MULTILINE)]
    assert shares == sorted(shares, reverse=True)
    assert all(len(line) <= 80 for line in text.splitlines())
    assert text.count("silicon tables of") == 1
    assert "by class: fitted" in text


def test_the_record_has_every_entry_with_its_unit():
    found = Ledger(
        (
            (Figure("a", "1 B/s", "fitted", "there", "2020"), 3.0),
            (Figure("b", "2 s", "default", "here"), 1.0),
        )
    )
    assert ledger_record(found) == {
        "shares": {"fitted": 0.75, "default": 0.25},
        "entries": [
            {
                "what": "a",
                "value": "1 B/s",
                "class": "fitted",
                "source": "there",
                "date": "2020",
                "time_s": 3.0,
                "share": 0.75,
            },
            {
                "what": "b",
                "value": "2 s",
                "class": "default",
                "source": "here",
                "date": None,
                "time_s": 1.0,
                "share": 0.25,
            },
        ],
    }


def test_a_measured_ceiling_is_no_guess():
    found = figures(of({"cluster.device": "mi300x"}))
    reached = found["share of the bf16 rate that the best product reaches"][0]
    assert (reached.kind, reached.value) == ("measured", "51.1%")
    assert "668.4 of 1307.4 TFLOP/s" in reached.source
    assert found["efficiency of bf16 products"][0].kind == "guess"
