"""Where many simulations run: processes of this machine, or a Dask cluster; results are equal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import click

from mpsim.errors import ScenarioError
from mpsim.planner.executors.dask import dask_map
from mpsim.planner.executors.local import local_map
from mpsim.planner.search import Evaluate, one_by_one, outcome_of

T = TypeVar("T")
Map = Callable[[Callable[..., Any], Iterable[Any]], Iterator[tuple[int, Any]]]
"""Runs a function on many items: pairs of an item's place and its result, as they are done."""

_COMMAND = TypeVar("_COMMAND", bound=Callable[..., Any])


def executor_options(command: _COMMAND) -> _COMMAND:
    """The options ``--executor`` and ``--address``."""
    command = click.option(
        "--address", metavar="ADDRESS", help="Scheduler of the Dask cluster, tcp://host:8786."
    )(command)
    return click.option(
        "--executor",
        type=click.Choice(["local", "dask"]),
        default="local",
        show_default=True,
        help="Processes of this machine, or a Dask cluster that runs already.",
    )(command)


@contextmanager
def mapper(executor: str, address: str | None, *, jobs: int | None = None) -> Iterator[Map]:
    """A map over an executor.

    Raises:
        ScenarioError: If the address is missing, out of place, or nobody answers there.
    """
    if executor == "dask":
        if not address:
            raise ScenarioError("--address", "is needed with --executor dask: tcp://host:8786")
        with dask_map(address) as run:
            yield run
        return
    if address:
        raise ScenarioError("--address", "goes with --executor dask")
    with local_map(jobs) as run:
        yield run


@contextmanager
def simulator(executor: str, address: str | None) -> Iterator[Evaluate]:
    """How a search simulates its plans.

    A search simulates some hundred plans: too few for processes of its own to pay.
    """
    if executor == "local" and not address:
        yield one_by_one
        return
    with mapper(executor, address) as run:
        yield lambda scenarios: [
            outcome for _, outcome in sorted(run(outcome_of, scenarios), key=lambda pair: pair[0])
        ]
