"""Many small tasks on all cores, with results as they come, so that Ctrl-C leaves what is done."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import TypeVar

from mpsim.schedule.compiled import warm

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def each(
    function: Callable[[_Item], _Result], items: Sequence[_Item], *, workers: int, chunk: int
) -> Iterator[tuple[int, _Result]]:
    """The result of each item beside its place, in the order in which they are done.

    With one worker in this process. The workers leave Ctrl-C to this process, which ends them.

    Args:
        function: What is done with an item; found by its name in the workers.
        items: What it is done with.
        workers: Processes.
        chunk: Neighbouring items that a worker takes at a time.
    """
    if workers == 1:
        yield from ((place, function(item)) for place, item in enumerate(items))
        return
    context = multiprocessing.get_context("forkserver" if os.name == "posix" else "spawn")
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_prepare)
    try:
        started = {
            pool.submit(_chunk, function, items[place : place + chunk]): place
            for place in range(0, len(items), chunk)
        }
        for done in as_completed(started):
            yield from enumerate(done.result(), started[done])
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in set(multiprocessing.active_children()) - others:
            child.terminate()
        raise
    pool.shutdown()


def _prepare() -> None:
    """Leave Ctrl-C to the parent, and load the compiled loops."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warm()


def _chunk(function: Callable[[_Item], _Result], items: Sequence[_Item]) -> list[_Result]:
    return [function(item) for item in items]
