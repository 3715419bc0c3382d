"""The plan: how the model is split over the devices, and how it is trained."""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from mpsim.spec.cluster import PRECISION_BYTES, Precision
from mpsim.spec.quantities import (
    Bytes,
    Count,
    CountOrZero,
    Declaration,
    Fraction,
    Positive,
    Ratio,
)

Axis = Literal["tensor", "pipeline", "data", "context", "expert"]
"""An axis along which the work is divided."""


class Compression(Declaration):
    """What the gradient exchange sends instead of the gradients."""

    type: Literal["fp32", "fp16", "bf16", "fp8"] | None = None
    """Number format on the wire; null: the gradients' own."""
    top_k: Fraction | None = None
    """Share of the largest entries sent, each with a 4-byte index, by all-gather; null: all."""


class PlanSpec(Declaration):
    """How the model is divided over the devices."""

    tensor: Count = 1
    """Tensor-parallel degree: devices that each layer is cut over."""
    pipeline: Count = 1
    """Pipeline degree: devices that the layers are dealt to."""
    data: Count = 1
    """Data-parallel degree: replicas."""
    context: Count = 1
    """Context-parallel degree: devices that the sequence is cut over."""
    expert: Count = 1
    """Expert-parallel degree, inside the data replicas."""
    expert_tensor: Count | None = None
    """Tensor degree of the experts; null: as ``tensor``."""
    chunks: Count = 1
    """Stages (model chunks) on each pipeline device."""
    schedule: str = "1f1b"
    """Name of the pipeline schedule, or the path of a CSV file with one."""
    group_size: Count | None = None
    """Microbatch group size of interleaved schedules; null: the schedule's default."""
    slices: Count = 1
    """Slices of the sequence in sequence-level schedules (seq_1f1b, terapipe)."""
    drain: Literal["ascending", "descending"] = "ascending"
    """Order of backward microbatches in gpipe: torch's (ascending) or the paper's."""
    partition: Literal["layers", "parameters", "time"] | list[CountOrZero] = "layers"
    """How layers are dealt to stages: equal counts, equal parameters, equal time, or the counts
    (0: a stage that holds the embedding or the head alone)."""
    split: Literal["column", "row", "megatron"] = "megatron"
    """How tensor parallelism cuts weights: by columns, by rows, or columns then rows in pairs."""
    sequence_parallel: bool = False
    """Whether norms and dropouts between tensor-parallel regions are cut along the sequence
    (arXiv:2205.05198)."""
    context_exchange: Literal["ring", "all_gather", "all_to_all"] = "ring"
    """How context parallelism exchanges keys and values (all_to_all: Ulysses)."""
    data_parallel: Literal["ddp", "data_parallel"] = "ddp"
    """Gradient exchange: all-reduce in buckets, or torch's single-process DataParallel."""
    zero: Annotated[int, Field(ge=0, le=3)] = 0
    """Sharded data parallelism: 1 optimizer state, 2 and gradients, 3 and parameters (FSDP)."""
    zero_group: Count | None = None
    """Ranks over which state is sharded (hybrid sharding); null: all data ranks."""
    recompute: Literal["none", "selective", "full"] = "none"
    """Activations computed again in the backward pass: none, the attention core, whole layers."""
    recompute_layers: Count | None = None
    """Layers of each stage that are recomputed when full; null: all."""
    recompute_modules: list[str] = Field(default_factory=lambda: ["core_attention"])
    """What selective recomputation drops: core_attention, layernorm, moe_act, mlp, mla_up_proj."""
    attention: Literal["flash", "math"] = "flash"
    """Attention kernel: fused without a stored score matrix, or matrix products and softmax."""
    fused: bool = True
    """Whether elementwise operations are fused into few kernels (compiled or hand-written)."""
    fused_loss: bool = False
    """Whether softmax and cross-entropy work on the logits as they are, without fp32 copies
    (compiled loss)."""
    overlap_data: bool = True
    """Whether gradient and parameter exchange runs beside compute."""
    overlap_tensor: bool = False
    """Whether tensor-parallel exchange runs beside compute."""
    overlap_expert: bool = False
    """Whether expert all-to-all runs beside the compute of another microbatch."""
    expert_dispatch: Literal["all_to_all", "fused"] = "all_to_all"
    """How tokens reach their experts: sorted, then a collective; or a fused dispatcher (DeepEP,
    HybridEP), which sorts as it sends and sends a token once to each node."""
    graphs: bool = False
    """Whether kernels are launched as captured CUDA graphs."""
    p2p: Literal["async", "batched", "serial"] = "async"
    """Stage-to-stage transfers: on streams of their own, batched and blocking with rendezvous
    (Megatron without interleaving), or one by one."""
    collectives: Literal["best", "ring"] = "best"
    """Algorithms of collectives: the best for each size and topology, or one flat ring over all
    members at the rate of the slowest link."""
    compression: Compression = Compression()
    """Gradient compression."""
    bucket: Bytes | None = None
    """Size of a gradient bucket; null: the framework's own: 25 MiB of torch and FSDP, of Megatron
    40 million gradients or a million for each replica, whichever is more."""
    release: Literal["input", "weight"] = "weight"
    """Backward part after which activations of a split backward are freed: I or W."""
    step_barrier: bool = True
    """Whether a gradient norm makes all stages wait for each other before the update."""
    offload: list[Literal["optimizer", "weights", "activations"]] = Field(default_factory=list)
    """What is kept in host memory."""
    memory_limit: Positive | None = None
    """Activations, in microbatches of a stage, that zb_auto may hold; null: what fits."""
    fragmentation: Ratio = 0.05
    """What the allocator reserves beyond the allocated peak, over that peak (its rounding to blocks
    and its gaps). Default: torchtitan's logged reserved peaks of Llama 3 8B on 8 and 128 H100 stand
    1 to 8 % above the tensors that can be counted (docs/memory.md)."""

    @property
    def devices(self) -> int:
        """Devices that the plan needs."""
        return self.tensor * self.pipeline * self.data * self.context

    @property
    def stages(self) -> int:
        """Stages of the pipeline."""
        return self.pipeline * self.chunks

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.sequence_parallel and self.tensor == 1:
            raise ValueError("sequence_parallel needs tensor parallelism (tensor > 1)")
        each = self.expert_tensor or self.tensor
        if (self.data * self.context * self.tensor) % (self.expert * each):
            raise ValueError(
                f"expert x expert_tensor ({self.expert} x {each}) must divide data x context x "
                f"tensor ({self.data * self.context * self.tensor})"
            )
        if self.data_parallel == "data_parallel" and self.tensor * self.pipeline * self.context > 1:
            raise ValueError(
                "data_parallel: torch's DataParallel copies the whole model; it goes with "
                "tensor, pipeline and context of 1"
            )
        if self.data_parallel == "data_parallel" and self.zero:
            raise ValueError("data_parallel: DataParallel does not shard; use ddp with zero")
        if self.zero_group and (self.data * self.context) % self.zero_group:
            raise ValueError(
                f"zero_group ({self.zero_group}) must divide data x context "
                f"({self.data * self.context})"
            )
        if isinstance(self.partition, list) and len(self.partition) != self.stages:
            raise ValueError(
                f"partition lists {len(self.partition)} stages, but pipeline ({self.pipeline}) "
                f"x chunks ({self.chunks}) = {self.stages}"
            )
        return self


class TrainingSpec(Declaration):
    """How the model is trained."""

    global_batch: Count
    """Samples (sequences) of one step, over all replicas."""
    microbatch: Count = 1
    """Samples of one microbatch on one replica."""
    sequence: Count = 1
    """Tokens of a sample; 1 for networks without a sequence."""
    precision: Precision = "bf16"
    """Number format of the matrix products."""
    parameter_type: Literal["fp32", "fp16", "bf16"] | None = None
    """Stored parameters; null: fp32 for fp32, tf32 and FSDP, bf16 (fp16 for fp16) otherwise."""
    gradient_type: Literal["fp32", "fp16", "bf16"] | None = None
    """Stored and exchanged gradients; null: as the parameters."""
    optimizer: Literal["sgd", "momentum", "adam", "adafactor"] = "adam"
    """Update rule: keeps 0, 1 or 2 numbers for each parameter (adafactor: row and column sums)."""
    state_type: Literal["fp32", "fp16", "bf16"] = "fp32"
    """Stored optimizer state."""
    master_weights: bool | None = None
    """Whether an fp32 copy of the parameters is updated; null: when they are of 16 bits and the
    optimizer keeps state."""
    quantised_parameters: bool = False
    """Whether an 8-bit recipe keeps and gathers its matrices in 8 bits alone, without the 16-bit
    ones (Megatron's fp8_param_gather)."""
    quantised_copies: Annotated[int, Field(ge=1, le=2)] = 2
    """Forms of an 8- or 4-bit matrix that are kept: row-wise and transposed; 1 where the matrix
    units take operands either way round (per-tensor fp8 on Blackwell)."""
    gradient_clipping: bool = True
    """Whether gradients are clipped by their global norm."""
    steps: Count = 1
    """Optimizer steps reported."""
    framework: Literal["torch", "megatron", "fsdp", "legacy_megatron"] = "megatron"
    """Software that trains: its host overheads, attention kernels, copies of weights and logits,
    gradient buckets, and where its state is kept."""

    @property
    def stored_type(self) -> str:
        """Number format of stored parameters."""
        if self.parameter_type:
            return self.parameter_type
        if self.framework == "fsdp":  # casts what it gathers (FullyShardedDataParallel, torch)
            return "fp32"
        return {"fp32": "fp32", "tf32": "fp32", "fp16": "fp16"}.get(self.precision, "bf16")

    @property
    def keeps_master_weights(self) -> bool:
        """Whether an fp32 master copy exists."""
        if self.master_weights is not None:
            return self.master_weights
        return self.stored_type != "fp32" and self.optimizer != "sgd"


def megatron_bucket(replicas: int) -> int:
    """Gradients of a bucket of Megatron, larger with the ring so that each piece stays large.

    Source: megatron/core/distributed/distributed_data_parallel.py, ``bucket_size``.
    """
    return max(40_000_000, 1_000_000 * replicas)


def bucket_nbytes(plan: PlanSpec, training: TrainingSpec) -> float:
    """Bytes of a gradient bucket: the plan's, else what the framework does by default.

    torch's DDP fills 25 MiB (torch/nn/parallel/distributed.py: ``bucket_cap_mb``); Megatron cuts
    its gradients only to hide their exchange, else they go at once.
    """
    if plan.bucket is not None:
        return plan.bucket
    if training.framework in ("torch", "fsdp"):
        return 25 * 2.0**20
    if not plan.overlap_data:
        return math.inf
    kind = training.gradient_type or training.stored_type
    return megatron_bucket(plan.data * plan.context) * PRECISION_BYTES[kind]
