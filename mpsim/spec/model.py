"""The model: a transformer by its dimensions, a network by its layers, or a traced torch module."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from mpsim.spec.quantities import (
    Count,
    CountOrZero,
    Declaration,
    Factor,
    Positive,
    Ratio,
)


class Experts(Declaration):
    """The mixture-of-experts part of a transformer."""

    count: Count
    """Number of routed experts of a layer."""
    per_token: Count
    """Routed experts that each token visits (top-k)."""
    ffn: Count
    """Hidden width of one routed expert."""
    shared_ffn: CountOrZero = 0
    """Total hidden width of the shared experts; 0 for none."""
    shared_gate: bool = False
    """Whether a learned gate scales the shared expert's output."""
    dense_layers: CountOrZero = 0
    """Leading layers that have a dense MLP instead of experts."""
    every: Count = 1
    """Every how many layers the experts stand (1: every layer)."""
    capacity_factor: Positive | None = None
    """Tokens each expert accepts over the even share, the rest dropped; null: dropless."""
    imbalance: Factor = 1.0
    """Load of the busiest device over the mean load."""
    router_bias: bool = False
    """Whether the router has a bias for each expert that is a parameter."""

    @model_validator(mode="after")
    def _visits(self) -> Self:
        if self.per_token > self.count:
            raise ValueError(f"per_token ({self.per_token}) exceeds the {self.count} experts")
        return self


class LatentAttention(Declaration):
    """Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434): low-rank keys and values."""

    q_rank: Count | None = None
    """Rank of the query projection; null: full rank."""
    kv_rank: Count
    """Rank of the joint key-value projection."""
    qk_nope_head_dim: Count
    """Head width of queries and keys without positions."""
    qk_rope_head_dim: Count
    """Head width of queries and keys with rotary positions."""
    v_head_dim: Count
    """Head width of values."""


class Transformer(Declaration):
    """A transformer by its dimensions."""

    name: str = "transformer"
    """What reports call it."""
    layers: Count
    """Transformer layers, without those for multi-token prediction."""
    hidden: Count
    """Width of the residual stream."""
    heads: Count
    """Query heads."""
    kv_heads: Count | None = None
    """Key-value heads; null: as many as query heads (multi-head), 1: multi-query."""
    head_dim: Count | None = None
    """Width of a head; null: hidden / heads."""
    ffn: Count | None = None
    """Hidden width of the (dense) MLP; null: 4 hidden."""
    gated_mlp: bool = False
    """Whether the MLP has a gate (SwiGLU, GeGLU): three matrices, not two."""
    vocab: Count
    """Rows of the embedding, padding included."""
    embedding_width: Count | None = None
    """Width of the token embedding and of the head's input where a projection without bias leads
    to and from the hidden width (OPT-350M); null: hidden."""
    tied_embeddings: bool = True
    """Whether the output head shares the embedding's weights."""
    position: Literal["learned", "rope", "alibi", "none"] = "learned"
    """Position encoding."""
    positions: Count | None = None
    """Rows of the learned position table; null: the training sequence."""
    bias: bool = True
    """Whether the linear layers have biases."""
    qkv_bias: bool | None = None
    """Whether the query, key and value projections have biases; null: as ``bias``."""
    attention_output_bias: bool | None = None
    """Whether the attention's output projection has a bias; null: as ``bias``."""
    qk_norm: bool = False
    """Whether queries and keys are normalised per head."""
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    """Normalisation: layernorm has a weight and a bias, rmsnorm a weight."""
    norm_bias: bool = True
    """Whether layer norms have a bias (MPT's have none)."""
    norms_per_layer: Count = 2
    """Normalisations in a layer (Gemma 2 has four; GPT-J and Falcon-7B share one)."""
    final_norm: bool = True
    """Whether a normalisation precedes the head."""
    embedding_norm: bool = False
    """Whether a normalisation follows the embedding (BLOOM)."""
    head_bias: bool = False
    """Whether the output head has a bias."""
    parallel_block: bool = False
    """Whether attention and MLP run side by side from one input (GPT-J, PaLM)."""
    causal: bool = True
    """Whether a token attends to earlier tokens only."""
    window: Count | None = None
    """Tokens a sliding-window attention looks back; null: all."""
    dropout: Ratio = 0.0
    """Dropout probability; above 0 the masks are kept for the backward pass."""
    experts: Experts | None = None
    """Mixture of experts; null: dense."""
    latent_attention: LatentAttention | None = None
    """Multi-head latent attention; null: ordinary heads."""
    mtp_layers: CountOrZero = 0
    """Extra layers for multi-token prediction (DeepSeek-V3, arXiv:2412.19437)."""
    extra_parameters: CountOrZero = 0
    """Parameters of the published model that no field above describes; what they are is in the
    source."""
    published_parameters: PositiveInt | None = None
    """Parameter count as published, for checks."""
    source: str = "declared in the scenario"
    """Where the dimensions come from."""

    @model_validator(mode="after")
    def _heads(self) -> Self:
        if self.head_dim is None and self.hidden % self.heads:
            raise ValueError(
                f"hidden ({self.hidden}) is not a multiple of heads ({self.heads}); "
                "give head_dim where heads are not hidden / heads wide"
            )
        if self.kv_heads is not None and self.heads % self.kv_heads:
            raise ValueError(
                f"heads ({self.heads}) is not a multiple of kv_heads ({self.kv_heads})"
            )
        if self.experts and self.experts.dense_layers > self.layers:
            raise ValueError(
                f"experts.dense_layers ({self.experts.dense_layers}) exceeds layers ({self.layers})"
            )
        return self

    @property
    def head_width(self) -> int:
        """Width of one head."""
        return self.head_dim or self.hidden // self.heads

    @property
    def ffn_width(self) -> int:
        """Hidden width of the dense MLP."""
        return self.ffn or 4 * self.hidden

    @property
    def kv_head_count(self) -> int:
        """Number of key-value heads."""
        return self.kv_heads or self.heads


class Linear(Declaration):
    """Fully connected: y = x Wᵀ + b over the last axis."""

    type: Literal["linear"]
    inputs: Count
    """Width of the input."""
    outputs: Count
    """Width of the output."""
    bias: bool = True
    """Whether it adds a bias."""


class Conv2d(Declaration):
    """Two-dimensional convolution over (channels, height, width)."""

    type: Literal["conv2d"]
    inputs: Count
    """Input channels."""
    outputs: Count
    """Output channels."""
    kernel: Count
    """Height and width of the kernel."""
    stride: Count = 1
    """Step of the kernel."""
    padding: CountOrZero = 0
    """Zeros added at each border."""
    groups: Count = 1
    """Groups of channels convolved apart."""
    bias: bool = True
    """Whether it adds a bias."""

    @model_validator(mode="after")
    def _grouped(self) -> Self:
        if self.inputs % self.groups or self.outputs % self.groups:
            raise ValueError(
                f"groups ({self.groups}) must divide inputs ({self.inputs}) and outputs "
                f"({self.outputs})"
            )
        return self


class Pool(Declaration):
    """Maximum or mean over windows of (channels, height, width)."""

    type: Literal["max_pool", "mean_pool"]
    kernel: Count
    """Height and width of the window."""
    stride: Count | None = None
    """Step of the window; null: the kernel."""
    padding: CountOrZero = 0
    """Border added at each side."""


class Recurrent(Declaration):
    """A recurrent layer over (time, features), one step after another."""

    type: Literal["rnn", "lstm", "gru"]
    inputs: Count
    """Features of the input at a step."""
    hidden: Count
    """Width of the state."""
    bias: bool = True
    """Whether it has the two biases of torch's cells."""


class Activation(Declaration):
    """Elementwise non-linearity."""

    type: Literal["relu", "gelu", "silu", "sigmoid", "tanh"]


class Normalisation(Declaration):
    """Normalisation: over the last axis (layer, rms) or over the batch by channel (batch)."""

    type: Literal["layer_norm", "rms_norm", "batch_norm"]
    features: Count
    """Normalised width, or channels."""


class Embedding(Declaration):
    """Table look-up of integer tokens: (time,) → (time, width)."""

    type: Literal["embedding"]
    rows: Count
    """Rows of the table."""
    width: Count
    """Width of a row."""


class Dropout(Declaration):
    """Random zeroing; its mask is kept for the backward pass."""

    type: Literal["dropout"]
    probability: Ratio = 0.5
    """Share of elements set to zero."""


class Flatten(Declaration):
    """All axes of a sample into one; moves nothing."""

    type: Literal["flatten"]


class SelfAttention(Declaration):
    """Multi-head self-attention with its four projections over (time, width)."""

    type: Literal["attention"]
    width: Count
    """Width of the input and output."""
    heads: Count
    """Number of heads."""
    causal: bool = False
    """Whether a step attends to earlier steps only."""
    bias: bool = True
    """Whether the projections have biases."""


class Loss(Declaration):
    """Softmax, or a loss over the last axis."""

    type: Literal["softmax", "cross_entropy", "binary_cross_entropy", "mse"]


class Traced(Declaration):
    """A layer traced from a torch module: its counts as they are, for one sample."""

    type: Literal["traced"]
    label: str
    """Name of the module."""
    parameters: CountOrZero
    """Parameters of the layer."""
    forward_flops: CountOrZero
    """Forward FLOPs for one sample."""
    output: list[Count]
    """Shape of the output for one sample."""
    saved_elements: CountOrZero
    """Elements that autograd keeps for the backward pass, for one sample."""
    moved_elements: CountOrZero
    """Elements read and written by the forward pass, for one sample, weights apart."""
    kernels: Count = 1
    """Kernels that the forward pass launches."""


LAYERS: tuple[type[Declaration], ...] = (
    *(Linear, Conv2d, Pool, Recurrent, Activation, Normalisation, Embedding, Dropout, Flatten),
    *(SelfAttention, Loss, Traced),
)
"""The kinds of layers of a network."""

NetworkLayer = Annotated[
    Linear
    | Conv2d
    | Pool
    | Recurrent
    | Activation
    | Normalisation
    | Embedding
    | Dropout
    | Flatten
    | SelfAttention
    | Loss
    | Traced,
    Field(discriminator="type"),
]


class Network(Declaration):
    """Any layered network: an explicit list of layers."""

    name: str = "network"
    """What reports call it."""
    input: list[Count]
    """Shape of one sample, without the batch: [10], [1, 28, 28], [time, features]; [time] for
    tokens."""
    network: Annotated[list[NetworkLayer], Field(min_length=1, max_length=100_000)]
    """The layers in order."""
    source: str = "declared in the scenario"
    """Where the network comes from."""


class TorchModule(Declaration):
    """A torch module to be built on the meta device and traced."""

    name: str = "torch module"
    """What reports call it."""
    torch: str
    """``package.module:function`` that returns an ``nn.Module``."""
    input: list[Count]
    """Shape of one sample, without the batch."""
    integer_input: bool = False
    """Whether the input is of integers (tokens)."""


ModelSpec = Transformer | Network | TorchModule
