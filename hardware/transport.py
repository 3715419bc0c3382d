"""Messages between two workers: straight where the backend can, through host memory where not."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from .faults import ThrottledLink
from .worker import Context


class Pending(Protocol):
    """A message under way."""

    def wait(self) -> object:
        """Return when the buffer may be used."""


class _Staged:
    """A message received into host memory that ends on the device."""

    def __init__(self, work: Pending, host: Tensor, buffer: Tensor) -> None:
        self._work, self._host, self._buffer = work, host, buffer

    def wait(self) -> None:
        """Wait for the message, then copy it to the device."""
        self._work.wait()
        self._buffer.copy_(self._host, non_blocking=True)


class _Held:
    """A message whose host copy must live until it has left."""

    def __init__(self, work: Pending, host: Tensor) -> None:
        self._work, self._host = work, host

    def wait(self) -> None:
        """Wait until the message has left."""
        self._work.wait()


class Transport:
    """Sends and receives of one worker.

    gloo carries no GPU memory point to point: there a tensor goes through pinned host memory, and
    the copies belong to the transfer.
    """

    def __init__(self, context: Context, throttle: float | None = None) -> None:
        """Open the way to all peers; ``throttle`` (B/s) slows what is sent, as a fault."""
        self.context = context
        self._link = ThrottledLink(throttle) if throttle else None

    def isend(self, tensor: Tensor, peer: int) -> Pending:
        """Begin to send a tensor to a rank."""
        sent = self._to_host(tensor) if self.context.staged else tensor
        if self._link is not None:
            return self._link.isend(sent, peer)
        work = dist.isend(sent, peer)
        assert work is not None
        return _Held(work, sent) if self.context.staged else work

    def irecv(self, buffer: Tensor, peer: int) -> Pending:
        """Begin to receive from a rank into a buffer."""
        if not self.context.staged:
            work = dist.irecv(buffer, peer)
            assert work is not None
            return work
        host = torch.empty(buffer.shape, dtype=buffer.dtype, pin_memory=True)
        work = dist.irecv(host, peer)
        assert work is not None
        return _Staged(work, host, buffer)

    def exchange(self, tensor: Tensor, buffer: Tensor, peer: int) -> list[Pending]:
        """Begin to send and to receive at once.

        NCCL runs the messages of a pair in the order they are begun: two workers that both receive
        first would wait for ever, so there the two messages are one batch.
        """
        if self.context.backend == "nccl":
            messages = [dist.P2POp(dist.isend, tensor, peer), dist.P2POp(dist.irecv, buffer, peer)]
            return list(dist.batch_isend_irecv(messages))
        return [self.irecv(buffer, peer), self.isend(tensor, peer)]

    def close(self) -> None:
        """Send what waits in a throttled link."""
        if self._link is not None:
            self._link.close()

    @staticmethod
    def _to_host(tensor: Tensor) -> Tensor:
        """A pinned copy in host memory; waits for the device, which must have made the tensor."""
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        host.copy_(tensor, non_blocking=True)
        torch.cuda.current_stream(tensor.device).synchronize()
        return host
