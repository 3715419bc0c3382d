"""The numbers of an op graph: how long and how large each op is, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int32]


@dataclass(frozen=True)
class Link:
    """A link that transfers run over."""

    name: str
    bandwidth: float  # B/s
    shared: bool = False  # whether concurrent transfers divide the bandwidth equally


@dataclass(frozen=True, eq=False)
class Work:
    """How long and how large each op of a graph is.

    A compute op lasts its ``seconds``. A transfer lasts its ``seconds`` (the latency) plus its
    ``nbytes`` over its share of the bandwidth of its link. On a link that is shared, k transfers
    under way each get 1/k of the bandwidth, from the moment their latency has passed.

    Letters: N ops, S samples.
    """

    seconds: Floats  # (N,) or (N, S) s
    nbytes: Floats  # (N,) B on the link; 0 for compute
    link: Ints  # (N,) index into links; -1: none
    links: tuple[Link, ...] = ()
    parts: Mapping[str, Floats] = field(default_factory=dict)  # name → (N,) s, summing to seconds

    def durations(self) -> Floats:  # (N,) or (N, S) s
        """Seconds of each op with every link to itself: ``seconds + nbytes / bandwidth``."""
        if not self.links:
            return self.seconds
        bandwidth = np.array([link.bandwidth for link in self.links])
        transfer = np.where(self.link >= 0, self.nbytes / bandwidth[self.link], 0.0)
        return self.seconds + (transfer if self.seconds.ndim == 1 else transfer[:, None])
