"""What a worker process runs: join the group, then tasks as they come, until told to stop.

Started by ``workers.py`` with the descriptor of one end of a pipe, over which the setup, the tasks
and their results go.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pickle
import platform
import signal
import struct
import sys
import traceback
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist

from mpsim.errors import CalibrationError

from .devices import Worker

_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of prctl(2)
_SLICE = 100_000_000
"""Time that a thread may keep its core while another wants it, ns: the most that Linux grants."""


@dataclass(frozen=True)
class Setup:
    """All that a worker must know to join its group."""

    worker: Worker
    world: int
    backend: str
    store: str  # path of the file that the workers meet in
    timeout: float  # s that a collective may take
    realtime: bool = False  # whether it runs ahead of all other work of the machine


@dataclass(frozen=True)
class Context:
    """Where a task finds itself; the first argument of every task."""

    rank: int
    world: int
    device: torch.device
    backend: str

    @property
    def staged(self) -> bool:
        """Whether tensors of this worker cross to others through host memory."""
        return self.backend == "gloo" and self.device.type == "cuda"

    def synchronize(self) -> None:
        """Wait until the device has done all it was given; nothing to do on a CPU."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def join(setup: Setup) -> Context:
    """Pin this process, choose its device and join the group over a file store.

    A file store needs no port, so that none can be in use; the connections themselves take free
    ports of the loopback interface.
    """
    device = torch.device(setup.worker.device)
    turns = not setup.realtime and device.type == "cpu" and hasattr(os, "SCHED_BATCH")
    if setup.realtime:
        _run_ahead()
    elif turns:
        _run_in_turns()
    if hasattr(os, "sched_setaffinity") and setup.worker.cores:
        os.sched_setaffinity(0, setup.worker.cores)
    torch.set_num_threads(1)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if setup.backend == "nccl" else "gloo"
    dist.init_process_group(
        backend,
        store=dist.FileStore(setup.store, setup.world),  # type: ignore[attr-defined]
        rank=setup.worker.rank,
        world_size=setup.world,
        timeout=timedelta(seconds=setup.timeout),
    )
    if turns:  # the threads that move messages run by now, with slices of their own
        _keep_the_core()
    return Context(setup.worker.rank, setup.world, device, setup.backend)


def _run_in_turns() -> None:
    """Let a thread that has the core keep it until it waits, as far as the system goes along.

    Threads that move messages share the core with the one that computes. Under Linux's usual policy
    a message that arrives may interrupt the compute while that holds the connection's lock; gloo's
    thread then polls for the lock until its slice is over, and the same step takes one to three
    times as long. Batch scheduling, which needs no right, leaves out the interruption. Nothing
    changes where it is refused.

    Source:
        sched(7); gloo/transport/tcp/pair.cc, Pair::handleEvents (a lock that is taken makes it
        return, to be called again at once).
    """
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def _keep_the_core() -> None:
    """Let this thread keep its core for long beside others that want it; sched_setattr(2)."""
    number = {"x86_64": 314, "aarch64": 274}.get(platform.machine())
    asked = struct.pack("IIQiIQQQ", 48, os.SCHED_BATCH, 0, 0, 0, _SLICE, 0, 0)
    if number is not None:  # what is refused leaves the scheduler's own slice
        ctypes.CDLL(None).syscall(number, 0, asked, 0)


def _run_ahead() -> None:
    """Run this process ahead of all other work, as on a machine of its own.

    Linux's round robin at the lowest real-time priority: threads started later, which move the
    messages, have the same, and so get the core when the one that computes waits.

    Raises:
        CalibrationError: If the system does not allow it.
    """
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    except (AttributeError, OSError) as error:
        raise CalibrationError(
            f"--realtime: this user may not run ahead of others here: {error}"
        ) from None


def tell(connection: Connection, message: object) -> None:
    """Send any value, tensors by their numbers (the connection's own way would share memory)."""
    connection.send_bytes(pickle.dumps(message))


def hear(connection: Connection) -> Any:  # noqa: ANN401  (whatever was told)
    """The value that the other end told."""
    return pickle.loads(connection.recv_bytes())


def serve(connection: Connection) -> None:
    """Answer tasks with ``("done", result)`` or ``("failed", name, message)`` until None comes."""
    try:
        context = join(hear(connection))
        tell(connection, ("done", None))
        while (message := hear(connection)) is not None:
            task, arguments = message
            tell(connection, ("done", task(context, *arguments)))
    except EOFError:  # the parent is gone
        return
    except Exception as error:  # noqa: BLE001  (whatever a task raises is told to the parent)
        traceback.print_exc()
        memory = isinstance(error, torch.OutOfMemoryError)
        name = "out of memory" if memory else type(error).__name__
        tell(connection, ("failed", name, str(error)))
        # the group may be out of step now: leave at once rather than wait for peers in destructors
        sys.stderr.flush()
        os._exit(1)


def _die_with_parent() -> None:
    """Have the kernel kill this process when its parent dies (Linux; elsewhere the pipe tells)."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)


def main() -> None:
    """Entry of the process."""
    _die_with_parent()
    serve(Connection(int(sys.argv[1])))
    if dist.is_initialized():
        dist.destroy_process_group()
