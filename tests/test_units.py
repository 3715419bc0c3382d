"""Quantities: what is read is what was meant, and what is printed reads back."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpsim.units import format_bytes, format_seconds, format_si, parse


@pytest.mark.parametrize(
    ("text", "unit", "value"),
    [
        ("900 GB/s", "B/s", 900e9),
        ("400 Gbit/s", "B/s", 50e9),
        ("300 Gbps", "B/s", 37.5e9),
        ("300 GBps", "B/s", 300e9),
        ("80 GiB", "B", 80 * 2**30),
        ("80 GB", "B", 80e9),
        ("3 us", "s", 3e-6),
        ("3 µs", "s", 3e-6),
        ("30d", "s", 30 * 86400),
        ("989 TFLOP/s", "FLOP/s", 989e12),
        ("5e6USD", "USD", 5e6),
        ("36 USD/hour", "USD/s", 0.01),
        ("0.4 kW", "W", 400),
    ],
)
def test_decimal_and_binary_prefixes_mean_what_they_say(text, unit, value):
    assert parse(text, unit) == pytest.approx(value, rel=1e-15)


@pytest.mark.parametrize(
    ("text", "unit"),
    [
        ("3", "s"),
        ("3 GB", "s"),
        ("x", "B"),
        ("", "B"),
        ("nan B", "B"),
        ("1e999 B", "B"),
        ("3 +", "B"),
    ],
)
def test_what_is_not_a_quantity_of_the_unit_is_refused(text, unit):
    with pytest.raises(ValueError, match=r"write it with its unit|not a finite"):
        parse(text, unit)


@given(st.floats(min_value=1e-12, max_value=1e18))
def test_a_printed_rate_reads_back_to_three_digits(value):
    assert parse(format_si(value, "B/s"), "B/s") == pytest.approx(value, rel=6e-3)


@given(st.floats(min_value=1, max_value=1e15))
def test_printed_bytes_read_back_to_three_digits(value):
    text = format_bytes(value)
    assert "e+" not in text
    assert parse(text, "B") == pytest.approx(value, rel=6e-3)


@given(st.floats(min_value=1e-9, max_value=1e8))
def test_printed_seconds_read_back_to_three_digits(value):
    text = format_seconds(value).replace("days", "day")
    assert "e+" not in text or value > 86400 * 999
    assert parse(text, "s") == pytest.approx(value, rel=6e-3)


def test_rounding_never_prints_a_thousand_of_the_smaller_unit():
    assert format_seconds(0.9999) == "1 s"
    assert format_seconds(999.7e-6) == "1 ms"
    assert not math.isnan(parse(format_si(999.9e9, "FLOP/s"), "FLOP/s"))
