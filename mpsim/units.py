"""Text quantity ↔ SI number: the one place where units are parsed and printed.

Inside mpsim a quantity is a plain float in SI units (s, B, FLOP, B/s, FLOP/s, USD, W). Decimal
prefixes (k, M, G, T, P, E) are powers of 1000 and binary ones (Ki, Mi, Gi, Ti) powers of 1024, as
in IEC 80000-13.
"""

from __future__ import annotations

import math
from functools import cache, lru_cache
from typing import Any

import pint

_DEFINITIONS = (
    *("nano- = 1e-9 = n", "micro- = 1e-6 = u = µ = μ", "milli- = 1e-3 = m"),
    *("kilo- = 1e3 = k", "mega- = 1e6 = M", "giga- = 1e9 = G"),
    *("tera- = 1e12 = T", "peta- = 1e15 = P", "exa- = 1e18 = E"),
    *("kibi- = 2**10 = Ki", "mebi- = 2**20 = Mi", "gibi- = 2**30 = Gi", "tebi- = 2**40 = Ti"),
    *("second = [time] = s", "minute = 60 * second = min", "hour = 60 * minute = h"),
    *("day = 24 * hour = d", "year = 365.25 * day", "week = 7 * day"),
    *("byte = [information] = B", "bit = byte / 8", "FLOP = [computation]"),
    *("bps = bit / second", "Bps = byte / second"),
    *("USD = [currency]", "watt = [power] = W"),
)

EXAMPLES = {
    "s": "3 us",
    "B": "80 GiB",
    "B/s": "900 GB/s' or '400 Gbit/s",
    "FLOP/s": "989 TFLOP/s",
    "USD/s": "2.5 USD/hour",
    "USD": "5e6 USD",
    "W": "700 W",
    "USD/W/s": "0.1 USD/kW/hour",
}
"""What a right quantity looks like, by SI unit; shown in error messages and in the JSON Schema."""


@cache
def _registry() -> pint.UnitRegistry[Any]:
    """The units mpsim knows; a small registry of its own, since pint's full one costs 0.1 s."""
    registry: pint.UnitRegistry[Any] = pint.UnitRegistry(None)
    registry.load_definitions(list(_DEFINITIONS))
    return registry


@lru_cache(maxsize=4096)
def parse(text: str, unit: str) -> float:
    """The SI value of a quantity with its unit.

    Args:
        text: For instance ``900 GB/s``.
        unit: The SI unit it must be convertible to, for instance ``B/s``.

    Raises:
        ValueError: If the text has no unit, an unknown one, or one of another dimension, or if
            the number is not finite. The message says what would be right.

    >>> parse("400 Gbit/s", "B/s")
    50000000000.0
    >>> parse("80 GiB", "B")
    85899345920.0
    """
    example = f"write it with its unit, as in '{EXAMPLES.get(unit, '1 ' + unit)}'"
    try:
        quantity: Any = _registry().Quantity(text)
    except Exception as error:
        raise ValueError(f"'{text}' is not a quantity; {example}") from error
    if quantity.unitless and unit != "":
        raise ValueError(f"'{text}' has no unit; {example}")
    try:
        value = float(quantity.to(unit).magnitude)
    except pint.DimensionalityError:
        raise ValueError(f"'{text}' is not in units of {unit}; {example}") from None
    if not math.isfinite(value):
        raise ValueError(f"'{text}' is not a finite number")
    return value


def _scaled(value: float, steps: tuple[tuple[float, str], ...], digits: int) -> str:
    """The value in the largest unit of ``steps`` (descending) that it reaches once rounded.

    The rounded value chooses the unit, so that 999.96 ms prints as 1 s; the value itself is
    printed, so that nothing is rounded twice.
    """
    rounded = abs(float(f"{value:.{digits}g}"))
    for scale, name in steps:
        if rounded >= scale:
            return f"{value / scale:.{digits}g} {name}"
    scale, name = steps[-1]
    return f"{value / scale:.{digits}g} {name}"


_SHORTEST = 1e-12
"""Seconds below which a duration is the rounding of a difference, and prints as none."""


def format_seconds(value: float, digits: int = 3) -> str:
    """A duration as people read it: ``1.27 s``, ``3.5 ms``, ``2.1 days``.

    >>> format_seconds(0.00351), format_seconds(3 * 86400.0), format_seconds(-5.33e-15)
    ('3.51 ms', '3 days', '0 s')
    """
    if abs(value) < _SHORTEST:
        return "0 s"
    steps = ((86400.0, "days"), (3600.0, "h"), (60.0, "min"), (1.0, "s"))
    small = ((1e-3, "ms"), (1e-6, "us"), (1e-9, "ns"))
    return _scaled(value, (*(steps if abs(value) >= 120 else steps[3:]), *small), digits)


def format_bytes(value: float, digits: int = 3) -> str:
    """A size in binary units: ``71.3 GiB``.

    >>> format_bytes(80 * 2**30), format_bytes(0), format_bytes(999.5)
    ('80 GiB', '0 B', '999.5 B')
    """
    steps = ((2.0**40, "TiB"), (2.0**30, "GiB"), (2.0**20, "MiB"), (2.0**10, "KiB"), (1.0, "B"))
    value = float(value)
    # three digits below the next step (999.5 to 1023 MiB) would print as 1e+03
    return _scaled(value, steps, max(digits, 4) if abs(value) >= 999 else digits)


def format_count(count: int, noun: str) -> str:
    """A number of things: the noun in the plural unless it is one.

    >>> format_count(1, "microbatch"), format_count(12, "microbatch"), format_count(2, "device")
    ('1 microbatch', '12 microbatches', '2 devices')
    """
    ending = "" if count == 1 else "es" if noun.endswith(("ch", "s", "x")) else "s"
    return f"{count} {noun}{ending}"


def format_si(value: float, unit: str, digits: int = 3) -> str:
    """A number with a decimal prefix: ``312 TFLOP/s``.

    >>> format_si(3.12e14, "FLOP/s"), format_si(174.6e9, "")
    ('312 TFLOP/s', '175 G')
    """
    steps = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))
    return _scaled(value, tuple((scale, prefix + unit) for scale, prefix in steps), digits).rstrip()
