"""Linear layers cut over workers: by columns of their output, or by rows of their input."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx


def piece(tensor: Tensor, axis: int, rank: int, world: int) -> Tensor:
    """One worker's share of a tensor along an axis that divides."""
    return tensor.detach().chunk(world, dim=axis)[rank].clone()


class _Gather(torch.autograd.Function):
    """Column pieces of all workers side by side; backward, one's own piece of the gradient."""

    @staticmethod
    def forward(ctx: FunctionCtx, part: Tensor, rank: int) -> Tensor:
        width, world = part.shape[-1], dist.get_world_size()
        ctx.place = (rank, width)  # type: ignore[attr-defined]
        if part.is_cuda and dist.get_backend() == "gloo":  # which gathers no GPU memory
            whole = part.new_zeros(*part.shape[:-1], world * width)
            whole.narrow(-1, rank * width, width).copy_(part)
            dist.all_reduce(whole)
            return whole
        parts = [torch.empty_like(part) for _ in range(world)]
        dist.all_gather(parts, part.contiguous())
        return torch.cat(parts, dim=-1)

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor, None]:
        rank, width = ctx.place  # type: ignore[attr-defined]
        return grads[0].narrow(-1, rank * width, width), None


class _Reduce(torch.autograd.Function):
    """Sum over the workers; backward, the gradient as it is, since each worker has all of it."""

    @staticmethod
    def forward(ctx: FunctionCtx, part: Tensor) -> Tensor:
        total = part.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor) -> Tensor:
        return grads[0]


class _Copy(torch.autograd.Function):
    """An input that all workers have; backward, the sum of their gradients for it."""

    @staticmethod
    def forward(ctx: FunctionCtx, value: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor) -> Tensor:
        total = grads[0].clone()
        dist.all_reduce(total)
        return total


class ColumnLinear(nn.Module):
    """A linear layer whose outputs are dealt to the workers, then gathered."""

    axis = 0  # of the weight, that is cut; the bias is cut with it

    def __init__(self, linear: nn.Linear, rank: int, world: int) -> None:
        """One worker's share of a whole layer."""
        super().__init__()
        self.rank = rank
        self.weight = nn.Parameter(piece(linear.weight, 0, rank, world))
        self.bias = nn.Parameter(piece(linear.bias, 0, rank, world))

    def forward(self, value: Tensor) -> Tensor:
        """The whole output, on every worker."""
        shared: Tensor = _Copy.apply(value)  # type: ignore[no-untyped-call]
        part = nn.functional.linear(shared, self.weight, self.bias)
        output: Tensor = _Gather.apply(part, self.rank)  # type: ignore[no-untyped-call]
        return output


class RowLinear(nn.Module):
    """A linear layer whose inputs are dealt to the workers; their products are summed.

    The bias is whole on every worker, and added after the sum.
    """

    axis = 1

    def __init__(self, linear: nn.Linear, rank: int, world: int) -> None:
        """One worker's share of a whole layer."""
        super().__init__()
        self.rank, self.world = rank, world
        self.weight = nn.Parameter(piece(linear.weight, 1, rank, world))
        self.bias = nn.Parameter(linear.bias.detach().clone())

    def forward(self, value: Tensor) -> Tensor:
        """The whole output, on every worker."""
        shared: Tensor = _Copy.apply(value)  # type: ignore[no-untyped-call]
        mine = shared.chunk(self.world, dim=-1)[self.rank]
        part = nn.functional.linear(mine, self.weight)
        total: Tensor = _Reduce.apply(part)  # type: ignore[no-untyped-call]
        return total + self.bias
