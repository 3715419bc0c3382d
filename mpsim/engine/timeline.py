"""What an engine returns: when each op begins and ends."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mpsim.schedule.graph import OpGraph

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Timeline:
    """Begin and end of each op of a graph. Letters: N ops, S samples."""

    graph: OpGraph
    begin: Floats  # (N,) or (N, S) s
    end: Floats  # (N,) or (N, S) s

    @property
    def makespan(self) -> Floats | float:  # s, or (S,) s
        """End of the last op."""
        return self.end.max(axis=0) if len(self.end) else 0.0
