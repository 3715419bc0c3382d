"""Memory that there is, and the peak of a stretch of code.

The peak is the CUDA allocator's figure, or that of tracked storages on a CPU.
"""

from __future__ import annotations

import contextlib
import math
import os
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


@dataclass
class Peak:
    """Largest number of bytes that were allocated at once; known when the stretch has ended."""

    nbytes: int = 0


class _StorageTracker(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the storages that ops make, and takes them off when they are freed.

    Storages that were there before (weights, inputs) are not counted: they are new to no op.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._seen: weakref.WeakKeyDictionary[Any, None] = weakref.WeakKeyDictionary()

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401
        types: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        kwargs = kwargs or {}
        for value in tree_iter((args, kwargs)):
            if isinstance(value, torch.Tensor):
                self._seen.setdefault(value.untyped_storage(), None)
        result = func(*args, **kwargs)
        for value in tree_iter(result):
            if isinstance(value, torch.Tensor):
                self._count(value.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage in self._seen:
            return
        self._seen[storage] = None
        nbytes = storage.nbytes()
        self.now += nbytes
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, nbytes)

    def _free(self, nbytes: int) -> None:
        self.now -= nbytes


def available_memory(name: str) -> float:
    """Bytes that a new process may take of a device's memory.

    Of the host's: what Linux expects to give without swapping (``MemAvailable``), or what the
    control group leaves, if that is less; elsewhere all that is built in.

    Source:
        proc_meminfo(5); Linux, Documentation/admin-guide/cgroup-v2.rst (memory.max, .current).
    """
    device = torch.device(name)
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    found = [_group_room(), float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))]
    with contextlib.suppress(OSError):
        text = Path("/proc/meminfo").read_text(encoding="utf-8")
        rows = (line.split() for line in text.splitlines())
        found += [1024.0 * int(row[1]) for row in rows if row[0] == "MemAvailable:"]
    return min(found)


def _group_room() -> float:
    """Bytes that the control group of this process leaves; infinite where none bounds it."""
    folder = Path("/sys/fs/cgroup")
    try:
        texts = [
            (folder / name).read_text(encoding="utf-8") for name in ("memory.max", "memory.current")
        ]
        most, taken = (int(text) for text in texts)
    except (OSError, ValueError):  # no such group, or its bound is the word max
        return math.inf
    return float(most - taken)


@contextlib.contextmanager
def peak_memory(device: torch.device) -> Iterator[Peak]:
    """Measure the peak memory of what runs inside, on one device.

    On CUDA it is the allocator's peak of allocated bytes, weights included. On a CPU it is what ops
    allocated inside the stretch: activations, gradients and temporaries that are tensors, not what
    was there before, and not what kernels take and return within one op.
    """
    peak = Peak()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield peak
        peak.nbytes = torch.cuda.max_memory_allocated(device)
        return
    with _StorageTracker() as tracker:
        yield peak
    peak.nbytes = tracker.peak
