"""Micro-benchmarks of all workers together: messages, collectives, overlap with compute."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor

from .timing import Timing, agree, time_alone, time_together
from .transport import Pending, Transport
from .worker import Context

COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter", "broadcast")


class Pair:
    """This worker and the other of the first two, with a message of ``nbytes`` each way."""

    def __init__(self, context: Context, nbytes: int) -> None:
        """Make the message."""
        self._transport, self._rank = Transport(context), context.rank
        self._mine = torch.randn(max(1, nbytes // 4), device=context.device)
        self._theirs = torch.empty_like(self._mine)

    def begin(self) -> list[Pending]:
        """Begin to send both ways."""
        return self._transport.exchange(self._mine, self._theirs, 1 - self._rank)

    def exchange(self) -> None:
        """Both ways at once."""
        for pending in self.begin():
            pending.wait()

    def ping_pong(self) -> None:
        """One way, then the other."""
        send = partial(self._transport.isend, self._mine, 1 - self._rank)
        receive = partial(self._transport.irecv, self._theirs, 1 - self._rank)
        for step in (send, receive) if self._rank == 0 else (receive, send):
            step().wait()


def message(context: Context, budget: float, nbytes: int, *, both: bool = False) -> Timing:
    """A message between the first two workers, one way, or both ways at once.

    One way is half of a ping-pong; both ways begin together and count until both have ended. What
    crosses host memory has the copies in it.
    """
    pair = Pair(context, nbytes)
    if both:
        return time_together(context, pair.exchange, budget)
    timing = time_together(context, pair.ping_pong, budget)
    return Timing(timing.seconds / 2, timing.spread, timing.samples)


def sendrecv(context: Context, budget: float, nbytes: int) -> Timing:
    """A message one way."""
    return message(context, budget, nbytes)


def sendrecv_both(context: Context, budget: float, nbytes: int) -> Timing:
    """Messages both ways at once, ``nbytes`` each."""
    return message(context, budget, nbytes, both=True)


def collective(context: Context, budget: float, op: str, nbytes: int) -> Timing:
    """A collective of all workers; sizes as nccl-tests counts them.

    ``nbytes`` is the whole buffer of all_reduce and broadcast, the gathered one of all_gather, the
    one before scattering of reduce_scatter.
    """
    share = max(1, nbytes // 4 // context.world)
    whole = torch.zeros(share * context.world, device=context.device)
    part = torch.zeros(share, device=context.device)
    works: dict[str, Callable[[], object]] = {
        "all_reduce": lambda: dist.all_reduce(whole),
        "broadcast": lambda: dist.broadcast(whole, src=0),
        "all_gather": lambda: dist.all_gather(list(whole.chunk(context.world)), part),
        "reduce_scatter": lambda: dist.reduce_scatter_single(part, whole),
    }
    return time_together(context, works[op], budget)


def overlap(context: Context, budget: float, width: int, nbytes: int) -> dict[str, float]:
    """Seconds of compute and of a two-way message, each alone, and both at once.

    The compute is matrix products of ``width``, as many as last about as long as the message. The
    end of the message is stamped by a thread that waits for it; on CUDA by a stream that does.
    """
    compute = _products(context, width)
    pair = Pair(context, nbytes)
    one = time_alone(context, lambda: compute(1), budget / 8).seconds
    dist.barrier()
    communication = time_together(context, pair.exchange, budget / 4).seconds
    communication = agree(communication)
    times = max(1, round(communication / agree(one)))
    alone = time_alone(context, lambda: compute(times), budget / 4).seconds
    rounds = int(agree(max(5, budget / 4 / (2 * communication + alone))))
    computes, messages = [], []
    for _ in range(rounds):
        dist.barrier()
        begin = time.perf_counter()
        ended: list[float] = []
        pending = pair.begin()
        waiter = threading.Thread(target=_stamp_end, args=(context, pending, ended))
        waiter.start()
        compute(times)
        if context.device.type == "cuda":
            torch.cuda.current_stream(context.device).synchronize()
        computes.append(time.perf_counter() - begin)
        waiter.join()
        messages.append(ended[0] - begin)
    return {
        "compute": alone,
        "comm": communication,
        "compute_with_comm": statistics.median(computes),
        "comm_with_compute": statistics.median(messages),
    }


def _stamp_end(context: Context, pending: list[Pending], ended: list[float]) -> None:
    """Wait for messages on a stream of their own and note when they have ended."""
    if context.device.type == "cuda":
        stream = torch.cuda.Stream(context.device)  # type: ignore[no-untyped-call]
        with torch.cuda.stream(stream):
            for one in pending:
                one.wait()
        stream.synchronize()
    else:
        for one in pending:
            one.wait()
    ended.append(time.perf_counter())


def _products(context: Context, width: int) -> Callable[[int], Tensor]:
    """Some matrix products in a row."""
    a = torch.randn(width, width, device=context.device)
    b = torch.randn(width, width, device=context.device)
    out = torch.empty_like(a)

    def compute(times: int) -> Tensor:
        for _ in range(times):
            torch.mm(a, b, out=out)
        return out

    return compute


@dataclass(frozen=True)
class Probe:
    """A fixed piece of work, timed between the cells to see drift and noise."""

    timing: Timing  # of one product of 128 x 128 matrices
    stolen: float  # share of the time in which others had the worker's core


def probe(context: Context, budget: float = 0.05) -> Probe:
    """Time the probe on one worker.

    The median of short calls does not see that other processes take the core now and then; the
    thread's processor time beside the clock's does.
    """
    compute = _products(context, 128)
    wall, busy = time.perf_counter(), time.thread_time()
    timing = time_alone(context, lambda: compute(1), budget)
    wall, busy = time.perf_counter() - wall, time.thread_time() - busy
    # a thread that waits for a GPU does not use its core either
    waits = context.device.type == "cuda"
    return Probe(timing, 0.0 if waits else max(0.0, 1 - busy / wall))
