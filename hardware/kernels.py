"""Micro-benchmarks of one worker: matrix products, memory-bound ops, launches, layers.

Each is a task that all workers run at the same time, since that is how a pipeline uses them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mpsim.spec.model import Network

from .models import build, make_batch
from .timing import Timing, time_alone
from .worker import Context

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def gemm(context: Context, budget: float, dtype: str, m: int, n: int, k: int) -> Timing:
    """C[m,n] = A[m,k] · B[k,n] with random inputs, B stored transposed as linear layers have it."""
    a = torch.randn(m, k, device=context.device, dtype=DTYPES[dtype])
    b = torch.randn(n, k, device=context.device, dtype=DTYPES[dtype])
    c = torch.empty(m, n, device=context.device, dtype=DTYPES[dtype])
    return time_alone(context, lambda: torch.mm(a, b.T, out=c), budget)


def memory_bound(context: Context, budget: float, op: str, nbytes: int) -> Timing:
    """An elementwise op; ``nbytes`` are all that it reads and writes."""
    tensors, act = _MEMORY_OPS[op]
    elements = max(1, nbytes // 4 // tensors)
    operands = [torch.randn(elements, device=context.device) for _ in range(tensors)]
    return time_alone(context, lambda: act(operands), budget)


_MEMORY_OPS: dict[str, tuple[int, Callable[[list[Tensor]], object]]] = {
    "copy": (2, lambda t: t[0].copy_(t[1])),
    "add": (3, lambda t: torch.add(t[0], t[1], out=t[2])),
    "relu": (2, lambda t: torch.clamp_min(t[0], 0.0, out=t[1])),
    "relu_backward": (
        3,
        lambda t: torch.ops.aten.threshold_backward.grad_input(t[0], t[1], 0.0, grad_input=t[2]),
    ),
    "sgd": (3, lambda t: torch.add(t[0], t[1], alpha=-0.01, out=t[0])),
}
"""Op → number of tensors that it reads or writes, and the op. An SGD update reads two and writes
one of them again."""

MEMORY_OPS = tuple(_MEMORY_OPS)


def host_copy(context: Context, budget: float, direction: str, nbytes: int) -> Timing | None:
    """Copy between pinned host memory and a GPU; None on a worker without a GPU."""
    if context.device.type != "cuda":
        return None
    host = torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)
    device = torch.empty(nbytes, dtype=torch.uint8, device=context.device)
    into, source = (device, host) if direction == "h2d" else (host, device)
    return time_alone(context, lambda: into.copy_(source, non_blocking=True), budget)


def launch(context: Context, budget: float) -> dict[str, Timing]:
    """Host time of calls that do next to no work: what each op costs before it computes.

    ``kernel``: one op on one element, of a queue that never runs empty. ``kernel_synchronized``:
    the same, waited for. ``autograd_node``: what one further op adds to a backward pass.
    """
    one = torch.zeros(1, device=context.device)

    def many() -> None:
        for _ in range(100):
            one.add_(1.0)

    def waited() -> None:
        one.add_(1.0)
        context.synchronize()

    def backward(nodes: int) -> Callable[[], None]:
        leaf = torch.zeros(1, device=context.device, requires_grad=True)

        def run() -> None:
            value = leaf
            for _ in range(nodes):
                value = value * 1.0
            torch.autograd.grad(value, leaf)

        return run

    share = budget / 4
    hundred = time_alone(context, many, share, on_host=True)
    short, long = (time_alone(context, backward(nodes), share, on_host=True) for nodes in (10, 110))
    node = Timing((long.seconds - short.seconds) / 100, long.spread, long.samples)
    return {
        "kernel": Timing(hundred.seconds / 100, hundred.spread, hundred.samples),
        "kernel_synchronized": time_alone(context, waited, share, on_host=True),
        "forward_and_autograd_node": node,
    }


def layer(context: Context, budget: float, network: Network, batch: int) -> dict[str, Timing]:
    """Passes of a piece of a network, as autograd runs them.

    ``fwd`` records for the backward pass; ``bwd_input`` is for the gradient of the input alone,
    ``bwd_weight`` for those of the weights alone, ``bwd`` for both at once. Adding a gradient to
    one that is there, as from the second microbatch on, is not in them.
    """
    module = build(network).to(context.device)
    inputs, _ = make_batch(network, batch)
    value = inputs.to(context.device)
    whole = value.is_floating_point()
    if whole:
        value.requires_grad_()
    weights = list(module.parameters())
    output = module(value)
    gradient = torch.randn_like(output)

    def backward(wanted: list[Tensor] | list[nn.Parameter]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(output, wanted, gradient, retain_graph=True)

    share = budget / 4
    times = {"fwd": time_alone(context, lambda: module(value), share)}
    if whole:
        times["bwd_input"] = time_alone(context, backward([value]), share)
    if weights:
        times["bwd_weight"] = time_alone(context, backward(weights), share)
    times["bwd"] = time_alone(context, backward([*([value] if whole else []), *weights]), share)
    return times
