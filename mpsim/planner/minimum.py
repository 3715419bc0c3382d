"""The smallest number of devices on which a model can be trained at all, and with which plan."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from mpsim.errors import InfeasibleError, MpsimError, ScenarioError
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
        ScenarioError: If memory is not the reason: no plan is legal, or can be carried out.
    """
    failed: Search | None = None
    illegal: ScenarioError | None = None
    largest = problem
    for smaller in _sizes(problem):
        largest = smaller
        try:
            found = search(smaller, top=1, simulate=simulate)
        except ScenarioError as error:
            illegal = error
            continue
        if found.best:
            return smaller, found
        if failed is None or _need(found) <= _need(failed):
            failed = found
    if failed is None and illegal is not None:
        raise illegal
    raise infeasible(failed or Search(largest, top=1), f"on {largest.devices} devices or fewer")


def _need(found: Search) -> float:
    """Memory of the closest plan, B; infinite where none was simulated to its end."""
    return found.closest[1].memory if found.closest else math.inf


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


def infeasible(found: Search, where: str = "") -> MpsimError:
    """That no plan of a space fits, with what the closest needs; or that none can be run at all.

    Args:
        found: The search, of which the best plans are none.
        where: On which devices, where it is not those of the search alone.
    """
    base, why = found.problem.base, shortage(found)
    if found.refused and found.refused == found.tally.legal:
        return ScenarioError("plan", why)
    if not where:
        where, why = f"on {found.problem.devices} devices", why + "; try `mpsim plan --minimum`"
    return InfeasibleError(
        f"{base.name}: no plan fits {where}: {why}",
        need=found.closest[1].memory if found.closest else 0.0,
        have=base.cluster.device.memory,
        where="",
        components={},
    )


def shortage(found: Search) -> str:
    """Why a search found no plan: memory, or what keeps plans from being carried out."""
    have = format_bytes(found.problem.base.cluster.device.memory)
    why = f"every plan needs more than {have} a device"
    if found.closest is not None:
        why = f"the closest plan needs {format_bytes(found.closest[1].memory)}, has {have}"
    if not found.refused:
        return why
    reason, _ = found.refusals.most_common(1)[0]
    if found.refused == found.tally.legal:
        return f"none of {found.refused:,} legal plans can be carried out: {reason}"
    return f"{why}; {found.refused:,} cannot be carried out: {reason}"
