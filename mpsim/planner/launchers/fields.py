"""A scenario as a flat table of what it means, so that two can be compared field by field.

Defaults that stand for a value are written out (``kv_heads: null`` is as many as heads), and fields
without effect where they stand (``recompute_layers`` without recomputation) are null.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mpsim.planner.launchers.options import flatten
from mpsim.spec.model import ModelSpec, Transformer
from mpsim.spec.plan import TrainingSpec, bucket_nbytes
from mpsim.spec.scenario import Scenario
from mpsim.workload.partition import equal_counts
from mpsim.workload.weights import has_experts

LABELS = ("name", "source", "published_parameters")
"""Fields of a model that describe it and change no prediction."""

Fields = dict[str, Any]


@dataclass(frozen=True)
class Lost:
    """A field that a launcher's file does not express.

    Attributes:
        path: Dotted path of the field.
        meant: What the scenario says.
        got: What a run of the file would have; None where the format says nothing.
    """

    path: str
    meant: object
    got: object

    def __str__(self) -> str:
        """``plan.schedule = zb_h1 (the file has 1f1b)``."""
        has = (
            f"the file has {_text(self.got)}"
            if self.got is not None
            else "the format has no word for it"
        )
        return f"{self.path} = {_text(self.meant)} ({has})"


def _text(value: object) -> str:
    """A value as YAML has it."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return str(value)


def fields_of(scenario: Scenario) -> Fields:
    """Model, plan and training of a scenario by dotted path, in normal form."""
    parts = {
        "model": model_fields(scenario.model, sequence=scenario.training.sequence),
        "plan": _plan(scenario),
        "training": training_fields(scenario.training),
    }
    return {
        f"{part}.{key}": value for part, fields in parts.items() for key, value in fields.items()
    }


def lost_between(meant: Mapping[str, Any], got: Mapping[str, Any]) -> list[Lost]:
    """The fields whose values differ, in the order of the scenario."""
    paths = [*meant, *(path for path in got if path not in meant)]
    return [
        Lost(path, meant.get(path), got.get(path))
        for path in paths
        if meant.get(path) != got.get(path)
    ]


def model_fields(model: ModelSpec, *, sequence: int) -> Fields:
    """A model's fields in normal form, without its labels."""
    fields = flatten({k: v for k, v in model.model_dump().items() if k not in LABELS})
    if not isinstance(model, Transformer):
        return fields
    learned = model.position == "learned"
    fields |= {
        "kv_heads": model.kv_head_count,
        "head_dim": model.head_width,
        "ffn": model.ffn_width,
        "positions": (model.positions or sequence) if learned else None,
        "qkv_bias": model.bias if model.qkv_bias is None else model.qkv_bias,
        "attention_output_bias": (
            model.bias if model.attention_output_bias is None else model.attention_output_bias
        ),
        "norm_bias": model.norm_bias if model.norm == "layernorm" else None,
    }
    if model.latent_attention:  # its own widths replace those of ordinary heads
        fields |= {"kv_heads": None, "head_dim": None}
    if model.experts:
        placement = expert_placement([has_experts(model, i) for i in range(model.layers)])
        fields["experts.dense_layers"], fields["experts.every"] = placement or (model.layers, 1)
        fields["experts.shared_gate"] &= model.experts.shared_ffn > 0
    return fields


def expert_placement(pattern: Sequence[bool]) -> tuple[int, int] | None:
    """Leading dense layers and period of a pattern of layers with experts; None: it has none.

    >>> expert_placement([False, True, True, True]), expert_placement([False, True, False, True])
    ((1, 1), (0, 2))
    >>> expert_placement([True, False, False]) is None
    True
    """
    first = next((index for index, entry in enumerate(pattern) if entry), len(pattern))
    second = next((i for i in range(first + 1, len(pattern)) if pattern[i]), None)
    every = first + 1 if second is None else second - first
    if second is None and first == len(pattern) - 1:
        return first, 1
    lead = first - every + 1 if every > 1 else first
    wanted = [i >= lead and (i + 1) % every == 0 for i in range(len(pattern))]
    return (max(lead, 0), every) if list(pattern) == wanted else None


def _plan(scenario: Scenario) -> Fields:
    plan, fields = scenario.plan, flatten(scenario.plan.model_dump())
    experts = isinstance(scenario.model, Transformer) and scenario.model.experts is not None
    relevant = {
        "expert_tensor": experts,
        "context_exchange": plan.context > 1,
        "zero_group": plan.zero > 0,
        "recompute_layers": plan.recompute == "full",
        "recompute_modules": plan.recompute == "selective",
        "overlap_tensor": plan.tensor > 1,
        "overlap_expert": experts and plan.expert > 1,
        "split": plan.tensor > 1,
        "drain": plan.schedule == "gpipe",
        "slices": plan.schedule in ("seq_1f1b", "terapipe"),
        "memory_limit": plan.schedule == "zb_auto",
        "schedule": plan.pipeline > 1,
        "p2p": plan.pipeline > 1,
        "bucket": plan.data > 1,
        "overlap_data": plan.data > 1,
    }
    fields |= {
        "expert_tensor": plan.expert_tensor or plan.tensor,
        "zero_group": plan.zero_group or plan.data,
        "bucket": bucket_nbytes(plan, scenario.training),
        "recompute_modules": sorted(plan.recompute_modules),
        "offload": sorted(plan.offload),
        "partition": stage_layers(scenario) or plan.partition,
    }
    return {key: value if relevant.get(key, True) else None for key, value in fields.items()}


def stage_layers(scenario: Scenario) -> list[int] | None:
    """Layers of each stage; None where a rule deals them that needs their size or time."""
    plan, layers = scenario.plan, scenario.layer_count
    if isinstance(plan.partition, list):
        return list(plan.partition)
    if plan.partition == "layers" or plan.stages == 1:
        return equal_counts(layers, plan.stages)
    return None


def training_fields(training: TrainingSpec) -> Fields:
    """Fields of the training in normal form."""
    return training.model_dump() | {
        "parameter_type": training.stored_type,
        "gradient_type": training.gradient_type or training.stored_type,
        "master_weights": training.keeps_master_weights,
    }
