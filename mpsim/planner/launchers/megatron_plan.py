"""Plan and training ↔ Megatron-LM's distributed, training and mixed-precision flags."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mpsim.errors import ScenarioError
from mpsim.planner.launchers.fields import stage_layers
from mpsim.planner.launchers.formats import Given, Tree, data_degree
from mpsim.planner.launchers.megatron_model import needed
from mpsim.planner.launchers.megatron_text import layout_counts, layout_text
from mpsim.planner.launchers.options import Options
from mpsim.spec.cluster import PRECISION_BYTES
from mpsim.spec.model import Transformer
from mpsim.spec.plan import PlanSpec, TrainingSpec, bucket_nbytes
from mpsim.spec.scenario import Scenario
from mpsim.workload.partition import equal_counts

_MODULES = {
    "core_attention": "core_attn",
    "layernorm": "layernorm",
    "moe_act": "moe_act",
    "mlp": "mlp",
    "mla_up_proj": "mla_up_proj",
}
"""What selective recomputation drops: mpsim's word → Megatron's."""
_EXCHANGES = {"ring": "p2p", "all_gather": "allgather", "all_to_all": "a2a"}
_SHARDING = {0: "no_shard", 1: "optim", 2: "optim_grads", 3: "optim_grads_params"}
_FUSIONS = ("masked-softmax", "bias-gelu", "bias-swiglu", "bias-dropout", "rope")


def write_plan(scenario: Scenario) -> Mapping[str, Any]:
    """Flags of the split."""
    plan, nodes = scenario.plan, scenario.cluster
    experts = isinstance(scenario.model, Transformer) and scenario.model.experts
    return {
        "--nnodes": nodes.nodes,
        "--nproc-per-node": nodes.node.devices,
        "--tensor-model-parallel-size": plan.tensor,
        "--pipeline-model-parallel-size": plan.pipeline,
        "--context-parallel-size": plan.context,
        "--cp-comm-type": _EXCHANGES[plan.context_exchange] if plan.context > 1 else None,
        "--expert-model-parallel-size": plan.expert if experts else None,
        "--expert-tensor-parallel-size": plan.expert_tensor if experts else None,
        "--sequence-parallel": plan.sequence_parallel,
        **_write_stages(scenario),
        **_write_sharding(scenario),
        **_write_recompute(plan),
        "--attention-backend": {"flash": "flash", "math": "unfused"}[plan.attention],
        "--tp-comm-overlap": plan.overlap_tensor and plan.tensor > 1,
        **{f"--no-{name}-fusion": not plan.fused for name in _FUSIONS},
    }


def _write_stages(scenario: Scenario) -> Mapping[str, Any]:
    plan = scenario.plan
    counts = stage_layers(scenario) or equal_counts(scenario.layer_count, plan.stages)
    even = len(set(counts)) == 1
    mtp = scenario.model.mtp_layers if isinstance(scenario.model, Transformer) else 0
    split = plan.stages > 1
    return {
        "--num-virtual-stages-per-pipeline-rank": plan.chunks if plan.chunks > 1 and even else None,
        "--pipeline-model-parallel-layout": (
            layout_text(counts, mtp=mtp) if split and not even else None
        ),
        "--microbatch-group-size-per-virtual-pipeline-stage": plan.group_size,
        "--overlap-moe-expert-parallel-comm": plan.schedule == "combined_1f1b",
        "--no-overlap-p2p-communication": plan.chunks > 1 and plan.p2p != "async",
    }


def _write_sharding(scenario: Scenario) -> Mapping[str, Any]:
    plan = scenario.plan
    group = plan.zero_group or plan.data
    whole = plan.data % group == 0 and plan.zero
    return {
        "--use-distributed-optimizer": plan.zero > 0,
        "--use-megatron-fsdp": plan.zero > 1,
        "--data-parallel-sharding-strategy": _SHARDING[plan.zero] if plan.zero > 1 else None,
        "--num-distributed-optimizer-instances": plan.data // group if whole else None,
        "--overlap-grad-reduce": plan.overlap_data,
        "--overlap-param-gather": plan.overlap_data and plan.zero > 0,
        "--ddp-bucket-size": _bucket(scenario),
        "--optimizer-cpu-offload": "optimizer" in plan.offload,
    }


def _bucket(scenario: Scenario) -> int | None:
    """Gradients of a bucket, where they are cut and the plan has replicas."""
    plan, training = scenario.plan, scenario.training
    nbytes = bucket_nbytes(plan, training)
    if plan.data * plan.context == 1 or math.isinf(nbytes):
        return None
    return round(nbytes / PRECISION_BYTES[training.gradient_type or training.stored_type])


def _write_recompute(plan: PlanSpec) -> Mapping[str, Any]:
    if plan.recompute == "none":
        return {}
    if plan.recompute == "selective":
        modules = [_MODULES[name] for name in plan.recompute_modules if name in _MODULES]
        return {"--recompute-granularity": "selective", "--recompute-modules": modules or None}
    return {
        "--recompute-granularity": "full",
        "--recompute-method": "block" if plan.recompute_layers else "uniform",
        "--recompute-num-layers": plan.recompute_layers or 1,
    }


def write_training(training: TrainingSpec) -> Mapping[str, Any]:
    """Flags of batch, precision and optimizer."""
    gradient, stored = training.gradient_type or training.stored_type, training.stored_type
    lower = training.state_type != "fp32"
    return {
        "--seq-length": training.sequence,
        "--micro-batch-size": training.microbatch,
        "--global-batch-size": training.global_batch,
        "--bf16": stored == "bf16",
        "--fp16": stored == "fp16",
        "--fp8-format": "hybrid" if training.precision in ("fp8", "mxfp8") else None,
        "--fp8-recipe": {"fp8": "delayed", "mxfp8": "mxfp8"}.get(training.precision),
        "--fp4-format": "e2m1" if training.precision == "nvfp4" else None,
        "--grad-reduce-in-bf16": stored == "bf16" and gradient == "bf16",
        "--accumulate-allreduce-grads-in-fp32": stored != "fp32" and gradient == "fp32",
        "--optimizer": "adam" if training.optimizer in ("adam", "adafactor") else "sgd",
        "--sgd-momentum": {"sgd": 0.0, "momentum": 0.9}.get(training.optimizer),
        "--use-precision-aware-optimizer": lower,
        "--exp-avg-dtype": training.state_type if lower else None,
        "--exp-avg-sq-dtype": training.state_type if lower else None,
        "--clip-grad": 1.0 if training.gradient_clipping else 0.0,
        "--use-legacy-models": training.framework == "legacy_megatron",
    }


def read_plan(options: Options, given: Given, *, layers: int) -> Tree:
    """The split of Megatron-LM's flags.

    Raises:
        ScenarioError: If degrees contradict each other or the devices.
    """
    tensor = options.count("--tensor-model-parallel-size")
    pipeline = options.count("--pipeline-model-parallel-size")
    context = options.count("--context-parallel-size")
    others = {"tensor": tensor, "pipeline": pipeline, "context": context}
    stages = _read_stages(options, pipeline=pipeline, layers=layers)
    tree: Tree = {
        **others,
        "data": data_degree(options, _world(options, given), others=others),
        "context_exchange": _exchange(options),
        "expert": options.count("--expert-model-parallel-size"),
        "expert_tensor": options.maybe("--expert-tensor-parallel-size"),
        "sequence_parallel": options.flag("--sequence-parallel") and tensor > 1,
        "overlap_tensor": options.flag("--tp-comm-overlap"),
        **stages,
        **_read_recompute(options),
        "attention": _attention(options),
        "fused": not all(options.has(f"--no-{name}-fusion") for name in _FUSIONS),
        "offload": ["optimizer"] if options.flag("--optimizer-cpu-offload") else [],
    }
    if tree["expert_tensor"] == tensor:
        tree["expert_tensor"] = None
    tree |= _read_sharding(options, data=tree["data"], context=context)
    return {key: value for key, value in tree.items() if value is not None}


def _world(options: Options, given: Given) -> Given:
    """Devices that torchrun starts, where the text says so; those of the cluster otherwise."""
    if given.devices and any(
        str(options.raw(name, "")).startswith("$") for name in ("--nnodes", "--nproc-per-node")
    ):
        return given
    nodes, each = options.maybe("--nnodes"), options.maybe("--nproc-per-node")
    return given if each is None else replace(given, devices=(nodes or 1) * each)


def _exchange(options: Options) -> str:
    kind = options.choice("--cp-comm-type", "p2p", (*_EXCHANGES.values(), "a2a+p2p"))
    if kind == "a2a+p2p":
        options.assume("plan.context_exchange = ring: mpsim has no mix of a2a and p2p")
        return "ring"
    return next(name for name, word in _EXCHANGES.items() if word == kind)


def _attention(options: Options) -> str:
    backends = ("auto", "flash", "fused", "unfused", "local")
    backend = options.choice("--attention-backend", "auto", backends)
    options.has("--use-flash-attn")
    return "math" if backend in ("unfused", "local") else "flash"


def _read_stages(options: Options, *, pipeline: int, layers: int) -> Tree:
    chunks = options.count("--num-virtual-stages-per-pipeline-rank")
    each = options.maybe("--num-layers-per-virtual-pipeline-stage")
    layout = options.raw("--pipeline-model-parallel-layout")
    partition = _uneven(options, pipeline=pipeline, layers=layers, chunks=chunks)
    if each is not None:
        chunks = _chunks(layers, pipeline=pipeline, each=each)
    if layout is not None:
        partition = layout_counts(str(layout), where="--pipeline-model-parallel-layout")
        chunks = len(partition) // pipeline
        if len(partition) % pipeline or sum(partition) != layers:
            raise ScenarioError(
                "--pipeline-model-parallel-layout",
                f"has {len(partition)} stages of {sum(partition)} layers, but the pipeline is of "
                f"{pipeline} and --num-layers is {layers}",
            )
    combined = options.flag("--overlap-moe-expert-parallel-comm")
    blocking = options.flag("--no-overlap-p2p-communication") or chunks == 1
    return {
        "chunks": chunks,
        "schedule": "combined_1f1b" if combined else "1f1b" if chunks == 1 else "interleaved_1f1b",
        "overlap_expert": combined,
        "group_size": options.maybe("--microbatch-group-size-per-virtual-pipeline-stage"),
        "partition": partition,
        "p2p": "batched" if blocking and pipeline > 1 else None,
    }


def _chunks(layers: int, *, pipeline: int, each: int) -> int:
    """Stages on a device where each has a number of layers."""
    if layers % (pipeline * each):
        raise ScenarioError(
            "--num-layers-per-virtual-pipeline-stage",
            f"{pipeline} devices with stages of {each} layers do not divide the {layers} layers",
        )
    return layers // (pipeline * each)


def _uneven(options: Options, *, pipeline: int, layers: int, chunks: int) -> list[int] | None:
    """Layers of each stage where the first, the last, embedding or loss are set apart."""
    first = options.maybe("--decoder-first-pipeline-num-layers")
    last = options.maybe("--decoder-last-pipeline-num-layers")
    less = [
        int(options.flag(f"--account-for-{part}-in-pipeline-split"))
        for part in ("embedding", "loss")
    ]
    if first is None and last is None and not any(less):
        return None
    stages, fixed = pipeline * chunks, (first or 0) + (last or 0)
    ends = int(first is not None) + int(last is not None)
    middle, rest = divmod(layers - fixed + sum(less), max(1, stages - ends))
    if rest or middle < 1 or (ends and chunks > 1):
        raise ScenarioError(
            "--decoder-first-pipeline-num-layers"
            if ends
            else "--account-for-loss-in-pipeline-split",
            f"the other {layers - fixed} layers cannot be dealt evenly to {stages - ends} stages",
        )
    counts = [middle] * stages
    counts[0] = first if first is not None else middle - less[0]
    counts[-1] = last if last is not None else counts[-1] - less[1]
    return counts


def _read_sharding(options: Options, *, data: int, context: int) -> Tree:
    strategy = options.choice("--data-parallel-sharding-strategy", "no_shard", _SHARDING.values())
    zero = 1 if options.flag("--use-distributed-optimizer") else 0
    if options.flag("--use-megatron-fsdp"):
        zero = next(stage for stage, word in _SHARDING.items() if word == strategy)
    elif options.flag("--use-torch-fsdp2"):
        zero = 3
    instances = options.count("--num-distributed-optimizer-instances")
    if data % instances:
        raise ScenarioError(
            "--num-distributed-optimizer-instances",
            f"{instances} does not divide the data degree ({data})",
        )
    # without the flag Megatron's own rule holds, which is the plan's default; and Megatron
    # heeds the flag only where the exchange is hidden
    elements = options.maybe("--ddp-bucket-size")
    overlap = options.flag("--overlap-grad-reduce")
    if zero and options.flag("--overlap-param-gather") != overlap:
        options.assume(f"plan.overlap_data = {str(overlap).lower()}: --overlap-grad-reduce")
    element = PRECISION_BYTES[gradient_type(options)]
    cuts = overlap and data * context > 1
    return {
        "zero": zero,
        "zero_group": data // instances if zero and instances > 1 else None,
        "overlap_data": overlap,
        "bucket": f"{elements * element!r} B" if elements and cuts else None,
    }


def _read_recompute(options: Options) -> Tree:
    kind = options.raw("--recompute-granularity")
    if options.flag("--recompute-activations"):
        kind = "selective"
    modules = options.raw("--recompute-modules", ["core_attn"])
    method, count = options.raw("--recompute-method"), options.maybe("--recompute-num-layers")
    if kind is None:
        return {}
    if kind not in ("full", "selective"):
        raise ScenarioError("--recompute-granularity", f"'{kind}' is not one of full, selective")
    if kind == "full":
        if method == "uniform" and (count or 1) > 1:
            options.assume("plan.recompute = full: units of several layers are read as of one")
        return {"recompute": "full", "recompute_layers": count if method == "block" else None}
    words = {word: name for name, word in _MODULES.items()}
    listed = [str(item) for item in (modules if isinstance(modules, list) else [modules])]
    strange = [word for word in listed if word not in words]
    if strange:
        options.assume(f"--recompute-modules: {', '.join(strange)} is not simulated")
    return {
        "recompute": "selective",
        "recompute_modules": [words[word] for word in listed if word in words],
    }


def _stored_type(options: Options) -> str:
    """Number format of the parameters."""
    bf16, fp16 = options.flag("--bf16"), options.flag("--fp16")
    if bf16 and fp16:
        raise ScenarioError("--bf16", "contradicts --fp16; give one of them")
    return "bf16" if bf16 else "fp16" if fp16 else "fp32"


def gradient_type(options: Options) -> str:
    """Number format of gradients: Megatron keeps those of bf16 in fp32 unless told otherwise."""
    stored = _stored_type(options)
    reduced = options.flag("--grad-reduce-in-bf16")
    wide = options.flag("--accumulate-allreduce-grads-in-fp32")
    if stored == "bf16":
        return "bf16" if reduced else "fp32"
    return "fp32" if wide else stored


def read_training(options: Options, *, data: int) -> Tree:
    """Batch, precision and optimizer of Megatron-LM's flags."""
    micro = needed(options, "--micro-batch-size")
    stored = _stored_type(options)
    return {
        "global_batch": options.count("--global-batch-size", micro * data),
        "microbatch": micro,
        "sequence": needed(options, "--seq-length"),
        "precision": _precision(options, stored),
        "parameter_type": stored,
        "gradient_type": gradient_type(options),
        "optimizer": _optimizer(options),
        "state_type": _state_type(options),
        "master_weights": stored != "fp32",
        "gradient_clipping": options.number("--clip-grad", 1.0) > 0,
        "framework": "legacy_megatron" if options.flag("--use-legacy-models") else "megatron",
    }


def _precision(options: Options, stored: str) -> str:
    recipe = options.choice(
        "--fp8-recipe", "delayed", ("tensorwise", "delayed", "mxfp8", "blockwise")
    )
    if options.has("--fp4-format"):
        return "nvfp4"
    if options.has("--fp8-format"):
        return "mxfp8" if recipe == "mxfp8" else "fp8"
    return stored


def _optimizer(options: Options) -> str:
    name = options.raw("--optimizer", "adam")
    momentum = options.number("--sgd-momentum", 0.9)
    if name == "sgd":
        return "momentum" if momentum else "sgd"
    if name != "adam":
        options.assume(f"training.optimizer = adam: mpsim does not know '{name}'")
    return "adam"


def _state_type(options: Options) -> str:
    """Number format of Adam's moments, which only the precision-aware optimizer narrows."""
    first = options.raw("--exp-avg-dtype", "fp32")
    second = options.raw("--exp-avg-sq-dtype", "fp32")
    if not options.flag("--use-precision-aware-optimizer"):
        return "fp32"
    if first != second or first not in ("fp32", "fp16", "bf16"):
        options.assume(f"training.state_type = fp32: the moments are {first} and {second}")
        return "fp32"
    return str(first)
