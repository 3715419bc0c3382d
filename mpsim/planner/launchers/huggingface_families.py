"""What a Hugging Face ``model_type`` means beyond the dimensions in its ``config.json``.

The traits are those of the modelling code of transformers 4.57 (October 2025).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from mpsim.planner.launchers.formats import Tree
from mpsim.planner.launchers.options import Options

LLAMA: Tree = {"gated_mlp": True, "position": "rope", "bias": False, "norm": "rmsnorm"}
"""Traits that Llama and those after it share."""
_NEOX: Tree = {"position": "rope", "parallel_block": True}
_PHI: Tree = {"position": "rope", "head_bias": True, "norms_per_layer": 1, "parallel_block": True}


@dataclass(frozen=True)
class Family:
    """A model type.

    Attributes:
        traits: Fields of the model that are the same for all of the type.
        tied: Whether embeddings are tied where the file does not say.
        more: Fields that depend on the file.
    """

    traits: Tree = field(default_factory=dict)
    tied: bool = True
    more: Callable[[Options], Tree] = lambda options: {}


def _whole(options: Options, *names: str) -> int | None:
    """The first of several names that is there, as a whole number."""
    return next((options.count(name) for name in names if options.has(name)), None)


def _biases(options: Options) -> Tree:
    """Llama's switches for biases of attention and MLP."""
    attention, mlp = options.flag("attention_bias"), options.flag("mlp_bias")
    if attention == mlp:
        return {"bias": attention}
    return {"bias": mlp, "qkv_bias": attention, "attention_output_bias": attention}


def _mixtral(options: Options) -> Tree:
    return {"experts": _routed(options, count="num_local_experts", ffn="intermediate_size")}


def _routed(options: Options, *, count: str, ffn: str) -> Tree:
    experts: Tree = {
        "count": options.count(count),
        "per_token": options.count("num_experts_per_tok", 2),
        "ffn": options.count(ffn),
    }
    return experts


def _qwen_moe(options: Options) -> Tree:
    """Qwen2-MoE and Qwen3-MoE: experts in every n-th layer, a gated shared expert in Qwen2."""
    listed = options.raw("mlp_only_layers", [])
    if listed:
        options.assume(f"model.experts: the dense layers {listed} of mlp_only_layers are not read")
    experts = _routed(options, count="num_experts", ffn="moe_intermediate_size")
    shared = options.count("shared_expert_intermediate_size", 0, least=0)
    experts |= {"every": options.count("decoder_sparse_step")}
    if shared:
        experts |= {"shared_ffn": shared, "shared_gate": True}
    return {"experts": experts}


def _deepseek(options: Options) -> Tree:
    tree: Tree = {
        "latent_attention": {
            "q_rank": options.maybe("q_lora_rank"),
            "kv_rank": options.count("kv_lora_rank", 512),
            "qk_nope_head_dim": options.count("qk_nope_head_dim", 128),
            "qk_rope_head_dim": options.count("qk_rope_head_dim", 64),
            "v_head_dim": options.count("v_head_dim", 128),
        },
        "mtp_layers": options.count("num_nextn_predict_layers", 0, least=0),
        "kv_heads": None,
        "head_dim": None,
    }
    if not options.has("n_routed_experts"):
        return tree
    experts = _routed(options, count="n_routed_experts", ffn="moe_intermediate_size")
    shared = options.count("n_shared_experts", 0, least=0)
    experts |= {
        "shared_ffn": shared * int(experts["ffn"]),
        "dense_layers": options.count("first_k_dense_replace", 0, least=0),
        "router_bias": options.raw("topk_method", "") == "noaux_tc",
    }
    if options.count("moe_layer_freq", 1) != 1:
        options.assume("model.experts: moe_layer_freq above 1 is read as 1")
    return tree | {"experts": experts}


def _gpt_oss(options: Options) -> Tree:
    sinks = options.count("num_hidden_layers") * options.count("num_attention_heads")
    experts = _routed(options, count="num_local_experts", ffn="intermediate_size")
    _mixed_windows(options)
    return {"experts": experts | {"router_bias": True}, "extra_parameters": sinks, "window": None}


def _mixed_windows(options: Options) -> Tree:
    """Models whose layers look back by turns a window and all: mpsim has one window for all."""
    if options.has("sliding_window"):
        options.assume("model.window = null: only some layers have the sliding window")
    options.has("layer_types")
    return {"window": None}


def _qwen_window(options: Options) -> Tree:
    """Qwen2 has a window in its file that use_sliding_window switches on."""
    used = options.flag("use_sliding_window")
    options.has("max_window_layers")
    return {} if used else {"window": None}


def _falcon(options: Options) -> Tree:
    heads = _whole(options, "num_attention_heads", "n_head") or 71
    new = options.flag("new_decoder_architecture")
    groups = _whole(options, "num_kv_heads", "n_head_kv") if new else None
    shared = options.flag("multi_query", default=True)
    both = new and options.count("num_ln_in_parallel_attn", 2) == 2
    parallel = new or options.flag("parallel_attn", default=True)
    return {
        "kv_heads": (groups or heads) if new else (1 if shared else heads),
        "bias": options.flag("bias"),
        "position": "alibi" if options.flag("alibi") else "rope",
        "parallel_block": parallel,
        "norms_per_layer": 2 if both or not parallel else 1,
    }


def _neox(options: Options) -> Tree:
    return {
        "parallel_block": options.flag("use_parallel_residual", default=True),
        "bias": True,
        "attention_output_bias": options.flag("attention_bias", default=True),
        "qkv_bias": options.flag("attention_bias", default=True),
    }


def _opt(options: Options) -> Tree:
    """OPT: two rows of its position table are never used; norms after the sums have no last one."""
    width = options.count("word_embed_proj_dim", options.count("hidden_size"))
    before = options.flag("do_layer_norm_before", default=True)
    return {
        "positions": options.count("max_position_embeddings", 2048) + 2,
        "embedding_width": width if width != options.count("hidden_size") else None,
        "final_norm": before and not options.flag("_remove_final_layer_norm"),
        "bias": options.flag("enable_bias", default=True),
    }


def _mpt(options: Options) -> Tree:
    attention = {
        name: options.raw(f"attn_config.{name}") for name in ("alibi", "kv_n_heads", "clip_qkv")
    }
    alibi = attention["alibi"] is not False
    ratio = options.number("expansion_ratio", 4)
    return {
        "position": "alibi" if alibi else "learned",
        "positions": None if alibi else options.maybe("max_seq_len"),
        "bias": not options.flag("no_bias", default=True),
        "norm_bias": not options.flag("no_bias", default=True),
        "kv_heads": attention["kv_n_heads"],
        "ffn": int(ratio * options.count("d_model", 2048)),
    }


def _starcoder2(options: Options) -> Tree:
    return {"bias": options.flag("use_bias", default=True)}


FAMILIES: dict[str, Family] = {
    "llama": Family(LLAMA, False, _biases),
    "mistral": Family(LLAMA, False),
    "mixtral": Family(LLAMA, False, _mixtral),
    "qwen2": Family(LLAMA | {"qkv_bias": True}, False, _qwen_window),
    "qwen2_moe": Family(
        LLAMA | {"qkv_bias": True}, False, lambda o: _qwen_moe(o) | _qwen_window(o)
    ),
    "qwen3": Family(LLAMA | {"qk_norm": True}, False, lambda o: _biases(o) | _qwen_window(o)),
    "qwen3_moe": Family(LLAMA | {"qk_norm": True}, False, lambda o: _qwen_moe(o) | _qwen_window(o)),
    "deepseek_v2": Family(LLAMA, False, _deepseek),
    "deepseek_v3": Family(LLAMA, False, _deepseek),
    "kimi_k2": Family(LLAMA, False, _deepseek),
    "gemma": Family(LLAMA, True),
    "gemma2": Family(LLAMA | {"norms_per_layer": 4}, True, _mixed_windows),
    "gemma3_text": Family(LLAMA | {"norms_per_layer": 4, "qk_norm": True}, True, _mixed_windows),
    "gpt_oss": Family({"gated_mlp": True, "position": "rope", "norm": "rmsnorm"}, False, _gpt_oss),
    "phi3": Family(LLAMA, False),
    "phi": Family(_PHI, False),
    "gpt2": Family(),
    "gpt_neo": Family({"qkv_bias": False}, True, _mixed_windows),
    "gptj": Family(_PHI | {"qkv_bias": False, "attention_output_bias": False}, False),
    "gpt_neox": Family(_NEOX, False, _neox),
    "opt": Family({}, True, _opt),
    "bloom": Family({"position": "alibi", "embedding_norm": True}),
    "falcon": Family({}, True, _falcon),
    "mpt": Family({}, True, _mpt),
    "starcoder2": Family({"position": "rope"}, True, _starcoder2),
    "cohere": Family(
        {
            "gated_mlp": True,
            "position": "rope",
            "bias": False,
            "norm_bias": False,
            "norms_per_layer": 1,
            "parallel_block": True,
        }
    ),
}
"""By ``model_type``."""

ALIASES: dict[str, tuple[str, ...]] = {
    "layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "hidden": ("hidden_size", "n_embd", "d_model"),
    "heads": ("num_attention_heads", "n_head", "n_heads", "num_heads"),
    "kv_heads": ("num_key_value_heads",),
    "head_dim": ("head_dim",),
    "ffn": ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size"),
    "vocab": ("vocab_size",),
    "positions": ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx"),
    "window": ("sliding_window",),
}
"""Field of a transformer → the names that config files use for it."""


def dimension(options: Options, field_name: str) -> Any:  # noqa: ANN401  (a number or null)
    """A dimension by any of its names; null where none is there."""
    return _whole(options, *ALIASES[field_name])
