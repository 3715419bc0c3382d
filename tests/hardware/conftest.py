"""Workers shared by the tests of real runs: starting them costs more than most tests."""

import pytest

pytest.importorskip("torch", reason="torch is not installed")

from mpsim.hardware.devices import Machine, place
from mpsim.hardware.workers import Workers

MACHINE = Machine(gpus=(), cores=(0, 1))


@pytest.fixture(scope="session")
def _pairs():
    """The pair that runs now, in a list, so that a failed one can be exchanged."""
    running = []
    yield running
    for workers in running:
        workers.__exit__(None, None, None)


@pytest.fixture
def pair(_pairs):
    """Two CPU workers over gloo, started again after a test that ended them."""
    if _pairs and not _pairs[0].pids:
        _pairs.clear()
    if not _pairs:
        _pairs.append(Workers(place(("cpu", "cpu"), MACHINE), timeout=60).__enter__())
    return _pairs[0]
