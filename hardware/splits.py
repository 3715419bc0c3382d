"""Real splits of a network over workers: by layer, column, row and batch.

Each split is a class with one contract: built on every worker from the same whole network, it runs
a forward and backward pass and leaves on each worker the gradients of the parameters it holds.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mpsim.errors import CalibrationError

from .models import Model, build, count_layers, deal, loss_of
from .tensor_layers import ColumnLinear, RowLinear, piece
from .transport import Transport
from .worker import Context

Named = Iterator[tuple[str, nn.Parameter]]


class Split(ABC):
    """A network cut over workers.

    Attributes:
        context: The worker it runs on.
        loss: The network's loss.
    """

    title: ClassVar[str]

    def __init__(self, context: Context, model: Model, seed: int = 0) -> None:
        """Take one worker's share of the network built from the seed."""
        self.context, self.model, self.loss = context, model, loss_of(model)
        self.take(build(model, seed).to(context.device))

    @abstractmethod
    def take(self, whole: nn.Sequential) -> None:
        """Keep this worker's share of the whole network."""

    @abstractmethod
    def backward(self, inputs: Tensor, target: Tensor) -> Tensor | None:
        """One forward and backward pass over a batch; the loss, on workers that know it."""

    @abstractmethod
    def parameters(self) -> Named:
        """Parameters held here, by their name in the whole network."""

    def cut(self, name: str, whole: Tensor) -> Tensor:
        """The part of a whole parameter's gradient that this worker holds."""
        return whole

    def where(self) -> dict[str, str]:
        """Where each parameter held here lives, by its name in the whole network."""
        place = f"{self.context.device}, worker {self.context.rank}"
        return {name: f"{tuple(value.shape)} on {place}" for name, value in self.parameters()}


class ByLayer(Split):
    """Layers dealt to the workers in turn; outputs go forward, their gradients back."""

    title = "by layer"

    def take(self, whole: nn.Sequential) -> None:
        """Keep a run of layers."""
        context = self.context
        counts = deal(count_layers(self.model), context.world)
        self.start = sum(counts[: context.rank])
        with torch.device("meta"):
            self.before = nn.Sequential(*list(build(self.model))[: self.start])
        self.mine = nn.Sequential(*list(whole)[self.start : self.start + counts[context.rank]])
        self.transport = Transport(context)

    def backward(self, inputs: Tensor, target: Tensor) -> Tensor | None:
        """Receive, compute, send; then the same backwards."""
        rank, last = self.context.rank, self.context.rank == self.context.world - 1
        entering = inputs
        if rank:
            shape = self.before(torch.empty_like(inputs, device="meta")).shape
            entering = torch.empty(shape, device=self.context.device)
            self.transport.irecv(entering, rank - 1).wait()
            entering.requires_grad_()
        leaving = self.mine(entering)
        loss: Tensor | None = None
        if last:
            loss = self.loss(leaving, target)
            torch.autograd.backward(loss)
        else:
            gradient = torch.empty_like(leaving)
            sending = self.transport.isend(leaving.detach(), rank + 1)
            self.transport.irecv(gradient, rank + 1).wait()
            sending.wait()
            torch.autograd.backward(leaving, gradient)
        if entering.grad is not None:
            self.transport.isend(entering.grad, rank - 1).wait()
        return loss

    def parameters(self) -> Named:
        """Those of this worker's layers."""
        for place, layer in enumerate(self.mine, self.start):
            for name, value in layer.named_parameters():
                yield f"{place}.{name}", value


class _ByLinear(Split):
    """Every linear layer that divides is cut; the rest is whole on every worker."""

    layer: ClassVar[type[ColumnLinear] | type[RowLinear]]

    def take(self, whole: nn.Sequential) -> None:
        """Exchange the linear layers for their shares."""
        rank, world, axis = self.context.rank, self.context.world, self.layer.axis
        layers: list[nn.Module] = []
        self.axes: dict[str, int] = {}
        for place, layer in enumerate(whole):
            if isinstance(layer, nn.Linear) and layer.weight.shape[axis] % world == 0:
                layers.append(self.layer(layer, rank, world))
                self.axes[f"{place}.weight"] = axis
                if axis == 0:
                    self.axes[f"{place}.bias"] = 0
            else:
                layers.append(layer)
        if not self.axes:
            raise CalibrationError(f"{self.model.name}: no linear layer divides by {world}")
        self.module = nn.Sequential(*layers)

    def backward(self, inputs: Tensor, target: Tensor) -> Tensor | None:
        """Forward and backward on every worker, with the exchanges inside."""
        loss = self.loss(self.module(inputs), target)
        torch.autograd.backward(loss)
        return loss

    def parameters(self) -> Named:
        """Shares and whole ones."""
        return self.module.named_parameters()

    def cut(self, name: str, whole: Tensor) -> Tensor:
        """The share of a cut parameter."""
        if name not in self.axes:
            return whole
        return piece(whole, self.axes[name], self.context.rank, self.context.world)


class ByColumn(_ByLinear):
    """Linear layers cut by columns of their output, which is gathered."""

    title = "by column"
    layer = ColumnLinear


class ByRow(_ByLinear):
    """Linear layers cut by rows of their input, with an all-reduce of the output."""

    title = "by row"
    layer = RowLinear


class ByBatch(Split):
    """DistributedDataParallel: the whole network and a share of the batch each."""

    title = "DistributedDataParallel"

    def take(self, whole: nn.Sequential) -> None:
        """Wrap the whole network."""
        device = self.context.device
        self.module = whole
        self.replica = DistributedDataParallel(
            whole, device_ids=[device] if device.type == "cuda" else None
        )

    def backward(self, inputs: Tensor, target: Tensor) -> Tensor | None:
        """This worker's share of the batch; gradients are averaged under way."""
        rank, world = self.context.rank, self.context.world
        share = slice(rank * len(inputs) // world, (rank + 1) * len(inputs) // world)
        loss = self.loss(self.replica(inputs[share]), target[share])
        torch.autograd.backward(loss)
        mean = loss.detach().clone()
        dist.all_reduce(mean)
        return mean / world

    def parameters(self) -> Named:
        """All, on every worker."""
        return self.module.named_parameters()


class ByDataParallel(Split):
    """The steps of torch's single-process DataParallel, as messages between workers.

    Inputs are scattered and weights broadcast from the first device, outputs gathered there, the
    loss computed there; gradients of the outputs are scattered, those of the weights summed there.
    Where one process has two GPUs, torch's own DataParallel runs in the first worker.
    """

    title = "DataParallel"

    def take(self, whole: nn.Sequential) -> None:
        """Every worker has the whole network; the first one's weights count."""
        self.module, self.transport = whole, Transport(self.context)
        self.native: nn.Module | None = None
        if torch.cuda.device_count() >= 2 and self.context.device.type == "cuda":
            first = self.context.device.index
            others = [index for index in range(torch.cuda.device_count()) if index != first]
            self.native = nn.DataParallel(whole, [first, *others[: self.context.world - 1]])

    def backward(self, inputs: Tensor, target: Tensor) -> Tensor | None:
        """One step; the loss is known to the first worker."""
        if self.native is not None:
            return self._native(self.native, inputs, target)
        rank, world = self.context.rank, self.context.world
        shares = [part.contiguous() for part in inputs.chunk(world)]
        self._scatter(shares)
        for parameter in self.module.parameters():
            dist.broadcast(parameter.data, src=0)
        if rank:  # replicas are made anew in each step: no gradient is left of the last one
            self.module.zero_grad(set_to_none=True)
        output = self.module(shares[rank])
        loss = None
        if rank:
            self.transport.isend(output.detach(), 0).wait()
            gradient = torch.empty_like(output)
            self.transport.irecv(gradient, 0).wait()
        else:
            loss, gradient = self._loss_at_first(output, target)
        torch.autograd.backward(output, gradient)
        for parameter in self.module.parameters():
            if parameter.grad is None:
                continue
            if self.context.staged:  # gloo reduces GPU memory to all workers only
                dist.all_reduce(parameter.grad)
            else:
                dist.reduce(parameter.grad, dst=0)
        return loss

    def _native(self, module: nn.Module, inputs: Tensor, target: Tensor) -> Tensor | None:
        """torch's own, in the first worker."""  # noqa: D403
        if self.context.rank:
            return None
        loss = self.loss(module(inputs), target)
        torch.autograd.backward(loss)
        return loss

    def _scatter(self, shares: list[Tensor]) -> None:
        """Shares of the batch from the first worker to the others."""
        rank = self.context.rank
        if rank:
            self.transport.irecv(shares[rank].zero_(), 0).wait()
            return
        for pending in [self.transport.isend(shares[p], p) for p in range(1, len(shares))]:
            pending.wait()

    def _loss_at_first(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Gather outputs, compute the loss, send out its gradients; one's own is returned."""
        peers = range(1, self.context.world)
        pieces = [output.detach(), *(torch.empty_like(output) for _ in peers)]
        for peer in peers:
            self.transport.irecv(pieces[peer], peer).wait()
        gathered = [part.requires_grad_() for part in pieces]
        loss = self.loss(torch.cat(gathered), target)
        gradients = torch.autograd.grad(loss, gathered)
        for peer in peers:
            self.transport.isend(gradients[peer], peer).wait()
        return loss.detach(), gradients[0]

    def parameters(self) -> Named:
        """The first worker's; the others hold copies."""
        return iter(()) if self.context.rank else self.module.named_parameters()


SPLITS: dict[str, Callable[..., Split]] = {
    "layer": ByLayer,
    "column": ByColumn,
    "row": ByRow,
    "ddp": ByBatch,
    "data_parallel": ByDataParallel,
}
"""The splits by name."""
