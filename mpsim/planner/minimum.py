"""The smallest number of devices on which a model can be trained at all, and with which plan."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from mpsim.errors import InfeasibleError, ScenarioError
from mpsim.planner.search import Evaluate, Search, one_by_one, search
from mpsim.planner.space import Problem
from mpsim.simulation import minimum_devices
from mpsim.units import format_bytes

_MOST_NODES = 4096


def minimum(problem: Problem, *, simulate: Evaluate = one_by_one) -> tuple[Problem, Search]:
    """The smallest cluster of this kind that some plan fits on, and the search on it.

    Parts of a node are tried first, then every number of nodes up to the first on which some plan
    fits: counts that no degrees divide fit nothing, so none can be skipped.

    Raises:
        InfeasibleError: If none up to 4096 nodes does; with what the closest plan needs.
    """
    closest: Search | None = None
    for smaller in _sizes(problem):
        try:
            found = search(smaller, top=1, simulate=simulate)
        except ScenarioError:
            continue
        if found.best:
            return smaller, found
        if found.closest and (
            closest is None or found.closest[1].memory < closest.closest[1].memory  # type: ignore[index]
        ):
            closest = found
    raise infeasible(problem, closest)


def _sizes(problem: Problem) -> Iterator[Problem]:
    """The problem on more and more devices, from what the stored weights alone take."""
    base = problem.base
    cluster, whole = base.cluster, base.cluster.node.devices
    walls = {} if base.plan.offload else minimum_devices(base)
    least = walls.get("weights", 1)
    for count in range(min(least, whole), whole):
        if count >= least:
            node = cluster.node.model_copy(update={"devices": count})
            part = cluster.model_copy(update={"nodes": 1, "node": node})
            yield replace(problem, base=base.model_copy(update={"cluster": part}))
    most = _MOST_NODES if cluster.network is not None else 1
    for nodes in range(max(1, least // whole), most + 1):
        yield problem.with_nodes(nodes)


def infeasible(problem: Problem, found: Search | None) -> InfeasibleError:
    """That no plan of a space fits: need and have of the one that comes closest."""
    have = problem.base.cluster.device.memory
    if found is None or found.closest is None:
        return InfeasibleError(
            f"{problem.base.name}: no plan fits: every one needs more than "
            f"{format_bytes(have)} a device",
            need=0.0,
            have=have,
            where="",
            components={},
        )
    outcome = found.closest[1]
    return InfeasibleError(
        f"{problem.base.name}: no plan fits on {problem.devices} devices: the closest needs "
        f"{format_bytes(outcome.memory)}, has {format_bytes(have)}; try `mpsim plan --minimum`",
        need=outcome.memory,
        have=have,
        where="",
        components={},
    )
