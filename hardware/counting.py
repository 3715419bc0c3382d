"""Kernels counted where a clock would be read: how many each op of a pipeline launches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode


class Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A clock that counts kernels instead of seconds: calls that are no mere views."""

    def __init__(self) -> None:
        """Begin at zero."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401
        types: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """Run a call and count it unless what it returns is a view of what it was given."""
        schema = func._schema
        view = not schema.is_mutable and any(
            returned.alias_info is not None for returned in schema.returns
        )
        self.count += not view
        return func(*args, **(kwargs or {}))

    def start(self) -> None:
        """Nothing to do."""

    def stamp(self) -> float:
        """Kernels so far."""
        return float(self.count)

    def resolve(self, stamps: Sequence[float]) -> list[float]:
        """The counts themselves."""
        return list(stamps)
