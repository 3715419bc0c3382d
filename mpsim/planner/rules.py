"""The rules that remove plans from a search, in words."""

from __future__ import annotations

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
    "one device": "one device: every schedule is the same",
    "one chunk": "one chunk: a schedule of many chunks is another's twin",
    "equal counts": "the partition is that of equal counts",
    "memory": "does not fit",
    "time": "bounds: cannot be among the best",
    "alike": "takes as long as a plan that fits and shards otherwise",
}
"""Rules in words; one of the model's own that is not here goes by its name."""


def in_words(rule: str, problem: Problem) -> str:
    """A rule, with the degree that the file states where that is what removed plans."""
    text = RULES.get(rule, rule)
    if rule == "data":
        stated = ", ".join(map(str, problem.options("data")))
        return f"{text}, plan.data={stated} (open them: --set plan.data=auto)"
    if rule == "one chunk" and max(problem.options("chunks")) == 1:
        return f"{text}; --set plan.chunks=auto opens chunks"
    return text
