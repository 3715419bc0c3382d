"""torchtitan: a scenario as its job configuration, and a job configuration as a scenario."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from mpsim.errors import ScenarioError
from mpsim.planner.launchers.fields import model_fields, stage_layers
from mpsim.planner.launchers.formats import Given, Launcher, Tree, data_degree
from mpsim.planner.launchers.options import Options
from mpsim.planner.launchers.torchtitan_text import parse, render
from mpsim.spec.model import Transformer
from mpsim.spec.scenario import Scenario
from mpsim.spec.zoo import load_entry
from mpsim.workload.partition import equal_counts

FLAVORS: dict[tuple[str, str], Tree] = {
    ("llama3", "8B"): {"base": "llama3-8b"},
    ("llama3", "70B"): {"base": "llama3-70b"},
    ("llama3", "405B"): {"base": "llama3.1-405b"},
    ("qwen3", "0.6B"): {"base": "qwen3-0.6b"},
    ("qwen3", "1.7B"): {"base": "qwen3-1.7b"},
    ("qwen3", "4B"): {"base": "qwen3-4b"},
    ("qwen3", "8B"): {"base": "qwen3-8b"},
    ("qwen3", "14B"): {"base": "qwen3-14b"},
    ("qwen3", "32B"): {"base": "qwen3-32b"},
    ("qwen3", "30B-A3B"): {"base": "qwen3-30b-a3b"},
    ("deepseek_v3", "16B"): {"base": "deepseek-v2-lite"},
    ("deepseek_v3", "236B"): {"base": "deepseek-v2"},
    ("deepseek_v3", "671B"): {"base": "deepseek-v3", "mtp_layers": 0},
}
"""torchtitan's (name, flavor) → the model of the zoo with the same dimensions."""

SCHEDULES = {
    "gpipe": "GPipe",
    "1f1b": "1F1B",
    "interleaved_1f1b": "Interleaved1F1B",
    "looped_bfs": "LoopedBFS",
    "interleaved_zb": "InterleavedZeroBubble",
    "zb_v": "ZBVZeroBubble",
    "dualpipe_v": "DualPipeV",
}
"""mpsim's name → torch.distributed.pipelining's."""

_SINGLE = ("gpipe", "1f1b")
_EXCHANGES = {"all_gather": "allgather", "ring": "alltoall"}
_CONVERTERS = {"fp8": "quantize.linear.float8", "mxfp8": "quantize.linear.mx"}
_OLD_CONVERTERS = {"float8": "fp8", "mx": "mxfp8"}
_TYPES = {"bf16": "bfloat16", "fp32": "float32"}
_BUCKET = 100 * 2**20
"""bucket_cap_mb that torchtitan gives to its replicas, torchtitan/models/llama3/infra."""


def write(scenario: Scenario) -> Mapping[str, Any]:
    """Entries of the job configuration that realises a scenario."""
    plan, training = scenario.plan, scenario.training
    name, flavor = _flavor_of(scenario)
    staged = plan.pipeline > 1
    share = training.global_batch // plan.data
    return {
        "model.name": name,
        "model.flavor": flavor,
        "model.converters": [
            word for kind, word in _CONVERTERS.items() if kind == training.precision
        ]
        or None,
        "optimizer.name": "AdamW",
        "training.local_batch_size": share if staged else training.microbatch,
        "training.global_batch_size": training.global_batch,
        "training.seq_len": training.sequence,
        "training.max_norm": 1.0 if training.gradient_clipping else math.inf,
        "training.dtype": _TYPES.get(training.stored_type, "float32"),
        "training.mixed_precision_param": (
            "float32" if training.precision in ("fp32", "tf32") else "bfloat16"
        ),
        "training.mixed_precision_reduce": "float32",
        "training.enable_cpu_offload": {"optimizer", "weights"} <= set(plan.offload),
        **_write_parallelism(scenario),
        **_write_recompute(scenario),
        "compile.enable": plan.fused,
    }


def _flavor_of(scenario: Scenario) -> tuple[str, str]:
    """Name and flavor of the model with these dimensions; mpsim's own name where there is none."""
    sequence = scenario.training.sequence
    meant = model_fields(scenario.model, sequence=sequence)
    for pair, tree in FLAVORS.items():
        entry = load_entry("models", tree["base"]) | {k: v for k, v in tree.items() if k != "base"}
        if meant == model_fields(Transformer.model_validate(entry), sequence=sequence):
            return pair
    return scenario.model.name, "custom"


def silent(scenario: Scenario) -> list[str]:
    """The model, where torchtitan has no flavor of its dimensions."""
    return [] if _flavor_of(scenario) in FLAVORS else ["model"]


def _write_parallelism(scenario: Scenario) -> Mapping[str, Any]:
    plan = scenario.plan
    group = (plan.zero_group or plan.data) if plan.zero else 1
    shard = group if plan.data % group == 0 else 1
    entries: dict[str, Any] = {
        "data_parallel_replicate_degree": plan.data // shard,
        "data_parallel_shard_degree": shard,
        "fsdp_reshard_after_forward": "always" if plan.zero == 3 else "never",
        "tensor_parallel_degree": plan.tensor,
        "enable_async_tensor_parallel": plan.overlap_tensor and plan.tensor > 1,
        "context_parallel_degree": plan.context,
        "context_parallel_rotate_method": _EXCHANGES.get(plan.context_exchange, "allgather"),
        "expert_parallel_degree": plan.expert,
        "expert_tensor_parallel_degree": plan.expert_tensor or plan.tensor,
        "pipeline_parallel_degree": plan.pipeline,
    }
    if plan.pipeline > 1:
        counts = stage_layers(scenario) or equal_counts(scenario.layer_count, plan.stages)
        default = "1f1b" if plan.chunks == 1 else "interleaved_1f1b"
        entries |= {
            "pipeline_parallel_schedule": SCHEDULES.get(plan.schedule, SCHEDULES[default]),
            "pipeline_parallel_microbatch_size": scenario.training.microbatch,
            "module_fqns_per_model_part": _parts(counts),
        }
    return {f"parallelism.{name}": value for name, value in entries.items()}


def _parts(counts: list[int]) -> list[list[str]]:
    """Names of the modules of each stage."""
    stops = [sum(counts[: index + 1]) for index in range(len(counts))]
    parts = [
        [f"layers.{i}" for i in range(stop - count, stop)]
        for count, stop in zip(counts, stops, strict=True)
    ]
    parts[0].insert(0, "tok_embeddings")
    parts[-1] += ["norm", "output"]
    return parts


def _write_recompute(scenario: Scenario) -> Mapping[str, Any]:
    """Whole layers, every n-th layer, or torchtitan's own choice of operations."""
    plan = scenario.plan
    layers, some = scenario.layer_count // plan.stages, plan.recompute_layers
    if plan.recompute == "full" and some and some < layers and layers % some == 0:
        mode, option = "selective", str(layers // some)
    else:
        mode, option = plan.recompute, "op"
    return {
        "activation_checkpoint.mode": mode,
        "activation_checkpoint.selective_ac_option": option if mode == "selective" else None,
    }


def read(options: Options, given: Given) -> Tree:
    """Model, plan and training of a job configuration.

    Raises:
        ScenarioError: If the model is not known, or degrees contradict each other.
    """
    model = _read_model(options, given)
    layers = _layers(model)
    plan = _read_plan(options, given, layers=layers)
    training = _read_training(options, plan)
    plan |= _read_recompute(options, layers // (plan["pipeline"] * plan["chunks"]))
    return {"model": model, "plan": plan, "training": training}


def _read_model(options: Options, given: Given) -> Any:  # noqa: ANN401  (a name or fields)
    pair = str(options.raw("model.name", "")), str(options.raw("model.flavor", ""))
    if given.model is not None:
        return given.model
    if pair not in FLAVORS:
        known = ", ".join(f"{name} {flavor}" for name, flavor in FLAVORS)
        raise ScenarioError(
            "model.flavor",
            f"the dimensions of '{pair[0]} {pair[1]}' are not known (known: {known}); "
            "name the model with --model",
        )
    return dict(FLAVORS[pair])


def _layers(model: Any) -> int:  # noqa: ANN401  (a name or fields)
    """Layers of a model by name, by base, or by fields."""
    name = model if isinstance(model, str) else model.get("base")
    tree = load_entry("models", name) if name else {}
    if not isinstance(model, str):
        tree = tree | model
    return int(tree.get("layers") or len(tree.get("network", ())) or 1)


def _read_plan(options: Options, given: Given, *, layers: int) -> Tree:
    names = {"tensor": "tensor", "pipeline": "pipeline", "context": "context"}
    degrees = {
        axis: options.count(f"parallelism.{word}_parallel_degree") for axis, word in names.items()
    }
    replicas = options.count("parallelism.data_parallel_replicate_degree")
    shard = options.count("parallelism.data_parallel_shard_degree", -1, least=-1)
    if shard == 0:
        raise ScenarioError(
            "parallelism.data_parallel_shard_degree", "0 is neither -1 nor a degree"
        )
    if shard == -1:
        shard = data_degree(options, given, others={**degrees, "replicas": replicas})
    data, staged = replicas * shard, degrees["pipeline"] > 1
    zero = _zero(options, shard=shard, staged=staged)
    offloaded = options.flag("training.enable_cpu_offload")
    exchange = options.choice(
        "parallelism.context_parallel_rotate_method", "allgather", _EXCHANGES.values()
    )
    experts = options.count("parallelism.expert_tensor_parallel_degree")
    stages = _read_stages(options, pipeline=degrees["pipeline"], layers=layers) if staged else {}
    return {
        **degrees,
        "data": data,
        "zero": zero,
        **({"zero_group": shard} if zero and replicas > 1 else {}),
        "sequence_parallel": degrees["tensor"] > 1,
        "overlap_tensor": options.flag("parallelism.enable_async_tensor_parallel"),
        "context_exchange": next(k for k, word in _EXCHANGES.items() if word == exchange),
        "expert": options.count("parallelism.expert_parallel_degree"),
        **({"expert_tensor": experts} if experts != degrees["tensor"] else {}),
        "fused": options.flag("compile.enable", default=options.flag("training.compile")),
        "offload": ["optimizer", "weights"] if offloaded else [],
        **({"bucket": f"{_BUCKET} B"} if not zero and data > 1 else {}),
        "chunks": 1,
        **stages,
    }


def _zero(options: Options, *, shard: int, staged: bool) -> int:
    """ZeRO stage: parameters stay gathered after the forward pass in 2, not in 3."""
    allowed = ("default", "always", "never")
    policy = options.choice("parallelism.fsdp_reshard_after_forward", "default", allowed)
    if shard == 1:
        return 0
    gathered = policy == "never" or (policy == "default" and staged)
    return 2 if gathered else 3


def _read_stages(options: Options, *, pipeline: int, layers: int) -> Tree:
    """Schedule, chunks and the layers of each stage."""
    words = {word: name for name, word in SCHEDULES.items()}
    by_case = {word.lower(): word for word in words}
    given = str(options.raw("parallelism.pipeline_parallel_schedule", "1F1B"))
    word = by_case.get(given.lower())
    if word is None:
        raise ScenarioError(
            "parallelism.pipeline_parallel_schedule",
            f"'{given}' is not one of {', '.join(words)}",
        )
    schedule = words[word]
    counts = _stage_counts(options, pipeline=pipeline, layers=layers, single=schedule in _SINGLE)
    if len(counts) % pipeline or sum(counts) != layers:
        raise ScenarioError(
            "parallelism.module_fqns_per_model_part",
            f"{len(counts)} stages of {sum(counts)} layers do not make a pipeline of {pipeline} "
            f"devices and {layers} layers",
        )
    even = counts == equal_counts(layers, len(counts))
    return {
        "schedule": schedule,
        "chunks": len(counts) // pipeline,
        "partition": "layers" if even else counts,
    }


def _stage_counts(options: Options, *, pipeline: int, layers: int, single: bool) -> list[int]:
    """Layers of each stage: as listed, or dealt as torchtitan does.

    Embedding and head weigh as many layers as ``…_less_layers`` say; a remainder goes to the first
    stages (torchtitan/distributed/pipeline_parallel.py).
    """
    parts = options.raw("parallelism.module_fqns_per_model_part")
    each = options.maybe("parallelism.pipeline_parallel_layers_per_stage")
    first = options.count("parallelism.pipeline_parallel_first_stage_less_layers", least=0)
    last = options.count("parallelism.pipeline_parallel_last_stage_less_layers", least=0)
    if parts is not None:
        if not (isinstance(parts, list) and all(isinstance(part, list) for part in parts)):
            raise ScenarioError("parallelism.module_fqns_per_model_part", "expected lists of names")
        return [sum(str(name).startswith("layers.") for name in part) for part in parts]
    weight = layers + first + last
    stages = -(-weight // each) if each else pipeline * (1 if single else 2)
    counts = [weight // stages + (index < weight % stages) for index in range(stages)]
    counts[0] -= first
    counts[-1] -= last
    if min(counts) < 0:
        raise ScenarioError(
            "parallelism.pipeline_parallel_degree",
            f"{stages} stages are too many for {layers} layers",
        )
    return counts


def _read_training(options: Options, plan: Tree) -> Tree:
    local = options.count("training.local_batch_size", 8)
    batch = options.count("training.global_batch_size", -1, least=-1)
    micro = options.count("parallelism.pipeline_parallel_microbatch_size")
    batch = local * plan["data"] if batch < 1 else batch
    if plan["pipeline"] > 1 and batch != local * plan["data"]:
        options.assume("training.microbatch: accumulation over pipeline passes is read as one pass")
    stored = options.choice("training.dtype", "float32", _TYPES.values())
    options.choice("training.mixed_precision_reduce", "float32", _TYPES.values())
    name = str(options.raw("optimizer.name", "AdamW"))
    if name not in ("Adam", "AdamW"):
        options.assume(f"training.optimizer = adam: mpsim does not know '{name}'")
    norm = options.number("training.max_norm", 1.0)
    return {
        "global_batch": batch,
        "microbatch": micro if plan["pipeline"] > 1 else local,
        "sequence": options.count("training.seq_len", 2048),
        "precision": _precision(options),
        "parameter_type": next(kind for kind, word in _TYPES.items() if word == stored),
        "gradient_type": "fp32",
        "optimizer": "adam",
        "master_weights": False,
        "gradient_clipping": 0 < norm < math.inf,
        "framework": "fsdp" if plan["zero"] else "torch",
    }


def _precision(options: Options) -> str:
    converters = options.raw("model.converters", [])
    words = {word: kind for kind, word in _CONVERTERS.items()} | _OLD_CONVERTERS
    found = [words[word] for word in converters if word in words]
    strange = [str(word) for word in converters if word not in words]
    if strange:
        options.assume(f"model.converters: {', '.join(strange)} is not simulated")
    mixed = options.choice("training.mixed_precision_param", "bfloat16", _TYPES.values())
    if found:
        return found[0]
    return next(kind for kind, word in _TYPES.items() if word == mixed)


def _read_recompute(options: Options, layers: int) -> Tree:
    """Recomputation; ``layers`` are those of a stage."""
    mode = options.choice("activation_checkpoint.mode", "selective", ("none", "selective", "full"))
    option = str(options.raw("activation_checkpoint.selective_ac_option", "2"))
    if mode != "selective":
        return {"recompute": mode}
    if option.isdigit() and int(option) > 0:
        return {"recompute": "full", "recompute_layers": max(1, layers // int(option))}
    options.assume(
        "plan.recompute = selective of layernorm and moe_act: torchtitan's 'op' keeps attention "
        "and every second matrix product, for which mpsim has no words"
    )
    return {"recompute": "selective", "recompute_modules": ["layernorm", "moe_act"]}


TORCHTITAN = Launcher(
    name="torchtitan",
    version="torchtitan 0.2 (October 2025), the last with TOML: torchtitan/config/job_config.py",
    suffix=".toml",
    write=write,
    render=render,
    parse=parse,
    read=read,
    silent=silent,
)
