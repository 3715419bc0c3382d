"""Plans that a search found, simulated in full: what is printed has been re-run first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mpsim.errors import MpsimError, ScenarioError
from mpsim.planner.evaluate import evaluate
from mpsim.planner.search import Found, Search
from mpsim.planner.space import AXES, Problem
from mpsim.report.metrics import Report
from mpsim.simulation import simulate
from mpsim.spec.plan import PlanSpec
from mpsim.spec.reader import build, parse_overrides
from mpsim.spec.scenario import Scenario
from mpsim.units import format_bytes, format_seconds

SHOWN = (
    *("tensor", "pipeline", "data", "context", "expert", "chunks", "schedule", "zero"),
    *("recompute", "partition", "sequence_parallel"),
)
"""Fields of a plan in the order in which it is described."""
_EQUAL = 1e-9
"""Relative difference below which two steps take as long."""
_SMALL = 0.01
"""Share of the largest cause below which causes are told as one."""
_NOTHING = 1e-12
"""Seconds that print as none."""


def describe(scenario: Scenario) -> str:
    """The fields of a plan that are not their defaults: ``tensor=8,pipeline=4,microbatch=2``."""
    plain, plan = PlanSpec(), scenario.plan
    parts = [
        f"{name}={str(value).lower() if isinstance(value, bool) else value}"
        for name in SHOWN
        if (value := getattr(plan, name)) != getattr(plain, name)
    ]
    return ",".join([*parts, f"microbatch={scenario.training.microbatch}"]).replace(" ", "")


def rerun(found: Sequence[Found]) -> list[Report]:
    """The plans simulated by the event engine, each built and checked anew, shortest step first.

    Raises:
        MpsimError: If a plan does not give what the search was told; nothing of it is shown then.
    """
    reports = [simulate(checked(one.scenario), engine="events") for one in found]
    for one, report in zip(found, reports, strict=True):
        if abs(report.step_time - one.outcome.step) > 1e-6 * report.step_time or not report.fits:
            raise MpsimError(
                f"{describe(one.scenario)}: the engines disagree: {one.outcome.step!r} s in the "
                f"search, {report.step_time!r} s by events; please report this"
            )
    return sorted(reports, key=lambda report: report.step_time)


def checked(scenario: Scenario) -> Scenario:
    """The scenario with all checks made."""
    return build(scenario.model_dump(mode="json", exclude={"variants"}))


def why_slower(best: Report, other: Report) -> str:
    """Where another plan loses its time: causes of the difference, which they sum to."""
    gap = other.step_time - best.step_time
    if gap <= _EQUAL * best.step_time:
        return "nothing: it takes as long"
    terms = ", ".join(
        f"{cause} {'+' if value > 0 else '-'}{format_seconds(abs(value))}"
        for cause, value in gaps(best, other)
    )
    share = gap / best.step_time
    shown = f"{share:.1%}" if share >= 0.0005 else "less than 0.1%"
    return f"{format_seconds(gap)} ({shown}) more a step: {terms}"


def gaps(best: Report, other: Report) -> list[tuple[str, float]]:
    """What each cause adds to the step of another plan, s, largest first; sums to the difference.

    Causes that add less than a hundredth of the largest are one term, ``the rest``.
    """
    causes = dict.fromkeys([*best.waterfall, *other.waterfall])
    each = {
        cause: other.waterfall.get(cause, 0.0) - best.waterfall.get(cause, 0.0) for cause in causes
    }
    least = _SMALL * max(map(abs, each.values()), default=0.0)
    shown = [(cause, value) for cause, value in each.items() if abs(value) >= max(least, _NOTHING)]
    rest = other.step_time - best.step_time - sum(value for _, value in shown)
    if abs(rest) >= max(_NOTHING, _EQUAL * best.step_time):
        shown.append(("the rest", rest))
    return sorted(shown, key=lambda term: -abs(term[1]))


@dataclass(frozen=True)
class Verdict:
    """What a search says of a plan that the user names."""

    rule: str  # the rule that removes it; empty if none does
    text: str


def explain(problem: Problem, named: str, best: Search) -> Verdict:
    """Which rule removed a plan: options, legality, memory, time; or that it is the best.

    Args:
        problem: The space.
        named: Fields, as in ``tensor=8,pipeline=4,schedule=1f1b``; degrees not named take what
            is left (data) or their default.
        best: The search over the space.
    """
    fields = _fields(named)
    for axis, value in fields.items():
        options = problem.options(axis)
        if value not in options and axis != "data":
            listed = ", ".join(map(str, options[:12])) + (", ..." if len(options) > 12 else "")
            return Verdict("space", f"{axis}={value} is not among the options: {listed}")
    try:
        scenario = _scenario(problem, fields)
        outcome = evaluate(scenario)
    except MpsimError as error:
        return Verdict("legality", str(error))
    need, have = format_bytes(outcome.memory), format_bytes(outcome.capacity)
    if not outcome.fits:
        return Verdict("memory", f"needs {need} on its fullest device, which has {have}")
    step = format_seconds(outcome.step, 4)
    if not best.best:
        return Verdict("", f"fits: {step} a step, {need}")
    first = best.best[0]
    if outcome.step <= first.outcome.step * (1 + 1e-9):
        return Verdict("", f"is the best: {step} a step, {need} on its fullest device")
    reports = [simulate(one, engine="fast") for one in (first.scenario, scenario)]
    return Verdict("time", f"fits ({need}) and takes {step}: {why_slower(*reports)}")


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


def _scenario(problem: Problem, fields: Mapping[str, Any]) -> Scenario:
    """The plan that some fields name, checked."""
    degrees = dict(fields)
    micro = degrees.pop("microbatch", 1)
    if "data" not in degrees:
        used = 1
        for axis in ("tensor", "pipeline", "context"):
            used *= int(degrees.get(axis, 1))
        degrees["data"] = max(1, problem.devices // used)
    tree = problem.base.model_dump(mode="json", exclude={"variants"})
    tree["plan"] |= degrees
    tree["training"] |= {"microbatch": micro}
    return build(tree)
