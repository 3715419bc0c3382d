"""A Dask cluster that the user runs: ``dask scheduler``, ``dask worker`` with mpsim installed."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from mpsim.errors import ScenarioError

_PATIENCE = 10
"""Seconds that the scheduler has to answer, and workers to appear."""
_RETRIES = 5
"""Times that an item is run again if its worker dies; results are pure functions of items."""


@contextmanager
def dask_map(address: str) -> Iterator[Callable[..., Iterator[tuple[int, Any]]]]:
    """A map over the workers of a cluster. What a dying worker had under way is run again.

    Raises:
        ScenarioError: If ``distributed`` is not installed, or nobody answers at the address.
    """
    try:
        distributed = importlib.import_module("distributed")
    except ImportError:
        raise ScenarioError(
            "--executor dask", "needs the package 'distributed': pip install mpsim[dask]"
        ) from None
    try:
        client = distributed.Client(address, timeout=_PATIENCE, set_as_default=False)
    except (OSError, ValueError, TypeError) as error:
        reason = str(error).split("\n")[0]
        raise ScenarioError(
            "--address", f"no Dask scheduler answers at {address}: {reason}"
        ) from None
    with client:
        if not client.scheduler_info()["workers"]:
            try:
                client.wait_for_workers(1, timeout=_PATIENCE)
            except (TimeoutError, OSError):
                raise ScenarioError(
                    "--address", f"the scheduler at {address} has no workers"
                ) from None

        def run(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[tuple[int, Any]]:
            futures = client.map(
                _placed, list(enumerate(items)), function=function, pure=False, retries=_RETRIES
            )
            for _, result in distributed.as_completed(futures, loop=client.loop, with_results=True):
                yield result

        yield run


def _placed(entry: tuple[int, Any], *, function: Callable[[Any], Any]) -> tuple[int, Any]:
    place, item = entry
    return place, function(item)
