"""Workers shared by the tests of real runs: starting them costs more than most tests."""

import pytest

pytest.importorskip("torch", reason="torch is not installed")

from mpsim.hardware.devices import Machine, place
from mpsim.hardware.workers import Workers

MACHINE = Machine(gpus=(), cores=(0, 1))


@pytest.fixture(scope="session")
def pair():
    """Two CPU workers over gloo."""
    with Workers(place(("cpu", "cpu"), MACHINE), timeout=60) as workers:
        yield workers
