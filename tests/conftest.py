"""Fixtures of all tests."""

import os
from pathlib import Path

import pytest

from mpsim.spec.reader import build

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with golden orders and measurements; tests that need it skip where it is not."""
    folder = Path(os.environ.get("MPSIM_DATA", ROOT.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"no measurements at {folder}: set MPSIM_DATA to the folder that holds data/")
    return folder


@pytest.fixture
def small():
    """Builds a small transformer on one node, with fields replaced by dotted path."""
    tree = {
        "name": "small",
        "model": {"layers": 8, "hidden": 512, "heads": 8, "vocab": 1024, "tied_embeddings": False},
        "cluster": {
            "device": "a100-sxm-80gb",
            "node": {
                "devices": 4,
                "link": {"kind": "nvlink", "bandwidth": "300 GB/s", "latency": "3 us"},
            },
        },
        "plan": {"pipeline": 4, "schedule": "1f1b"},
        "training": {"global_batch": 16, "sequence": 256, "precision": "bf16"},
    }
    return lambda fields=None: build(tree, fields or {})
