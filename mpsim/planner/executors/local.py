"""Processes of this machine."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any


@contextmanager
def local_map(jobs: int | None = None) -> Iterator[Callable[..., Iterator[tuple[int, Any]]]]:
    """A map over as many processes as there are cores; with one, in this process.

    Processes are spawned, not forked: a fork copies threads and locks of libraries in any state.
    """
    count = jobs or len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else jobs or 1
    if count == 1:
        yield lambda function, items: ((place, function(item)) for place, item in enumerate(items))
        return
    pool = multiprocessing.get_context("spawn").Pool(count, initializer=_quiet)
    try:
        yield lambda function, items: pool.imap_unordered(
            partial(_placed, function), enumerate(items), chunksize=1
        )
    finally:
        pool.terminate()
        pool.join()


def _quiet() -> None:
    """Leave Ctrl-C to the parent, which ends the workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _placed(function: Callable[[Any], Any], entry: tuple[int, Any]) -> tuple[int, Any]:
    place, item = entry
    return place, function(item)
