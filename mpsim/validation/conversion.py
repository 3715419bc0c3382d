"""A measured run as a scenario: what the record states, and a named assumption for what it omits.

The assumptions are of three kinds. *Framework generation*: the code of 2020 to 2022 ("legacy
Megatron": unfused attention, fp16, dropout 0.1, no overlap), Megatron of today, and FSDP; which of
them a run used follows from fields of the record, never from its source. *Defaults of those
frameworks* for what a table leaves out. *Arithmetic* where the numbers leave one choice (an uneven
split, a degree that fills the devices).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from mpsim.errors import ScenarioError
from mpsim.schedule.orders.interleaved import legal_group_size
from mpsim.spec.reader import build
from mpsim.spec.scenario import Scenario
from mpsim.validation.devices import device_of
from mpsim.validation.generation import (
    Framework,
    attention_of,
    framework_of,
    names_deepspeed,
    precision_of,
)
from mpsim.validation.kept import (
    fused_loss,
    keeps_quantised_parameters,
    offloaded,
    optimizer_of,
    quantised_copies,
    sums_in_16_bits,
)
from mpsim.validation.machine import cluster_tree
from mpsim.validation.records import Record
from mpsim.validation.splits import (
    Assumptions,
    chunks_of,
    degrees_of,
    expert_of,
    expert_tensor_of,
    partition_of,
)
from mpsim.validation.wording import says

Tree = dict[str, Any]

_DROPOUT = 0.1
"""Dropout of GPT-2 and GPT-3 style models in Megatron (arguments.py: --attention-dropout,
--hidden-dropout default 0.1); Llama style models have none."""
_GPT2_VOCAB = 50257
"""Byte-pair vocabulary of GPT-2 (Radford et al. 2019), which Megatron pads to 128 x tensor."""
_SCHEDULES = {"zb_1p": "zb_auto", "zb_2p": "zb_auto", "none": "1f1b"}
"""Names of records → names of orders; 1p and 2p are the searched schedule under a memory limit of
one and two times that of 1F1B (arXiv:2401.10241)."""
_FUSED_DISPATCH = re.compile(r"\b(deepep|hybridep)\b", re.IGNORECASE)
"""Dispatchers that sort as they send, by name."""
_TOKEN_DROP = re.compile(r"token drop")
_WHOLE_GRAPHS = re.compile(r"full_iteration")
"""How notes name captured graphs of whole steps."""
_WHOLE_LAYERS = re.compile(r"transformer_layer:(\d+)_of_(\d+)")


@dataclass(frozen=True)
class Expressed:
    """A record as a scenario.

    Attributes:
        scenario: What is simulated.
        assumptions: What the record leaves open, as ``path = value``.
        open: Dotted scenario paths that the source leaves to a tuned choice.
        open_memory: Whether the source leaves out the microbatch, so that nobody can say from the
            record that the run fitted.
    """

    scenario: Scenario
    assumptions: tuple[str, ...]
    open: tuple[str, ...] = ()
    open_memory: bool = False


def to_scenario(record: Record) -> Expressed:
    """The scenario of a record.

    Raises:
        ScenarioError: If the record cannot be expressed; the message says why.
    """
    if record.model.family in ("mamba_hybrid", "other"):
        raise ScenarioError("model.family", f"'{record.model.family}' is no transformer")
    notes = Assumptions()
    framework = framework_of(record)
    degrees = degrees_of(record, notes)
    tree: Tree = {
        "name": record.id,
        "model": _model(record, framework, degrees["tensor"], notes),
        "cluster": cluster_tree(record.cluster, precision_of(record), notes.texts),
        "plan": _plan(record, framework, degrees, notes),
        "training": _training(record, framework, degrees, notes),
    }
    scenario = _grouped(build(tree), notes)
    open_fields = [path for path in _TUNED if _is_open(record, path)]
    if scenario.training.microbatch > 1 and "training.microbatch" in open_fields:
        open_fields.remove("training.microbatch")  # a framework's default, not a tuned choice
    elif record.training.global_batch is None and "training.microbatch" in open_fields:
        open_fields.remove("training.microbatch")  # with the batch our own there is no fastest one
    plan = record.plan
    if framework == "fsdp" and plan.recompute == "selective" and plan.recompute_modules is None:
        open_fields.append("plan.recompute_layers")
    unsaid = record.training.microbatch is None
    return Expressed(scenario, tuple(notes.texts), tuple(open_fields), unsaid)


def _grouped(scenario: Scenario, notes: Assumptions) -> Scenario:
    """The scenario with a group size that interleaving allows, where p does not divide m."""
    plan = scenario.plan
    if plan.schedule != "interleaved_1f1b" or scenario.microbatches % plan.pipeline == 0:
        return scenario
    size = legal_group_size(plan.pipeline, scenario.microbatches)
    notes.texts.append(f"plan.group_size = {size}")
    return scenario.model_copy(update={"plan": plan.model_copy(update={"group_size": size})})


_TUNED = ("plan.recompute", "training.microbatch", "plan.chunks")
"""Fields that whoever ran a benchmark tunes, and that tables often omit."""


def _is_open(record: Record, path: str) -> bool:
    """Whether the record has no value at a path."""
    part, name = path.split(".")
    if path == "plan.recompute" and record.plan.recompute_modules:
        return False  # what is recomputed is stated
    return getattr(getattr(record, part), name) is None


def _model(record: Record, framework: Framework, tensor: int, notes: Assumptions) -> Tree:
    """The model part."""
    model = record.model
    gated = notes.default("model.gated_mlp", model.gated_mlp, model.family != "gpt")
    block = 128 * tensor
    position = notes.default("model.position", model.position, "rope" if gated else "learned")
    tree: Tree = {
        "name": model.name,
        "layers": model.layers,
        "hidden": model.hidden,
        "heads": model.heads,
        "kv_heads": model.kv_heads,
        "head_dim": model.head_dim,
        "ffn": model.ffn,
        "gated_mlp": gated,
        "vocab": notes.default("model.vocab", model.vocab, -(-_GPT2_VOCAB // block) * block),
        "tied_embeddings": notes.default("model.tied_embeddings", model.tied_embeddings, not gated),
        "position": position,
        "bias": notes.default("model.bias", model.bias, not gated),
        "norm": "rmsnorm" if gated else "layernorm",
        "mtp_layers": model.mtp_layers or 0,
    }
    mixed = precision_of(record) not in ("fp32", "tf32")  # what Megatron's own recipes train in
    if position == "learned" and framework in ("megatron", "legacy_megatron") and mixed:
        tree["dropout"] = notes.default("model.dropout", None, _DROPOUT)
    if model.head_dim is None and model.hidden % model.heads:
        tree["head_dim"] = model.v_head_dim
    if model.experts:
        tree["experts"] = _experts(record, notes)
    if model.kv_lora_rank:
        tree["latent_attention"] = {
            "q_rank": model.q_lora_rank,
            "kv_rank": model.kv_lora_rank,
            "qk_nope_head_dim": model.qk_nope_head_dim,
            "qk_rope_head_dim": model.qk_rope_head_dim,
            "v_head_dim": model.v_head_dim,
        }
    return tree


def _experts(record: Record, notes: Assumptions) -> Tree:
    """The mixture-of-experts part; benchmarks force their routers into balance."""
    model = record.model
    tree: Tree = {
        "count": model.experts,
        "per_token": notes.default("model.experts_per_token", model.experts_per_token, 1),
        "ffn": notes.default("model.expert_ffn", model.expert_ffn, model.ffn),
        "shared_ffn": model.shared_expert_ffn or 0,
        "dense_layers": model.dense_layers or 0,
        "every": model.moe_every or 1,
    }
    if says(_TOKEN_DROP, record.notes):
        tree["capacity_factor"] = 1.0
    return tree


def _plan(record: Record, framework: Framework, degrees: Tree, notes: Assumptions) -> Tree:
    """The plan part."""
    plan = record.plan
    legacy = framework == "legacy_megatron"
    tensor, pipeline = degrees["tensor"], degrees["pipeline"]
    chunks = chunks_of(record, pipeline, notes)
    _check_stages(record, pipeline, chunks)
    parallel = notes.default(
        "plan.sequence_parallel", plan.sequence_parallel, tensor > 1 and not legacy
    )
    quiet = Assumptions()  # what a degree of one makes meaningless is no assumption
    overlap_tensor = (notes if tensor > 1 else quiet).default(
        "plan.overlap_tensor", plan.overlap_tensor, framework == "megatron" and parallel
    )
    replicated = degrees["data"] * degrees["context"] > 1
    overlap_data = (notes if replicated else quiet).default(
        "plan.overlap_data", plan.overlap_data, not legacy
    )
    tree: Tree = {
        **degrees,
        "chunks": chunks,
        "expert": expert_of(record, degrees, notes),
        "expert_tensor": expert_tensor_of(record, degrees, notes),
        "sequence_parallel": parallel and tensor > 1,
        "zero": notes.default("plan.zero", plan.zero, int(framework == "megatron")),
        "zero_group": plan.zero_group,
        "partition": partition_of(record, pipeline * chunks, notes),
        "attention": notes.default("plan.attention", plan.attention, attention_of(record)),
        "fused": framework in ("megatron", "legacy_megatron") or bool(plan.compiled),
        "fused_loss": fused_loss(record),
        "overlap_data": overlap_data,
        "overlap_tensor": overlap_tensor and tensor > 1,
        "overlap_expert": "expert all-to-all overlap on" in record.notes,
        "expert_dispatch": "fused" if says(_FUSED_DISPATCH, record.notes) else "all_to_all",
        "graphs": says(_WHOLE_GRAPHS, record.notes),
        "p2p": _p2p(record, legacy),
        "offload": offloaded(plan.offload, notes),
    }
    stages = pipeline * chunks
    return tree | _schedule(record, pipeline, chunks, notes) | _recompute(record, notes, stages)


def _check_stages(record: Record, pipeline: int, chunks: int) -> None:
    """Refuse more stages than there is something to hold: layers, embedding and head.

    Raises:
        ScenarioError: Naming the field that makes too many.
    """
    layers = record.model.layers
    if pipeline * chunks <= layers + (record.model.mtp_layers or 0) + 2:
        return
    field = "plan.pipeline" if chunks == 1 else "plan.chunks"
    product = "" if chunks == 1 else f" ({pipeline} x {chunks})"
    raise ScenarioError(field, f"{pipeline * chunks} stages{product} for {layers} layers")


def _p2p(record: Record, legacy: bool) -> str:
    """How stages exchange: Megatron's plain schedules batch a send with a receive and wait."""
    plain = record.plan.schedule in (None, "none", "1f1b", "gpipe")
    return "batched" if plain and (legacy or record.plan.overlap_pipeline is False) else "async"


def _schedule(record: Record, pipeline: int, chunks: int, notes: Assumptions) -> Tree:
    """The schedule with what belongs to it.

    The zero-bubble schedules check the gradient norm after the update (post-validation), which
    lifts the barrier before it.
    """
    guess = "none" if pipeline == 1 else "interleaved_1f1b" if chunks > 1 else "1f1b"
    name = notes.default("plan.schedule", record.plan.schedule, guess)
    tree: Tree = {"schedule": _SCHEDULES.get(name, name)}
    if name in ("zb_1p", "zb_2p"):
        tree["memory_limit"] = float(pipeline * (1 if name == "zb_1p" else 2))
    if name.startswith(("zb_", "v_")):
        tree["step_barrier"] = "with synchronisation" in record.notes
    return tree


def _recompute(record: Record, notes: Assumptions, stages: int) -> Tree:
    """Recomputation; whole layers recomputed in part are full recomputation of some layers.

    ``stages`` counts virtual ones, as the number of layers to recompute does in Megatron
    (arguments.py: --recompute-num-layers).
    """
    plan, layers = record.plan, record.model.layers
    modules = plan.recompute_modules or []
    kind = notes.default("plan.recompute", plan.recompute, "selective" if modules else "none")
    whole = [_WHOLE_LAYERS.fullmatch(module) for module in modules]
    if "every_2nd_layer" in modules:
        return {"recompute": "full", "recompute_layers": max(1, layers // stages // 2)}
    if whole and whole[0]:
        share = int(whole[0][1]) / int(whole[0][2])
        count = max(1, round(share * layers / stages))
        if "layers per stage" in record.notes:
            count = int(whole[0][1])
        return {"recompute": "full", "recompute_layers": count}
    tree: Tree = {"recompute": kind}
    if kind == "selective" and not modules:
        modules = notes.default("plan.recompute_modules", None, ["core_attention"])
    if kind == "selective":
        tree["recompute_modules"] = modules
    return tree


def _training(record: Record, framework: Framework, degrees: Tree, notes: Assumptions) -> Tree:
    """The training part."""
    training, plan = record.training, record.plan
    precision = precision_of(record)
    device, _ = device_of(record.cluster, precision, [])
    if plan.precision != precision:
        notes.texts.append(f"training.precision = {precision}")
    micro = notes.default("training.microbatch", training.microbatch, _microbatch(record, degrees))
    replicas = micro * degrees["data"]
    batch = notes.default(
        "training.global_batch", training.global_batch, replicas * 4 * degrees["pipeline"]
    )
    if batch % replicas:
        batch = -(-batch // replicas) * replicas
        notes.texts.append(f"training.global_batch = {batch}")
    optimizer, exact = optimizer_of(plan.optimizer)
    if not exact:
        notes.texts += [f"training.{name} = {value}" for name, value in optimizer.items()]
    tree: Tree = {
        "global_batch": batch,
        "microbatch": micro,
        "sequence": training.sequence,
        "precision": precision,
        **optimizer,
        "framework": framework,
        "quantised_parameters": keeps_quantised_parameters(record, precision),
        "quantised_copies": quantised_copies(device, precision),
    }
    return tree | _state_types(record, framework, precision, notes)


def _microbatch(record: Record, degrees: Tree) -> int:
    """Microbatch where none is stated: 1, or with FSDP as many microbatches as stages.

    The latter is torchtitan's default (pipeline_parallel_microbatches, 2024).
    """
    batch, pipeline = record.training.global_batch, degrees["pipeline"]
    if batch is None or pipeline == 1 or framework_of(record) != "fsdp":
        return 1
    return int(max(1, batch // (degrees["data"] * pipeline)))


def _state_types(record: Record, framework: Framework, precision: str, notes: Assumptions) -> Tree:
    """Number formats of parameters and gradients.

    FSDP keeps fp32 parameters, which it casts for compute, and no master copy; it reduces gradients
    in the type of compute unless told otherwise (MixedPrecision.reduce_dtype). Under autocast the
    gradients of fp32 parameters are fp32. DeepSpeed's ZeRO-2 and 3 keep and reduce 16-bit ones
    beside an fp32 master copy (arXiv:1910.02054, section 3.1). Megatron sums bf16
    gradients in fp32 (arguments.py: accumulate_allreduce_grads_in_fp32 goes with --bf16) and keeps
    fp16 gradients with --fp16; recipes of 8 and 4 bits keep bf16 gradients (NeMo's and
    Megatron-Bridge's performance recipes: grad_reduce_in_fp32 = False, for bf16 too).
    """
    short = "fp16" if precision == "fp16" else "bf16"
    tree: Tree = {}
    if framework in ("fsdp", "torch") and not names_deepspeed(record):
        tree = {"parameter_type": "fp32"}
        wide = framework == "torch" or precision in ("fp32", "tf32")
        guess = "fp32" if wide else short
    elif framework == "fsdp":
        guess = "fp32" if precision in ("fp32", "tf32") else short
        tree = {"parameter_type": guess}
    else:
        guess = {"fp16": "fp16", "fp8": "bf16", "mxfp8": "bf16", "nvfp4": "bf16"}.get(
            precision, "bf16" if precision == "bf16" and sums_in_16_bits(record) else "fp32"
        )
    tree["gradient_type"] = notes.default(
        "training.gradient_type", record.plan.gradient_dtype, guess
    )
    return tree
