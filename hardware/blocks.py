"""Transformer layers in torch, by the dimensions of a declared transformer."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from mpsim.errors import CalibrationError
from mpsim.spec.model import Transformer


class Attention(nn.Module):
    """Self-attention with grouped key-value heads."""

    def __init__(self, model: Transformer) -> None:
        """Projections of the model's widths."""
        super().__init__()
        self.width, self.causal = model.head_width, model.causal
        self.heads, self.kv_heads = model.heads, model.kv_head_count
        bias = model.bias if model.qkv_bias is None else model.qkv_bias
        out_bias = (
            model.bias if model.attention_output_bias is None else model.attention_output_bias
        )
        self.qkv = nn.Linear(model.hidden, (self.heads + 2 * self.kv_heads) * self.width, bias=bias)
        self.out = nn.Linear(self.heads * self.width, model.hidden, bias=out_bias)

    def forward(self, value: Tensor) -> Tensor:  # (batch, time, hidden)
        """Attend among the tokens of each sample."""
        counts = (self.heads, self.kv_heads, self.kv_heads)
        parts = self.qkv(value).split([count * self.width for count in counts], dim=-1)
        queries, keys, values = (
            part.unflatten(-1, (count, self.width)).transpose(1, 2)
            for part, count in zip(parts, counts, strict=True)
        )
        mixed = nn.functional.scaled_dot_product_attention(
            queries, keys, values, is_causal=self.causal, enable_gqa=self.kv_heads != self.heads
        )
        output: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return output


class Mlp(nn.Module):
    """The dense MLP: two matrices and a GELU, or three and a gated SiLU."""

    def __init__(self, model: Transformer) -> None:
        """Matrices of the model's widths."""
        super().__init__()
        self.up = nn.Linear(model.hidden, model.ffn_width, bias=model.bias)
        self.gate = (
            nn.Linear(model.hidden, model.ffn_width, bias=model.bias) if model.gated_mlp else None
        )
        self.down = nn.Linear(model.ffn_width, model.hidden, bias=model.bias)

    def forward(self, value: Tensor) -> Tensor:
        """Each token by itself."""
        if self.gate is None:
            hidden = nn.functional.gelu(self.up(value))
        else:
            hidden = nn.functional.silu(self.gate(value)) * self.up(value)
        output: Tensor = self.down(hidden)
        return output


class Block(nn.Module):
    """A pre-norm transformer layer."""

    def __init__(self, model: Transformer) -> None:
        """Attention and MLP, each after its norm."""
        super().__init__()
        self.attention_norm, self.mlp_norm = _norm(model), _norm(model)
        self.attention, self.mlp = Attention(model), Mlp(model)

    def forward(self, value: Tensor) -> Tensor:
        """Add attention, then the MLP, to the residual stream."""
        value = value + self.attention(self.attention_norm(value))
        output: Tensor = value + self.mlp(self.mlp_norm(value))
        return output


def transformer_layers(model: Transformer) -> list[Callable[[], nn.Module]]:
    """Builders of the embedding, the blocks and the head, in order.

    Raises:
        CalibrationError: If the model has parts that are not built here: experts, latent attention,
            positions other than none, tied embeddings, parallel blocks, windows, dropout.
    """
    unsupported = {
        "experts": model.experts is not None,
        "latent_attention": model.latent_attention is not None,
        f"position: {model.position}": model.position != "none",
        "tied_embeddings": model.tied_embeddings,
        "parallel_block": model.parallel_block,
        "qk_norm": model.qk_norm,
        "window": model.window is not None,
        "dropout": model.dropout > 0,
        "mtp_layers": model.mtp_layers > 0,
    }
    wrong = [name for name, present in unsupported.items() if present]
    if wrong:
        raise CalibrationError(
            f"{model.name}: cannot be run in torch with {', '.join(wrong)}; transformers are run "
            "with position: none, tied_embeddings: false and dense layers"
        )

    def head() -> nn.Module:
        linear = nn.Linear(model.hidden, model.vocab, bias=model.head_bias)
        return nn.Sequential(_norm(model), linear) if model.final_norm else linear

    blocks = [lambda: Block(model)] * model.layers
    return [lambda: nn.Embedding(model.vocab, model.hidden), *blocks, head]


def _norm(model: Transformer) -> nn.Module:
    """The normalisation that the model uses."""
    if model.norm == "rmsnorm":
        return nn.RMSNorm(model.hidden)
    return nn.LayerNorm(model.hidden, bias=model.norm_bias)
