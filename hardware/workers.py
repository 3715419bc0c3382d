"""Worker processes: started, given tasks, watched, and ended whatever happens."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import Concatenate, ParamSpec, Self, TypeVar

from mpsim.errors import CalibrationError

from .devices import Placement
from .worker import Context, Setup, hear, tell

_ENTRY = "from mpsim.hardware.worker import main; main()"

P = ParamSpec("P")
T = TypeVar("T")

START_TIMEOUT = 120.0  # s to import torch and meet; a cold disk takes most of a minute
GRACE = 1.0  # s in which the worker that truly failed may be found behind one that lost its peer


class Workers:
    """Processes of one group that run the same task at once.

    - Entering starts them, each pinned and joined to the group.
    - ``run`` gives all the same task and returns their results in order of rank; while it waits it
      watches for workers that die or hang.
    - Leaving ends them; after an error, or Ctrl-C, by force. On Linux they also die with the thread
      that started them. None is left behind.
    """

    def __init__(
        self, placement: Placement, *, timeout: float = 120.0, realtime: bool = False
    ) -> None:
        """Keep what to start; nothing runs yet. ``timeout`` (s) bounds each task."""
        self.placement = placement
        self.timeout, self.realtime = timeout, realtime
        self._processes: list[subprocess.Popen[bytes]] = []
        self._connections: list[Connection] = []
        self._folder = tempfile.TemporaryDirectory(prefix="mpsim-workers-")

    def __enter__(self) -> Self:
        """Start the workers and wait until all have joined.

        Raises:
            CalibrationError: If one cannot start or join.
        """
        try:
            for rank in range(len(self.placement.workers)):
                self._start(rank)
            self._collect("joining the group", START_TIMEOUT)
        except BaseException:
            self._kill()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Tell the workers to stop, and kill those that do not; at once after an error."""
        if kind is None:
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    tell(connection, None)
            deadline = time.monotonic() + 5
            for process in self._processes:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.0, deadline - time.monotonic()))
        self._kill()

    @property
    def pids(self) -> tuple[int, ...]:
        """Process ids by rank."""
        return tuple(process.pid for process in self._processes)

    def run(
        self,
        task: Callable[Concatenate[Context, P], T],
        /,
        *arguments: P.args,
        **named: P.kwargs,
    ) -> list[T]:
        """Results of ``task(context, *arguments)`` on every worker, by rank.

        The task is a function of a module, found again in the worker by its name.

        Raises:
            CalibrationError: If a worker dies, hangs or raises; the workers are then ended.
        """
        if named:
            raise TypeError("tasks take positional arguments")
        if not self._processes:
            raise CalibrationError("the workers have ended")
        try:
            for connection in self._connections:
                with contextlib.suppress(OSError):  # a dead worker: found when collecting
                    tell(connection, (task, arguments))
            return self._collect("running its part", self.timeout)
        except BaseException:
            self._kill()
            raise

    def _start(self, rank: int) -> None:
        """Start one worker with its pipe and its file of last words."""
        ours, theirs = Pipe()
        environment = {
            "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo",
            "TORCH_CPP_LOG_LEVEL": "ERROR",
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path),
        }
        with self._words(rank).open("wb") as words:
            process = subprocess.Popen(
                [sys.executable, "-c", _ENTRY, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=words,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # Ctrl-C reaches the parent alone, which ends the workers
            )
        theirs.close()
        self._processes.append(process)
        self._connections.append(ours)
        placement = self.placement
        store = str(Path(self._folder.name) / "store")
        worker, world = placement.workers[rank], len(placement.workers)
        limit = max(self.timeout, START_TIMEOUT)
        tell(ours, Setup(worker, world, placement.backend, store, limit, self.realtime))

    def _words(self, rank: int) -> Path:
        """File that the output of a worker goes to."""
        return Path(self._folder.name) / f"worker{rank}.txt"

    def _collect(self, doing: str, timeout: float) -> list[T]:
        """One answer of every worker, or the error of the one that is to blame."""
        results: dict[int, T] = {}
        failures: dict[int, str] = {}
        ranks = {connection: rank for rank, connection in enumerate(self._connections)}
        deadline = time.monotonic() + timeout
        while ranks:
            ready = wait(list(ranks), max(0.0, deadline - time.monotonic()))
            if not ready:
                break
            for connection in ready:
                assert isinstance(connection, Connection)
                rank = ranks.pop(connection)
                try:
                    answer = hear(connection)
                except (EOFError, OSError):
                    failures[rank] = self._death(rank, doing)
                    continue
                if answer[0] == "done":
                    results[rank] = answer[1]
                else:
                    failures[rank] = self._failure(rank, doing, answer[1], answer[2])
            if failures:
                deadline = min(deadline, time.monotonic() + GRACE)
        if failures:
            raise CalibrationError(_blame(failures))
        if ranks:
            late = ", ".join(str(rank) for rank in sorted(ranks.values()))
            raise CalibrationError(f"worker {late} did not end {doing} within {timeout:g} s; ended")
        return [results[rank] for rank in range(len(self._processes))]

    def _death(self, rank: int, doing: str) -> str:
        """What to say of a worker whose pipe has closed."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._processes[rank].wait(GRACE)
        code = self._processes[rank].returncode
        how = f"was killed by signal {-code}" if code and code < 0 else f"ended with code {code}"
        why = ": perhaps the machine ran out of memory" if code == -signal.SIGKILL else ""
        return f"worker {rank} {how} while {doing}{why}{self._last_words(rank)}"

    def _failure(self, rank: int, doing: str, name: str, message: str) -> str:
        """What to say of a worker whose task raised."""
        device = self.placement.workers[rank].device
        first = message.strip().splitlines()[0] if message.strip() else ""
        return f"worker {rank} ({device}) failed {doing}: {name}: {first}{self._last_words(rank)}"

    def _last_words(self, rank: int, lines: int = 12) -> str:
        """The end of what a worker has written, indented."""
        with contextlib.suppress(OSError):
            text = self._words(rank).read_text(encoding="utf-8", errors="replace")
            last = text.strip().splitlines()[-lines:]
            if last:
                return "\n  its last words:\n" + "\n".join(f"    {line}" for line in last)
        return ""

    def _kill(self) -> None:
        """End all workers by force and forget them."""
        for process in self._processes:
            if process.poll() is None:
                process.kill()
        for process in self._processes:
            process.wait()
        for connection in self._connections:
            connection.close()
        self._processes.clear()
        self._connections.clear()
        self._folder.cleanup()


def _blame(failures: dict[int, str]) -> str:
    """The failure to report: a peer's lost connection is the consequence of another's death."""

    def consequence(text: str) -> bool:
        lost = ("Connection closed", "Connection reset", "Broken pipe", "Timed out")
        return any(sign in text for sign in lost)

    order: Sequence[int] = sorted(failures, key=lambda rank: (consequence(failures[rank]), rank))
    return failures[order[0]]
