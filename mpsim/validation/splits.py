"""Numbers of a split that a record leaves open, where arithmetic leaves one sensible choice."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from mpsim.spec.zoo import load_entry
from mpsim.units import parse
from mpsim.validation.devices import device_of
from mpsim.validation.generation import framework_of
from mpsim.validation.records import Record
from mpsim.validation.wording import names

_BRIDGE = re.compile(r"\b(Megatron-Bridge|NeMo)\b", re.IGNORECASE)
Stated = TypeVar("Stated")
"""Type of a value that a record may state."""


@dataclass
class Assumptions:
    """Names of what a record leaves open and how it was filled, in order."""

    texts: list[str] = field(default_factory=list)

    def default(self, path: str, value: Stated | None, guess: Stated) -> Stated:
        """The value, or the guess, noted, where the record has none."""
        if value is not None:
            return value
        self.texts.append(f"{path} = {guess}")
        return guess


def degrees_of(record: Record, notes: Assumptions) -> dict[str, int]:
    """The four degrees; open ones filled by data up to the batch, tensor up to the node, context.

    Before that tensor and pipeline are raised, where open, until the model's state is held.

    A data degree above the number of microbatches cannot be what was run (its source derived it
    from the device count): the excess is moved to context, which keeps devices and batch.
    """
    plan, training = record.plan, record.training
    known = {name: getattr(plan, name) for name in ("tensor", "pipeline", "context", "data")}
    rest = record.cluster.devices
    for degree in known.values():
        rest //= degree or 1
    sequences = max(1, (training.global_batch or rest) // (training.microbatch or 1))
    caps = {
        "pipeline": 1,
        "data": _divisor(sequences, rest),
        "tensor": _divisor(record.model.heads, record.cluster.devices_per_node),
        "context": rest,
    }
    for name, degree in _least_that_holds(record, rest, caps["tensor"]).items():
        known[name] = degree
        rest //= degree
        notes.texts.append(f"plan.{name} = {degree}")
    free = [name for name in caps if known[name] is None]
    for name in free:
        known[name] = rest if name == free[-1] else _divisor(rest, caps[name])
        rest //= known[name]
        notes.texts.append(f"plan.{name} = {known[name]}")
    data = _divisor(known["data"], sequences)
    if data < known["data"] and training.global_batch and training.global_batch < known["data"]:
        known["context"] *= known["data"] // data
        known["data"] = data
        notes.texts.append(f"plan.data = {data}, plan.context = {known['context']}")
    return known


def _least_that_holds(record: Record, rest: int, most: int) -> dict[str, int]:
    """Tensor, then pipeline degree, where open, until weights and their state fit the devices.

    The state is 16 B for a parameter (arXiv:1910.02054, section 3.1), 6 and 4 B where the
    optimizer's part, and the gradients, are sharded, a share where all is; a half of the device is
    left to activations. What would fit without either stays open.
    """
    plan = record.plan
    device, _ = device_of(record.cluster, plan.precision or "bf16", [])
    memory = parse(str(load_entry("devices", device)["memory"]), "B")
    zero = int(framework_of(record) == "megatron") if plan.zero is None else plan.zero
    each = max((16.0, 6.0, 4.0, 0.0)[zero], 16.0 / record.cluster.devices)
    expert = plan.expert or math.gcd(record.model.experts or 1, rest)
    pieces = each * _parameters(record, expert) / (memory / 2)
    pieces /= (plan.tensor or 1) * (plan.pipeline or 1)
    if pieces <= 1:
        return {}
    found: dict[str, int] = {}
    if plan.tensor is None:
        found["tensor"] = _divisor_from(pieces, math.gcd(most, rest))
        pieces, rest = pieces / found["tensor"], rest // found["tensor"]
    if plan.pipeline is None and pieces > 1:
        across = rest * (plan.tensor or found["tensor"])  # what a stated expert degree must divide
        limit = math.gcd(rest, across // math.gcd(across, plan.expert or 1))
        found["pipeline"] = _divisor_from(pieces, math.gcd(record.model.layers, limit))
    return found


def _parameters(record: Record, expert: int) -> float:
    """Parameters of which each expert-parallel device holds its own, those of experts divided.

    As the source prints them; else 4 h² + 2 or 3 h · ffn a layer, and the table.
    """
    model = record.model
    matrices = (2 if model.family == "gpt" else 3) * model.hidden * model.layers
    dense = 4.0 * model.hidden**2 * model.layers + model.hidden * (model.vocab or 50_000)
    if not model.experts:
        return model.parameters or dense + matrices * (model.ffn or 4 * model.hidden)
    routed = float(matrices * (model.expert_ffn or model.ffn or model.hidden) * model.experts)
    routed = min(routed, model.parameters or routed)
    return (model.parameters - routed if model.parameters else dense) + routed / expert


def _divisor_from(least: float, number: int) -> int:
    """The smallest divisor of a number that is not below ``least``; the number if none is."""
    return next(n for n in range(1, number + 1) if number % n == 0 and (n >= least or n == number))


def _divisor(number: int, limit: int) -> int:
    """The largest divisor of a number that does not exceed a limit."""
    return next(n for n in range(min(number, max(limit, 1)), 0, -1) if number % n == 0)


def chunks_of(record: Record, pipeline: int, notes: Assumptions) -> int:
    """Virtual stages of a device; where not stated, the fewest that the schedule can have."""
    plan, layers = record.plan, record.model.layers
    if plan.chunks is not None:
        return plan.chunks
    if plan.stage_layers and len(plan.stage_layers) % pipeline == 0:
        return len(plan.stage_layers) // pipeline
    if plan.schedule in ("zb_v", "v_half", "v_min"):
        return 2
    if plan.schedule != "interleaved_1f1b":
        return 1
    even = [n for n in range(2, layers // pipeline + 1) if layers % (pipeline * n) == 0]
    guess = even[0] if even else 2
    notes.texts.append(f"plan.chunks = {guess}")
    return guess


def expert_of(record: Record, degrees: Mapping[str, int], notes: Assumptions) -> int:
    """The expert degree; where not stated, as many as experts and ranks allow."""
    experts = record.model.experts
    if not experts:
        return 1
    ranks = degrees["data"] * degrees["context"] * degrees["tensor"]
    return int(notes.default("plan.expert", record.plan.expert, math.gcd(experts, ranks)))


def expert_tensor_of(record: Record, degrees: Mapping[str, int], notes: Assumptions) -> int:
    """The tensor degree of the experts; where not stated, the layers' own, as in Megatron.

    (arguments.py: --expert-tensor-parallel-size.) Megatron-Bridge's recipes set 1, FSDP cuts no
    experts, and where as many experts as stated leave no devices for it there is none.
    """
    if not record.model.experts:
        return 1
    plan, tensor = record.plan, degrees["tensor"]
    ranks = degrees["data"] * degrees["context"] * tensor
    bridge = names(_BRIDGE, record) or (plan.zero or 0) >= 2
    fits = ranks % ((plan.expert or 1) * tensor) == 0
    guess = tensor if fits and not bridge else 1
    return notes.default("plan.expert_tensor", plan.expert_tensor, guess)


def partition_of(record: Record, stages: int, notes: Assumptions) -> str | list[int]:
    """Layers of each stage; where they do not divide, embedding and head count as one layer each.

    The first and last stage give up their part of the two, and what still remains goes one each to
    the stages from the front.
    """
    plan, layers = record.plan, record.model.layers
    if plan.stage_layers is not None and len(plan.stage_layers) == stages:
        return list(plan.stage_layers)
    if layers % stages == 0:
        return "layers"
    share, more = divmod(layers + 2, stages)
    counts = [share + (stage < more) for stage in range(stages)]
    counts[0] -= 1
    counts[-1] -= 1
    notes.texts.append(f"plan.partition = {counts}")
    return counts
