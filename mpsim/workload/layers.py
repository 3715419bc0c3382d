"""What a layer is once it is cut over devices: kernels, exchanges, parameters, saved tensors."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kernel launch on one device, or ``count`` equal ones in a row."""

    name: str
    kind: Literal["gemm", "attention", "memory"]
    flops: float  # FLOP of one launch; a multiply-add is two
    nbytes: float  # B read and written in device memory by one launch
    shape: tuple[int, ...] = ()
    """gemm: (batch, m, n, k) of C[m,n] = A[m,k] B[k,n]; attention: (batch, heads, kv_heads,
    queries, keys, head_dim); memory: ()."""
    precision: str = "bf16"
    count: int = 1
    causal: bool = False
    backward: bool = False  # attention: the backward kernel


@dataclass(frozen=True, slots=True)
class Exchange:
    """A collective that a layer runs over the devices of one axis."""

    op: Literal["all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send", "broadcast"]
    axis: Literal["tensor", "context", "expert", "expert_tensor", "data"]
    nbytes: float  # B, the whole (gathered, unscattered) buffer, as nccl-tests counts
    count: int = 1
    hidden_behind: float = 0.0  # share of the layer's kernels that it may run beside
    beside: str = ""  # kernel that it may run beside; "": none, "*": any of the layer
    copies: int = 1  # copies of each token among the bytes, of which a node needs one


@dataclass(frozen=True, slots=True)
class Saved:
    """A tensor that autograd keeps from a forward pass until its backward pass."""

    name: str
    nbytes: float  # B on one device for one microbatch
    part: str = "layer"  # what recomputation can drop: core_attention, layernorm, mlp, ...


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer as one device of its tensor and context group runs it, for one microbatch."""

    name: str
    kind: str  # embedding, attention_block, mlp, experts, head, linear, conv2d, ...
    parameters: float  # on this device
    forward: tuple[Kernel | Exchange, ...]
    backward_input: tuple[Kernel | Exchange, ...]
    backward_weight: tuple[Kernel | Exchange, ...]
    saved: tuple[Saved, ...]
    output_nbytes: float  # B of the output on this device: what the next stage receives
    workspace_nbytes: float = 0.0  # B of temporaries at the worst moment of its backward pass
    expert_parameters: float = 0.0  # of ``parameters``, those sharded over the expert axis
    tied_to: str | None = None  # name of the layer whose weights it shares
    facts: dict[str, float] = field(default_factory=dict, compare=False)
    input_nbytes: float = 0.0  # B of the input on this device, where a stage may keep that alone
    forward_workspace_nbytes: float = 0.0  # B of temporaries at the worst moment of its forward
    plain: Layer | None = field(default=None, compare=False)
    """The same layer without recomputation, where only some layers of a stage recompute."""
