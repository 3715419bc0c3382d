"""The rules that remove plans from a search, in words."""

from __future__ import annotations

from collections.abc import Mapping

from mpsim.planner.space import Problem

RULES = {
    "devices": "degrees do not divide the devices",
    "data": "other replicas than those stated",
    "batch": "the global batch does not divide",
    "layers": "more stages than layers",
    "schedule": "the schedule does not take these numbers",
    "sequence_parallel": "sequence parallelism without tensor parallelism",
    "context": "the sequence does not divide over the context degree",
    "tensor": "heads or widths do not divide over the tensor degree",
    "expert": "experts do not divide",
    "one stage": "one stage: every partition is the same",
    "one device": "one device has no pipeline: its schedules and chunks are not searched",
    "one chunk": "one chunk: schedules that interleave chunks are not searched with it",
    "equal counts": "the partition is that of equal counts",
    "memory": "does not fit",
    "time": "bounds: cannot be among the best",
    "alike": "takes as long as a plan that fits and shards otherwise",
}
"""Rules in words; one of the model's own that is not here goes by its name."""

_FURTHEST = ("one device", "one chunk", "schedule", "layers", "expert", "batch", "data", "devices")
"""Rules in the order from which plans are closest to legal."""


def furthest(removed: Mapping[str, int]) -> str:
    """Of the rules that removed some plans the one that stands last in their way."""
    reached = (rule for rule in _FURTHEST if removed.get(rule))
    return next(reached, max(removed, key=lambda rule: removed[rule]))


def in_words(rule: str, problem: Problem) -> str:
    """A rule, with the degree that the file states where that is what removed plans."""
    text = RULES.get(rule, rule)
    if rule == "data":
        stated = ", ".join(map(str, problem.options("data")))
        return f"{text}, plan.data={stated} (open them: --set plan.data=auto)"
    if rule == "one chunk" and max(problem.options("chunks")) == 1:
        return f"{text}; --set plan.chunks=auto opens chunks"
    return text
