"""One source for loops over ops, run as plain Python on lists or compiled by numba on arrays.

Loading numba costs 0.5 s and the compiled code another 0.1 s from its cache, so graphs on which
plain Python takes less never load it. Both ways do the same arithmetic in the same order: results
are equal bit for bit.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any

THRESHOLD = 50_000
"""Ops from which numba is loaded: plain Python takes 1.2 us an op, 0.06 s for so many."""


def pays(num_ops: int) -> bool:
    """Whether to run the compiled loops: for many ops, or when numba is loaded anyway."""
    return num_ops >= THRESHOLD or "numba" in sys.modules


def warm() -> None:
    """Load numba, so that every graph from now on is swept by compiled loops.

    For a process that will predict many scenarios: 0.5 s once, then a graph of 12,000 ops takes
    1 ms instead of 15.
    """
    import_module("numba")


@cache
def compiled(loop: Callable[..., Any], *calls: Callable[..., Any]) -> Callable[..., Any]:
    """The loop compiled by numba, with the machine code kept on disk for the next process.

    ``calls`` are the functions that it calls, which stand in the same file: numba compiles all of
    it anew when that file changes.

    numba keeps it beside the source or, where that is read-only, in the user's cache directory; if
    neither can be written the loop is compiled for this process only.
    """
    from numba import njit
    from numba.extending import register_jitable

    for call in calls:
        register_jitable(call)
    try:
        return njit(cache=True, nogil=True)(loop)
    except RuntimeError:  # "no locator available": nowhere to keep the code
        return njit(nogil=True)(loop)
