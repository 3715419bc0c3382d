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

from pydantic import Field, ValidationError, model_validator

from mpsim.errors import ScenarioError, did_you_mean
from mpsim.validation.record_parts import (
    Measured,
    Part,
    RecordedCluster,
    RecordedModel,
    RecordedPlan,
    RecordedTraining,
)


class Record(Part):
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
        pipeline, chunks = self.plan.pipeline, self.plan.chunks
        if stages is not None and pipeline and len(stages) % (pipeline * (chunks or 1)):
            raise ValueError(
                f"plan.stage_layers: {len(stages)} stages, the pipeline has {pipeline}"
                + (f" x {chunks}" if chunks else "")
            )
        if stages is not None and sum(stages) != self.model.layers:
            raise ValueError(
                f"plan.stage_layers: sum to {sum(stages)}, the model has {self.model.layers} layers"
            )
        return self

    @model_validator(mode="after")
    def _empty_stages(self) -> Self:
        """A stage without layers holds the embedding, the head, or multi-token prediction.

        That is the first, or one of the last; any other would hold nothing.
        """
        stages = self.plan.stage_layers or []
        inner = stages[1 : len(stages) - 1 - (self.model.mtp_layers or 0)]
        if 0 in inner:
            raise ValueError(
                f"plan.stage_layers: stage {1 + inner.index(0)} holds no layer, and neither "
                "embedding nor head stands there"
            )
        return self

    @model_validator(mode="after")
    def _dense(self) -> Self:
        """A model without experts has none to divide."""
        expert = self.plan.expert or 1
        if expert > 1 and not self.model.experts:
            raise ValueError(f"plan.expert: {expert}, but the model has no experts")
        return self

    @model_validator(mode="after")
    def _batch(self) -> Self:
        """Replicas run whole microbatches, of equal number.

        Only where the source states all three: where it does not, or where there are more replicas
        than sequences, the record holds what its collector derived, and conversion makes the
        numbers meet.
        """
        data, micro = self.plan.data, self.training.microbatch
        batch = self.training.global_batch
        paths = {"plan.data", "training.microbatch", "training.global_batch"}
        stated = self.completeness == "full" and paths.isdisjoint(self.unknown)
        if stated and data and micro and batch and batch >= data and batch % (data * micro):
            raise ValueError(
                f"training.global_batch: {batch} is not divisible by plan.data {data} x "
                f"training.microbatch {micro}"
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
