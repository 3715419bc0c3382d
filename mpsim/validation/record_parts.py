"""The parts of a measured run: model, cluster, plan, training, what was measured."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from mpsim.spec.cluster import Precision

Count = Annotated[int, Field(ge=1, le=10**12)]
CountOrZero = Annotated[int, Field(ge=0, le=10**12)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Devices = Annotated[int, Field(ge=1, le=10**6)]
"""No machine that trains one model has more."""
Layers = Annotated[int, Field(ge=1, le=10**4)]
"""Ten times the deepest transformer trained (DeepNet, arXiv:2203.00555: 1000 layers)."""
GradientType = Literal["fp32", "fp16", "bf16"]

_WHOLE_LAYERS = re.compile(r"transformer_layer:(\d+)_of_(\d+)")
_SHORTEST_STEP = 1e-6
"""Seconds that the launch of one empty kernel takes: no step is shorter."""


def _lasts(seconds: float) -> float:
    """Refuse a step that is shorter than one kernel."""
    if seconds < _SHORTEST_STEP:
        raise ValueError(f"{seconds:g} s is shorter than the launch of one kernel")
    return seconds


Seconds = Annotated[float, Field(gt=0, le=1e7, allow_inf_nan=False), AfterValidator(_lasts)]


class Part(BaseModel):
    """A frozen part of a record: unknown keys and other types are refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True
    )

    @model_validator(mode="before")
    @classmethod
    def _nulls(cls, tree: object) -> object:
        """``null`` is as good as leaving out what may be left out."""
        if not isinstance(tree, dict):
            return tree
        fields = cls.model_fields
        optional = {name for name, field in fields.items() if not field.is_required()}
        return {k: value for k, value in tree.items() if value is not None or k not in optional}


class RecordedModel(Part):
    """The model that was trained."""

    name: str
    """What the source calls it."""
    family: Literal["gpt", "llama", "moe", "mla", "mamba_hybrid", "other"]
    """Ungated MLP, gated MLP, mixture of experts, latent attention, or not covered."""
    layers: Layers
    """Transformer layers, without those for multi-token prediction."""
    hidden: Count
    """Width of the residual stream."""
    heads: Count
    """Query heads."""
    kv_heads: Count | None = None
    """Key-value heads; null: as many as query heads."""
    head_dim: Count | None = None
    """Width of a head; null: hidden / heads."""
    ffn: Count | None = None
    """Width of the dense MLP; null when every layer has experts."""
    gated_mlp: bool | None = None
    """Whether the MLP has a gate; null: by the family."""
    vocab: Count | None = None
    """Rows of the embedding as used."""
    tied_embeddings: bool | None = None
    """Whether head and embedding share weights."""
    position: Literal["learned", "rope", "alibi", "none"] | None = None
    """Position encoding."""
    bias: bool | None = None
    """Whether the linear layers have biases."""
    experts: Count | None = None
    """Routed experts of a layer."""
    experts_per_token: Count | None = None
    """Routed experts that a token visits."""
    expert_ffn: Count | None = None
    """Width of one expert."""
    shared_expert_ffn: CountOrZero | None = None
    """Total width of the shared experts."""
    dense_layers: CountOrZero | None = None
    """Leading layers without experts."""
    moe_every: Count | None = None
    """Every how many layers the experts stand."""
    mtp_layers: CountOrZero | None = None
    """Layers for multi-token prediction."""
    q_lora_rank: Count | None = None
    """Rank of the query projection of latent attention."""
    kv_lora_rank: Count | None = None
    """Rank of the key-value projection of latent attention."""
    qk_nope_head_dim: Count | None = None
    """Width of queries and keys without positions."""
    qk_rope_head_dim: Count | None = None
    """Width of queries and keys with positions."""
    v_head_dim: Count | None = None
    """Width of values."""
    parameters: Positive | None = None
    """Nominal parameter count as printed."""


class RecordedCluster(Part):
    """The devices and links that it ran on."""

    device: str
    """Canonical id of the device, or ``mixed``."""
    device_note: str | None = None
    """Free text on the device; names the kinds where they are mixed."""
    devices: Devices
    """Devices of the run."""
    devices_per_node: Devices
    """Devices of the fast domain."""
    intra_node: (
        Literal[
            "nvlink2", "nvlink3", "nvlink4", "nvlink5", "nvl72", "pcie3", "pcie4", "pcie5",
            "infinity_fabric",
        ]
        | None
    ) = None  # fmt: skip
    """Link inside the fast domain."""
    inter_node: (
        Literal["infiniband", "roce", "ethernet", "omnipath", "slingshot", "none"] | None
    ) = None
    """Network between the fast domains."""
    inter_node_gbit_s_per_device: Annotated[Positive, Field(le=1e6)] | None = None
    """Its rate for one device and direction, Gbit/s."""


class RecordedPlan(Part):
    """How the model was split and run."""

    tensor: Count | None = None
    """Tensor-parallel degree."""
    pipeline: Count | None = None
    """Pipeline degree."""
    chunks: Count | None = None
    """Virtual stages on each device."""
    context: Count | None = None
    """Context-parallel degree."""
    data: Count | None = None
    """Data-parallel degree."""
    expert: Count | None = None
    """Expert-parallel degree, inside the data ranks."""
    expert_tensor: Count | None = None
    """Tensor degree of the experts."""
    sequence_parallel: bool | None = None
    """Sequence parallelism beside tensor parallelism."""
    zero: Annotated[int, Field(ge=0, le=3)] | None = None
    """Sharding of the state over data ranks; 3: FSDP full shard."""
    zero_group: Count | None = None
    """Ranks over which the state is sharded; null: all data ranks."""
    schedule: (
        Literal[
            "none", "1f1b", "interleaved_1f1b", "gpipe", "zb_1p", "zb_2p", "zb_v", "v_half", "v_min"
        ]
        | None
    ) = None
    """Pipeline schedule."""
    stage_layers: list[CountOrZero] | None = None
    """Transformer layers of each virtual stage in depth order; null: even."""
    recompute: Literal["none", "full", "selective"] | None = None
    """Activation recomputation."""
    recompute_modules: list[str] | None = None
    """What selective recomputation drops."""
    attention: Literal["flash", "math"] | None = None
    """Whether the score matrix is stored."""
    overlap_data: bool | None = None
    """Whether gradient exchange hides behind compute."""
    overlap_tensor: bool | None = None
    """Whether tensor-parallel exchange hides behind compute."""
    overlap_pipeline: bool | None = None
    """Whether stage-to-stage transfers hide behind compute."""
    precision: Precision | None = None
    """Number format of the matrix products."""
    precision_note: str | None = None
    """Free text on the precision."""
    gradient_dtype: GradientType | None = None
    """Number format in which gradients are exchanged."""
    optimizer: str | None = None
    """Update rule."""
    compiled: bool | None = None
    """Whether a compiler fused the elementwise work."""
    offload: str | None = None
    """What is kept in host memory."""

    @field_validator("recompute_modules")
    @classmethod
    def _shares(cls, modules: list[str] | None) -> list[str] | None:
        """N of L layers can be recomputed where N is 1 to L."""
        for module in modules or ():
            found = _WHOLE_LAYERS.fullmatch(module)
            if found and not 1 <= int(found[1]) <= int(found[2]):
                raise ValueError(f"{module}: {found[1]} is not 1 to {found[2]} layers")
        return modules

    @property
    def degrees(self) -> tuple[int | None, int | None, int | None, int | None]:
        """Tensor, pipeline, context and data degree."""
        return self.tensor, self.pipeline, self.context, self.data


class RecordedTraining(Part):
    """Batch and sequence."""

    global_batch: Count | None = None
    """Sequences of a step."""
    microbatch: Count | None = None
    """Sequences of a microbatch."""
    sequence: Count
    """Tokens of a sequence."""


class Measured(Part):
    """What was measured."""

    step_time_s: Seconds | None = None
    """Seconds of an optimizer step."""
    step_time_origin: str | None = None
    """``reported``, or ``derived:`` from what."""
    tokens_per_s_per_device: Positive | None = None
    """Token rate as printed."""
    tflops_per_device: Positive | None = None
    """FLOP rate as printed."""
    flops_convention: str | None = None
    """How to read it."""
    peak_memory_bytes: Positive | None = None
    """Peak memory of the fullest device."""
    memory_kind: Literal["allocated", "reserved", "nvidia_smi"] | None = None
    """Which memory that is; null: not said."""
    oom: bool = False
    """Whether the run went out of memory."""
    samples: Count | None = None
    """Steps or readings behind the number."""
