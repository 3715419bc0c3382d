"""Any torch module as a declared network: built on the meta device, traced, cut where it can be.

The module runs forward once on tensors without data, while a dispatch mode sees every op. A layer
ends where a module returns and a single computed tensor is alive: there the model can be cut
between two devices that exchange one tensor. Residual branches, which keep a second one alive, stay
inside a layer.
"""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from mpsim.errors import ScenarioError
from mpsim.spec.model import Network, TorchModule, Traced

from .watching import Event, FusedAttention, Watch

BATCH = 2  # samples traced, then divided by: batch norms refuse one


def trace(spec: TorchModule, *, folder: Path | None = None) -> Network:
    """The network of a declared torch module.

    Counts are those of one sample. FLOPs are those of matrix products, convolutions and attention,
    as torch's FLOP counter has them; elementwise work shows in the elements moved. A parameter, and
    a tensor kept for the backward pass, counts in the layer that first uses or keeps it; a
    parameter that the forward pass never uses counts in the last. What the module prints goes to
    the error stream.

    Args:
        spec: Where the module is built, and the shape of its input.
        folder: Where the package is looked for first; None: the current folder.

    Raises:
        ScenarioError: If the module cannot be imported, built or run on the meta device.
    """
    kind = torch.long if spec.integer_input else torch.float32
    inputs = torch.empty(BATCH, *spec.input, dtype=kind, device="meta")
    with redirect_stdout(sys.stderr):  # the output is the command's own, JSON perhaps
        module = _build(spec.torch, folder or Path.cwd())
        return trace_module(module, inputs, name=spec.name, source=f"traced from {spec.torch}")


def trace_module(module: nn.Module, inputs: Tensor, *, name: str, source: str) -> Network:
    """The network of a module on the meta device; ``inputs`` are a batch of some samples.

    Raises:
        ScenarioError: If it cannot be run on the meta device, or returns more than one tensor.
    """
    watch = Watch(module)
    try:
        with (
            _returns(module, watch),
            saved_tensors_hooks(watch.keep, lambda tensor: tensor),
            FusedAttention(),
            watch,
        ):
            watch.enter(inputs)
            output = module(inputs)
    except (Exception, SystemExit) as error:
        first = str(error).strip().partition("\n")[0]
        raise ScenarioError(
            "model.torch",
            f"the module does not run on the meta device: {type(error).__name__}: {first}",
        ) from error
    if not isinstance(output, Tensor):
        raise ScenarioError(
            "model.torch",
            f"the module returns {type(output).__name__}; it must return one tensor",
        )
    watch.leave("", 0, output)
    return Network(
        name=name,
        input=list(inputs.shape[1:]),
        network=_layers(watch, len(inputs), watch.storage(output)),
        source=source,
    )


def _build(place: str, folder: Path) -> nn.Module:
    """Call the function that a place ``package.module:function`` names, on the meta device."""
    name, _, function = place.partition(":")
    if not function:
        raise ScenarioError(
            "model.torch", f"'{place}' is not a place; write it as 'package.module:function'"
        )
    sys.path.insert(0, str(folder))
    try:
        build = getattr(importlib.import_module(name), function)
        with torch.device("meta"):
            module = build()
    except (Exception, SystemExit) as error:
        raise ScenarioError(
            "model.torch", f"'{place}' cannot be built: {type(error).__name__}: {error}"
        ) from error
    finally:
        sys.path.remove(str(folder))
    if not isinstance(module, nn.Module):
        raise ScenarioError(
            "model.torch", f"'{place}' returned {type(module).__name__}, not an nn.Module"
        )
    return module


@contextmanager
def _returns(module: nn.Module, watch: Watch) -> Iterator[None]:
    """Have the watch told when each module but the whole begins and returns."""
    begun: list[int] = []
    handles = []
    for name, part in module.named_modules():
        if name:
            handles.append(
                part.register_forward_pre_hook(lambda *_: begun.append(len(watch.events)))
            )
            handles.append(
                part.register_forward_hook(
                    lambda _part, _inputs, output, name=name: watch.leave(name, begun.pop(), output)
                )
            )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _layers(watch: Watch, batch: int, output: int) -> list[Traced]:
    """Events between cuts, summed up; the last layer takes what is left over."""
    events = watch.events
    layers: list[Traced] = []
    begin = 0
    unused = set(watch.weights) - {w for event in events for w in event.weights}
    cuts = _cuts(events, output)
    for end, label in cuts:
        part = events[begin : end + 1]
        parameters = {weight for event in part for weight in event.weights}
        parameters |= unused if end == cuts[-1][0] else set()
        shape = events[end].shape
        layers.append(
            Traced(
                type="traced",
                label=label or "output",
                parameters=sum(watch.weights[weight] for weight in parameters),
                forward_flops=sum(event.flops for event in part) // batch,
                output=list(shape[1:])
                if shape[:1] == (batch,) and len(shape) > 1
                else [max(1, math.prod(shape) // batch)],
                saved_elements=sum(event.saved for event in part) // batch,
                moved_elements=sum(event.moved for event in part) // batch,
                kernels=max(1, sum(event.kernel for event in part)),
            )
        )
        begin = end + 1
    return layers


def _cuts(events: list[Event], output: int) -> list[tuple[int, str]]:
    """Events that end a layer, each with the label of the layer; the last is the final return."""
    last_use = {place: index for index, event in enumerate(events) for place in event.used}
    last_use[output] = len(events)
    alive: set[int] = set()
    cuts: list[tuple[int, str]] = []
    begin = kernels = 0
    for index, event in enumerate(events):
        alive |= {place for place in event.made if last_use.get(place, -1) > index}
        alive -= {place for place in event.used if last_use[place] <= index}
        kernels += event.kernel
        final = index == len(events) - 1
        goes_on = not final and events[index + 1].returned is not None
        single = alive == {event.tensor} if event.returned is not None else False
        if final or (single and kernels and not goes_on and _work_follows(events, index)):
            cuts.append((index, _label(events, begin, index)))
            begin, kernels = index + 1, 0
    return cuts


def _work_follows(events: list[Event], index: int) -> bool:
    """Whether any kernel comes after an event; if none does, what follows joins this layer."""
    return any(event.kernel for event in events[index + 1 :])


def _label(events: list[Event], begin: int, end: int) -> str:
    """Name of the outermost module that lies in a layer, of those that return at its end."""
    names = []
    for event in reversed(events[begin : end + 1]):
        if event.returned is None:
            break
        if event.returned:
            names.append((event.entered >= begin, event.returned))
    inside = [name for lies, name in names if lies]
    return (inside or [name for _, name in names] or [""])[0]
