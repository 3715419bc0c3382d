"""What layers cost, once for each way of cutting and running them; all other choices share these.

The seconds of a layer depend on the tensor, context and expert degrees, on sequence parallelism,
microbatch and recomputation, and on nothing else that a search varies (sharded parameters of ZeRO-3
apart). So a few hundred *keys* are costed by the very functions that a simulation uses, and kept as
prefix sums over the layers, from which the cost of any stage is one difference.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from mpsim.cost.compiled import machine_of
from mpsim.cost.passes import LayerSeconds, Machine, Parts, layer_seconds
from mpsim.errors import ScenarioError
from mpsim.planner.space import Problem
from mpsim.spec.model import Transformer
from mpsim.spec.plan import PlanSpec, TrainingSpec
from mpsim.workload.build import build_layers
from mpsim.workload.layers import Layer

Floats = NDArray[np.float64]
Whole = NDArray[np.int64]

FIELDS = ("tensor", "sequence_parallel", "context", "expert", "microbatch", "recompute")
"""Axes that make a key."""


@dataclass(frozen=True)
class Key:
    """One way of cutting and running layers."""

    tensor: int
    sequence_parallel: bool
    context: int
    expert: int
    microbatch: int
    recompute: str

    @property
    def cut(self) -> tuple[int, int, int]:
        """What its parameters depend on."""
        return self.tensor, self.context, self.expert


@dataclass(frozen=True, eq=False)
class KeyTable:
    """Costs of K keys over a model of n layers; prefix sums have a leading 0."""

    keys: tuple[Key, ...]  # (K,)
    layers: tuple[tuple[Layer, ...], ...]  # (K,) of n each
    forward: Floats  # (K, n + 1) s, prefix sums, as the next two
    backward_input: Floats  # (K, n + 1) s
    backward_weight: Floats  # (K, n + 1) s
    kept: Floats  # (K, n + 1) B that a microbatch in flight holds, prefix sums
    workspace: Floats  # (K, n) B of temporaries of one layer's passes, the larger
    output: Floats  # (K, n) B of a layer's output
    dense: Floats  # (K, n + 1) parameters that all replicas share, prefix sums
    experts: Floats  # (K, n + 1) parameters of experts, prefix sums
    weights: dict[str, Floats]  # what partitions balance, time and parameters → (K, n)
    refused: dict[str, int] = field(default_factory=dict)  # rule → keys that it removed

    @property
    def num_layers(self) -> int:
        """Layers, n, the embedding and the head among them."""
        return int(self.forward.shape[1]) - 1

    def column(self, name: str) -> Whole:  # (K,)
        """A whole number of each key."""
        return np.array([int(getattr(key, name)) for key in self.keys], np.int64)


def plan_of(plan: PlanSpec, key: Key, **degrees: object) -> PlanSpec:
    """The plan with the fields of a key, and others; nothing is checked again."""
    fields = {name: getattr(key, name) for name in FIELDS if name != "microbatch"}
    return plan.model_copy(update={**fields, **degrees})


def training_of(training: TrainingSpec, key: Key) -> TrainingSpec:
    """The training with the microbatch of a key."""
    return training.model_copy(update={"microbatch": key.microbatch})


def all_keys(problem: Problem) -> Iterator[Key]:
    """The keys of a space, before any rule."""
    for values in itertools.product(*(problem.options(name) for name in FIELDS)):
        yield Key(*values)


def blocks(keys: Iterable[Key], size: int) -> Iterator[list[Key]]:
    """The keys in lists of at most ``size``, so that memory stays bounded."""
    keys = iter(keys)
    while block := list(itertools.islice(keys, size)):
        yield block


def key_table(problem: Problem, keys: Sequence[Key]) -> KeyTable:
    """The costs of some keys; those that cannot cut the model are left out and counted."""
    base = problem.base
    found: list[Key] = []
    all_layers: list[tuple[Layer, ...]] = []
    refused: dict[str, int] = {}
    for key in keys:
        rule = _broken(problem, key)
        plan, training = plan_of(base.plan, key), training_of(base.training, key)
        try:
            layers = [] if rule else build_layers(base.model, plan, training)
        except ScenarioError as error:
            rule = error.where.removeprefix("plan.") or "model"
        if rule:
            refused[rule] = refused.get(rule, 0) + 1
        else:
            found.append(key)
            all_layers.append(tuple(layers))
    if not found:
        return _empty(refused)
    rows = _rows(problem, found, all_layers)
    columns = [np.stack([row[column] for row in rows]) for column in range(len(rows[0]))]
    seconds, sizes = columns[:3], columns[3:]
    return KeyTable(
        tuple(found),
        tuple(all_layers),
        forward=prefix(seconds[0]),
        backward_input=prefix(seconds[1]),
        backward_weight=prefix(seconds[2]),
        kept=prefix(sizes[0]),
        workspace=sizes[1],
        output=sizes[2],
        dense=prefix(sizes[3]),
        experts=prefix(sizes[4]),
        weights={"time": sizes[5], "parameters": sizes[6]},
        refused=refused,
    )


def _broken(problem: Problem, key: Key) -> str:
    """The rule that a key breaks by itself; empty if none."""
    if problem.devices % (key.tensor * key.context):
        return "devices"
    if key.sequence_parallel and key.tensor == 1:
        return "sequence_parallel"
    if isinstance(problem.base.model, Transformer) and problem.base.training.sequence % key.context:
        return "context"
    return ""


def _empty(refused: dict[str, int]) -> KeyTable:
    sums, plain = np.zeros((0, 2)), np.zeros((0, 1))
    return KeyTable((), (), sums, sums, sums, sums, plain, plain, sums, sums, {}, refused)


def prefix(values: Floats) -> Floats:  # (K, n) → (K, n + 1)
    """Sums of the values before each place, along the last axis."""
    return np.concatenate([np.zeros((*values.shape[:-1], 1)), np.cumsum(values, axis=-1)], axis=-1)


def _rows(
    problem: Problem, keys: Sequence[Key], all_layers: Sequence[Sequence[Layer]]
) -> list[list[Floats]]:
    """The columns of each key; layers of equal degrees are timed in one call."""
    base, whole = problem.base, machine_of(problem.base)
    groups: dict[tuple[int, int, int], list[int]] = {}
    for row, key in enumerate(keys):
        groups.setdefault(key.cut, []).append(row)
    rows: list[list[Floats]] = [[] for _ in keys]
    for members in groups.values():
        first = keys[members[0]]
        plan, training = plan_of(base.plan, first), training_of(base.training, first)
        machine = Remembering(whole.cluster, plan, training, whole.profile, whole.network_fit)
        ways = [way for row in members for layer in all_layers[row] for way in _ways(layer, plan)]
        timed = layer_seconds(ways, machine)
        for row in members:
            rows[row] = _row(all_layers[row], timed, plan)
    return rows


class Remembering(Machine):
    """A machine that computes each exchange once."""

    @cached_property
    def _known(self) -> dict[tuple[str, str, float], float]:
        return {}

    def exchange_seconds(self, op: str, axis: str, nbytes: float) -> float:
        """Seconds of a collective along an axis of the plan."""
        name = (op, axis, nbytes)
        if name not in self._known:
            self._known[name] = super().exchange_seconds(op, axis, nbytes)
        return self._known[name]


def _ways(layer: Layer, plan: PlanSpec) -> list[Layer]:
    """The layer; and without recomputation, where only some layers of a stage recompute."""
    if plan.recompute_layers is None or layer.plain is None:
        return [layer]
    return [layer, layer.plain]


def _row(
    layers: Sequence[Layer], timed: Mapping[int, LayerSeconds], plan: PlanSpec
) -> list[Floats]:
    """The columns of one key, each (n,)."""
    offloaded = "activations" in plan.offload
    values = {}
    for identity, layer in {id(layer): layer for layer in layers}.items():
        ways = _ways(layer, plan)
        seconds = [_totals(timed[id(way)]) for way in ways]
        kept = min(sum(saved.nbytes for saved in way.saved) for way in ways)
        values[identity] = (
            *(min(column) for column in zip(*seconds, strict=True)),
            0.0 if offloaded else kept,
            min(max(way.workspace_nbytes, way.forward_workspace_nbytes) for way in ways),
            layer.output_nbytes,
            layer.parameters - layer.expert_parameters,
            layer.expert_parameters,
            sum(seconds[0]),
            layer.parameters,
        )
    table = np.array([values[id(layer)] for layer in layers])
    return list(table.T)


def _totals(seconds: LayerSeconds) -> tuple[float, float, float]:
    return (
        _total(seconds.forward),
        _total(seconds.backward_input),
        _total(seconds.backward_weight),
    )


def _total(parts: Parts) -> float:
    return sum(parts.values())
