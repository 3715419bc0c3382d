"""What a search may choose: the fields of a plan that a file leaves open, and their options."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ValidationError, field_validator

from mpsim.errors import ScenarioError, ScenarioErrors, did_you_mean
from mpsim.schedule.orders import SCHEDULES
from mpsim.spec.model import Transformer
from mpsim.spec.quantities import Declaration
from mpsim.spec.reader import build, declared, find, parse_overrides, read_tree
from mpsim.spec.scenario import Scenario

_RANGE = re.compile(r"\s*(\d+)\s*\.\.\s*(\d+)\s*")
_MOST_OPTIONS = 65_536
"""Values of a range; a search over more devices than this on one axis is a slip of the pen."""
_FEWEST_TOKENS = 128
"""Tokens that ``auto`` leaves on each device of a context group: attention kernels work on blocks
of 128 queries (Dao, arXiv:2307.08691, section 3.3)."""
_MOST_MICROBATCH = 32
"""Largest microbatch of a transformer that ``auto`` tries, where sequences are long."""
_MOST_TOKENS = 65_536
"""Tokens of the largest microbatch that it tries where they are short: as many as 32 sequences of
2048, GPT-3's."""
_CHUNKS = (1, 2, 3, 4, 6, 8, 12)
"""Chunks that ``auto`` tries."""

AUTO_SCHEDULES = (
    *("1f1b", "gpipe", "interleaved_1f1b", "looped_bfs", "zb_h1", "zb_h2", "interleaved_zb"),
    *("zb_v", "dualpipe", "dualpipe_v", "chimera"),
)
"""Schedules that ``auto`` tries: synchronous, on whole sequences, and built by formula. Those that
are searched themselves (zb_auto, v_half, hanayo, …) take up to a second: name them in a list."""


def _options(value: Any) -> Any:  # noqa: ANN401  (whatever stands in the YAML)
    """A tuple of options from a value, a list, or a range; ``auto`` stays what it is."""
    if value == "auto":
        return value
    if isinstance(value, str) and (found := _RANGE.fullmatch(value)):
        low, high = map(int, found.groups())
        if high < low:
            raise ValueError(f"the range {value} is empty")
        if high - low >= _MOST_OPTIONS:
            raise ValueError(f"the range {value} has more than {_MOST_OPTIONS} values")
        return tuple(range(low, high + 1))
    if isinstance(value, list):
        if not value:
            raise ValueError("an empty list leaves no option")
        return tuple(item for entry in value for item in _single(entry))
    return (value,)


def _single(entry: Any) -> tuple[Any, ...]:  # noqa: ANN401
    """An entry of a list: a value, or a range that is written out."""
    found = _options(entry) if isinstance(entry, str) and entry != "auto" else (entry,)
    return tuple(found)


def _partition_options(value: Any) -> Any:  # noqa: ANN401
    """As ``_options``; a list of counts is one option."""
    if isinstance(value, list) and value and all(isinstance(item, int) for item in value):
        return (tuple(value),)
    if isinstance(value, list):
        return tuple(tuple(item) if isinstance(item, list) else item for item in value)
    return _options(value)


Auto = Literal["auto"]
Numbers = Annotated[tuple[int, ...] | Auto, BeforeValidator(_options)]
Flags = Annotated[tuple[bool, ...] | Auto, BeforeValidator(_options)]
Names = Annotated[tuple[str, ...] | Auto, BeforeValidator(_options)]
Recompute = Annotated[
    tuple[Literal["none", "selective", "full"], ...] | Auto, BeforeValidator(_options)
]
How = Literal["layers", "parameters", "time"] | tuple[int, ...]


class SearchSpace(Declaration):
    """Options of each field that a search chooses; each a value, a list, ``a..b`` or ``auto``."""

    tensor: Numbers = "auto"
    """Tensor degrees."""
    pipeline: Numbers = "auto"
    """Pipeline degrees."""
    data: Numbers = "auto"
    """Replicas; auto: what the other degrees leave of the devices."""
    context: Numbers = "auto"
    """Context degrees; auto: those that leave 128 tokens on each device."""
    expert: Numbers = "auto"
    """Expert degrees."""
    sequence_parallel: Flags = "auto"
    """Whether norms are cut along the sequence; auto: both, where tensor > 1."""
    microbatch: Numbers = "auto"
    """Samples of a microbatch (``training.microbatch``); auto: the divisors of the batch, of a
    transformer those up to 32 or 65,536 tokens, and powers of two where those are enough."""
    recompute: Recompute = "auto"
    """Recomputation."""
    zero: Numbers = "auto"
    """Sharding of replicas."""
    schedule: Names = "auto"
    """Schedules; auto: those built by formula."""
    chunks: Numbers = "auto"
    """Stages on each device; auto: 1, 2, 3, 4, 6, 8 and 12."""
    partition: Annotated[tuple[How, ...] | Auto, BeforeValidator(_partition_options)] = "auto"
    """How layers are dealt to stages."""

    @field_validator(*("tensor", "pipeline", "data", "context", "expert", "microbatch", "chunks"))
    @classmethod
    def _counts(cls, options: tuple[int, ...] | Auto) -> tuple[int, ...] | Auto:
        if options != "auto" and min(options) < 1:
            raise ValueError(f"must be 1 or more, not {min(options)}")
        return options

    @field_validator("zero")
    @classmethod
    def _stages_of_zero(cls, options: tuple[int, ...] | Auto) -> tuple[int, ...] | Auto:
        if options != "auto" and not set(options) <= {0, 1, 2, 3}:
            raise ValueError(f"must be 0 to 3, not {max(options, key=abs)}")
        return options


PLAIN = "1f1b"
"""Schedule under which a plan without a pipeline is searched, with one chunk."""

AXES = tuple(SearchSpace.model_fields)
"""Names of the fields that can be searched."""


@dataclass(frozen=True)
class Problem:
    """A scenario whose plan is open. ``base`` has the real cluster and a plan of degrees 1."""

    base: Scenario
    space: SearchSpace
    named: Mapping[str, Any]  # plan of the file where nothing was open; else empty
    whole: Problem | None = None  # what this is a part of

    @property
    def devices(self) -> int:
        """Devices of the cluster."""
        return self.base.cluster.devices

    @property
    def own(self) -> Scenario | None:
        """The file's own plan; None where it leaves fields open, or is not a plan for the cluster.

        What trains other weights is no other way of doing the same step, and none either.
        """
        if not self.named or self.named.get("schedule") in _ASYNCHRONOUS:
            return None
        tree = self.base.model_dump(mode="json", exclude={"variants"})
        fields = dict(self.named)
        tree["training"] |= {"microbatch": fields.pop("microbatch", 1)}
        tree["plan"] |= fields
        try:
            return build(tree)
        except ScenarioError:
            return None

    def options(self, axis: str) -> tuple[Any, ...]:
        """The options of an axis, ``auto`` written out."""
        given = getattr(self.space, axis)
        found: tuple[Any, ...] = given if given != "auto" else _AUTO[axis](self)
        return found

    def with_nodes(self, nodes: int) -> Problem:
        """The same problem on another number of nodes."""
        cluster = self.base.cluster.model_copy(update={"nodes": nodes})
        base = self.base.model_copy(update={"cluster": cluster})
        return replace(self, base=base)

    def part(self, options: Mapping[str, tuple[Any, ...]]) -> Problem:
        """The plans that have these options, under the same rules; the file's own is none."""
        space = self.space.model_copy(update=dict(options))
        return replace(self, space=space, named={}, whole=self.whole or self)

    @property
    def plain(self) -> bool:
        """Whether the whole space has the plain schedule and one chunk.

        Where it has not, what it has stands for a plan without a pipeline.
        """
        whole = self.whole or self
        return PLAIN in whole.options("schedule") and 1 in whole.options("chunks")


def _divisors(number: int) -> tuple[int, ...]:
    small = [n for n in range(1, math.isqrt(number) + 1) if number % n == 0]
    return tuple(sorted({*small, *(number // n for n in small)}))


def _tensor(problem: Problem) -> tuple[int, ...]:
    model = problem.base.model
    if not isinstance(model, Transformer):
        return (1,)
    return tuple(n for n in _divisors(problem.devices) if model.heads % n == 0)


def _pipeline(problem: Problem) -> tuple[int, ...]:
    most = problem.base.layer_count
    return tuple(n for n in _divisors(problem.devices) if n <= most)


def _context(problem: Problem) -> tuple[int, ...]:
    length = problem.base.training.sequence
    if not isinstance(problem.base.model, Transformer):
        return (1,)
    return tuple(
        n
        for n in _divisors(problem.devices)
        if length % n == 0 and (n == 1 or length // n >= _FEWEST_TOKENS)
    )


def _expert(problem: Problem) -> tuple[int, ...]:
    model = problem.base.model
    experts = model.experts if isinstance(model, Transformer) else None
    return _divisors(experts.count) if experts else (1,)


def _microbatch(problem: Problem) -> tuple[int, ...]:
    """Divisors of the batch and the file's own; powers of two where they reach the largest."""
    training, own = problem.base.training, problem.named.get("microbatch")
    found = _divisors(training.global_batch)
    if isinstance(problem.base.model, Transformer):
        most = max(_MOST_MICROBATCH, _MOST_TOKENS // training.sequence)
        found = tuple(n for n in found if n <= most)
        powers = tuple(n for n in found if n.bit_count() == 1)
        found = powers if 2 * powers[-1] > most else found
    return tuple(sorted({*found, own})) if isinstance(own, int) else found


def _chunks(problem: Problem) -> tuple[int, ...]:
    return tuple(n for n in _CHUNKS if n <= max(problem.base.layer_count, 1))


_AUTO: dict[str, Callable[[Problem], tuple[Any, ...]]] = {
    "tensor": _tensor,
    "pipeline": _pipeline,
    "data": lambda problem: _divisors(problem.devices),
    "context": _context,
    "expert": _expert,
    "sequence_parallel": lambda problem: (False, True),
    "microbatch": _microbatch,
    "recompute": lambda problem: ("none", "selective", "full"),
    "zero": lambda problem: (0, 1, 2, 3),
    "schedule": lambda problem: AUTO_SCHEDULES,
    "chunks": _chunks,
    "partition": lambda problem: ("layers", "parameters", "time"),
}
"""What ``auto`` means, by axis."""


def load_problem(path: str | Path, overrides: Mapping[str, Any] | Sequence[str] = ()) -> Problem:
    """The search problem of a file.

    Fields of the plan that are a range, a list or ``auto`` are open; where any is open, the others
    keep the value given, or their default, and ``data`` takes what is left. ``plan: auto``, or a
    plan in which nothing is open, opens every axis.

    Raises:
        ScenarioError: If the file or what it says cannot be meant.
    """
    tree = read_tree(find(path))
    if tree.get("plan") == "auto":  # written out, so that an override can close a field
        tree["plan"] = {axis: "auto" for axis in AXES if axis != "microbatch"}
    return problem_of(declared(tree, parse_overrides(overrides)))


def problem_of(tree: Mapping[str, Any]) -> Problem:
    """The search problem of a mapping whose zoo names are written out."""
    tree = {key: value for key, value in tree.items() if key != "variants"}
    plan = tree.get("plan") or {}
    if not isinstance(plan, dict):
        raise ScenarioError("plan", f"is a mapping, or 'auto', not {plan!r}")
    training = tree.get("training")
    training = dict(training) if isinstance(training, dict) else {}
    given = {axis: plan[axis] for axis in AXES if axis in plan}
    if "microbatch" in training:
        given["microbatch"] = training.pop("microbatch")
    options = _space(given)
    anything = any(_is_open(value, axis) for axis, value in given.items())
    space = options.model_copy(update=_closed(given)) if anything else SearchSpace()
    for name in space.schedule if space.schedule != "auto" else ():
        _check_schedule(name)
    rest = {field: value for field, value in plan.items() if field not in AXES}
    base = _base(tree, rest, training)
    if base.plan.data_parallel == "data_parallel":
        raise ScenarioError(
            "plan.data_parallel",
            "torch's DataParallel goes with one plan and leaves nothing to search; search with "
            "--set plan.data_parallel=ddp, or see it with `mpsim scenario`",
        )
    return Problem(base, space, {} if anything else given)


def _check_schedule(name: str) -> None:
    """Refuse what is no schedule, and what trains other weights than the rest."""
    if name not in SCHEDULES:
        hint = did_you_mean(name, SCHEDULES) or f"; known: {', '.join(SCHEDULES)}"
        raise ScenarioError("plan.schedule", f"no schedule '{name}'{hint}")
    if name in _ASYNCHRONOUS:
        raise ScenarioError(
            "plan.schedule",
            f"'{name}' is asynchronous: it updates weights while microbatches are under way, and "
            "is no other way of doing the same step; see it with `mpsim scenario`",
        )


_ASYNCHRONOUS = ("pipedream", "pipedream_2bw")
"""Schedules without a flush; a test holds this against their orders."""

_WRONG = ("literal_error", "int_parsing", "int_type", "bool_parsing", "bool_type", "string_type")
"""Complaints of pydantic about an option that is of another kind."""


def _space(given: Mapping[str, Any]) -> SearchSpace:
    try:
        return SearchSpace.model_validate(dict(given))
    except ValidationError as error:
        problems = []
        for item in error.errors(include_url=False, include_context=False):
            axis = str(item["loc"][0])
            where = f"training.{axis}" if axis == "microbatch" else f"plan.{axis}"
            what = item["msg"].removeprefix("Value error, ")
            if "auto" in item["loc"] or item["type"] in _WRONG:
                what = "write a value, a list, a range such as 1..64, or auto"
            problems.append(ScenarioError(where, what))
        unique = {str(problem): problem for problem in problems}
        raise ScenarioErrors(list(unique.values())) from None


def _is_open(value: Any, axis: str) -> bool:  # noqa: ANN401
    """Whether a value leaves a choice."""
    if axis == "partition" and isinstance(value, list):
        return not all(isinstance(item, int) for item in value)
    return isinstance(value, list) or (
        isinstance(value, str) and (value == "auto" or bool(_RANGE.fullmatch(value)))
    )


_DEFAULTS: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("tensor", "pipeline", "context", "expert", "microbatch", "chunks"), (1,)),
    "sequence_parallel": (False,),
    "recompute": ("none",),
    "zero": (0,),
    "schedule": ("1f1b",),
    "partition": ("layers",),
}
"""Options of a field that a file with open fields does not name: the default of ``PlanSpec``."""


def _closed(given: Mapping[str, Any]) -> dict[str, tuple[Any, ...]]:
    return {axis: value for axis, value in _DEFAULTS.items() if axis not in given}


def _base(
    tree: Mapping[str, Any], plan: Mapping[str, Any], training: Mapping[str, Any]
) -> Scenario:
    """The scenario with a plan of degrees 1 and the cluster as it is.

    Checks across models are made on one device; the real counts of nodes and devices are checked
    by themselves and put in afterwards.
    """
    alone = {"cluster.nodes": 1, "cluster.node.devices": 1}
    lone = build({**tree, "plan": dict(plan), "training": dict(training)}, alone)
    cluster = tree.get("cluster")
    counts = {} if not isinstance(cluster, dict) else cluster
    node = counts.get("node") if isinstance(counts.get("node"), dict) else {}
    real = lone.cluster.model_dump(mode="json") | {"nodes": counts.get("nodes", 1)}
    real["node"] = real["node"] | {"devices": (node or {}).get("devices", 8)}
    try:
        whole = type(lone.cluster).model_validate(real)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(["cluster", *map(str, first["loc"])])
        raise ScenarioError(where, first["msg"].removeprefix("Value error, ")) from None
    return lone.model_copy(update={"cluster": whole})
