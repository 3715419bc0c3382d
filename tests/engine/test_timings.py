"""The fast engine against timings of an independent brute-force simulation (shared data)."""

import json

import numpy as np
import pytest

from mpsim.engine import longest_path
from mpsim.schedule.lowering import lower
from mpsim.schedule.ops import COMPUTE_KINDS, Kind
from mpsim.schedule.orders import make_order

NAMES = {
    "dualpipev": "dualpipe_v", "eager1f1b": "eager_1f1b", "interleaved": "interleaved_1f1b",
    "seq1f1b": "seq_1f1b",
}  # fmt: skip


def test_makespans_spans_and_transfers_of_all_rows(shared, seconds_of):
    rows = json.loads((shared / "schedules/golden/timings.json").read_text())["rows"]
    assert len(rows) > 200
    wrong = [
        (row["schedule"], row["p"], row["m"], row["v"], found)
        for row in rows
        if (found := differences(row, seconds_of))
    ]
    assert not wrong


def differences(row, seconds_of):
    """What a row and the engine disagree on."""
    order = make_order(
        NAMES.get(row["schedule"], row["schedule"]),
        num_devices=row["p"], num_microbatches=row["m"], num_chunks=row["v"], num_slices=row["q"],
    )  # fmt: skip
    graph = lower(order, p2p="latency")
    fused = row["tFB"] if row["tFB"] is not None else None
    forward, input, weight = row["tF"], row["tBi"], row["tW"]
    work = seconds_of(
        graph, forward=forward, backward=input + weight, input=input, weight=weight,
        hop=row["tComm"], fused=fused,
    )  # fmt: skip
    timeline = longest_path.run(graph, work)
    compute = np.isin(graph.kind, COMPUTE_KINDS)
    spans = [
        timeline.end[compute & (graph.device == device)].max()
        - timeline.begin[compute & (graph.device == device)].min()
        for device in range(row["p"])
    ]
    sent = {
        f"{way} {a}->{b}": int(
            np.sum((graph.kind == kind) & (graph.device == a) & (graph.peer == b))
        )
        for way, kind in (("fwd", Kind.SEND_F), ("bwd", Kind.SEND_B))
        for a in range(row["p"])
        for b in range(row["p"])
    }
    found = {
        "makespan": timeline.makespan,
        "max_span": max(spans),
        "busy": dict(enumerate(timeline.busy())),
        "p2p": {pair: count for pair, count in sent.items() if count},
    }
    expected = {
        "makespan": pytest.approx(row["makespan"], rel=1e-9),  # rounded in the file
        "max_span": pytest.approx(row["max_span"], rel=1e-9),
        "busy": {int(d): pytest.approx(busy, rel=1e-9) for d, busy in row["busy"].items()},
        "p2p": row["p2p"],
    }
    return {key: (found[key], value) for key, value in expected.items() if found[key] != value}
