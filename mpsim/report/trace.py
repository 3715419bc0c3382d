"""The timeline as a Chrome trace, which Perfetto and chrome://tracing open.

Format: "Trace Event Format", Google, 2016: complete events (``X``), counters (``C``), metadata
(``M``); times in microseconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mpsim.report.lanes import lanes, op_label
from mpsim.report.metrics import Report
from mpsim.schedule.ops import Kind


def trace_events(report: Report) -> Iterator[dict[str, Any]]:
    """The events of the step: a process a device, a thread a stream, memory as a counter."""
    graph, work, timeline = report.graph, report.work, report.timeline
    for lane in lanes(graph):
        place = {"pid": lane.device, "tid": lane.stream}
        if lane.first:
            name = report.device_names[lane.device]
            yield {"ph": "M", "name": "process_name", "pid": lane.device, "args": {"name": name}}
        yield {"ph": "M", "name": "thread_name", **place, "args": {"name": lane.name}}
        for op in lane.ops.tolist():
            begin, end = float(timeline.begin[op]), float(timeline.end[op])
            arguments = {
                f"{part}_us": round(float(seconds[op]) * 1e6, 4)
                for part, seconds in work.parts.items()
                if seconds[op]
            }
            if work.nbytes[op]:
                arguments["nbytes"] = float(work.nbytes[op])
            yield {
                "ph": "X",
                "name": op_label(graph, op),
                "cat": Kind(int(graph.kind[op])).name,
                **place,
                "ts": begin * 1e6,
                "dur": (end - begin) * 1e6,
                "args": arguments,
            }
    for device in report.devices:
        for time, nbytes in zip(device.memory.times, device.memory.total, strict=True):
            counter = {"name": "memory", "pid": device.index, "ts": float(time) * 1e6}
            yield {"ph": "C", **counter, "args": {"GiB": round(float(nbytes) / 2**30, 6)}}


def trace(report: Report) -> dict[str, Any]:
    """The whole trace as the JSON object that viewers load."""
    return {
        "traceEvents": list(trace_events(report)),
        "displayTimeUnit": "ms",
        "otherData": {"scenario": report.scenario.name, "variant": report.scenario.variant},
    }
