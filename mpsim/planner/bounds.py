"""Lower bounds on the step and the memory of every plan with one pipeline degree, as arrays.

No bound is above what a simulation gives; a search that drops plans by them loses none (a property
test holds this on random scenarios). Letters: K rows, Z options of ZeRO, S stages, P devices.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from mpsim.cost.compiled import machine_of
from mpsim.cost.memory import COMMUNICATOR_BYTES
from mpsim.cost.passes import Machine
from mpsim.cost.topology import link_between
from mpsim.planner.keys import KeyTable, plan_of, prefix, training_of
from mpsim.planner.pipeline_bounds import (
    Placement,
    both_ways,
    held_nbytes,
    pipeline_seconds,
    placement,
)
from mpsim.planner.replicas import Exchanged, Replicas, buckets, each_pass, exchanged, states
from mpsim.planner.space import Problem
from mpsim.planner.stage_sums import Stages, at, differences, plain_stages
from mpsim.schedule.orders import SCHEDULES

Floats = NDArray[np.float64]
Whole = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Degree:
    """The rows that are legal at one pipeline degree. K rows, G groups of equal degrees."""

    problem: Problem
    table: KeyTable
    pipeline: int
    rows: Whole  # (K,) of the key table
    data: Whole  # (K,) replicas
    microbatches: Whole  # (K,)
    zeros: tuple[int, ...]  # options of ZeRO, Z
    cuts: Mapping[int, Whole]  # chunks → layers before each stage, (S + 1,) or (K, S + 1)

    @cached_property
    def groups(self) -> tuple[Whole, tuple[int, ...]]:
        """Rows with the same degrees share what replicas exchange: group of each, a row of each."""
        names: dict[tuple[int, ...], int] = {}
        of_row, example = [], []
        for place, row in enumerate(self.rows.tolist()):
            cut = (*self.table.keys[row].cut, int(self.data[place]))
            if cut not in names:
                names[cut] = len(names)
                example.append(place)
            of_row.append(names[cut])
        return np.array(of_row, np.int64), tuple(example)

    @cached_property
    def machines(self) -> tuple[tuple[Machine, ...], ...]:  # (G, Z)
        """Cluster, plan and training of each group, with each option of ZeRO."""
        base = self.problem.base
        whole, found = machine_of(base), []
        for place in self.groups[1]:
            key = self.table.keys[self.rows[place]]
            training = training_of(base.training, key)
            degrees = {"pipeline": self.pipeline, "data": int(self.data[place])}
            plans = [plan_of(base.plan, key, **degrees, zero=zero) for zero in self.zeros]
            found.append(
                tuple(Machine(whole.cluster, plan, training, whole.profile) for plan in plans)
            )
        return tuple(found)

    @cached_property
    def state(self) -> tuple[Floats, Floats]:  # (G, Z, n + 1) prefix sums, (G, Z) B
        """What each layer's state adds, and what any layer's takes at the least."""
        _, examples = self.groups
        shape = (len(examples), len(self.zeros), self.table.num_layers)
        adding, once = np.zeros(shape), np.zeros(shape)
        for group, place in enumerate(examples):
            layers = self.table.layers[self.rows[place]]
            for index, machine in enumerate(self.machines[group]):
                adding[group, index], once[group, index] = states(layers, machine.plan, machine)
        return prefix(adding), once.min(axis=2)

    @cached_property
    def each_pass(self) -> tuple[Floats, Floats] | None:  # (K, n + 1) s each, prefix sums
        """Gathers and scatters of each layer for each pass; None where no row has them."""
        group, examples = self.groups
        if 3 not in self.zeros or self.pipeline > 1 or not examples:
            return None
        index = self.zeros.index(3)
        gathers, scatters = (np.zeros((len(examples), self.table.num_layers)) for _ in range(2))
        for number, place in enumerate(examples):
            machine = self.machines[number][index]
            if machine.gathers_each_pass:
                layers = self.table.layers[self.rows[place]]
                gathers[number], scatters[number] = each_pass(layers, machine)
        return prefix(gathers)[group], prefix(scatters)[group]

    @cached_property
    def replicas(self) -> dict[int, Replicas]:
        """Exchanges and updates by chunks; stages of all cuts in one call for each group."""
        group, examples = self.groups
        widths = [cut.shape[-1] - 1 for cut in self.cuts.values()]
        places = np.cumsum([0, *widths])
        shared = all(cut.ndim == 1 for cut in self.cuts.values())
        rows = np.asarray(examples, np.int64) if shared else np.arange(len(self.rows))
        of_group = np.arange(len(examples)) if shared else group
        sizes = np.stack(
            [
                np.concatenate(
                    [differences(part[self.rows[rows]], cut) for cut in self.cuts.values()], axis=1
                )
                for part in (self.table.dense, self.table.experts)
            ]
        )
        found = [np.zeros((3, *sizes.shape[1:])) for _ in self.zeros]
        count = np.ones(sizes.shape[1:])
        for number, machines in enumerate(self.machines):
            own = np.flatnonzero(of_group == number)
            distinct, inverse = np.unique(sizes[:, own].reshape(2, -1), axis=1, return_inverse=True)
            inverse = inverse.reshape(len(own), -1)
            alike: dict[tuple[bool, bool, bool], Floats] = {}
            for target, machine in zip(found, machines, strict=True):
                level = machine.plan.zero
                kind = (level > 0, level == 2, machine.gathers_each_pass)
                if kind not in alike:
                    alike[kind] = exchanged(distinct, machine)[:, inverse]
                target[:, own] = alike[kind]
            count[own] = buckets(distinct, machines[0])[inverse]
        spread = group if shared else slice(None)
        return {
            chunks: Replicas(
                tuple(Exchanged(*part[:, :, begin:end][:, spread]) for part in found),
                count[:, begin:end][spread],
            )
            for chunks, begin, end in zip(self.cuts, places[:-1], places[1:], strict=True)
        }


@dataclass(frozen=True, eq=False)
class Cut:
    """A degree with its layers cut into stages one way: bounds of every schedule on it."""

    degree: Degree
    chunks: int

    @property
    def cuts(self) -> Whole:
        """Layers before each stage, (S + 1,) or (K, S + 1)."""
        return self.degree.cuts[self.chunks]

    @property
    def num_stages(self) -> int:
        """Stages, S."""
        return self.degree.pipeline * self.chunks

    @cached_property
    def plain(self) -> Stages:
        """Stages whose parameters are at hand."""
        return plain_stages(self.degree.table, self.degree.rows, self.cuts)

    def stages(self, zero: int) -> Stages:
        """Stages under an option of ZeRO."""
        found = self.degree.each_pass
        if zero < 3 or found is None:
            return self.plain
        return self.plain.at_least(*(differences(sums, self.cuts) for sums in found))

    @property
    def replicas(self) -> Replicas:
        """Exchanges and updates of the stages, (K, S) for each option of ZeRO."""
        return self.degree.replicas[self.chunks]

    def hops(self, where: Placement, *, mirrored: bool) -> Floats:  # (K, S) s
        """Seconds of the transfer into each stage; nothing into the first, or on one device."""
        degree, base = self.degree, self.degree.problem.base
        count = self.num_stages
        hops = np.zeros((len(degree.rows), count))
        if count == 1:
            return hops
        plan = degree.machines[0][0].plan
        device = where.device.tolist()
        pairs = itertools.pairwise(device)
        links = [link_between(a, b, plan, base.cluster) if a != b else None for a, b in pairs]
        latency = np.array([link.delay if link else 0.0 for link in links])
        pace = np.array([1 / link.rate if link else 0.0 for link in links])
        if mirrored:
            latency, pace = np.minimum(latency, latency[::-1]), np.minimum(pace, pace[::-1])
        output = at(degree.table.output[degree.rows], self.cuts[..., 1:-1] - 1)
        hops[:, 1:] = latency + output * pace
        return hops

    @cached_property
    def _known(self) -> dict[tuple[object, ...], Floats]:
        return {}

    def seconds(self, schedule: str) -> Floats:  # (K, Z) s
        """No simulated step of these rows is shorter."""
        entry = SCHEDULES[schedule]
        kind = (entry.placement, entry.splits_backward, entry.slices)
        if kind not in self._known:
            self._known[kind] = _seconds(self, schedule)
        return self._known[kind]

    def memory(self, schedule: str) -> Floats:  # (K, Z) B
        """No simulation of these rows shows less on its fullest device.

        State, the activations held at once, and the temporaries of a stage's last layer, on the
        first, the middle and the last device.
        """
        degree, entry = self.degree, SCHEDULES[schedule]
        base, table = degree.problem.base, degree.table
        where = placement(entry.placement, degree.pipeline, self.chunks)
        kept = differences(table.kept[degree.rows], self.cuts)
        ends = at(table.workspace[degree.rows], self.cuts[..., 1:] - 1)
        peak = np.zeros((len(degree.rows), len(degree.zeros)))
        for device in sorted({0, degree.pipeline // 2, degree.pipeline - 1}):
            held = np.unique(where.stages[device])
            moving = ends[:, held].min(axis=1)
            if not entry.slices:
                place = (device, degree.pipeline)
                moving = moving + held_nbytes(
                    schedule, place, degree.microbatches, kept[:, held], release=base.plan.release
                )
            state = self._state[:, :, held].sum(axis=2)
            if both_ways(schedule):  # few microbatches may all go one way
                few = (degree.microbatches < degree.pipeline)[:, None]
                state = np.where(few, self._state[:, :, held].min(axis=2), state)
            peak = np.maximum(peak, state + moving[:, None])
        group, _ = degree.groups
        peak += degree.state[1][group]
        return peak * (1 + base.plan.fragmentation) + base.cluster.device.reserved + self._outside

    @cached_property
    def _state(self) -> Floats:  # (K, Z, S) B
        group, _ = self.degree.groups
        sums, _ = self.degree.state
        found = np.empty((len(group), len(self.degree.zeros), self.num_stages))
        for index in range(len(self.degree.zeros)):
            found[:, index] = differences(sums[group, index], self.cuts)
        return found

    @cached_property
    def _outside(self) -> Floats:  # (K, 1) B
        """Buffers of the communicators of axes with more than one device."""
        degree = self.degree
        axes = [degree.table.column(name)[degree.rows] for name in ("tensor", "context", "expert")]
        axes += [degree.data, np.full(len(degree.rows), degree.pipeline)]
        many = np.sum([axis > 1 for axis in axes], axis=0)
        return np.asarray(COMMUNICATOR_BYTES * many.astype(np.float64))[:, None]


def _seconds(cut: Cut, schedule: str) -> Floats:  # (K, Z) s
    """The pipeline's bound, and what must come before and after its passes."""
    entry, degree = SCHEDULES[schedule], cut.degree
    base = degree.problem.base
    where = placement(entry.placement, degree.pipeline, cut.chunks)
    hops = cut.hops(where, mirrored=both_ways(schedule))
    barrier = base.plan.step_barrier and base.training.gradient_clipping
    norm = degree.machines[0][0].exchange_seconds("all_reduce", "pipeline", 8.0)
    found = np.zeros((len(degree.rows), len(degree.zeros)))
    for index, zero in enumerate(degree.zeros):
        stages = cut.stages(zero)
        end = _passes(cut, stages, hops, where, schedule=schedule)
        end = end + _first_gather(cut, stages, index)[:, None]
        end = end + _after(cut, stages, where, index, split=entry.splits_backward)
        update = cut.replicas.exchanges[index].update[:, where.stages].sum(axis=2)
        if both_ways(schedule):  # a stage may stand twice on the middle devices
            update = update / 2
        if barrier:
            found[:, index] = end.max(axis=1) + norm + update.max(axis=1)
        elif entry.splits_backward:
            found[:, index] = (end + update).max(axis=1)
        else:  # whole backwards all lead to stage 0
            found[:, index] = end.max(axis=1) + update[:, 0]
    return found


def _passes(
    cut: Cut, stages: Stages, hops: Floats, where: Placement, *, schedule: str
) -> Floats:  # (K, P) s
    """The pipeline's bound of each device; the mean where the split of microbatches is unknown."""
    entry, m = SCHEDULES[schedule], cut.degree.microbatches
    work = stages.forward + stages.backward
    if entry.slices:  # slices of the sequence come through sooner than whole microbatches
        return np.asarray(m[:, None] * where.share * work[:, where.stages].sum(axis=2))
    found = pipeline_seconds(stages, hops, where, m, split=entry.splits_backward)
    if both_ways(schedule):
        mean = work.sum(axis=1) * m / cut.degree.pipeline
        even = m % (2 if entry.splits_backward else cut.degree.pipeline) == 0
        found = np.where(even[:, None], found, mean[:, None])
        # one direction has half of the microbatches at the least, and is a pipeline by itself
        alone, half = placement("loop", cut.num_stages, 1), -(-m // 2)
        one = pipeline_seconds(stages, hops, alone, half, split=entry.splits_backward)
        found = np.maximum(found, one.max(axis=1, keepdims=True))
    return found


def _first_gather(cut: Cut, stages: Stages, index: int) -> Floats:  # (K,) s
    """What gathering the first stage's parameters, bucket by bucket, delays its first forward."""
    exchanges, parts = cut.replicas.exchanges, cut.replicas.buckets
    plan = cut.degree.problem.base.plan
    if not plan.overlap_data:
        return np.zeros(len(cut.degree.rows))
    gather, count, forward = exchanges[index].gather[:, 0], parts[:, 0], stages.forward[:, 0]
    return np.maximum(gather / count, gather - forward * (count - 1) / count)


def _after(
    cut: Cut, stages: Stages, where: Placement, index: int, *, split: bool
) -> Floats:  # (K, P) s
    """What the exchange of gradients leaves after the last pass of each device, at the least.

    The last op of a device ends with weight gradients of one of its stages. Its buckets are reduced
    one after the other from the end of its first part on. Whole backwards all lead to stage 0.
    """
    exchanges, parts = cut.replicas.exchanges, cut.replicas.buckets
    reduce = exchanges[index].reduce
    if cut.degree.problem.base.plan.overlap_data:
        late = np.maximum(reduce / parts, reduce - stages.backward * (parts - 1) / parts)
        if not split:
            return np.repeat(late[:, :1], len(where.stages), axis=1)
        return np.asarray(late[:, where.stages].min(axis=2))
    after = reduce[:, where.stages].sum(axis=2) / (2 if where.share < 1 else 1)
    if not split:
        after = np.repeat(after[:, :1], len(where.stages), axis=1)
    return np.asarray(after + exchanges[index].gather.min(axis=1)[:, None])
