"""The winner as a file: the same scenario, spelled out, in quantities that people write."""

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mpsim.planner.finalists import SHOWN
from mpsim.planner.written import shortest, written
from mpsim.spec.reader import build, load
from mpsim.units import parse


@pytest.mark.parametrize("name", ["gpt3_bf16.yaml", "hybrid.yaml", "two_layer_fc.yaml"])
def test_what_is_written_reads_back_to_the_same_scenario(name, tmp_path):
    one = load(name).model_copy(update={"variants": {}})
    (tmp_path / "best.yaml").write_text(written(one))
    assert load(tmp_path / "best.yaml") == one


def test_every_field_of_the_plan_is_written_though_it_is_the_default():
    tree = yaml.safe_load(written(load("gpt3_fp32.yaml", {"plan.recompute": "none"})))
    assert set(SHOWN) <= set(tree["plan"])
    assert tree["plan"]["recompute"] == "none"
    assert tree["training"]["microbatch"] == 1


def test_names_that_look_like_quantities_stay():
    one = load("gpt3_fp32.yaml", {"name": "1000 B"})
    assert yaml.safe_load(written(one))["name"] == "1000 B"
    assert build(yaml.safe_load(written(one))) == one


@pytest.mark.parametrize(
    ("text", "unit", "short"),
    [
        ("2.4999999999999998e-06 s", "s", "2.5 us"),
        ("84943715696.64 B", "B", "79.11 GiB"),
        ("450000000000.0 B/s", "B/s", "450 GB/s"),
        ("66900000000000.01 FLOP/s", "FLOP/s", "66.9 TFLOP/s"),
        ("700.0 W", "W", "700 W"),
        ("600.0 s", "s", "600 s"),
    ],
)
def test_quantities_are_short_and_equal(text, unit, short):
    assert len(shortest(text)) <= len(short)
    assert parse(shortest(text), unit) == parse(text, unit)


@given(
    st.floats(min_value=0, max_value=1e19, allow_subnormal=False),
    st.sampled_from(["s", "B", "B/s", "FLOP/s", "USD/s", "USD", "W", "USD/W/s"]),
)
def test_no_value_is_changed(value, unit):
    text = shortest(f"{value!r} {unit}")
    assert parse(text, unit) == value
    assert len(text) <= len(f"{value!r} {unit}")
