"""The ops of one forward pass, as seen below autograd: what each makes, uses, moves and keeps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry


@dataclass
class Event:
    """An op, or the return of a module, in the order of the forward pass.

    Tensors are named by their storage, so that a view or an in-place result is what it is of.
    """

    made: set[int] = field(default_factory=set)  # tensors computed here
    used: set[int] = field(default_factory=set)  # computed tensors that it reads
    weights: set[int] = field(default_factory=set)  # parameters first used here
    flops: int = 0
    moved: int = 0  # elements read and written, weights and buffers apart
    kernel: bool = False  # whether it launches a kernel; views do not
    saved: int = 0  # elements that autograd keeps from here on
    returned: str | None = None  # name of the module that returns here, "" for the whole
    entered: int = 0  # event before which that module began
    tensor: int = 0  # what it returns
    shape: tuple[int, ...] = ()


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the events of a forward pass.

    What is computed from neither the input nor a parameter (masks, position indices) is not a
    computed tensor: every stage can make it for itself.
    """

    def __init__(self, module: nn.Module) -> None:
        """Watch a module that is about to run."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._alive: list[Any] = []  # storages, so that none takes the identity of another
        self.weights = {self.storage(weight): weight.numel() for weight in module.parameters()}
        self._buffers = {self.storage(buffer) for buffer in module.buffers()}
        self._computed: set[int] = set()
        self._seen_weights: set[int] = set()
        self._saved: set[int] = set()
        self._pending = 0
        self.events: list[Event] = []

    def storage(self, tensor: Tensor) -> int:
        """Identity of the storage of a tensor."""
        storage = tensor.untyped_storage()
        self._alive.append(storage)
        return int(storage._cdata)

    def enter(self, inputs: Tensor) -> None:
        """The whole begins with its input."""
        self._computed.add(self.storage(inputs))
        self._note(Event(made={self.storage(inputs)}))

    def leave(self, name: str, entered: int, output: object) -> None:
        """A module returns."""
        tensor = output if isinstance(output, Tensor) else None
        place = self.storage(tensor) if tensor is not None else 0
        shape = tuple(tensor.shape) if tensor is not None else ()
        self._note(Event(returned=name, entered=entered, tensor=place, shape=shape))

    def keep(self, tensor: Tensor) -> Tensor:
        """Autograd keeps a tensor: counted once, and not at all if it is a weight or a buffer.

        Keeping a view keeps all that it is a view of.
        """
        place = self.storage(tensor)
        if place not in self._saved and not self._is_fixed(place):
            self._saved.add(place)
            self._pending += tensor.untyped_storage().nbytes() // tensor.element_size()
        return tensor

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401
        types: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """Run an op and note it."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        inputs, outputs = _tensors((args, kwargs)), _tensors(result)
        event = self._event(func, inputs, outputs)
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            event.flops = int(count(*args, **kwargs, out_val=result))
        self._note(event)
        return result

    def _event(self, func: Any, inputs: list[Tensor], outputs: list[Tensor]) -> Event:  # noqa: ANN401
        """What an op reads and makes."""
        read = {self.storage(tensor) for tensor in inputs}
        written = {self.storage(tensor) for tensor in outputs}
        event = Event(used=read & self._computed, weights=read & self.weights.keys())
        event.weights -= self._seen_weights
        self._seen_weights |= event.weights
        if func._schema.is_mutable or not written <= read:
            event.kernel = True
            moved = [t for t in (*inputs, *outputs) if not self._is_fixed(self.storage(t))]
            event.moved = sum(tensor.numel() for tensor in moved)
        if read & (self._computed | self.weights.keys()):
            event.made = {place for place in written - read if not self._is_fixed(place)}
            self._computed |= event.made
        return event

    def _note(self, event: Event) -> None:
        """Add an event, with what autograd has kept since the last."""
        event.saved, self._pending = self._pending, 0
        self.events.append(event)

    def _is_fixed(self, place: int) -> bool:
        """Whether a storage is that of a weight or a buffer."""
        return place in self.weights or place in self._buffers


def _tensors(tree: object) -> list[Tensor]:
    """All tensors in nested lists, tuples and dictionaries."""
    return [value for value in tree_iter(tree) if isinstance(value, torch.Tensor)]


class FusedAttention(TorchFunctionMode):
    """Has attention traced as the one fused kernel that it is on a GPU.

    On the meta device torch would take it apart into matrix products and a softmax, with the scores
    kept. Attention with a mask of its own, or with fewer key-value heads, is left as torch has it.
    """

    def __torch_function__(
        self,
        func: Any,  # noqa: ANN401
        types: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """Run a function, attention as the flash kernel."""
        kwargs = kwargs or {}
        if func is not nn.functional.scaled_dot_product_attention:
            return func(*args, **kwargs)
        names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
        call = {**dict(zip(names, args, strict=False)), **kwargs}
        query, key = call["query"], call["key"]
        if call.get("attn_mask") is not None or query.shape[:-2] != key.shape[:-2]:
            return func(*args, **kwargs)
        return torch.ops.aten._scaled_dot_product_flash_attention(
            query,
            key,
            call["value"],
            call.get("dropout_p", 0.0),
            call.get("is_causal", False),
            scale=call.get("scale"),
        )[0]
