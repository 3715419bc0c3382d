"""Plans that a search found, simulated in full: what is printed has been re-run first."""

from __future__ import annotations

from collections.abc import Sequence

from mpsim.errors import MpsimError
from mpsim.planner.search import Found
from mpsim.report.metrics import Report
from mpsim.simulation import simulate
from mpsim.spec.plan import PlanSpec
from mpsim.spec.reader import build
from mpsim.spec.scenario import Scenario
from mpsim.units import format_seconds

SHOWN = (
    *("tensor", "pipeline", "data", "context", "expert", "chunks", "schedule", "zero"),
    *("recompute", "partition", "sequence_parallel"),
)
"""Fields of a plan in the order in which it is described."""
_EQUAL = 1e-9
"""Relative difference below which two steps take as long."""
_SMALL = 0.01
"""Share of the largest cause below which causes are told as one."""
_PRINTED = 5e-4
"""Share of a difference that its three digits do not show."""
_NOTHING = 1e-12
"""Seconds that print as none."""


def describe(scenario: Scenario) -> str:
    """The fields of a plan that are not their defaults: ``tensor=8,pipeline=4,microbatch=2``."""
    plain = PlanSpec()
    return _listed(scenario, [n for n in SHOWN if getattr(scenario.plan, n) != getattr(plain, n)])


def spelled(scenario: Scenario) -> str:
    """All fields of a plan that a search chooses, defaults too."""
    return _listed(scenario, SHOWN)


def _listed(scenario: Scenario, names: Sequence[str]) -> str:
    values = {name: getattr(scenario.plan, name) for name in names}
    parts = [
        f"{name}={str(value).lower() if isinstance(value, bool) else value}"
        for name, value in values.items()
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

    Causes that add less than a hundredth of the largest are one term, ``the rest``; it is left out
    where it changes no digit of the sum.
    """
    causes = dict.fromkeys([*best.waterfall, *other.waterfall])
    each = {
        cause: other.waterfall.get(cause, 0.0) - best.waterfall.get(cause, 0.0) for cause in causes
    }
    least = _SMALL * max(map(abs, each.values()), default=0.0)
    shown = [(cause, value) for cause, value in each.items() if abs(value) >= max(least, _NOTHING)]
    rest = other.step_time - best.step_time - sum(value for _, value in shown)
    if abs(rest) >= max(_NOTHING, _PRINTED * (other.step_time - best.step_time)):
        shown.append(("the rest", rest))
    return sorted(shown, key=lambda term: -abs(term[1]))
