"""Measured training runs: the declaration of one record, and reading files of them.

A file holds one JSON object a line; ``docs/record-format.md`` describes it. Reading is strict:
an unknown key, a value of another type, a name that is not listed or a number that cannot be is a
problem of that line, with its id, and the other lines are read on.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mpsim.errors import ScenarioError, did_you_mean
from mpsim.spec.cluster import Precision

Count = Annotated[int, Field(ge=1, le=10**12)]
CountOrZero = Annotated[int, Field(ge=0, le=10**12)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
GradientType = Literal["fp32", "fp16", "bf16"]


class _Part(BaseModel):
    """A frozen part of a record: unknown keys and other types are refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True
    )


class RecordedModel(_Part):
    """The model that was trained."""

    name: str
    """What the source calls it."""
    family: Literal["gpt", "llama", "moe", "mla", "mamba_hybrid", "other"]
    """Ungated MLP, gated MLP, mixture of experts, latent attention, or not covered."""
    layers: Count
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


class RecordedCluster(_Part):
    """The devices and links that it ran on."""

    device: str
    """Canonical id of the device, or ``mixed``."""
    device_note: str | None = None
    """Free text on the device; names the kinds where they are mixed."""
    devices: Count
    """Devices of the run."""
    devices_per_node: Count
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
    inter_node_gbit_s_per_device: Positive | None = None
    """Its rate for one device and direction, Gbit/s."""


class RecordedPlan(_Part):
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

    @property
    def degrees(self) -> tuple[int | None, int | None, int | None, int | None]:
        """Tensor, pipeline, context and data degree."""
        return self.tensor, self.pipeline, self.context, self.data


class RecordedTraining(_Part):
    """Batch and sequence."""

    global_batch: Count | None = None
    """Sequences of a step."""
    microbatch: Count | None = None
    """Sequences of a microbatch."""
    sequence: Count
    """Tokens of a sequence."""


class Measured(_Part):
    """What was measured."""

    step_time_s: Positive | None = None
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


class Record(_Part):
    """One measured training run."""

    id: Annotated[str, Field(min_length=1)]
    """Unique name."""
    source: str = "own"
    """Key of the publication or campaign."""
    where: str | None = None
    """Publication, table, repository."""
    model: RecordedModel
    """The model."""
    cluster: RecordedCluster
    """The devices."""
    plan: RecordedPlan = RecordedPlan()
    """The split."""
    training: RecordedTraining
    """Batch and sequence."""
    measured: Measured
    """What was measured."""
    unknown: list[str] = Field(default_factory=list)
    """Dotted paths of values that the source does not state."""
    completeness: Literal["full", "partial"] = "full"
    """Whether the source states all inputs of a prediction."""
    trust: Literal["high", "medium", "low"] = "high"
    """Of the measured number."""
    notes: str = ""
    """Free text."""

    @model_validator(mode="after")
    def _degrees(self) -> Self:
        """The degrees must multiply to the devices; stage layers must sum to the layers."""
        product = math.prod(degree or 1 for degree in self.plan.degrees)
        whole = None not in self.plan.degrees
        devices = self.cluster.devices
        if (whole and product != devices) or devices % product:
            raise ValueError(f"plan: the degrees give {product} devices, the cluster has {devices}")
        stages = self.plan.stage_layers
        if stages is not None and sum(stages) != self.model.layers:
            raise ValueError(
                f"plan.stage_layers: sum to {sum(stages)}, the model has {self.model.layers} layers"
            )
        return self


@dataclass(frozen=True)
class Problem:
    """A line that is no record.

    Attributes:
        where: File and line.
        id: The record's id, where it could be read.
        what: What is wrong.
    """

    where: str
    id: str
    what: str

    def __str__(self) -> str:
        """File, line, id and complaint on one line."""
        return f"{self.where}{f' ({self.id})' if self.id else ''}: {self.what}"


def record_files(paths: Iterable[Path]) -> list[Path]:
    """The files of records behind files and folders.

    Of a folder, every ``*.jsonl`` whose first line is an object with a ``model``; that leaves out
    lists of series.

    Raises:
        ScenarioError: If a path does not exist or a folder holds no records.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = [file for file in sorted(path.glob("*.jsonl")) if _holds_records(file)]
            if not inside:
                raise ScenarioError(str(path), "holds no *.jsonl file of measured-run records")
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise ScenarioError(str(path), "no such file or folder of measured-run records")
    return found


def read_records(paths: Iterable[Path]) -> tuple[list[Record], list[Problem]]:
    """The records of files and folders, and the lines that are none.

    Args:
        paths: JSON-lines files, or folders of them.

    Raises:
        ScenarioError: If a path cannot be read at all.
    """
    records: list[Record] = []
    problems: list[Problem] = []
    seen: dict[str, str] = {}
    for path in record_files(paths):
        for number, line in enumerate(_lines(path), start=1):
            if not line.strip():
                continue
            where = f"{path.name}:{number}"
            item = parse_record(line, where=where)
            if isinstance(item, Record) and item.id in seen:
                item = Problem(where, item.id, f"the id stands already in {seen[item.id]}")
            if isinstance(item, Problem):
                problems.append(item)
            else:
                seen[item.id] = where
                records.append(item)
    return records, problems


def parse_record(line: str, *, where: str = "record") -> Record | Problem:
    """The record of one line, or what is wrong with it.

    >>> str(parse_record('{"id": "x", ', where="runs.jsonl:3"))[:26]
    'runs.jsonl:3: is not JSON:'
    """
    try:
        tree = json.loads(line, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        return Problem(where, "", f"is not JSON: {error}")
    if not isinstance(tree, dict):
        return Problem(where, "", "is not a JSON object")
    name = tree.get("id") if isinstance(tree.get("id"), str) else ""
    try:
        return Record.model_validate(tree)
    except ValidationError as error:
        return Problem(where, str(name), "; ".join(_complaints(error)))


def value_at(tree: Mapping[str, Any], path: str) -> Any:  # noqa: ANN401  (whatever stands there)
    """The value at a dotted path of a record's tree; a top-level ``gpu`` is the device.

    Raises:
        ScenarioError: If records have no such field.
    """
    value: Any = tree
    for part in ("cluster.device" if path == "gpu" else path).split("."):
        if not isinstance(value, dict) or part not in value:
            known = list(value) if isinstance(value, dict) else []
            raise ScenarioError(path, f"records have no such field{did_you_mean(part, known)}")
        value = value[part]
    return value


def _holds_records(file: Path) -> bool:
    """Whether the first line looks like a record rather than a series."""
    first = next((line for line in _lines(file) if line.strip()), "")
    return '"series"' not in first.split(":", 1)[0]


def _lines(path: Path) -> list[str]:
    """The lines of a file."""
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise ScenarioError(str(path), "is not text (UTF-8)") from None


def _refuse(constant: str) -> NoReturn:
    """JSON has no NaN and no infinity, though Python reads them."""
    raise ValueError(f"{constant} is no JSON number")


def _complaints(error: ValidationError) -> list[str]:
    """One text for each complaint of pydantic."""
    texts = []
    for item in error.errors(include_url=False, include_context=False):
        where = ".".join(str(part) for part in item["loc"])
        what = item["msg"].removeprefix("Value error, ")
        if item["type"] == "missing":
            what = "is missing"
        elif item["type"] == "extra_forbidden":
            what = "unknown field"
        elif not isinstance(item["input"], dict | list) and item["type"] != "value_error":
            what = f"{what[0].lower()}{what[1:]}, not {json.dumps(item['input'])}"
        texts.append(f"{where}: {what}" if where else what)
    return texts
