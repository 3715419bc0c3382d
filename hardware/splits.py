"""Real splits of a network over workers, each compared with the unsplit network.

Every split is a task: all workers run it, each builds the whole model from the same seed for
comparison, computes its share, and says how far loss and gradients are off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mpsim.errors import CalibrationError

from .models import Model, build, count_layers, deal, loss_of, make_batch
from .pipeline import PipelineJob, run_pipeline
from .transport import Transport
from .worker import Context
from .workers import Workers

TOLERANCE = 1e-5  # relative, fp32: sums of another order differ by some 1e-7 a term


@dataclass(frozen=True)
class Agreement:
    """How far a split is from the unsplit network; errors are relative.

    The gradient error is the largest difference of an entry over the largest entry of its tensor.
    """

    loss: float
    loss_error: float
    gradient_error: float

    @property
    def holds(self) -> bool:
        """Whether both errors are within 1e-5."""
        return max(self.loss_error, self.gradient_error) <= TOLERANCE


@dataclass(frozen=True)
class _Whole:
    """The unsplit network, its batch, loss and gradients, on one worker."""

    module: nn.Sequential
    inputs: Tensor
    target: Tensor
    loss: Tensor
    gradients: dict[str, Tensor]


def _whole(context: Context, model: Model, batch: int) -> _Whole:
    """The unsplit network after one forward and backward pass."""
    module = build(model).to(context.device)
    inputs, target = (part.to(context.device) for part in make_batch(model, batch))
    loss = loss_of(model)(module(inputs), target)
    torch.autograd.backward(loss)
    gradients = {
        name: value.grad.clone()
        for name, value in module.named_parameters()
        if value.grad is not None
    }
    module.zero_grad(set_to_none=True)
    return _Whole(module, inputs, target, loss.detach(), gradients)


def _compare(whole: _Whole, loss: Tensor | None, found: Iterable[tuple[str, Tensor]]) -> Agreement:
    """Errors of a loss (None on a worker that has none) and of some gradients."""
    reference = whole.loss.item()
    value = reference if loss is None else loss.item()
    worst = 0.0
    for name, gradient in found:
        truth = whole.gradients[name]
        scale = max(truth.abs().max().item(), torch.finfo(truth.dtype).tiny)
        worst = max(worst, (gradient - truth).abs().max().item() / scale)
    return Agreement(value, abs(value - reference) / abs(reference), worst)


def split_by_layer(context: Context, model: Model, batch: int) -> Agreement:
    """Layers dealt to the workers in turn; outputs go forward, their gradients back."""
    whole, transport = _whole(context, model, batch), Transport(context)
    counts = deal(count_layers(model), context.world)
    start = sum(counts[: context.rank])
    mine = nn.Sequential(*list(whole.module)[start : start + counts[context.rank]])
    entering = whole.inputs
    if context.rank:
        with torch.no_grad():  # for the shape alone
            shape = whole.module[:start](whole.inputs).shape
        entering = torch.empty(shape, device=context.device)
        transport.irecv(entering, context.rank - 1).wait()
        entering.requires_grad_()
    leaving = mine(entering)
    loss = None
    if context.rank == context.world - 1:
        loss = loss_of(model)(leaving, whole.target)
        torch.autograd.backward(loss)
    else:
        gradient = torch.empty_like(leaving)
        sending = transport.isend(leaving.detach(), context.rank + 1)
        transport.irecv(gradient, context.rank + 1).wait()
        sending.wait()
        torch.autograd.backward(leaving, gradient)
    if context.rank:
        assert entering.grad is not None
        transport.isend(entering.grad, context.rank - 1).wait()
    names = [f"{start + place}.{name}" for place, name in _parameter_names(mine)]
    gradients = [value.grad for value in mine.parameters() if value.grad is not None]
    return _compare(whole, loss, zip(names, gradients, strict=True))


def _parameter_names(layers: nn.Sequential) -> list[tuple[int, str]]:
    """Place in the sequence, and name there, of each parameter."""
    return [
        (place, name)
        for place, layer in enumerate(layers.children())
        for name, _ in layer.named_parameters()
    ]


class _Gather(torch.autograd.Function):
    """Column pieces of all workers side by side; backward, one's own piece of the gradient."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, piece: Tensor, rank: int) -> Tensor:
        pieces = [torch.empty_like(piece) for _ in range(dist.get_world_size())]
        dist.all_gather(pieces, piece.contiguous())
        ctx.place = (rank, piece.shape[-1])  # type: ignore[attr-defined]
        return torch.cat(pieces, dim=-1)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> tuple[Tensor, None]:
        rank, width = ctx.place  # type: ignore[attr-defined]
        return grads[0].narrow(-1, rank * width, width), None


class _Reduce(torch.autograd.Function):
    """Sum over the workers; backward, the gradient as it is (each worker has all of it)."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, part: Tensor) -> Tensor:
        total = part.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> Tensor:
        return grads[0]


class _Copy(torch.autograd.Function):
    """An input that all workers have; backward, the sum of their gradients for it."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, value: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> Tensor:
        total = grads[0].clone()
        dist.all_reduce(total)
        return total


class _Columns(nn.Module):
    """A linear layer whose outputs are dealt to the workers, then gathered."""

    def __init__(self, linear: nn.Linear, rank: int, world: int) -> None:
        super().__init__()
        self.rank = rank
        self.weight = nn.Parameter(_piece(linear.weight, 0, rank, world))
        self.bias = nn.Parameter(_piece(linear.bias, 0, rank, world))

    def forward(self, value: Tensor) -> Tensor:
        piece = nn.functional.linear(_Copy.apply(value), self.weight, self.bias)  # type: ignore[no-untyped-call]
        output: Tensor = _Gather.apply(piece, self.rank)  # type: ignore[no-untyped-call]
        return output


class _Rows(nn.Module):
    """A linear layer whose inputs are dealt to the workers; the products are summed."""

    def __init__(self, linear: nn.Linear, rank: int, world: int) -> None:
        super().__init__()
        self.rank, self.world = rank, world
        self.weight = nn.Parameter(_piece(linear.weight, 1, rank, world))
        self.bias = nn.Parameter(linear.bias.detach().clone())

    def forward(self, value: Tensor) -> Tensor:
        shared: Tensor = _Copy.apply(value)  # type: ignore[no-untyped-call]
        mine = shared.chunk(self.world, dim=-1)[self.rank]
        total: Tensor = _Reduce.apply(nn.functional.linear(mine, self.weight))  # type: ignore[no-untyped-call]
        return total + self.bias


def _piece(tensor: Tensor, axis: int, rank: int, world: int) -> Tensor:
    """This worker's share of a weight along an axis."""
    return tensor.detach().chunk(world, dim=axis)[rank].clone()


def split_by_column(context: Context, model: Model, batch: int) -> Agreement:
    """Each linear layer whose outputs divide is cut by columns of its output."""
    return _split_linears(context, model, batch, cut=(_Columns, 0))


def split_by_row(context: Context, model: Model, batch: int) -> Agreement:
    """Each linear layer whose inputs divide is cut by rows of its input, with an all-reduce."""
    return _split_linears(context, model, batch, cut=(_Rows, 1))


def _split_linears(
    context: Context,
    model: Model,
    batch: int,
    *,
    cut: tuple[Callable[[nn.Linear, int, int], nn.Module], int],
) -> Agreement:
    """Cut the linear layers of a network along an axis of their weights; leave the rest whole."""
    whole, (make, axis) = _whole(context, model, batch), cut
    layers: list[nn.Module] = []
    cuts: set[int] = set()
    for place, layer in enumerate(whole.module.children()):
        divides = isinstance(layer, nn.Linear) and layer.weight.shape[axis] % context.world == 0
        if isinstance(layer, nn.Linear) and divides:
            layers.append(make(layer, context.rank, context.world))
            cuts.add(place)
        else:
            layers.append(layer)
    if not cuts:
        raise CalibrationError(f"{model.name}: no linear layer divides by {context.world}")
    module = nn.Sequential(*layers)
    loss = loss_of(model)(module(whole.inputs), whole.target)
    torch.autograd.backward(loss)
    for name in {name for name in whole.gradients if int(name.partition(".")[0]) in cuts}:
        if axis == 0 or name.endswith("weight"):
            whole.gradients[name] = _piece(whole.gradients[name], axis, context.rank, context.world)
    found = [(n, value.grad) for n, value in module.named_parameters() if value.grad is not None]
    return _compare(whole, loss.detach(), found)


def split_by_batch(context: Context, model: Model, batch: int) -> Agreement:
    """DistributedDataParallel: a share of the batch each, gradients averaged."""
    whole = _whole(context, model, batch)
    devices = [context.device] if context.device.type == "cuda" else None
    replica = DistributedDataParallel(whole.module, device_ids=devices)
    share = slice(
        context.rank * batch // context.world, (context.rank + 1) * batch // context.world
    )
    loss = loss_of(model)(replica(whole.inputs[share]), whole.target[share])
    torch.autograd.backward(loss)
    mean = loss.detach().clone()
    dist.all_reduce(mean)
    found = [(n, v.grad) for n, v in whole.module.named_parameters() if v.grad is not None]
    return _compare(whole, mean / context.world, found)


def split_by_data_parallel(context: Context, model: Model, batch: int) -> Agreement:
    """DataParallel of torch on two GPUs of one process, or the same steps by messages elsewhere.

    Each step: inputs scattered and weights broadcast from the first device, outputs gathered there,
    the loss there, gradients of the outputs scattered, gradients of the weights summed there.
    """
    whole = _whole(context, model, batch)
    if torch.cuda.device_count() >= 2 and context.device.type == "cuda":
        replica = nn.DataParallel(whole.module, device_ids=[0, 1], output_device=context.device)
        if context.rank:
            return _compare(whole, None, ())
        loss = loss_of(model)(replica(whole.inputs), whole.target)
        torch.autograd.backward(loss)
    else:
        loss = _emulated_data_parallel(context, model, whole)
    if context.rank:
        return _compare(whole, None, ())
    found = [(n, v.grad) for n, v in whole.module.named_parameters() if v.grad is not None]
    return _compare(whole, loss.detach(), found)


def _emulated_data_parallel(context: Context, model: Model, whole: _Whole) -> Tensor:
    """One step of DataParallel by messages between workers; the loss is the first worker's."""
    transport = Transport(context)
    shares = [part.contiguous() for part in whole.inputs.chunk(context.world)]
    if context.rank:
        transport.irecv(shares[context.rank].zero_(), 0).wait()
    else:
        for pending in [transport.isend(shares[p], p) for p in range(1, context.world)]:
            pending.wait()
    for parameter in whole.module.parameters():
        dist.broadcast(parameter.data, src=0)
    output = whole.module(shares[context.rank])
    if context.rank:
        transport.isend(output.detach(), 0).wait()
        gradient = torch.empty_like(output)
        transport.irecv(gradient, 0).wait()
        torch.autograd.backward(output, gradient)
        loss = whole.loss
    else:
        pieces = [output.detach(), *(torch.empty_like(output) for _ in range(1, context.world))]
        for peer in range(1, context.world):
            transport.irecv(pieces[peer], peer).wait()
        gathered = [piece.requires_grad_() for piece in pieces]
        loss = loss_of(model)(torch.cat(gathered), whole.target)
        gradients = torch.autograd.grad(loss, gathered)
        for peer in range(1, context.world):
            transport.isend(gradients[peer], peer).wait()
        torch.autograd.backward(output, gradients[0])
    for parameter in whole.module.parameters():
        if parameter.grad is not None:
            dist.reduce(parameter.grad, dst=0)
    return loss


SPLITS: dict[str, Callable[[Context, Model, int], Agreement]] = {
    "layer": split_by_layer,
    "column": split_by_column,
    "row": split_by_row,
    "ddp": split_by_batch,
    "data_parallel": split_by_data_parallel,
}
"""The splits by name; pipelines are checked with ``check_pipeline``."""


def check_split(workers: Workers, name: str, model: Model, *, batch: int) -> Agreement:
    """Run a split for real: the worst agreement of all workers.

    Raises:
        CalibrationError: If the model cannot be split so, or a worker fails.
    """
    if batch % len(workers.placement.workers):
        raise CalibrationError(
            f"a batch of {batch} cannot be dealt to {len(workers.placement.workers)} workers"
        )
    return _worst(workers.run(SPLITS[name], model, batch))


def check_pipeline(workers: Workers, job: PipelineJob) -> Agreement:
    """Run a pipeline for real and compare it with the unsplit model, computed on the first worker.

    The job's learning rate must be zero, so that gradients are returned.
    """
    run = run_pipeline(workers, job)
    module = build(job.model, job.seed)
    inputs, target = make_batch(job.model, job.batch, seed=job.seed, sequence=job.sequence)
    loss = loss_of(job.model)(module(inputs), target)
    torch.autograd.backward(loss)
    gradients = {n: v.grad for n, v in module.named_parameters() if v.grad is not None}
    whole = _Whole(module, inputs, target, loss.detach(), gradients)
    return _compare(whole, torch.tensor(run.losses[-1]), run.gradients.items())


def _worst(agreements: list[Agreement]) -> Agreement:
    """The largest errors of several workers."""
    return Agreement(
        agreements[0].loss,
        max(agreement.loss_error for agreement in agreements),
        max(agreement.gradient_error for agreement in agreements),
    )
