"""Predicted against measured, one step each: what the gap between them is made of.

Both steps are taken apart along their critical path, from the last moment back to the first: what
ended last, what that had waited for, and so on. A path covers its step without gaps or overlaps,
so the causes of a step sum to it, and their differences sum to the gap, exactly.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

CAUSES = ("compute", "launch", "transfer", "waiting", "skew", "unexplained")
"""What time on a critical path is spent on.

- compute: kernels of ops, and the update;
- launch: host time, inside ops and between them, messages begun among it;
- transfer: a message under way after its sender has begun to send it;
- waiting: for a message whose sender is not known;
- skew: from the begin of the step until the path's first worker begins;
- unexplained: what is left; zero but for moments that clocks put out of order.
"""


@dataclass(frozen=True)
class Span:
    """One action of a worker, measured or simulated; times in s from the begin of the step."""

    device: int
    op: str  # as in a schedule's text: 2F0, 1SEND_F3; STEP
    begin: float  # the worker turns to it
    ready: float  # what it waits for is there
    end: float
    host: float = 0.0  # s of its own time that the host launches
    sender: int = -1  # device that its message comes from; -1: it waits for none
    sent: float = math.nan  # when that message was begun

    @property
    def own(self) -> float:
        """Seconds of its own work."""
        return self.end - self.ready


@dataclass(frozen=True)
class Segment:
    """A stretch of a critical path."""

    cause: str
    device: int
    op: str  # what is done, or waited for
    begin: float
    end: float

    @property
    def seconds(self) -> float:
        """Its length."""
        return self.end - self.begin


@dataclass(frozen=True)
class Gap:
    """A measured step beside its prediction."""

    predicted: float  # s
    measured: float  # s
    causes: Mapping[str, float]  # cause → s that the measured step spends more on it
    places: Mapping[tuple[str, str], float]  # cause and place, as ``1F`` → s more

    @property
    def seconds(self) -> float:
        """Measured less predicted, s; what the causes sum to."""
        return self.measured - self.predicted


def gap(predicted: Sequence[Span], measured: Sequence[Span]) -> Gap:
    """The gap between two steps of one schedule, by cause and by place."""
    paths = [critical_path(spans) for spans in (predicted, measured)]
    causes, places = dict.fromkeys(CAUSES, 0.0), defaultdict[tuple[str, str], float](float)
    for sign, path in zip((-1.0, 1.0), paths, strict=True):
        for segment in path:
            causes[segment.cause] += sign * segment.seconds
            places[segment.cause, place(segment)] += sign * segment.seconds
    ends = [max(span.end for span in spans) for spans in (predicted, measured)]
    causes["unexplained"] += ends[1] - ends[0] - sum(causes.values())
    return Gap(ends[0], ends[1], causes, dict(places))


def place(segment: Segment) -> str:
    """Stage and letter of an op, without its microbatch; the device for what has no stage."""
    op = segment.op
    stage = op[: len(op) - len(op.lstrip("0123456789"))]
    letters = op[len(stage) :].rstrip("0123456789")
    return f"{stage}{letters}" if stage else f"{letters} of worker {segment.device}"


def critical_path(spans: Sequence[Span]) -> list[Segment]:
    """The chain of what the end of a step waited for, first to last; it covers the step.

    From the end of an action the path goes to its begin. If it waited for a message that was begun
    meanwhile, the path goes on with the sender at that moment; if the message had been begun
    before, the wait is the message's; without a wait, the path goes on with the action before.
    """
    lanes: dict[int, list[Span]] = defaultdict(list)
    for span in sorted(spans, key=lambda span: (span.end, span.begin)):
        lanes[span.device].append(span)
    last = max(spans, key=lambda span: span.end)
    device, moment, path = last.device, last.end, list[Segment]()
    while lanes[device]:
        lane = lanes[device]
        while lane and lane[-1].end > moment + _TINY:
            lane.pop()  # it ended after the path had left this worker
        if not lane:
            break
        span = lane.pop()
        path.append(Segment("launch", device, span.op, span.end, moment))
        path += _own(span)
        device, moment = _before(span, path)
    path.append(Segment("skew", device, "begin", 0.0, moment))
    return [segment for segment in reversed(path) if segment.seconds]


_TINY = 1e-9


def _own(span: Span) -> list[Segment]:
    """The action's own time: host first, then kernels."""
    if not is_compute(span.op):
        return [Segment("launch", span.device, span.op, span.ready, span.end)]
    host = min(max(span.host, 0.0), span.own)
    return [
        Segment("compute", span.device, span.op, span.ready + host, span.end),
        Segment("launch", span.device, span.op, span.ready, span.ready + host),
    ]


def _before(span: Span, path: list[Segment]) -> tuple[int, float]:
    """Where the path goes from the moment that an action was ready; the wait is put onto it."""
    if span.ready <= span.begin:
        return span.device, span.ready
    known = span.sender >= 0 and not math.isnan(span.sent)
    sent = min(span.sent, span.ready) if known else math.nan
    if known and sent > span.begin:
        path.append(Segment("transfer", span.sender, span.op, sent, span.ready))
        return span.sender, sent
    cause = "transfer" if known else "waiting"
    device = span.sender if known else span.device
    path.append(Segment(cause, device, span.op, span.begin, span.ready))
    return span.device, span.begin


def is_compute(op: str) -> bool:
    """Whether an action runs kernels of the model: F, B, I, W, or the update.

    >>> is_compute("2F0"), is_compute("1SEND_F3"), is_compute("STEP")
    (True, False, True)
    """
    return op.lstrip("0123456789").rstrip("0123456789") in ("F", "B", "I", "W", "STEP")


def worker_times(spans: Sequence[Span]) -> dict[int, dict[str, float]]:
    """Seconds of each worker by what it does, and waits for; they sum to its last moment.

    Waiting for a message is told from its transfer by the moment at which its sender began to send.
    What lies before the begin of the step, where clocks are not quite one, is not counted.
    """
    found: dict[int, dict[str, float]] = {}
    for device in sorted({span.device for span in spans}):
        times = dict.fromkeys(CAUSES, 0.0)
        moment = 0.0
        for span in sorted((s for s in spans if s.device == device), key=lambda s: s.begin):
            cause = "skew" if moment == 0.0 else "launch"
            begin, ready, end = (max(at, 0.0) for at in (span.begin, span.ready, span.end))
            times[cause] += max(begin - moment, 0.0)
            known = span.sender >= 0 and not math.isnan(span.sent)
            sent = min(max(span.sent, begin), ready) if known else ready
            times["waiting"] += sent - begin
            times["transfer"] += ready - sent
            host = min(span.host, end - ready) if is_compute(span.op) else end - ready
            times["launch"] += host
            times["compute"] += end - ready - host
            moment = max(moment, end)
        times["unexplained"] = moment - sum(times.values())
        found[device] = times
    return found
