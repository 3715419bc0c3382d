"""The best plans of a space: every plan is bounded, the promising ones are simulated.

Branch and bound: plans are simulated in the order of their lower bounds until the next bound is
above the last of the best plans asked for. What is left out cannot be among them.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mpsim.errors import MpsimError, ScenarioError
from mpsim.planner.candidates import Candidates, Enumeration, Tally
from mpsim.planner.evaluate import Outcome, Refusal, evaluate
from mpsim.planner.keys import all_keys, blocks, key_table
from mpsim.planner.rules import in_words
from mpsim.planner.space import Problem
from mpsim.spec.scenario import Scenario

_BLOCK = 2048
"""Keys costed at once; bounds the memory of a search."""
_BATCH = 16
"""Plans simulated between two looks at the bound."""
_FRONT = 12
"""Plans simulated for the front of time and memory."""
_EQUAL = 1e-9
"""Relative difference of step and memory below which two plans are shown as one."""

Whole = NDArray[np.int64]

Evaluate = Callable[[Sequence[Scenario]], Iterable[Outcome | Refusal]]
"""Simulates some scenarios, in order; with the reason for one that cannot be carried out."""


@dataclass(frozen=True, eq=False)
class Found:
    """A plan that was simulated and fits."""

    scenario: Scenario
    outcome: Outcome

    @property
    def usd(self) -> float | None:
        """Dollars of a step; None without a price."""
        cluster = self.scenario.cluster
        if cluster.price is None:
            return None
        return cluster.price * cluster.devices * self.outcome.step

    def like(self, other: Found) -> bool:
        """Whether step and memory are those of another plan, up to rounding."""
        return math.isclose(self.outcome.step, other.outcome.step, rel_tol=_EQUAL) and math.isclose(
            self.outcome.memory, other.outcome.memory, rel_tol=_EQUAL
        )

    @property
    def plainness(self) -> int:
        """Fields of the plan that are not their defaults: fewer are plainer."""
        return len(self.scenario.plan.model_dump(exclude_defaults=True))


@dataclass(frozen=True, eq=False)
class Own:
    """The file's own plan, where it is complete, and what became of it."""

    scenario: Scenario
    outcome: Outcome | Refusal


@dataclass
class Search:
    """A search under way, and what it found."""

    problem: Problem
    top: int
    tally: Tally = field(default_factory=Tally)
    best: list[Found] = field(default_factory=list)  # shortest step first, no two alike
    front: list[Found] = field(default_factory=list)  # least memory first
    own: Own | None = None
    evaluated: int = 0  # plans of the space that were simulated
    refusals: Counter[str] = field(default_factory=Counter)  # reason → of those, plans refused
    full: int = 0  # of those, plans that did not fit
    closest: tuple[Scenario, Outcome] | None = None  # least memory of those that do not fit

    @property
    def refused(self) -> int:
        """Plans simulated that could not be carried out."""
        return self.refusals.total()

    @property
    def limit(self) -> float:
        """Step that a plan has to beat, s."""
        return self.best[self.top - 1].outcome.step if len(self.best) >= self.top else math.inf

    def run(self, simulate: Evaluate) -> None:
        """Search all of the space, the file's own plan first."""
        self._try_own(simulate)
        for keys in blocks(all_keys(self.problem), _BLOCK):
            table = key_table(self.problem, keys)
            self._count_refused(table.refused)
            if not table.keys:
                continue
            plans = Enumeration(self.problem, table, self.tally, self.limit)
            self._advance(plans.simple(), simulate)
            plans.limit = self.limit
            self._advance(plans.balanced(), simulate)
        self.front = _front(self._known)

    def __post_init__(self) -> None:
        """Nothing is known yet."""
        self._known: list[Found] = []
        self._alike: set[tuple[object, ...]] = set()

    def _try_own(self, simulate: Evaluate) -> None:
        """Simulate the plan of the file, which may have values that ``auto`` does not try."""
        scenario = self.problem.own
        if scenario is None:
            return
        (outcome,) = simulate([scenario])
        self.own = Own(scenario, outcome)
        if isinstance(outcome, Outcome) and outcome.fits:
            self._keep(Found(scenario, outcome))

    def _count_refused(self, refused: dict[str, int]) -> None:
        """Keys that cannot cut the model, with all the plans that they stand for."""
        sizes = [
            len(self.problem.options(axis))
            for axis in ("pipeline", "chunks", "schedule", "zero", "partition")
        ]
        for rule, count in refused.items():
            self.tally.considered += count * math.prod(sizes)
            self.tally.removed[rule] += count * math.prod(sizes)

    def _advance(self, plans: Candidates, simulate: Evaluate) -> None:
        """Simulate plans by their bounds, then some for the front."""
        order = np.lexsort((plans.partition, plans.schedule, plans.zero, plans.bound))
        queue = deque(order.tolist())
        while batch := self._batch(plans, queue):
            self._simulate(plans, batch, simulate)
        if queue:
            front = _front_places(plans, np.array(queue))
            self.tally.removed["time"] += len(queue) - len(front)
            self._simulate(plans, front, simulate)

    def _batch(self, plans: Candidates, queue: deque[int]) -> list[int]:
        """The next plans by their bounds, none of which is known to take as long as another."""
        batch: list[int] = []
        waiting: list[int] = []
        kinds = set()
        while queue and len(batch) < _BATCH and plans.bound[queue[0]] < self.limit:
            place = queue.popleft()
            kind = self._kind(plans, place)
            if kind in kinds:  # simulated only if the one that takes as long does not fit
                waiting.append(place)
            elif kind in self._alike:
                self.tally.removed["alike"] += 1
            else:
                kinds.add(kind)
                batch.append(place)
        queue.extendleft(reversed(waiting))
        return batch

    def _simulate(self, plans: Candidates, batch: Sequence[int], simulate: Evaluate) -> None:
        """Simulate some plans and keep the best."""
        scenarios = [plans.scenario(self.problem, place) for place in batch]
        quick = [
            plans.counted(scenario, place) for scenario, place in zip(scenarios, batch, strict=True)
        ]
        outcomes = simulate(quick)
        for place, scenario, outcome in zip(batch, scenarios, outcomes, strict=True):
            self.evaluated += 1
            if isinstance(outcome, Refusal):
                self.refusals[outcome.reason] += 1
            elif not outcome.fits:
                self.full += 1
                if self.closest is None or outcome.memory < self.closest[1].memory:
                    self.closest = (scenario, outcome)
            else:
                self._keep(Found(scenario, outcome))
                self._alike.add(self._kind(plans, place))

    def _kind(self, plans: Candidates, place: int) -> tuple[object, ...]:
        """Everything but how state is sharded, where that changes no time."""
        zero = int(plans.zero[place])
        if zero > 1 and plans.pipeline[place] > 1:  # else it scatters, or gathers, in each pass
            zero = 1
        key = plans.table.keys[plans.row[place]]
        numbers = (plans.pipeline, plans.chunks, plans.schedule, plans.partition)
        return (key, zero, *(int(column[place]) for column in numbers))

    def _keep(self, found: Found) -> None:
        """Put a plan among the best, and among those of the front; of twins the plainer one."""
        self._known.append(found)
        twin = next((one for one in self.best if one.like(found)), None)
        if twin is None:
            self.best.append(found)
        elif found.plainness < twin.plainness:
            self.best[self.best.index(twin)] = found
        self.best.sort(key=lambda one: one.outcome.step)
        del self.best[self.top :]


def _front_places(plans: Candidates, places: Whole) -> list[int]:
    """Plans that need less memory than all with a lower bound on time, by their bounds."""
    memory = plans.memory[places]
    lowest = np.minimum.accumulate(memory)
    steps = np.flatnonzero(np.concatenate([[True], lowest[1:] < lowest[:-1] * 0.97]))
    return [int(place) for place in places[steps][:_FRONT]]


def _front(known: Sequence[Found]) -> list[Found]:
    """Plans that no other beats in time and memory."""
    kept: list[Found] = []
    for one in sorted(known, key=lambda one: (one.outcome.step, one.outcome.memory)):
        if not kept or one.outcome.memory < kept[-1].outcome.memory:
            kept.append(one)
    return kept[::-1]


def one_by_one(scenarios: Sequence[Scenario]) -> Iterable[Outcome | Refusal]:
    """Simulate scenarios in this process."""
    return [outcome_of(scenario) for scenario in scenarios]


def outcome_of(scenario: Scenario) -> Outcome | Refusal:
    """The outcome of a scenario, or why it cannot be carried out."""
    try:
        return evaluate(scenario)
    except MpsimError as error:
        return Refusal(str(error).split("\n")[0])


def search(problem: Problem, *, top: int = 5, simulate: Evaluate = one_by_one) -> Search:
    """Search a space.

    Raises:
        ScenarioError: If no plan of the space can be carried out.
    """
    found = Search(problem, top)
    found.run(simulate)
    if found.tally.legal == 0 and not found.best:
        removed = found.tally.removed.most_common(1)
        rule = f"; most fall to the rule '{in_words(removed[0][0], problem)}'" if removed else ""
        raise ScenarioError("plan", f"none of {found.tally.considered:,} plans is legal{rule}")
    return found
