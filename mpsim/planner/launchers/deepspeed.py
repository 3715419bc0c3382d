"""DeepSpeed: a scenario as its JSON configuration, and a configuration as a scenario."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from mpsim.errors import ScenarioError
from mpsim.planner.launchers.formats import Given, Launcher, Tree, data_degree
from mpsim.planner.launchers.options import Options, flatten, nest
from mpsim.spec.cluster import PRECISION_BYTES
from mpsim.spec.plan import PlanSpec, TrainingSpec, bucket_nbytes
from mpsim.spec.scenario import Scenario

_PARTITIONS = {"layers": "uniform", "parameters": "parameters"}
_BUCKET = 500_000_000
"""Default of reduce_bucket_size, elements."""
_MARKS = (
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "zero_optimization",
)


def looks_like(tree: Mapping[str, Any]) -> bool:
    """Whether a JSON object is a DeepSpeed configuration."""
    return any(mark in tree for mark in _MARKS)


def parse(text: str) -> dict[str, Any]:
    """Entries such as ``zero_optimization.stage``; names that begin with ``_`` are comments."""
    tree = parse_json(text)
    return flatten({name: value for name, value in tree.items() if not name.startswith("_")})


def parse_json(text: str) -> dict[str, Any]:
    """The object of a JSON text.

    Raises:
        ScenarioError: If it is not JSON, or not an object.
    """
    try:
        tree = json.loads(text, parse_constant=_refuse)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise ScenarioError("configuration", f"is not JSON: {place}: {error.msg}") from None
    except RecursionError:
        raise ScenarioError("configuration", "is nested too deeply") from None
    if not isinstance(tree, dict):
        raise ScenarioError("configuration", "expected a JSON object of settings")
    return tree


def _refuse(name: str) -> None:
    raise ScenarioError("configuration", f"{name} is not a finite number")


def render(entries: Mapping[str, Any], comments: Sequence[str]) -> str:
    """JSON; it has no comments, so they stand under a name that DeepSpeed does not read."""
    tree = {"_mpsim": list(comments)} if comments else {}
    return (
        json.dumps(tree | nest({k: v for k, v in entries.items() if v is not None}), indent=2)
        + "\n"
    )


def write(scenario: Scenario) -> Mapping[str, Any]:
    """Entries of the configuration that realises a scenario."""
    plan, training = scenario.plan, scenario.training
    stored, gradient = training.stored_type, training.gradient_type or training.stored_type
    return {
        "train_batch_size": training.global_batch,
        "train_micro_batch_size_per_gpu": training.microbatch,
        "gradient_accumulation_steps": scenario.microbatches,
        "gradient_clipping": 1.0 if training.gradient_clipping else 0.0,
        "bf16.enabled": stored == "bf16",
        "fp16.enabled": stored == "fp16",
        "data_types.grad_accum_dtype": gradient,
        "communication_data_type": _wire(plan, gradient),
        **_write_optimizer(training),
        **_write_zero(plan, bucket_nbytes(plan, training), PRECISION_BYTES[gradient]),
        "tensor_parallel.autotp_size": plan.tensor if plan.tensor > 1 else None,
        "sequence_parallel_size": plan.context if plan.context > 1 else None,
        **_write_pipeline(plan),
        "activation_checkpointing.cpu_checkpointing": "activations" in plan.offload or None,
    }


def _wire(plan: PlanSpec, gradient: str) -> str:
    """Number format of the gradient exchange; fp8 is none of DeepSpeed's."""
    kind = plan.compression.type or gradient
    return kind if kind in ("fp32", "fp16", "bf16") else gradient


def _write_optimizer(training: TrainingSpec) -> Mapping[str, Any]:
    momentum = {"sgd": 0.0, "momentum": 0.9}.get(training.optimizer)
    return {
        "optimizer.type": "AdamW" if momentum is None else "SGD",
        "optimizer.params.momentum": momentum,
    }


def _write_zero(plan: PlanSpec, bucket: float, element: float) -> Mapping[str, Any]:
    group = plan.zero_group if plan.zero == 3 else None
    elements = None if math.isinf(bucket) else round(bucket / element)
    return {
        "zero_optimization.stage": plan.zero,
        "zero_optimization.overlap_comm": plan.overlap_data,
        "zero_optimization.reduce_bucket_size": elements,
        "zero_optimization.mics_shard_size": group,
        "zero_optimization.offload_optimizer.device": "cpu"
        if "optimizer" in plan.offload
        else None,
        "zero_optimization.offload_param.device": "cpu" if "weights" in plan.offload else None,
    }


def _write_pipeline(plan: PlanSpec) -> Mapping[str, Any]:
    if plan.pipeline == 1:
        return {}
    named = plan.partition if isinstance(plan.partition, str) else "layers"
    return {
        "pipeline.stages": plan.pipeline,
        "pipeline.partition": _PARTITIONS.get(named, "uniform"),
        "pipeline.activation_checkpoint_interval": 1 if plan.recompute == "full" else 0,
    }


def read(options: Options, given: Given) -> Tree:
    """Plan and training of a configuration; the model is the one that is given.

    Raises:
        ScenarioError: If no model is given, or batch sizes contradict each other.
    """
    if given.model is None:
        raise ScenarioError(
            "model", "a DeepSpeed configuration does not name the model; name it with --model"
        )
    others = {
        "tensor": options.count("tensor_parallel.autotp_size"),
        "pipeline": options.count("pipeline.stages"),
        "context": options.count("sequence_parallel_size"),
    }
    batch, micro, data = _batches(options, given, others)
    stored, gradient = _types(options)
    plan: Tree = {
        **others,
        "data": data,
        "context_exchange": "all_to_all" if others["context"] > 1 else "ring",
        **_read_zero(options, PRECISION_BYTES[gradient], data=data),
        **_read_pipeline(options, others["pipeline"]),
        **_read_wire(options, gradient),
    }
    return {
        "model": given.model,
        "plan": plan,
        "training": {
            "global_batch": batch,
            "microbatch": micro,
            "precision": stored,
            "parameter_type": stored,
            "gradient_type": gradient,
            "optimizer": _read_optimizer(options),
            "master_weights": stored != "fp32",
            "gradient_clipping": options.number("gradient_clipping", 0.0) > 0,
            "framework": "torch",
        },
    }


def _batches(options: Options, given: Given, others: Mapping[str, int]) -> tuple[int, int, int]:
    """Global batch, microbatch and data degree: batch = microbatch x accumulation x data."""
    batch = options.maybe("train_batch_size")
    micro = options.maybe("train_micro_batch_size_per_gpu")
    steps = options.maybe("gradient_accumulation_steps")
    if batch is None and micro is None:
        raise ScenarioError(
            "train_batch_size",
            "is missing; give two of it, train_micro_batch_size_per_gpu and "
            "gradient_accumulation_steps",
        )
    if batch is None or micro is None or steps is None:
        data = data_degree(options, given, others=others)
        if micro is None:
            micro = max(1, (batch or 1) // ((steps or 1) * data))
        steps = steps or (max(1, batch // (micro * data)) if batch else 1)
        batch = batch or micro * steps * data
    else:
        data = max(1, batch // (micro * steps))
    if batch != micro * steps * data:
        raise ScenarioError(
            "train_batch_size",
            f"{batch} is not train_micro_batch_size_per_gpu ({micro}) x "
            f"gradient_accumulation_steps ({steps}) x a number of replicas",
        )
    return batch, micro, data


def _types(options: Options) -> tuple[str, str]:
    """Number formats of parameters and gradients."""
    bf16, fp16 = options.flag("bf16.enabled"), options.flag("fp16.enabled")
    if bf16 and fp16:
        raise ScenarioError("bf16.enabled", "contradicts fp16.enabled; enable one of them")
    stored = "bf16" if bf16 else "fp16" if fp16 else "fp32"
    kinds = ("fp32", "fp16", "bf16")
    return stored, options.choice("data_types.grad_accum_dtype", stored, kinds)


def _read_zero(options: Options, element: float, *, data: int) -> Tree:
    stage = options.count("zero_optimization.stage", 0, least=0)
    if stage > 3:
        raise ScenarioError("zero_optimization.stage", f"expected 0 to 3, not {stage}")
    elements = options.count("zero_optimization.reduce_bucket_size", _BUCKET)
    group = options.maybe("zero_optimization.mics_shard_size", least=-1)
    places = {"optimizer": "offload_optimizer", "weights": "offload_param"}
    kept = [
        part
        for part, name in places.items()
        if options.raw(f"zero_optimization.{name}.device", "none") != "none"
    ]
    if options.flag("activation_checkpointing.cpu_checkpointing"):
        kept.append("activations")
    grouped = stage == 3 and group is not None and 0 < group < data
    return {
        "zero": stage,
        # overlap is DeepSpeed's default in stage 3 alone
        "overlap_data": options.flag("zero_optimization.overlap_comm", default=stage == 3),
        **({"bucket": f"{elements * element!r} B"} if data > 1 else {}),
        **({"zero_group": group} if grouped else {}),
        "offload": kept,
    }


def _read_pipeline(options: Options, stages: int) -> Tree:
    interval = options.count("pipeline.activation_checkpoint_interval", 0, least=0)
    names = (*_PARTITIONS.values(), "best")
    partition = options.choice("pipeline.partition", "parameters", names)
    if stages == 1:
        return {}
    rule = next((name for name, word in _PARTITIONS.items() if word == partition), "parameters")
    return {"partition": rule, "recompute": "full" if interval else "none"}


def _read_wire(options: Options, gradient: str) -> Tree:
    kind = str(options.raw("communication_data_type", gradient))
    kind = {"bfp16": "bf16"}.get(kind, kind)
    if kind not in ("fp32", "fp16", "bf16"):
        raise ScenarioError("communication_data_type", f"'{kind}' is not one of fp32, fp16, bf16")
    return {} if kind == gradient else {"compression": {"type": kind}}


def _read_optimizer(options: Options) -> str:
    name = str(options.raw("optimizer.type", "AdamW"))
    momentum = options.number("optimizer.params.momentum", 0.0)
    if name.lower() == "sgd":
        return "momentum" if momentum else "sgd"
    if name.lower() not in ("adam", "adamw"):
        options.assume(f"training.optimizer = adam: mpsim does not know '{name}'")
    return "adam"


DEEPSPEED = Launcher(
    name="deepspeed",
    version="DeepSpeed 0.16 to 0.18 (2025), docs/_pages/config-json.md",
    suffix=".json",
    write=write,
    render=render,
    parse=parse,
    read=read,
    silent=lambda scenario: ("model", "training.sequence"),
)
