"""Which cluster to buy or rent: fewest devices, cheapest, earliest, under a deadline and a budget.

Every cluster and size is searched for its best plan, with nothing said of deadline or budget but
what rules sizes out early. The answers are then picked from the list, so that more time never
makes the cheapest dearer, and more money never makes the earliest later.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mpsim.errors import InfeasibleError, ScenarioError
from mpsim.planner.failures import Reliability, expected_seconds, reliability, spread
from mpsim.planner.minimum import shortage
from mpsim.planner.search import Evaluate, Found, one_by_one, search
from mpsim.planner.space import Problem, problem_of
from mpsim.spec.cluster import ClusterSpec
from mpsim.spec.model import Transformer
from mpsim.spec.reader import declared
from mpsim.units import format_seconds
from mpsim.workload.flops import model_flops

_SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
"""Node counts that are tried where none are declared."""

_DAY = 86400.0
"""s of a day."""


@dataclass(frozen=True)
class Demand:
    """What is asked; None: anything goes."""

    tokens: float | None = None
    deadline: float | None = None  # s
    budget: float | None = None  # USD


@dataclass(frozen=True, eq=False)
class Choice:
    """A cluster of some size with its best plan, and what the whole run takes on it."""

    found: Found
    machine: Reliability
    tokens: float
    seconds: float  # s, mean, failures included
    interval: tuple[float, float]  # s, the middle 90 %
    usd: float | None  # rent; None without a price
    energy: float | None  # J of the site; None where the power of the device is not declared
    energy_usd: float | None

    @property
    def devices(self) -> int:
        """Devices of the cluster."""
        return self.found.scenario.cluster.devices

    def meets(self, demand: Demand) -> bool:
        """Whether it is in time and within the budget; without a price no budget is met."""
        in_time = demand.deadline is None or self.seconds <= demand.deadline
        if demand.budget is None:
            return in_time
        return in_time and self.usd is not None and self.usd <= demand.budget


@dataclass(frozen=True, eq=False)
class LeftOut:
    """A cluster of some size that is no choice."""

    cluster: ClusterSpec
    reason: str


@dataclass(frozen=True, eq=False)
class Capacity:
    """The answers; None where nothing meets the demand."""

    demand: Demand
    choices: tuple[Choice, ...]  # all clusters and sizes that some plan fits on
    fewest: Choice | None
    cheapest: Choice | None
    earliest: Choice | None
    most: Choice | None  # trains the most tokens, where their number is not given
    left_out: tuple[LeftOut, ...] = ()  # the other clusters and sizes


def problems(problem: Problem) -> list[Problem]:
    """The problem on each candidate cluster in each of its sizes.

    Raises:
        ScenarioError: If a candidate cannot be read.
    """
    base = problem.base
    if not base.candidates:
        sizes = [*dict.fromkeys(sorted((*_SIZES, base.cluster.nodes)))]
        single = base.cluster.network is None
        return [problem.with_nodes(1)] if single else [problem.with_nodes(n) for n in sizes]
    return [one for entry in base.candidates for one in _of_candidate(problem, entry)]


def _of_candidate(problem: Problem, entry: str | Mapping[str, Any]) -> Iterator[Problem]:
    """The sizes of one candidate."""
    tree = {"base": entry} if isinstance(entry, str) else dict(entry)
    nodes = tree.pop("nodes", None)
    base = problem.base
    dumped = base.model_dump(mode="json", exclude={"variants", "candidates", "cluster", "plan"})
    dumped["training"].pop("microbatch")
    space = {"tensor": "auto"}
    try:
        whole = problem_of(declared(dumped | {"cluster": tree, "plan": space}))
    except ScenarioError as error:
        name = entry if isinstance(entry, str) else tree.get("base", "cluster")
        raise ScenarioError(f"candidates: {name}", str(error)) from None
    cluster = whole.base.cluster
    here = replace(problem, base=base.model_copy(update={"cluster": cluster}))
    for count in _counts(nodes, single=cluster.network is None):
        yield here.with_nodes(count)


def _counts(nodes: Any, *, single: bool) -> Sequence[int]:  # noqa: ANN401
    """Numbers of nodes: one, a list, a range ``a..b``, or the usual ones."""
    if nodes is None:
        return (1,) if single else _SIZES
    if isinstance(nodes, str) and ".." in nodes:
        low, _, high = nodes.partition("..")
        if low.strip().isdigit() and high.strip().isdigit():
            return range(int(low), int(high) + 1)
    listed = nodes if isinstance(nodes, list) else [nodes]
    if not listed or any(not isinstance(one, int) or one < 1 for one in listed):
        raise ScenarioError("candidates", f"nodes: write 8, [8, 16] or 8..64, not {nodes}")
    return [int(one) for one in listed]


def capacity(
    problem: Problem,
    demand: Demand,
    *,
    simulate: Evaluate = one_by_one,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Capacity:
    """Search every candidate and size, and pick.

    Raises:
        ScenarioError: If the demand contradicts itself.
        InfeasibleError: If no plan fits on any candidate, or none meets the demand.
    """
    _check(problem, demand)
    choices: list[Choice] = []
    left_out: list[LeftOut] = []
    everything = problems(problem)
    for done, one in enumerate(everything):
        progress(done, len(everything))
        choice = best_choice(one, demand, simulate=simulate)
        if isinstance(choice, Choice):
            choices.append(choice)
        else:
            left_out.append(choice)
    progress(len(everything), len(everything))
    if not choices:
        reasons = [f"{size_of(one.cluster)}: {one.reason}" for one in left_out]
        raise _nothing(problem, "\n  ".join(["no candidate will do:", *reasons]))
    found = replace(pick(choices, demand), left_out=tuple(left_out))
    if found.earliest is None and found.most is None:
        raise _nothing(problem, _shortfall(choices, demand))
    return found


def size_of(cluster: ClusterSpec) -> str:
    """A cluster with its number of nodes: ``16 x aws-p5``."""
    return f"{cluster.nodes} x {cluster.name}"


def _check(problem: Problem, demand: Demand) -> None:
    for name, value in (
        ("--tokens", demand.tokens), ("--deadline", demand.deadline), ("--budget", demand.budget)
    ):  # fmt: skip
        if value is not None and value <= 0:
            raise ScenarioError(name, f"must be more than zero, not {value:g}")
    priced = problem.base.candidates or problem.base.cluster.price is not None
    if demand.budget is not None and not priced:
        raise ScenarioError(
            "--budget", "the cluster has no price: set cluster.price, as in '2.5 USD/hour'"
        )


def best_choice(
    problem: Problem, demand: Demand, *, simulate: Evaluate = one_by_one
) -> Choice | LeftOut:
    """The best plan on one cluster; or that none fits, or that certainly none is in time."""
    cluster = problem.base.cluster
    least = _least_seconds(problem, demand)
    if least > (demand.deadline or math.inf):
        peak = f"at the peak of its devices it takes {format_duration(least)} already"
        return LeftOut(cluster, f"too late: {peak}")
    try:
        found = search(problem, top=1, simulate=simulate)
    except ScenarioError as error:
        return LeftOut(cluster, str(error))
    if found.best:
        return choice_of(found.best[0], demand)
    return LeftOut(cluster, shortage(found))


def _least_seconds(problem: Problem, demand: Demand) -> float:
    """What the run takes at the peak of the devices, 6 N FLOPs a token, s; 0 where unknown."""
    base = problem.base
    if not isinstance(base.model, Transformer) or base.training.precision not in (
        base.cluster.device.peak
    ):
        return 0.0
    flops = model_flops(base.model, base.plan, base.training).six_n / base.training.sequence
    rate = base.cluster.device.peak[base.training.precision] * base.cluster.devices
    return (demand.tokens or 0.0) * flops / rate


def format_duration(seconds: float) -> str:
    """A duration of any length without an exponent: ``1,460 days``.

    >>> format_duration(1460 * 86400.0), format_duration(5 * 86400.0), format_duration(90.0)
    ('1,460 days', '5 days', '90 s')
    """
    days = seconds / _DAY
    return f"{days:,.0f} days" if days >= 999.5 else format_seconds(seconds)


def choice_of(found: Found, demand: Demand) -> Choice:
    """A plan with its whole run: time with failures, rent, energy."""
    scenario = found.scenario
    machine, training = reliability(scenario), scenario.training
    rate = training.global_batch * training.sequence / found.outcome.step  # tokens/s of work
    price = scenario.cluster.price
    per_second = None if price is None else price * scenario.cluster.devices
    tokens = demand.tokens
    if tokens is None:
        lasts = [demand.deadline] if demand.deadline is not None else []
        if demand.budget is not None and per_second:
            lasts.append(demand.budget / per_second)
        tokens = min(lasts, default=0.0) * machine.goodput * rate
    work = tokens / rate
    seconds = expected_seconds(work, machine)
    power = scenario.cluster.device.power
    operation = scenario.operation
    watts = None if power is None else power * (1 + operation.host_share) * operation.pue
    energy = None if watts is None else watts * scenario.cluster.devices * seconds
    return Choice(
        found,
        machine,
        tokens,
        seconds,
        spread(work, machine),
        None if per_second is None else per_second * seconds,
        energy,
        None if energy is None else energy * operation.energy_price,
    )


def pick(choices: Sequence[Choice], demand: Demand) -> Capacity:
    """The fewest devices, the cheapest and the earliest of the choices that meet the demand.

    Ties go to the cheaper, then to the earlier.
    """
    met = [choice for choice in choices if choice.meets(demand)]
    priced = [choice for choice in met if choice.usd is not None]
    if demand.tokens is None:
        most = max(choices, key=lambda one: one.tokens)
        return Capacity(demand, tuple(choices), None, None, None, most if most.tokens else None)
    return Capacity(
        demand,
        tuple(choices),
        min(met, key=lambda one: (one.devices, one.usd or 0.0, one.seconds), default=None),
        min(priced, key=lambda one: (one.usd or 0.0, one.seconds), default=None),
        min(met, key=lambda one: (one.seconds, one.usd or 0.0), default=None),
        None,
    )


def _shortfall(choices: Sequence[Choice], demand: Demand) -> str:
    """How far the closest choices are off."""
    first = min(choices, key=lambda one: one.seconds)
    text = f"nothing meets the demand: the earliest takes {format_duration(first.seconds)}"
    priced = [choice for choice in choices if choice.usd is not None]
    if priced:
        cheap = min(priced, key=lambda one: one.usd or 0.0)
        text += f", the cheapest {cheap.usd:,.0f} USD in {format_duration(cheap.seconds)}"
    elif demand.budget is not None:
        text += ", and no candidate has a price"
    return text


def _nothing(problem: Problem, what: str) -> InfeasibleError:
    return InfeasibleError(
        f"{problem.base.name}: {what}", need=0.0, have=0.0, where="", components={}
    )
