"""Faults that can be put into a run on purpose, to see whether they are found."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class Faults:
    """What is wrong with a run; by default nothing.

    Attributes:
        sleep: Seconds that each forward op of a stage takes longer, by stage.
        launches: Tiny kernels that each forward op of a stage launches besides its own, by stage.
        throttle: B/s that messages leave a worker with, one after another, by rank.
    """

    sleep: Mapping[int, float] = field(default_factory=dict)
    launches: Mapping[int, int] = field(default_factory=dict)
    throttle: Mapping[int, float] = field(default_factory=dict)


class FaultyStage(nn.Module):
    """A stage whose forward pass sleeps, or launches needless kernels, before its own work.

    On a CUDA device the sleep holds up the host and, the queue being empty in time, the device.
    """

    def __init__(self, stage: nn.Module, sleep: float, launches: int) -> None:
        """Wrap a stage; ``sleep`` in seconds."""
        super().__init__()
        self.stage, self.sleep, self.launches = stage, sleep, launches

    def forward(self, value: Tensor) -> Tensor:
        """Lose the time, then do the work."""
        if self.sleep:
            time.sleep(self.sleep)
        nothing = torch.zeros(1, device=value.device)
        for _ in range(self.launches):
            nothing.add_(1.0)
        output: Tensor = self.stage(value)
        return output


def with_faults(stage: nn.Module, index: int, faults: Faults) -> nn.Module:
    """The stage as it is, or wrapped with the faults that are meant for it."""
    sleep, launches = faults.sleep.get(index, 0.0), faults.launches.get(index, 0)
    return FaultyStage(stage, sleep, launches) if sleep or launches else stage


class _Sent:
    """A message on its way through a throttled link."""

    def __init__(self) -> None:
        self._done = threading.Event()
        self.error: Exception | None = None

    def end(self) -> None:
        self._done.set()

    def wait(self) -> None:
        """Wait until the message has left."""
        self._done.wait()
        if self.error is not None:
            raise self.error


class ThrottledLink:
    """A link that holds each message for its bytes over a rate, in order, before sending it.

    The sender goes on meanwhile, as it does with a slow link. The link's own time comes on top.
    """

    def __init__(self, rate: float) -> None:
        """Open a link of ``rate`` B/s."""
        self.rate = rate
        self._queue: queue.SimpleQueue[tuple[Tensor, int, _Sent] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._deliver, daemon=True)
        self._thread.start()

    def isend(self, tensor: Tensor, peer: int) -> _Sent:
        """Queue a message to a rank."""
        sent = _Sent()
        self._queue.put((tensor, peer, sent))
        return sent

    def close(self) -> None:
        """Send what is queued and end the link."""
        self._queue.put(None)
        self._thread.join()

    def _deliver(self) -> None:
        while (item := self._queue.get()) is not None:
            tensor, peer, sent = item
            try:
                time.sleep(tensor.nbytes / self.rate)
                dist.send(tensor, peer)
            except Exception as error:  # noqa: BLE001  (raised again in the thread that waits)
                sent.error = error
            finally:
                sent.end()
