"""Layers dealt to stages, in depth order: equal counts, equal parameters, equal time, or given."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate
from typing import Literal

from mpsim.errors import ScenarioError
from mpsim.workload.layers import Layer

Ends = tuple[int, int]
"""Layers at the front and the back that go to the first and the last stage in any case."""


def partition(
    layers: Sequence[Layer],
    num_stages: int,
    *,
    how: Literal["layers", "parameters", "time"] | Sequence[int] = "layers",
    seconds: Sequence[float] | None = None,
) -> list[slice]:
    """A slice of the layers for each stage, contiguous and in depth order, none empty.

    A transformer's embedding and head (with multi-token-prediction layers) do not count as layers
    where counts are equal or given: they go to the first and the last stage (Megatron).

    - layers: n transformer layers over p stages, ⌊n/p⌋ each; a remainder goes one each to the
      stages in the middle, nearest to it first, since the ends have embedding and head besides.
      Megatron refuses a remainder; frameworks that accept one differ: give the counts then.
    - parameters, time: the greatest sum over a stage is as small as contiguous stages allow, the
      embedding and the head counted as layers (exact; earlier stages are filled first).
    - counts: as given, in depth order.

    Args:
        layers: As ``build_layers`` gives them.
        num_stages: Number of stages, chunks of one device counted apart.
        how: What is made equal, or the count of each stage.
        seconds: Time of each layer, forward and backward, for "time".

    Raises:
        ScenarioError: If there are more stages than layers, counts do not add up, or "time" comes
            without seconds.

    """
    if num_stages < 1:
        raise ScenarioError("plan.pipeline", f"{num_stages} stages; there must be at least one")
    front, back = ends(layers)
    inner = len(layers) - front - back
    if isinstance(how, str):
        if inner < num_stages:
            raise ScenarioError("plan.pipeline", f"{num_stages} stages, but only {inner} layers")
        if how == "layers":
            return _from_counts(equal_counts(inner, num_stages), front, back)
        return _balanced(layers, num_stages, how=how, seconds=seconds)
    counts = list(how)
    if len(counts) != num_stages or sum(counts) != inner or min(counts) < 0:
        raise ScenarioError(
            "plan.partition",
            f"the counts {counts} are {len(counts)} stages and {sum(counts)} layers, "
            f"but there are {num_stages} stages and {inner} layers",
        )
    slices = _from_counts(counts, front, back)
    empty = [index for index, part in enumerate(slices) if part.start == part.stop]
    if empty:
        raise ScenarioError("plan.partition", f"stage {empty[0]} has no layer")
    return slices


def ends(layers: Sequence[Layer]) -> Ends:
    """Number of layers before and after those that are counted: embedding; mtp and head."""
    front = 1 if layers and layers[0].kind == "embedding" and layers[-1].kind == "head" else 0
    if not front:
        return 0, 0
    back = 0
    while layers[-1 - back].kind in ("head", "mtp"):
        back += 1
    return front, back


def equal_counts(count: int, num_stages: int) -> list[int]:
    """``count`` over the stages, a remainder one each to the middle ones.

    >>> equal_counts(8, 4), equal_counts(9, 4), equal_counts(10, 4)
    ([2, 2, 2, 2], [2, 3, 2, 2], [2, 3, 3, 2])
    """
    each, more = divmod(count, num_stages)
    first = (num_stages - more) // 2
    return [each + (first <= stage < first + more) for stage in range(num_stages)]


def _from_counts(counts: Sequence[int], front: int, back: int) -> list[slice]:
    stops = [front + stop for stop in accumulate(counts)]
    starts = [0, *stops[:-1]]
    stops[-1] += back
    return [slice(start, stop) for start, stop in zip(starts, stops, strict=True)]


def _balanced(
    layers: Sequence[Layer], num_stages: int, *, how: str, seconds: Sequence[float] | None
) -> list[slice]:
    if how == "parameters":
        weights = [layer.parameters for layer in layers]
    elif seconds is None or len(seconds) != len(layers):
        got = "none are" if seconds is None else f"{len(seconds)} are"
        raise ScenarioError(
            "plan.partition", f"'time' needs the seconds of {len(layers)} layers, but {got} known"
        )
    else:
        weights = list(seconds)
    return balanced(weights, num_stages)


def balanced(weights: Sequence[float], num_stages: int) -> list[slice]:
    """Contiguous non-empty stages with the smallest possible greatest sum.

    Exact: the greatest sum is that of some run of layers; the least bottleneck from a start over
    k stages is found for k = 1, 2, … by

        best[k][i] = min over j of max(sum(i..j), best[k − 1][j])

    where the first term grows and the second falls with j, so that the crossing is found by
    bisection: O(stages · layers · log layers).

    >>> balanced([1, 1, 1, 3], 2)
    [slice(0, 3, None), slice(3, 4, None)]
    """
    count = len(weights)
    before = [0.0, *accumulate(weights)]
    best = [before[count] - before[i] for i in range(count)] + [float("inf")]
    cuts: list[list[int]] = []
    for stages in range(2, num_stages + 1):
        rest, best, row = best, [float("inf")] * (count + 1), [count] * count
        for start in range(count - stages + 1):
            row[start], best[start] = _crossing(before, rest, start, count - stages + 1)
        cuts.append(row)
    stops, start = [], 0
    for row in reversed(cuts):
        start = row[start]
        stops.append(start)
    return [slice(a, b) for a, b in zip([0, *stops], [*stops, count], strict=True)]


def _crossing(
    before: Sequence[float], rest: Sequence[float], start: int, last: int
) -> tuple[int, float]:
    """Where to end a stage that begins at ``start`` (at most ``last``), and the bottleneck then."""
    at = bisect_left(
        range(start + 1, last + 1),
        True,
        key=lambda stop: before[stop] - before[start] >= rest[stop],
    )
    candidates = [stop for stop in (start + 1 + at, start + at) if start < stop <= last]
    return min(
        ((stop, max(before[stop] - before[start], rest[stop])) for stop in candidates),
        key=lambda pair: (pair[1], -pair[0]),
    )


def assign(
    layers: Sequence[Layer], slices: Sequence[slice], *, recompute_layers: int | None = None
) -> list[tuple[Layer, ...]]:
    """The layers of each stage; where only some are recomputed, the first ones of each stage are.

    The rest of a stage's layers stand as their ``plain`` selves (Megatron's ``block`` method).
    """
    stages = [tuple(layers[part]) for part in slices]
    if recompute_layers is None:
        return stages
    return [_some(stage, recompute_layers) for stage in stages]


def _some(stage: Sequence[Layer], limit: int) -> tuple[Layer, ...]:
    kept, used = [], 0
    for layer in stage:
        if layer.plain is not None and used >= limit:
            kept.append(layer.plain)
            continue
        used += layer.plain is not None
        kept.append(layer)
    return tuple(kept)
