"""A link whose bandwidth the transfers under way divide equally (processor sharing).

With k transfers under way each gets bandwidth / k. Let V(t) be the bytes that a transfer under way
since the beginning would have moved by t, so that dV/dt = bandwidth / k. A transfer of n bytes
that joins at t ends when V has grown by n: the next to end is the one with the smallest target, and
a heap of targets is all the state there is.
"""

from __future__ import annotations

from heapq import heappop, heappush


class SharedLink:
    """Transfers under way on one link, and which of them ends next."""

    def __init__(self, bandwidth: float) -> None:
        """An idle link of a bandwidth in B/s."""
        self.bandwidth = bandwidth
        self._served = 0.0  # B, V at the time of the last change
        self._changed = 0.0  # s
        self._targets: list[tuple[float, float, int]] = []  # V at the end; earliest end; transfer

    def join(self, transfer: int, *, nbytes: float, now: float) -> None:
        """Lets a transfer take its share from now on."""
        self._advance(now)
        heappush(self._targets, (self._served + nbytes, now + nbytes / self.bandwidth, transfer))

    def next_end(self) -> float:  # s
        """When the next transfer ends if none joins before; infinite on an idle link."""
        if not self._targets:
            return float("inf")
        target, earliest, _ = self._targets[0]
        left = max(target - self._served, 0.0)
        end = self._changed + left * len(self._targets) / self.bandwidth
        # Rounding may not let a transfer end before it would alone.
        return max(end, earliest, self._changed)

    def leave(self, now: float) -> int:
        """Takes the transfer that ends now off the link, and returns it."""
        self._advance(now)
        target, _, transfer = heappop(self._targets)
        self._served = max(self._served, target) if self._targets else 0.0
        return transfer

    def _advance(self, now: float) -> None:
        """Moves the bytes of the time since the last change."""
        if self._targets:
            share = self.bandwidth / len(self._targets)
            self._served += max(now - self._changed, 0.0) * share
        self._changed = max(now, self._changed)
