"""Measured steps as a fit sees them: what each asks of the workers, and how long it took."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from mpsim.cost.work import Floats, Ints
from mpsim.cost.worker import StepDemand, step_demand, step_facts
from mpsim.errors import CalibrationError, MpsimError
from mpsim.schedule.lowering import lower
from mpsim.schedule.text import order_of, read_csv
from mpsim.spec.model import Network, Transformer
from mpsim.spec.plan import PlanSpec, TrainingSpec
from mpsim.spec.scenario import ModelField
from mpsim.workload.build import build_layers
from mpsim.workload.layers import Layer
from mpsim.workload.partition import assign, partition

QUIET = 0.25
"""Quantile of a step's samples that counts as its time: other work on a machine only lengthens."""

_MODEL: TypeAdapter[Any] = TypeAdapter(ModelField)
_LOSSES = ("softmax", "cross_entropy", "binary_cross_entropy", "mse")


@dataclass(frozen=True, eq=False)
class Cell:
    """A measured step. Letters: K kinds of ops timed."""

    name: str
    asked: StepDemand
    seconds: float  # s of the step, undisturbed
    spread: float  # of its samples, relative
    rows: Ints  # (K,) passes timed, as ``asked.passes`` has them
    row_seconds: Floats  # (K,) s of their own work
    updates: Floats  # (P,) s of each worker's update; nan where not timed
    messages: Mapping[str, float]  # SEND, RECEIVE → s of the host
    facts: Mapping[str, float]  # microbatches, stages, rows, width, message


def read_cells(path: Path) -> list[Cell]:
    """The cells of ``steps.jsonl``; rounds of one cell are joined.

    A last line without its end, which an interruption cut off, is left out.

    Raises:
        CalibrationError: If a record is none of a step, or has times that cannot be, with its line.
    """
    rounds: dict[str, list[dict[str, Any]]] = {}
    lines = _text(path).splitlines(keepends=True)
    for line, text in enumerate(lines, 1):
        try:
            record = json.loads(text)
            name = str(record["id"]).partition(" round ")[0]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            if line == len(lines) and not text.endswith("\n"):
                break
            what = _said(error)
            raise CalibrationError(f"{path}: line {line}: no record of a step: {what}") from None
        if wrong := _impossible(record):
            raise CalibrationError(f"{path}: line {line}: {wrong}")
        rounds.setdefault(name, []).append(record)
    found = []
    for name, records in rounds.items():
        try:
            found.append(_cell(name, records))
        except (MpsimError, ValidationError, KeyError, TypeError, ValueError) as error:
            raise CalibrationError(f"{path}: '{name}' is no step to fit: {_said(error)}") from None
    return found


def _said(error: Exception) -> str:
    """What an error says; a key that is missing says so."""
    return f"there is no {error}" if isinstance(error, KeyError) else str(error)


def _text(path: Path) -> str:
    """The text of a file of records."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise CalibrationError(f"{path}: is not text (UTF-8)") from None


def _impossible(record: Mapping[str, Any]) -> str:
    """The field of a record whose times cannot be, and why; empty if none is.

    A step takes time; an op may take less than its clock tells, which is zero.
    """
    steps, ops = record.get("step_times_s", [1.0]), record.get("op_seconds", {})
    if not isinstance(steps, list) or not steps:
        return "step_times_s must be a list of seconds, one at least"
    if not isinstance(ops, dict):
        return "op_seconds must be seconds by kind of op, as {0F: 0.001}"
    timed = [(f"step_times_s.{index}", value, True) for index, value in enumerate(steps)]
    timed += [(f"op_seconds.{kind}", value, False) for kind, value in ops.items()]
    for field, value, positive in timed:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or value < 0 or (positive and value == 0):
            least = "more than zero" if positive else "zero or more"
            return f"{field} must be a number of seconds, {least}, not {value!r}"
    return ""


def _cell(name: str, records: Sequence[Mapping[str, Any]]) -> Cell:
    """A cell from its records."""
    first = records[0]
    asked, stages = ask(
        _MODEL.validate_python(first["mpsim_model"]),
        first["layer_counts"],
        first["order"],
        batch=int(first["training"]["global_batch"]),
        microbatch=int(first["training"]["microbatch"]),
        sequence=int(first["training"]["sequence"]),
    )
    samples = np.concatenate([record["step_times_s"] for record in records])
    timed = _least(records)
    rows, seconds = _rows(timed, asked)
    middle = float(np.median(samples))
    return Cell(
        name,
        asked,
        seconds=float(np.quantile(samples, QUIET)),
        spread=float(1.4826 * np.median(np.abs(samples - middle)) / middle),
        rows=rows,
        row_seconds=seconds,
        updates=_updates(timed, asked),
        messages=_messages(timed),
        facts=step_facts(asked, stages),
    )


def ask(
    model: Network | Transformer,
    counts: Sequence[int],
    order: str,
    *,
    batch: int,
    microbatch: int,
    sequence: int,
) -> tuple[StepDemand, list[Sequence[Layer]]]:
    """What a pipeline step of torch's runtime asks, and the layers of its stages.

    Args:
        model: What is trained, with plain gradient descent in fp32.
        counts: Layers of each stage, the embedding and the head of a transformer counted, a loss
            not.
        order: Text of the schedule.
        batch: Samples of a step.
        microbatch: Samples of a microbatch.
        sequence: Tokens of a sample.
    """
    compiled = order_of(read_csv(order + "\n"), name="order")
    own = list(counts)
    if isinstance(model, Transformer):
        own[0], own[-1] = own[0] - 1, own[-1] - 1
    elif model.network[-1].type in _LOSSES and sum(own) < len(model.network):
        own[-1] += 1
    plan = PlanSpec(
        pipeline=compiled.num_devices, chunks=len(own) // compiled.num_devices, partition=own
    )
    training = TrainingSpec(
        global_batch=batch,
        microbatch=microbatch,
        sequence=sequence,
        precision="fp32",
        optimizer="sgd",
        framework="torch",
    )
    layers = build_layers(model, plan, training)
    stages: list[Sequence[Layer]] = list(assign(layers, partition(layers, len(own), how=own)))
    graph = lower(compiled, barrier=False)
    return step_demand(graph, stages, order=compiled), stages


def _least(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Seconds of each kind of op, the least of the rounds."""
    found: dict[str, float] = {}
    for record in records:
        for kind, seconds in record["op_seconds"].items():
            found[kind] = min(float(seconds), found.get(kind, np.inf))
    return found


def _rows(timed: Mapping[str, float], asked: StepDemand) -> tuple[Ints, Floats]:
    """Passes that were timed, and their seconds; passes that do nothing are left out."""
    rows, seconds = [], []
    for text, value in timed.items():
        letter = text.lstrip("0123456789")
        if letter in ("F", "B", "I", "W"):
            stage = int(text.removesuffix(letter))
            row = 4 * stage + ("F", "B", "I", "W").index(letter)
            if not asked.passes.empty[row] and value > 0:
                rows.append(row)
                seconds.append(value)
    return np.array(rows, np.int32), np.array(seconds)


def _updates(timed: Mapping[str, float], asked: StepDemand) -> Floats:
    """Seconds of each worker's update, the scaling of its stages' gradients included."""
    graph = asked.graph
    found = np.full(graph.num_devices, np.nan)
    for device in range(graph.num_devices):
        stages = np.unique(graph.stage[(graph.device == device) & (asked.row >= 0)])
        parts = [timed.get(f"{stage}REDUCE_GRAD", 0.0) for stage in stages]
        if timed.get(f"{device}STEP", 0.0) > 0:
            found[device] = timed[f"{device}STEP"] + sum(parts)
    return found


def _messages(timed: Mapping[str, float]) -> dict[str, float]:
    """Host seconds to begin a message, medians over the stages."""
    found = {}
    for name in ("SEND", "RECV"):
        values = [
            value
            for text, value in timed.items()
            if text.lstrip("0123456789") in (f"{name}_F", f"{name}_B") and value > 0
        ]
        if values:
            found[name] = float(np.median(values))
    return found
