"""What a search says of plans that the user names: the rule that removed them, or their step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mpsim.errors import MpsimError, ScenarioError
from mpsim.planner.evaluate import Outcome, evaluate
from mpsim.planner.finalists import spelled, why_slower
from mpsim.planner.minimum import shortage
from mpsim.planner.rules import furthest, in_words
from mpsim.planner.search import Evaluate, Found, Search, one_by_one
from mpsim.planner.space import AXES, PLAIN, Problem
from mpsim.simulation import simulate
from mpsim.spec.reader import build, parse_overrides
from mpsim.spec.scenario import Scenario
from mpsim.units import format_bytes, format_seconds

_EQUAL = 1e-9
"""Relative difference below which a step is as short as the best."""


@dataclass(frozen=True)
class Verdict:
    """What a search says of the plans that have some fields."""

    rule: str  # the rule that removes them; empty if none does
    text: str
    plan: str = ""  # every field of the plan that the text is about
    matching: int = 0  # legal plans that have the fields named


def explain(
    problem: Problem, named: str, best: Search, *, evaluate_all: Evaluate = one_by_one
) -> Verdict:
    """Which rule removed a plan: options, legality, memory, time; or that it is the best.

    Where several plans have the fields named, it is about the best of them.

    Args:
        problem: The space.
        named: Fields, as in ``tensor=8,pipeline=4,schedule=1f1b``; the others are searched.
        best: The search over the space.
        evaluate_all: What simulates the plans that match.
    """
    fields = _fields(named)
    for axis, value in fields.items():
        options = problem.options(axis)
        if value not in options:
            listed = ", ".join(map(str, options[:12])) + (", ..." if len(options) > 12 else "")
            return Verdict("space", f"{axis}={value} is not among the options: {listed}")
    found = Search(_part(problem, fields), top=1)
    found.run(evaluate_all)
    fitting = [*found.best, *_own(best, fields)]
    if fitting:
        shortest = min(fitting, key=lambda one: one.outcome.step)
        return _of_found(shortest, max(found.tally.legal, 1), best)
    return _of_large(found, fields) if found.tally.legal else _of_illegal(found, fields, problem)


def _part(problem: Problem, fields: Mapping[str, Any]) -> Problem:
    """The plans of a space that have some fields.

    A schedule or chunks that are named mean a pipeline, since one device has none.
    """
    closed: dict[str, tuple[Any, ...]] = {axis: (value,) for axis, value in fields.items()}
    plain = {"schedule": PLAIN, "chunks": 1}
    if "pipeline" not in fields and any(
        fields.get(axis, plain[axis]) != plain[axis] for axis in plain
    ):
        degrees = problem.options("pipeline")
        closed["pipeline"] = tuple(degree for degree in degrees if degree > 1) or degrees
    # the file's own plan is no plan of the part, but its microbatch is an option
    closed = {"microbatch": problem.options("microbatch"), **closed}
    return problem.part(closed)


def _own(best: Search, fields: Mapping[str, Any]) -> list[Found]:
    """The file's own plan, which no rule leaves out, where it matches and fits."""
    own = best.own
    if own is None or not isinstance(own.outcome, Outcome) or not own.outcome.fits:
        return []
    values = own.scenario.plan.model_dump() | {"microbatch": own.scenario.training.microbatch}
    matches = all(values[axis] == value for axis, value in fields.items())
    return [Found(own.scenario, own.outcome)] if matches else []


def _of_found(one: Found, matching: int, best: Search) -> Verdict:
    """What is said of the shortest of the plans that match; the best is what the search says."""
    plan, outcome = spelled(one.scenario), one.outcome
    need, step = format_bytes(outcome.memory), format_seconds(outcome.step, 4)
    if not best.best:
        text = f"fits ({need}) and takes {step}, but the search found no plan that fits"
        return Verdict("time", f"{text}: {_left_out(one, best)}", plan, matching)
    first = best.best[0]
    gap = outcome.step - first.outcome.step
    if abs(gap) <= _EQUAL * first.outcome.step:
        how = "is the best" if plan == spelled(first.scenario) else "takes as long as the best"
        return Verdict("", f"{how}: {step} a step, {need} on its fullest device", plan, matching)
    text = f"fits ({need}) and takes {step}"
    if gap < 0:
        text += f", shorter than the best of the search by {format_seconds(-gap)}"
        return Verdict("time", f"{text}: {_left_out(one, best)}", plan, matching)
    reports = [simulate(other, engine="fast") for other in (first.scenario, one.scenario)]
    return Verdict("time", f"{text}: {why_slower(*reports)}", plan, matching)


def _left_out(one: Found, best: Search) -> str:
    """The rule by which a search missed a plan that is legal and fits, which none should."""
    plan = one.scenario.plan
    alike = plan.zero > 1 and plan.pipeline > 1 and best.tally.removed["alike"]
    rule = in_words("alike" if alike else "time", best.problem)
    return f"it was left out by the rule '{rule}'; please report this"


def _of_large(found: Search, fields: Mapping[str, Any]) -> Verdict:
    """What is said where legal plans match and none fits: what the closest simulated one needs."""
    matching = found.tally.legal
    if found.closest is not None:
        return _of_memory(*found.closest, matching)
    if found.refused == matching:
        return Verdict("legality", shortage(found), "", matching)
    try:
        scenario = _instance(found.problem, fields)
        return _of_memory(scenario, evaluate(scenario), matching)
    except MpsimError:
        return Verdict("memory", shortage(found), "", matching)


def _of_memory(scenario: Scenario, outcome: Outcome, matching: int) -> Verdict:
    need, have = format_bytes(outcome.memory), format_bytes(outcome.capacity)
    text = f"needs {need} on its fullest device, which has {have}"
    return Verdict("memory", text, spelled(scenario), matching)


def _of_illegal(found: Search, fields: Mapping[str, Any], whole: Problem) -> Verdict:
    """What is said where no plan that matches is legal: the complaint about one, or the rule."""
    rule = furthest(found.tally.removed)
    if rule in ("one device", "one chunk"):  # they can be carried out, and are not searched
        return Verdict("space", in_words(rule, whole))
    try:
        evaluate(_instance(found.problem, fields))
    except MpsimError as error:
        return Verdict("legality", str(error))
    return Verdict("legality", in_words(rule, whole))


def _fields(named: str) -> dict[str, Any]:
    """The fields of a text, with every name checked."""
    fields: dict[str, Any] = {}
    for path, value in parse_overrides([part for part in named.split(",") if part.strip()]).items():
        name = path.removeprefix("plan.").removeprefix("training.")
        if name not in AXES:
            known = ", ".join(AXES)
            raise ScenarioError(f"--explain {path}", f"is no axis of the search; there are {known}")
        fields[name] = value
    return fields


def _instance(problem: Problem, fields: Mapping[str, Any]) -> Scenario:
    """One of the plans that match, checked: the first option of each axis that is not named."""
    degrees = {axis: fields.get(axis, problem.options(axis)[0]) for axis in AXES if axis != "data"}
    micro = degrees.pop("microbatch")
    used = 1
    for axis in ("tensor", "pipeline", "context"):
        used *= int(degrees[axis])
    degrees["data"] = fields.get("data", max(1, problem.devices // used))
    tree = problem.base.model_dump(mode="json", exclude={"variants"})
    tree["plan"] |= degrees
    tree["training"] |= {"microbatch": micro}
    return build(tree)
