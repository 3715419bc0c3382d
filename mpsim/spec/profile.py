"""A profile: how long kernels and collectives of one device take, fitted, derived or measured.

All figures of a profile are relative to the data sheet it was fitted with, so that the profile of
one device can be applied to another of the same architecture: a share of the peak rate stays a
share of the other's peak rate.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping
from functools import cache, cached_property
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field, PlainSerializer, ValidationError, model_validator

from mpsim.errors import ScenarioError
from mpsim.spec.cluster import Precision
from mpsim.spec.quantities import (
    Bandwidth,
    Count,
    CountOrZero,
    Declaration,
    FlopRate,
    Fraction,
    Positive,
    Ratio,
    Seconds,
    SecondsOrZero,
)
from mpsim.spec.workers import Workers
from mpsim.spec.yaml_text import parse_yaml
from mpsim.spec.zoo import kinds, load_entry, names

Floats = NDArray[np.float64]

CollectiveOp = Literal[
    "all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast", "send"
]
"""A collective, or a transfer from one device to another."""


def _numbers(value: Any) -> Any:  # noqa: ANN401  (whatever stands in the YAML)
    """Numbers written in one text, separated by blanks: short to write, quick to read."""
    if not isinstance(value, str):
        return value
    try:
        return tuple(float(word) for word in value.split())
    except ValueError:
        raise ValueError(f"expected numbers separated by blanks, not '{value}'") from None


Numbers = Annotated[
    tuple[float, ...],
    BeforeValidator(_numbers),
    PlainSerializer(lambda values: " ".join(f"{value:g}" for value in values), when_used="json"),
]
"""A row of numbers without a unit, in YAML one text: ``1 2.5 4``."""


class Surface(Declaration):
    """A smooth factor: natural logarithms on a grid.

    Interpolated linearly in the logarithms of the axes, constant beyond the grid.
    """

    axes: dict[str, Numbers] = Field(min_length=1)
    """Knots by axis, ascending; the first axis varies slowest."""
    rows: list[Numbers]
    """Natural logarithm of the factor, one row along the last axis for each knot of the others."""

    @model_validator(mode="after")
    def _shape(self) -> Self:
        *outer, last = (len(knots) for knots in self.axes.values())
        count = 1
        for length in outer:
            count *= length
        if len(self.rows) != count or any(len(row) != last for row in self.rows):
            raise ValueError(f"expected {count} rows of {last} numbers, as the axes have knots")
        for name, knots in self.axes.items():
            if any(b <= a for a, b in pairwise(knots)) or knots[0] <= 0:
                raise ValueError(f"the knots of '{name}' must ascend from above zero")
        return self

    @cached_property
    def grid(self) -> tuple[tuple[Floats, ...], Floats]:
        """Natural logarithms of the knots by axis, and the values with one axis for each."""
        knots = tuple(np.log(axis) for axis in self.axes.values())
        return knots, np.array(self.rows, float).reshape([len(axis) for axis in knots])


class GemmFit(Declaration):
    """Matrix products of one precision: the parameters of ``cost/gemm.py``."""

    tiles: dict[str, Fraction] = Field(min_length=1)
    """Share of the peak rate that the main loop reaches, by tile of the result: ``256x128``, for
    either orientation."""
    prologue: Annotated[float, Field(ge=0)]
    """Elements of k whose time a tile takes to begin and to end."""
    wave: Ratio
    """Share of the last, partly filled wave of tiles that is paid in full."""
    bandwidth_fraction: Positive
    """Share of the data sheet's memory bandwidth that operands and result reach."""
    parallel: Positive
    """Memory rate of one multiprocessor alone, over its even share of the whole."""
    overlap: Annotated[float, Field(ge=1)]
    """Exponent p of (compute^p + memory^p)^(1/p); infinity would be perfect overlap."""
    reduction: Annotated[float, Field(ge=0)]
    """Passes over fp32 partial results for each split of k."""
    floor: SecondsOrZero
    """Time of the smallest product on the device."""
    cast_floor: SecondsOrZero = 0.0
    """Time of the kernels in a table's call that scale and cast an operand, for no bytes."""
    cast_bytes: Annotated[float, Field(ge=0)] = 0.0
    """Bytes that those kernels move for each element of the first operand."""
    correction: Surface | None = None
    """What the formula misses, over the axes m, n, k."""
    tiling: Surface | None = None
    """What it misses of the library's choice of tiles for a result, over the axes m, n; left out
    where the number of multiprocessors differs."""
    standard_errors: dict[str, float] = Field(default_factory=dict)
    """Relative standard errors of the parameters, from the covariance of their fit."""

    @model_validator(mode="after")
    def _tile_names(self) -> Self:
        for name in self.tiles:
            if not re.fullmatch(r"[1-9]\d{0,4}x[1-9]\d{0,4}", name):
                raise ValueError(f"a tile is rows x columns, as in '256x128', not '{name}'")
        return self

    @cached_property
    def candidates(self) -> Floats:
        """Rows, columns and share of the peak of each tile in each orientation: (T, 3)."""
        found = []
        for name, share in self.tiles.items():
            rows, columns = map(int, name.split("x"))
            found.append((rows, columns, share))
            if rows != columns:
                found.append((columns, rows, share))
        return np.array(found, float)


class AttentionFit(Declaration):
    """Fused (flash) attention: the parameters of ``cost/attention.py``."""

    head_dim: Numbers
    """Head widths for which ``peak_fraction`` is given, ascending."""
    peak_fraction: Numbers
    """Share of the bf16 peak rate that long sequences reach, by head width."""
    tile: Positive
    """Queries of one work item."""
    prologue: Annotated[float, Field(ge=0)]
    """Keys whose time an item takes to begin and to end."""
    wave: Ratio
    """Share of the last wave of work items that is paid in full."""
    bandwidth_fraction: Positive
    """Share of the memory bandwidth that queries, keys, values and result reach."""
    grouped: Annotated[float, Field(ge=-0.9, le=1)] = 0.0
    """Time that shared keys and values (fewer heads of them) add, as a share; below 0: save."""
    floor: SecondsOrZero
    """Time of the smallest call on the device."""
    correction: Surface | None = None
    """What the formula misses, over the axes head_dim, items (batch x heads), seq."""
    backward_flops: Positive = 2.5
    """FLOPs of the backward over those of the forward: five products instead of two
    (FlashAttention, arXiv:2205.14135, appendix B)."""
    backward_efficiency: Fraction = 0.86
    """Rate of the backward over that of the forward: FlashAttention-2 (arXiv:2307.08691, section
    4.1) states up to 73 % of the A100's peak forward and 63 % backward."""


class MemoryFit(Declaration):
    """Kernels bound by memory: floor + bytes / (bandwidth_fraction x bandwidth)."""

    bandwidth_fraction: Fraction
    """Share of the data sheet's bandwidth that a streaming kernel reaches."""
    floor: SecondsOrZero
    """Time of the smallest kernel on the device."""
    source: str
    """Where the figures come from."""


class LaunchFit(Declaration):
    """What the host spends to launch kernels."""

    host: Seconds
    """Host time of one launch through the driver, launches queued back to back."""
    dispatch: SecondsOrZero
    """Host time of the framework for one eager operator, on top of ``host``."""
    graph_node: SecondsOrZero
    """Device time between two kernels of a captured graph."""
    source: str
    """Where the figures come from."""


class LinkFit(Declaration):
    """Collectives over the link between the devices of a node.

    The time of a collective is the textbook time with the link's data sheet, times the factor
    of its surface.
    """

    link: str
    """Name of the link in the zoo."""
    bandwidth: Bandwidth
    """Data sheet rate of one device in one direction that the fit was made with."""
    efficiency: Fraction = 1.0
    """Share of it that large messages reach, in the textbook times of the fit."""
    latency: SecondsOrZero
    """Latency that the fit was made with."""
    ops: dict[CollectiveOp, Surface]
    """Factor by collective over the axes group, nbytes."""


class Sheet(Declaration):
    """The figures of the data sheet that a fit was made with."""

    peak: dict[Precision, FlopRate] = Field(min_length=1)
    """Dense peak rate by precision."""
    memory_bandwidth: Bandwidth
    """Rate of the device memory."""
    multiprocessors: Count
    """Streaming multiprocessors."""


class Residual(Declaration):
    """How far a fit is off on rows of one kind that it was not fitted on."""

    table: Literal["gemm", "attention_fwd", "attention_bwd", "memory_bound", "collectives"]
    """Table that the rows are of."""
    what: str
    """Number format or collective."""
    region: str
    """Which rows: small, large, skinny, all, or the group size."""
    rows: CountOrZero
    """Number of rows, none of them fitted on."""
    median: Annotated[float, Field(ge=0)]
    """Median absolute relative error."""
    p90: Annotated[float, Field(ge=0)]
    """Ninetieth percentile of the absolute relative error."""
    within_12: Ratio
    """Share of rows within 12 %."""


class Profile(Declaration):
    """Parameters of kernels and collectives on one device, and where they come from."""

    name: str
    """Name of the profile, and of its file."""
    device: str
    """The device that it speaks of."""
    kind: Literal["fitted", "derived", "measured"]
    """Fitted on others' tables, derived from a data sheet, or fitted on own measurements."""
    date: datetime.date
    """Day on which it was made."""
    source: str
    """Where the tables come from, and their licence."""
    tables: dict[str, CountOrZero] = Field(default_factory=dict)
    """Rows that it was fitted on, by table; the rows held out are not counted."""
    fit_range: dict[str, dict[str, tuple[float, float]]] = Field(default_factory=dict)
    """Smallest and largest value of each column, by table."""
    residuals: list[Residual] = Field(default_factory=list)
    """Errors on the rows held out."""
    sheet: Sheet
    """Data sheet that the shares refer to."""
    gemm: dict[Precision, GemmFit] = Field(min_length=1)
    """Matrix products by precision; other precisions scale from the nearest by their peaks."""
    attention: AttentionFit
    """Fused attention."""
    memory: MemoryFit
    """Kernels bound by memory."""
    launch: LaunchFit
    """Host cost of launches."""
    sustained: dict[Precision, Fraction] = Field(default_factory=dict)
    """Rate of matrix products in a long run over that of a short benchmark, by precision: what
    the power limit leaves of the clock. Missing: 1."""
    sustained_source: str = "none: the rate of short benchmarks"
    """Where ``sustained`` comes from."""
    link: LinkFit | None = None
    """Collectives inside a node; null: the textbook."""
    workers: Workers | None = None
    """Workers of the measured machine; null: devices that a host launches kernels for."""


def shipped_profiles() -> list[str]:
    """Names of the profiles that come with mpsim."""
    return names("profiles") if "profiles" in kinds() else []


@cache
def load_profile(name: str) -> Profile:
    """A profile by its name in the zoo, or by the path of its file.

    Raises:
        ScenarioError: If there is no such profile, or if it is not one.
    """
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        try:
            tree = parse_yaml(path.read_text(encoding="utf-8"), where=name)
        except (OSError, UnicodeDecodeError) as error:
            raise ScenarioError(name, f"cannot be read: {error}") from None
    else:
        tree = load_entry("profiles", name)
    try:
        return Profile.model_validate(tree)
    except ValidationError as error:
        raise ScenarioError(name, _first_complaint(error)) from None


def _first_complaint(error: ValidationError) -> str:
    """The first of pydantic's complaints, as ``field: what``."""
    item = error.errors(include_url=False)[0]
    return f"{'.'.join(map(str, item['loc']))}: {item['msg'].removeprefix('Value error, ')}"


def dump_profile(profile: Profile) -> str:
    """The YAML text of a profile, which ``load_profile`` reads back to an equal one."""
    tree: Mapping[str, Any] = profile.model_dump(mode="json", exclude_none=True)
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=4096)
