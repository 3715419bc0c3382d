"""What an engine returns: when each op begins and ends."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mpsim.schedule.graph import COMPUTE, STREAMS, OpGraph

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Timeline:
    """Begin and end of each op of a graph. Letters: N ops, S samples, P devices."""

    graph: OpGraph
    begin: Floats  # (N,) or (N, S) s
    end: Floats  # (N,) or (N, S) s

    @property
    def makespan(self) -> Floats | float:  # s, or (S,) s
        """End of the last op."""
        return self.end.max(axis=0) if len(self.end) else 0.0

    def busy(self, stream: int = COMPUTE) -> Floats:  # (P,) or (P, S) s
        """Seconds in which each device's stream (COMPUTE, COLLECTIVE, …) runs an op."""
        graph = self.graph
        ops = np.flatnonzero(graph.stream == graph.device * STREAMS + stream)
        busy = np.zeros((graph.num_devices, *self.begin.shape[1:]))
        np.add.at(busy, graph.device[ops], self.end[ops] - self.begin[ops])
        return busy

    def sample(self, index: int) -> Timeline:
        """The timeline of one of the samples."""
        return Timeline(self.graph, self.begin[:, index], self.end[:, index])
