"""Clocks of workers: when an op begins and ends on a host or a GPU, and how far clocks are apart.

All times are seconds of the monotonic clock, which the processes of one machine share.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist

from .worker import Context


class Clock(Protocol):
    """Stamps moments cheaply and tells later when they were."""

    def start(self) -> None:
        """Begin a stretch of stamps."""

    def stamp(self) -> Any:  # noqa: ANN401  (a float on the host, an event on a GPU)
        """Mark this moment."""

    def resolve(self, stamps: Sequence[Any]) -> list[float]:
        """Seconds of the monotonic clock at which the stamps were passed."""


class HostClock:
    """The monotonic clock of the host."""

    def start(self) -> None:
        """Nothing to do."""

    def stamp(self) -> float:
        """Seconds now."""
        return time.perf_counter()

    def resolve(self, stamps: Sequence[float]) -> list[float]:
        """The stamps themselves."""
        return list(stamps)


class CudaClock:
    """CUDA events on the current stream, tied to the host's clock at the start of a stretch.

    A stamp is passed when the stream gets there, so that a wait for a message is seen where the
    device sees it, not where the host queued it.
    """

    def __init__(self, device: torch.device) -> None:
        """A clock of one GPU."""
        self.device = device
        self._origin = 0.0
        self._first: torch.cuda.Event | None = None

    def start(self) -> None:
        """Let the device run dry and note the host's time at which a first event passes."""
        torch.cuda.synchronize(self.device)
        self._first = _event()
        self._first.record()
        self._first.synchronize()
        self._origin = time.perf_counter()

    def stamp(self) -> torch.cuda.Event:
        """An event recorded on the current stream."""
        event = _event()
        event.record()
        return event

    def resolve(self, stamps: Sequence[torch.cuda.Event]) -> list[float]:
        """Wait for the device; then the host's time of each event."""
        assert self._first is not None, "start comes before resolve"
        torch.cuda.synchronize(self.device)
        return [self._origin + self._first.elapsed_time(event) / 1e3 for event in stamps]


def _event() -> torch.cuda.Event:
    """A CUDA event that keeps its time."""
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def open_clock(context: Context) -> Clock:
    """The clock of a worker's device."""
    return CudaClock(context.device) if context.device.type == "cuda" else HostClock()


@dataclass(frozen=True)
class Offset:
    """How far another worker's clock is ahead of ours."""

    seconds: float  # s
    uncertainty: float  # s, half of the quickest round trip

    @property
    def correction(self) -> float:
        """Seconds to take from the other's times: none where equal clocks are not excluded.

        Processes of one machine share the monotonic clock; the estimate would only add the
        asymmetry of the two ways.
        """
        return self.seconds if abs(self.seconds) > self.uncertainty else 0.0


def offset_to_first(context: Context) -> Offset:
    """How far this worker's clock is ahead of the first worker's: run on all workers at once."""
    mine = Offset(0.0, 0.0)
    for peer in range(1, context.world):
        if context.rank == 0:
            clock_offset(context, peer)
        elif context.rank == peer:
            other = clock_offset(context, 0)
            mine = Offset(-other.seconds, other.uncertainty)
    return mine


def clock_offset(context: Context, peer: int, rounds: int = 64) -> Offset:
    """Offset of a peer's clock, by ping-pong: run on both workers at once, over the CPU group.

    The quickest of the round trips says (Cristian 1989): the peer's clock at the middle of the trip
    minus ours there, off by half the trip at most.
    """
    best: tuple[float, float] | None = None
    message = torch.zeros(1, dtype=torch.float64)
    for _ in range(rounds):
        if context.rank < peer:
            begin = time.perf_counter()
            dist.send(message, peer)
            dist.recv(message, peer)
            end = time.perf_counter()
            trip, offset = end - begin, message.item() - (begin + end) / 2
        else:
            dist.recv(message, peer)
            message.fill_(time.perf_counter())
            dist.send(message, peer)
            continue
        best = min(best or (trip, offset), (trip, offset))
    shared = torch.tensor(best or (0.0, 0.0), dtype=torch.float64)
    if context.rank < peer:
        dist.send(shared, peer)
        return Offset(shared[1].item(), shared[0].item() / 2)
    dist.recv(shared, peer)
    return Offset(-shared[1].item(), shared[0].item() / 2)
