"""A transformer's dimensions ↔ Megatron-LM's network-size, mixture-of-experts and MLA flags."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mpsim.errors import ScenarioError
from mpsim.planner.launchers.fields import expert_placement
from mpsim.planner.launchers.formats import Given, Tree
from mpsim.planner.launchers.megatron_text import UNUSED, expand_pattern
from mpsim.planner.launchers.options import Options
from mpsim.spec.model import Experts, LatentAttention, Transformer
from mpsim.spec.scenario import Scenario
from mpsim.workload.weights import has_experts

_POSITIONS = {"learned": "learned_absolute", "rope": "rope", "none": "none"}
"""mpsim's word → Megatron's; alibi has none."""
_POSITIONS_READ = {word: name for name, word in _POSITIONS.items()} | {"mrope": "rope"}
_PAD = 128
"""Default of --make-vocab-size-divisible-by, which the tensor degree multiplies."""
_GPT2 = "GPT2BPETokenizer"
_GPT2_ENTRIES = 50257
"""Entries of GPT-2's vocabulary (gpt2-vocab.json), which need not be asked of the file."""
_DROPOUT = 0.1
"""Default of --attention-dropout and --hidden-dropout."""


def write_model(scenario: Scenario) -> Mapping[str, Any]:
    """Flags of the model.

    Raises:
        ScenarioError: If the model is not a transformer by its dimensions.
    """
    model, sequence = scenario.model, scenario.training.sequence
    if not isinstance(model, Transformer):
        raise ScenarioError("model", "Megatron-LM trains transformers by their dimensions only")
    qkv_bias = model.bias if model.qkv_bias is None else model.qkv_bias
    narrow = model.head_width * model.heads != model.hidden and not model.latent_attention
    grouped = model.kv_head_count != model.heads and not model.latent_attention
    learned = model.position == "learned"
    return {
        "--num-layers": model.layers,
        "--hidden-size": model.hidden,
        "--ffn-hidden-size": model.ffn_width,
        "--num-attention-heads": model.heads,
        "--kv-channels": model.head_width if narrow else None,
        "--group-query-attention": grouped,
        "--num-query-groups": model.kv_head_count if grouped else None,
        "--padded-vocab-size": model.vocab,
        "--untie-embeddings-and-output-weights": not model.tied_embeddings,
        "--position-embedding-type": _POSITIONS.get(model.position, "none"),
        "--max-position-embeddings": (learned and model.positions) or sequence,
        "--normalization": {"layernorm": "LayerNorm", "rmsnorm": "RMSNorm"}[model.norm],
        "--swiglu": model.gated_mlp,
        "--disable-bias-linear": not model.bias,
        "--add-qkv-bias": qkv_bias and not model.bias,
        "--qk-layernorm": model.qk_norm,
        "--attention-dropout": model.dropout,
        "--hidden-dropout": model.dropout,
        "--window-size": f"{model.window},0" if model.window else None,
        "--mtp-num-layers": model.mtp_layers or None,
        **(_write_experts(model, model.experts) if model.experts else {}),
        **(_write_latent(model.latent_attention) if model.latent_attention else {}),
    }


def _write_experts(model: Transformer, experts: Experts) -> Mapping[str, Any]:
    pattern = [int(has_experts(model, index)) for index in range(model.layers)]
    return {
        "--num-experts": experts.count,
        "--moe-router-topk": experts.per_token,
        "--moe-ffn-hidden-size": experts.ffn,
        "--moe-layer-freq": None if all(pattern) else _pattern_text(pattern),
        "--moe-shared-expert-intermediate-size": experts.shared_ffn or None,
        "--moe-shared-expert-gate": experts.shared_gate and experts.shared_ffn > 0,
        "--moe-expert-capacity-factor": experts.capacity_factor,
        "--moe-router-enable-expert-bias": experts.router_bias,
        "--moe-token-dispatcher-type": "alltoall",
        "--moe-grouped-gemm": True,
    }


def _pattern_text(pattern: list[int]) -> str:
    """Runs of equal entries as Megatron writes them: ``([0]*3+[1]*58)``."""
    runs: list[list[int]] = []
    for entry in pattern:
        if runs and runs[-1][0] == entry:
            runs[-1][1] += 1
        else:
            runs.append([entry, 1])
    return "(" + "+".join(f"[{entry}]*{times}" for entry, times in runs) + ")"


def _write_latent(latent: LatentAttention) -> Mapping[str, Any]:
    return {
        "--multi-latent-attention": True,
        "--q-lora-rank": latent.q_rank,
        "--kv-lora-rank": latent.kv_rank,
        "--qk-head-dim": latent.qk_nope_head_dim,
        "--qk-pos-emb-head-dim": latent.qk_rope_head_dim,
        "--v-head-dim": latent.v_head_dim,
    }


def read_model(options: Options, given: Given, *, tensor: int) -> Tree:
    """The model of Megatron-LM's flags, with Megatron's defaults where a flag is absent.

    Raises:
        ScenarioError: If a dimension is missing or cannot be meant.
    """
    heads, hidden = needed(options, "--num-attention-heads"), needed(options, "--hidden-size")
    layers = needed(options, "--num-layers")
    position = _POSITIONS_READ[
        options.choice("--position-embedding-type", "learned_absolute", _POSITIONS_READ)
    ]
    if options.has("--use-rotary-position-embeddings"):
        position = "rope"
    groups = options.count("--num-query-groups", 1)
    grouped = options.flag("--group-query-attention")
    bias = not options.flag("--disable-bias-linear")
    longest = options.maybe("--max-position-embeddings")
    window = _window(options)
    tree: Tree = {
        "layers": layers,
        "hidden": hidden,
        "heads": heads,
        "kv_heads": groups if grouped else None,
        "head_dim": options.maybe("--kv-channels"),
        "ffn": options.maybe("--ffn-hidden-size"),
        "gated_mlp": options.flag("--swiglu") or options.flag("--quick-geglu"),
        "vocab": _vocabulary(options, given, tensor=tensor),
        "tied_embeddings": not options.flag("--untie-embeddings-and-output-weights"),
        "position": position,
        "positions": longest if position == "learned" else None,
        "bias": bias,
        "qkv_bias": True if options.flag("--add-qkv-bias") and not bias else None,
        "qk_norm": options.flag("--qk-layernorm"),
        "norm": {"LayerNorm": "layernorm", "RMSNorm": "rmsnorm"}[
            options.choice("--normalization", "LayerNorm", ("LayerNorm", "RMSNorm"))
        ],
        "dropout": _dropout(options),
        "window": window,
        "mtp_layers": options.count("--mtp-num-layers", 0, least=0),
        "experts": _read_experts(options, layers, hidden) if options.has("--num-experts") else None,
        "latent_attention": _read_latent(options),
    }
    return {key: value for key, value in tree.items() if value is not None}


def needed(options: Options, name: str) -> int:
    """A whole number that must be given.

    Raises:
        ScenarioError: If it is not.
    """
    if not options.has(name):
        unused = [entry for entry in options.values if entry.endswith(UNUSED)]
        raise ScenarioError(name, "; ".join(["is missing", *unused]))
    return options.count(name)


def _vocabulary(options: Options, given: Given, *, tensor: int) -> object:
    """Rows of the embedding: as given, or the vocabulary padded as Megatron does.

    Of tokenizers only GPT-2's has a size that is known without its files. It is Megatron's where
    no tokenizer is named but files of a vocabulary are.
    """
    tokenizer = options.raw("--tokenizer-type")
    files = [options.has(name) for name in ("--vocab-file", "--merge-file")]
    if "model.vocab" in given.fields:
        return given.fields["model.vocab"]
    multiple = options.count("--make-vocab-size-divisible-by", _PAD) * tensor
    plain = options.maybe("--vocab-size")
    padded = options.maybe("--padded-vocab-size")
    if padded is not None:
        return padded
    if plain is not None:
        return -(-plain // multiple) * multiple
    if tokenizer == _GPT2 or (tokenizer is None and all(files)):
        rows = -(-_GPT2_ENTRIES // multiple) * multiple
        options.assume(f"model.vocab = {rows}: the {_GPT2_ENTRIES} entries of {_GPT2}, padded")
        return rows
    whose = f" of {tokenizer}" if tokenizer else ""
    raise ScenarioError(
        "--vocab-size",
        f"is missing, and the file does not say how many entries the tokenizer{whose} has: add "
        "--vocab-size or --padded-vocab-size to it, or give --set model.vocab=N",
    )


def _dropout(options: Options) -> float:
    attention = options.number("--attention-dropout", _DROPOUT)
    hidden = options.number("--hidden-dropout", _DROPOUT)
    if attention != hidden:
        options.assume(
            f"model.dropout = {hidden:g}: --hidden-dropout; --attention-dropout is {attention:g}"
        )
    return hidden


def _window(options: Options) -> int | None:
    """Tokens looked back of ``--window-size left,right``; a left of -1 is no window."""
    value = options.raw("--window-size")
    if value is None:
        return None
    parts = value if isinstance(value, list) else str(value).strip("()[]").split(",")
    left = str(parts[0]).strip()
    if not left.lstrip("-").isdigit():
        raise ScenarioError("--window-size", f"expected two numbers such as 4096,0, not '{value}'")
    return int(left) if int(left) > 0 else None


def _read_experts(options: Options, layers: int, hidden: int) -> Tree:
    ffn = options.maybe("--moe-ffn-hidden-size") or options.count("--ffn-hidden-size", 4 * hidden)
    shared = options.count("--moe-shared-expert-intermediate-size", 0, least=0)
    capacity = options.has("--moe-expert-capacity-factor")
    for name in ("--moe-token-dispatcher-type", "--moe-grouped-gemm"):
        options.has(name)  # how, not what: mpsim prices the all-to-all of grouped products
    return {
        "count": options.count("--num-experts"),
        "per_token": options.count("--moe-router-topk", 2),
        "ffn": ffn,
        "shared_ffn": shared,
        "shared_gate": options.flag("--moe-shared-expert-gate"),
        "router_bias": options.flag("--moe-router-enable-expert-bias"),
        **(
            {"capacity_factor": options.number("--moe-expert-capacity-factor", 1)}
            if capacity
            else {}
        ),
        **_expert_layers(options, layers),
    }


def _expert_layers(options: Options, layers: int) -> Tree:
    """Which layers have experts, of Megatron's frequency or pattern.

    A frequency n puts experts into layers 0, n, 2n, ...; mpsim counts the last of each group.
    """
    value = options.raw("--moe-layer-freq", 1)
    if isinstance(value, list):
        if {str(entry) for entry in value} - {"0", "1"}:
            raise ScenarioError("--moe-layer-freq", f"expected 0 or 1 for each layer, not {value}")
        pattern = [int(entry) for entry in value]
    elif "[" in str(value):
        pattern = expand_pattern(str(value), where="--moe-layer-freq")
    else:
        step = options.count("--moe-layer-freq", 1)
        pattern = [int(index % step == 0) for index in range(layers)]
    if len(pattern) != layers:
        raise ScenarioError(
            "--moe-layer-freq", f"lists {len(pattern)} layers, but --num-layers is {layers}"
        )
    placement = expert_placement([bool(entry) for entry in pattern])
    if placement:
        return {"dense_layers": placement[0], "every": placement[1]}
    every = max(1, round(layers / max(1, sum(pattern))))
    options.assume(
        f"model.experts.every = {every}: {sum(pattern)} of {layers} layers have experts, in a "
        "pattern that mpsim has no words for"
    )
    return {"every": every}


def _read_latent(options: Options) -> Tree | None:
    """Multi-head latent attention, with Megatron's default widths."""
    if not options.flag("--multi-latent-attention"):
        return None
    rank = options.maybe("--q-lora-rank")
    return {
        **({"q_rank": rank} if rank else {}),
        "kv_rank": options.count("--kv-lora-rank", 32),
        "qk_nope_head_dim": options.count("--qk-head-dim", 128),
        "qk_rope_head_dim": options.count("--qk-pos-emb-head-dim", 64),
        "v_head_dim": options.count("--v-head-dim", 128),
    }
