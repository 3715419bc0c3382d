"""Peak memory of a stretch of code: the CUDA allocator's figure, or tracked storages on a CPU."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
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
