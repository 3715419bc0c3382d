"""The grid of a what-if: fields by their paths, the values of each, all combinations."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mpsim import __version__
from mpsim.errors import ScenarioError, did_you_mean
from mpsim.spec.scenario import Scenario
from mpsim.spec.yaml_text import parse_yaml
from mpsim.units import EXAMPLES, parse

_MOST_POINTS = 1_000_000
_RANGE = re.compile(r"([^:]+):([^:]+):(\d+)(?::(log|lin))?")


@dataclass(frozen=True)
class Axis:
    """A field that is varied."""

    path: str
    values: tuple[Any, ...]  # as YAML gives them


@dataclass(frozen=True)
class Grid:
    """All combinations of the values of some fields, the last one varying fastest."""

    scenario: Scenario
    axes: tuple[Axis, ...]
    fill: str = "none"  # data, nodes: what follows so that degrees make up the devices

    def __len__(self) -> int:
        """Number of points."""
        return math.prod(len(axis.values) for axis in self.axes)

    def points(self) -> Iterator[dict[str, Any]]:
        """The fields of each point, in order."""
        names = [axis.path for axis in self.axes]
        for values in itertools.product(*(axis.values for axis in self.axes)):
            yield dict(zip(names, values, strict=True))

    @property
    def key(self) -> str:
        """Hash of all that the results depend on: scenario, axes, version."""
        content = {
            "scenario": self.scenario.model_dump(mode="json", exclude={"variants"}),
            "fill": self.fill,
            "axes": [[axis.path, list(axis.values)] for axis in self.axes],
            "version": __version__,
        }
        text = json.dumps(content, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:32]


DEGREES = ("plan.tensor", "plan.pipeline", "plan.context", "plan.data")
"""Fields whose product is the number of devices."""
_SIZES = ("cluster.nodes", "cluster.node.devices")


def make_grid(scenario: Scenario, texts: Sequence[str], *, fill: str = "none") -> Grid:
    """The grid of ``--vary`` options.

    Args:
        scenario: What all points have in common.
        texts: Paths with their values.
        fill: The field that follows a varied degree, ``data`` or ``nodes``; ``none``: none does,
            and ``auto``: data, where a degree or the cluster's size is varied and data is not.

    Raises:
        ScenarioError: If a path is unknown, stands twice, or values cannot be read.
    """
    axes = tuple(parse_axis(text) for text in texts)
    for axis in axes:
        check_path(scenario, axis.path, option="--vary")
        if sum(other.path == axis.path for other in axes) > 1:
            raise ScenarioError(f"--vary {axis.path}", "stands twice; give all its values at once")
    paths = {axis.path for axis in axes}
    if fill == "auto":
        follows = paths & {*DEGREES, *_SIZES} and "plan.data" not in paths
        fill = "data" if follows else "none"
    grid = Grid(scenario, axes, fill)
    if len(grid) > _MOST_POINTS:
        raise ScenarioError("--vary", f"{len(grid)} points; at most {_MOST_POINTS} are simulated")
    return grid


def filled(scenario: Scenario, fields: Mapping[str, Any], fill: str) -> dict[str, Any]:
    """The fields of a point, with the one that follows set so that degrees make up the devices.

    Where no whole number does, the point is left as it is, to be refused for that.
    """
    if fill == "none":
        return dict(fields)
    plan, cluster = scenario.plan, scenario.cluster
    values = {f"plan.{axis}": getattr(plan, axis) for axis in ("tensor", "pipeline", "context")}
    values |= {"plan.data": plan.data, "cluster.nodes": cluster.nodes}
    values |= {"cluster.node.devices": cluster.node.devices} | {
        path: value for path, value in fields.items() if path in (*DEGREES, *_SIZES)
    }
    if any(not isinstance(value, int) or value < 1 for value in values.values()):
        return dict(fields)
    target = "plan.data" if fill == "data" else "cluster.nodes"
    devices = values["cluster.nodes"] * values["cluster.node.devices"]
    degrees = math.prod(values[path] for path in DEGREES)
    if fill == "data":
        whole, parts = devices, degrees // values["plan.data"]
    else:
        whole, parts = degrees, values["cluster.node.devices"]
    return dict(fields) if whole % parts else {**fields, target: whole // parts}


def parse_axis(text: str) -> Axis:
    """A path and its values: ``a,b,c``, ``a:b:n`` (evenly spaced) or ``a:b:n:log``.

    >>> parse_axis("plan.pipeline=1,2,4").values
    (1, 2, 4)
    >>> parse_axis("cluster.node.link.bandwidth=1GB/s:3GB/s:3").values
    ('1000000000.0 B/s', '2000000000.0 B/s', '3000000000.0 B/s')
    """
    path, equals, value = text.partition("=")
    where = f"--vary {path}"
    if not equals or not path.strip() or not value.strip():
        raise ScenarioError(f"--vary {text}", "write path=1,2,4 or path=50GB/s:900GB/s:8")
    found = _RANGE.fullmatch(value.strip())
    if found:
        return Axis(path.strip(), _spaced(*found.groups(), where=where))
    values = tuple(parse_yaml(part, where=where) for part in _parts(value))
    if any(part is None for part in values):
        raise ScenarioError(where, f"'{value}' has an empty value")
    for part, read in zip(_parts(value), values, strict=True):
        if isinstance(read, dict):
            raise ScenarioError(where, f"'{part}' is a mapping; vary the fields of it one by one")
    return Axis(path.strip(), tuple(dict.fromkeys(map(_hashable, values))))


def _hashable(value: Any) -> Any:  # noqa: ANN401
    return tuple(value) if isinstance(value, list) else value


def _parts(text: str) -> list[str]:
    """Split at commas that stand in no bracket."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "[{") - (letter in "]}")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def _spaced(low: str, high: str, count: str, scale: str | None, *, where: str) -> tuple[Any, ...]:
    """Evenly spaced values, or with even ratios; whole where both ends and all steps are."""
    first, unit = _quantity(low, where)
    last, other = _quantity(high, where)
    number = int(count)
    if unit != other:
        raise ScenarioError(where, f"'{low}' and '{high}' are not of one unit")
    if number < 1 or number > _MOST_POINTS:
        raise ScenarioError(where, f"a range needs 1 to {_MOST_POINTS} values, not {number}")
    if scale == "log" and (first <= 0 or last <= 0):
        raise ScenarioError(where, "a range with even ratios begins and ends above zero")
    steps = [place / (number - 1) if number > 1 else 0.0 for place in range(number)]
    if scale == "log":
        values = [first * (last / first) ** step for step in steps]
    else:
        values = [first + (last - first) * step for step in steps]
    if unit:
        return tuple(dict.fromkeys(f"{value!r} {unit}" for value in values))
    if first.is_integer() and last.is_integer():
        whole = [round(value) for value in values]
        if scale == "log" or all(abs(a - b) < 1e-9 for a, b in zip(whole, values, strict=True)):
            return tuple(dict.fromkeys(whole))
    return tuple(dict.fromkeys(values))


def _quantity(text: str, where: str) -> tuple[float, str]:
    """The SI value and unit of a number with or without a unit."""
    try:
        return float(text), ""
    except ValueError:
        pass
    for unit in EXAMPLES:
        try:
            return parse(text.strip(), unit), unit
        except ValueError:
            continue
    raise ScenarioError(where, f"'{text}' is neither a number nor a quantity such as 900GB/s")


def check_path(scenario: Scenario, path: str, *, option: str) -> None:
    """Refuse a path that names no field of the scenario, with the nearest one.

    Raises:
        ScenarioError: Naming the part of the path that is wrong.
    """
    node: Any = scenario.model_dump(mode="json")
    done: list[str] = []
    for part in path.split("."):
        if isinstance(node, Mapping):
            if part not in node:
                known = did_you_mean(part, node) or f"; there are {', '.join(map(str, node))}"
                raise ScenarioError(f"{option} {path}", f"'{part}' is no field{known}")
            node = node[part]
        elif isinstance(node, list):
            if not part.isdigit() or int(part) >= len(node):
                raise ScenarioError(
                    f"{option} {path}",
                    f"'{part}' is no index into the {len(node)} entries of {'.'.join(done)}",
                )
            node = node[int(part)]
        elif node is not None:
            raise ScenarioError(f"{option} {path}", f"{'.'.join(done)} has no parts")
        done.append(part)
