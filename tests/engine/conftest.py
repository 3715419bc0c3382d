"""Seconds for the ops of a graph, by kind and stage, as the closed forms have them."""

import numpy as np
import pytest

from mpsim.cost.work import Work
from mpsim.schedule.ops import Kind


def seconds_of(graph, *, forward=1.0, backward=2.0, input=None, weight=None, hop=0.0, fused=None):
    """Work of a graph: seconds of one op or by stage, ``fused`` those of a whole block."""
    split = {Kind.I: input, Kind.W: weight}
    table = {Kind.F: forward, Kind.B: backward, Kind.SEND_F: hop, Kind.SEND_B: hop}
    table |= {kind: value for kind, value in split.items() if value is not None}
    seconds = np.zeros(graph.num_ops)
    for kind, value in table.items():
        ops = np.flatnonzero(graph.kind == kind)
        seconds[ops] = np.broadcast_to(value, graph.num_stages)[graph.stage[ops]]
    seconds /= graph.num_parts
    if fused is not None:
        seconds[(graph.block >= 0) & (graph.peer < 0)] = fused / 2
    return Work(seconds, np.zeros(graph.num_ops), np.full(graph.num_ops, -1, np.int32))


@pytest.fixture(scope="session", name="seconds_of")
def fixture_seconds_of():
    return seconds_of
