"""The timeline as a Chrome trace, which Perfetto and chrome://tracing open.

Format: "Trace Event Format", Google, 2016: complete events (``X``), counters (``C``), metadata
(``M``); times in microseconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from mpsim.report.lanes import lanes, op_label
from mpsim.report.metrics import Report
from mpsim.schedule.ops import Kind


def trace_events(report: Report) -> Iterator[dict[str, Any]]:
    """The events of the step: a process a device, a thread a stream, memory stacked."""
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
        sizes = {
            f"{name.replace('_', ' ')} (GiB)": np.round(nbytes / 2**30, 6).tolist()
            for name, nbytes in device.memory.components.items()
        }
        for moment, time in enumerate(device.memory.times.tolist()):
            counter = {"name": "memory", "pid": device.index, "ts": time * 1e6}
            at = {name: values[moment] for name, values in sizes.items()}
            yield {"ph": "C", **counter, "args": at}


def trace(report: Report) -> dict[str, Any]:
    """The whole trace as the JSON object that viewers load."""
    return {
        "traceEvents": list(trace_events(report)),
        "displayTimeUnit": "ms",
        "otherData": {"scenario": report.scenario.name, "variant": report.scenario.variant},
    }
