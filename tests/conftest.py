"""Fixtures of all tests."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with golden orders and measurements; tests that need it skip where it is not."""
    folder = Path(os.environ.get("MPSIM_DATA", ROOT.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"no measurements at {folder}: set MPSIM_DATA to the folder that holds data/")
    return folder
