"""A plan that was found as a scenario file: every field of the plan, quantities as short texts."""

from __future__ import annotations

import re

import yaml

from mpsim.planner.finalists import SHOWN
from mpsim.spec.reader import to_yaml
from mpsim.spec.scenario import Scenario
from mpsim.units import EXAMPLES, parse

_QUANTITY = re.compile(r"([\d.]+(?:e[+-]?\d+)?) ([A-Z][A-Za-z/]*|s)")
_PREFIXES = {
    "s": ("", "m", "u", "n"),
    "B": ("", "Ki", "Mi", "Gi", "Ti", "k", "M", "G", "T"),
    "B/s": ("", "k", "M", "G", "T"),
    "FLOP/s": ("", "G", "T", "P", "E"),
}
"""Prefixes that are tried for a unit, the bare unit first."""
_OTHERS = {"USD/s": ("USD/hour",), "USD/W/s": ("USD/kW/hour",), "s": ("min", "hour", "day")}
"""Other units of a quantity, tried after those."""
_PROSE = ("name", "variant", "description", "source", "price_source")
"""Fields that are no quantities whatever they look like."""


def written(scenario: Scenario) -> str:
    """The scenario as YAML that reads back to an equal one, its plan spelled out."""
    tree = yaml.safe_load(to_yaml(scenario))
    plan = scenario.plan.model_dump(mode="json")
    tree["plan"] = {name: plan[name] for name in SHOWN} | tree.get("plan", {})
    tree["training"]["microbatch"] = scenario.training.microbatch
    return yaml.safe_dump(_shortened(tree), sort_keys=False, allow_unicode=True)


def _shortened(value: object, name: str = "") -> object:
    """All quantities of a tree as short texts."""
    if isinstance(value, dict):
        return {key: _shortened(item, key) for key, item in value.items()}
    if isinstance(value, list):
        return [_shortened(item) for item in value]
    return shortest(value) if isinstance(value, str) and name not in _PROSE else value


def shortest(text: str) -> str:
    """The shortest text of a quantity in an SI unit that has the very same value.

    >>> shortest("2.4999999999999998e-06 s"), shortest("42294690447.36 B")
    ('2.5 us', '39.39 GiB')
    >>> shortest("0.0008305555555555556 USD/s"), shortest("16 x aws-p5")
    ('2.99 USD/hour', '16 x aws-p5')
    """
    found = _QUANTITY.fullmatch(text)
    if found is None or found[2] not in EXAMPLES:
        return text
    value, unit = float(found[1]), found[2]
    units = [prefix + unit for prefix in _PREFIXES.get(unit, ("",))]
    best = text
    for other in (*units, *_OTHERS.get(unit, ())):
        scaled = value / parse(f"1 {other}", unit)
        for digits in range(1, 18):
            candidate = f"{scaled:.{digits}g} {other}"
            if "e" not in candidate.split(" ")[0] and parse(candidate, unit) == value:
                best = min(best, candidate, key=len)
                break
    return best
