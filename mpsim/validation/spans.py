"""Steps as spans: of a simulated step, and of one that torch's pipeline runtime has run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from mpsim.cost.compiled import Compiled
from mpsim.cost.passes import LAUNCH
from mpsim.cost.worker import ROW_OF_KIND, demand_seconds, step_demand
from mpsim.engine.timeline import Timeline
from mpsim.schedule.ops import COMPUTE_KINDS, Kind, Op
from mpsim.validation.gap import Span, is_compute

PREFIXES = {Kind.F: (Kind.SEND_F, -1), Kind.B: (Kind.SEND_B, 1), Kind.I: (Kind.SEND_B, 1)}
"""Compute op → the send that it waits for, and the sending stage less its own."""


class Event(Protocol):
    """An action of a worker as it was run; seconds of one clock."""

    @property
    def worker(self) -> int:
        """Its worker."""

    @property
    def op(self) -> str:
        """Its text."""

    @property
    def begin(self) -> float:
        """When the worker turned to it."""

    @property
    def ready(self) -> float:
        """When what it had to wait for was there."""

    @property
    def end(self) -> float:
        """When it ended."""


def predicted_spans(compiled: Compiled, timeline: Timeline) -> list[Span]:
    """The spans of a simulated step: compute ops and updates; waits are for the last message."""
    graph, work = compiled.graph, compiled.work
    launch = work.parts.get(LAUNCH, np.zeros(graph.num_ops))
    transfer = (graph.kind == Kind.SEND_F) | (graph.kind == Kind.SEND_B)
    found = []
    for op in np.flatnonzero(np.isin(graph.kind, (*COMPUTE_KINDS, Kind.STEP))).tolist():
        device, before = int(graph.device[op]), int(graph.previous[op])
        edges = graph.pred[graph.pred_starts[op] : graph.pred_starts[op + 1]]
        messages = edges[transfer[edges]]
        sender, sent = -1, float("nan")
        if len(messages):
            last = messages[np.argmax(timeline.end[messages])]
            sender, sent = int(graph.device[last]), float(timeline.begin[last])
        found.append(
            Span(
                device,
                "STEP" if graph.kind[op] == Kind.STEP else str(graph.op(op)),
                begin=float(timeline.end[before]) if before >= 0 else 0.0,
                ready=float(timeline.begin[op]),
                end=float(timeline.end[op]),
                host=float(launch[op]),
                sender=sender,
                sent=sent,
            )
        )
    return found


def measured_spans(
    events: Sequence[Event], begin: float, *, host: Mapping[str, float] | None = None
) -> list[Span]:
    """The spans of one step that was run; times are from its begin.

    Args:
        events: The actions of all workers in that step, on one clock.
        begin: When the step began.
        host: Seconds of each op that its host launches; missing: none.
    """
    ends = {event.op: (event.worker, event.end) for event in events}
    found = []
    for event in events:
        sender, sent = _message(event.op, ends)
        found.append(
            Span(
                event.worker,
                event.op,
                begin=event.begin - begin,
                ready=event.ready - begin,
                end=event.end - begin,
                host=(host or {}).get(event.op, 0.0),
                sender=sender,
                sent=sent - begin,
            )
        )
    return found


def _message(text: str, ends: Mapping[str, tuple[int, float]]) -> tuple[int, float]:
    """Sender of the message that an op waits for, and when it had begun to send it."""
    if not is_compute(text) or text == "STEP":
        return -1, float("nan")
    op = Op.parse(text)
    if op.kind not in PREFIXES:
        return -1, float("nan")
    kind, offset = PREFIXES[op.kind]
    if op.stage + offset < 0:
        return -1, float("nan")
    return ends.get(str(Op(op.stage + offset, kind, op.microbatch)), (-1, float("nan")))


def host_shares(
    compiled: Compiled, events: Iterable[Event], kernels: Mapping[str, int]
) -> dict[str, float]:
    """Seconds of each op that the host launches, as the profile has it and the kernels counted.

    An op that takes longer than predicted and launches more kernels than the model has spends the
    excess on launching them, as far as that many launches take.
    """
    workers = compiled.machine.workers
    if workers is None:
        return {}
    asked, fit = (
        step_demand(compiled.graph, compiled.stages, order=compiled.order).passes,
        workers.fit,
    )
    own, launched = demand_seconds(asked, fit)
    each = max(fit.kernel, fit.backward_kernel, fit.split_kernel)
    found = {}
    for event in events:
        if not is_compute(event.op) or event.op == "STEP":
            continue
        op = Op.parse(event.op)
        row = 4 * op.stage + ROW_OF_KIND[op.kind]
        excess = max(event.end - event.ready - own[row] - launched[row], 0.0)
        more = max(kernels.get(event.op, 0) - 2 * asked.kernels[row], 0.0)
        found[event.op] = float(launched[row] + min(excess, more * each))
    return found


def trace_of(predicted: Sequence[Span], measured: Sequence[Span]) -> dict[str, Any]:
    """Both steps as one Chrome trace: for each device a process predicted and one measured."""
    return {
        "traceEvents": [*_lane(predicted, "predicted", 0), *_lane(measured, "measured", 1)],
        "displayTimeUnit": "ms",
    }


def _lane(spans: Sequence[Span], name: str, offset: int) -> Iterator[dict[str, Any]]:
    """The trace events of one step."""
    for device in sorted({span.device for span in spans}):
        who = {"name": f"device {device}, {name}"}
        yield {"ph": "M", "name": "process_name", "pid": 2 * device + offset, "args": who}
    for span in spans:
        place = {"pid": 2 * span.device + offset, "tid": 0}
        for what, begin, end in (
            ("wait", span.begin, span.ready),
            (span.op, span.ready, span.end),
        ):
            if end > begin:
                yield {
                    "ph": "X",
                    "name": what,
                    "cat": name,
                    **place,
                    "ts": begin * 1e6,
                    "dur": (end - begin) * 1e6,
                    "args": {"for": span.op} if what == "wait" else {"host_us": span.host * 1e6},
                }
