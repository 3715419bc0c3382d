"""The plans that bounds leave, as arrays, block by block; which rule removed the others.

Rules come in a fixed order and each plan is counted at the first that removes it: degrees that do
not divide the devices, a batch that does not divide, more stages than layers, numbers that the
schedule does not take, memory, time, and time that is known from a plan that differs in sharding.
Every plan is either counted at one rule or simulated.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpsim.planner.bounds import Cut, Degree
from mpsim.planner.cuts import balanced_cuts, counted_cuts
from mpsim.planner.keys import KeyTable, plan_of, training_of
from mpsim.planner.pipeline_bounds import both_ways, takes
from mpsim.planner.space import PLAIN, Problem
from mpsim.schedule.orders import SCHEDULES
from mpsim.spec.scenario import Scenario
from mpsim.workload.partition import ends

Floats = NDArray[np.float64]
Whole = NDArray[np.int64]

_FRONT_BINS = 16
"""Parts of the capacity in each of which the plan with the least bound is kept for the front."""
SLACK = 1 - 1e-9
"""Bounds are lowered by this, since sums in another order round otherwise."""

_OF_LEGAL = ("memory", "time", "alike")
"""Rules that remove legal plans."""


@dataclass
class Tally:
    """How many plans there were, and how many each rule removed."""

    considered: int = 0
    removed: Counter[str] = field(default_factory=Counter)

    @property
    def legal(self) -> int:
        """Plans that can be carried out at all."""
        return self.considered - sum(
            count for rule, count in self.removed.items() if rule not in _OF_LEGAL
        )

    @property
    def fitted(self) -> int:
        """Legal plans that memory did not rule out."""
        return self.legal - self.removed["memory"]


@dataclass(frozen=True, eq=False)
class Candidates:
    """Plans of one key table that may be the best. C plans."""

    table: KeyTable
    bound: Floats  # (C,) s
    memory: Floats  # (C,) B, a bound too
    row: Whole  # (C,) of the table
    pipeline: Whole  # (C,)
    chunks: Whole  # (C,)
    data: Whole  # (C,)
    schedule: Whole  # (C,) index into the options
    zero: Whole  # (C,)
    partition: Whole  # (C,) index into the options
    cuts: Mapping[
        tuple[int, int, int], Whole
    ]  # (row, stages, partition) → (S + 1,), where balanced

    def __len__(self) -> int:
        """Number of plans, C."""
        return len(self.bound)

    def scenario(self, problem: Problem, place: int) -> Scenario:
        """One of the plans as a scenario; the rules hold, so nothing is checked again."""
        key = self.table.keys[self.row[place]]
        how = problem.options("partition")[self.partition[place]]
        plan = plan_of(
            problem.base.plan,
            key,
            pipeline=int(self.pipeline[place]),
            data=int(self.data[place]),
            chunks=int(self.chunks[place]),
            schedule=problem.options("schedule")[self.schedule[place]],
            zero=int(self.zero[place]),
            partition=list(how) if isinstance(how, tuple) else how,
        )
        training = training_of(problem.base.training, key)
        return problem.base.model_copy(update={"plan": plan, "training": training})

    def counted(self, scenario: Scenario, place: int) -> Scenario:
        """The same plan with its balanced partition as counts, which need no search again."""
        row, index = int(self.row[place]), int(self.partition[place])
        cut = self.cuts.get((row, scenario.plan.stages, index))
        if cut is None:
            return scenario
        layers = self.table.layers[row]
        front, back = ends(layers)
        if cut[-2] > len(layers) - back:  # multi-token prediction apart from the head
            return scenario
        stops = [0, *(int(stop) - front for stop in cut[1:-1]), len(layers) - front - back]
        counts = [stop - start for start, stop in pairwise(stops)]
        plan = scenario.plan.model_copy(update={"partition": counts})
        return scenario.model_copy(update={"plan": plan})


def joined(parts: Sequence[Candidates], table: KeyTable) -> Candidates:
    """All plans of some parts, in their order."""
    columns: dict[str, Any] = {
        field.name: np.concatenate(
            [np.zeros(0, np.int64), *(getattr(part, field.name) for part in parts)]
        )
        for field in fields(Candidates)
        if field.name not in ("table", "cuts")
    }
    cuts = {name: cut for part in parts for name, cut in part.cuts.items()}
    return Candidates(table=table, cuts=cuts, **columns)


@dataclass
class Enumeration:
    """Enumerates the plans of a key table. ``limit`` is the step that is to be beaten, s."""

    problem: Problem
    table: KeyTable
    tally: Tally
    limit: float = math.inf

    def __post_init__(self) -> None:
        """Write out the options once."""
        self.zeros = tuple(int(zero) for zero in self.problem.options("zero"))
        self.schedules = tuple(self.problem.options("schedule"))
        self.chunks = tuple(int(chunks) for chunks in self.problem.options("chunks"))
        self.partitions = tuple(self.problem.options("partition"))
        self.capacity = self.problem.base.cluster.device.memory
        self.plain = self.problem.plain

    def simple(self) -> Candidates:
        """Plans whose partition needs no seconds: equal and given counts."""
        parts: list[Candidates] = []
        for pipeline in self.problem.options("pipeline"):
            for index, how in enumerate(self.partitions):
                if how not in ("time", "parameters"):
                    parts += self._of_cuts(pipeline, index)
        return joined(parts, self.table)

    def balanced(self) -> Candidates:
        """Plans whose partition balances time or parameters of each row."""
        parts: list[Candidates] = []
        for pipeline in self.problem.options("pipeline"):
            for index, how in enumerate(self.partitions):
                if how in ("time", "parameters"):
                    for chunks in self.chunks:
                        parts += self._balanced(pipeline, chunks, index)
        return joined(parts, self.table)

    def _of_cuts(self, pipeline: int, index: int) -> Iterator[Candidates]:
        """Plans with one cut for all rows."""
        how = self.partitions[index]
        cuts, layers = {}, self.table.layers[0]
        for chunks in self.chunks:
            stages = pipeline * chunks
            if not isinstance(how, str) or stages <= max(self.problem.base.layer_count, 1):
                cut = counted_cuts(layers, stages, how)
                if cut is not None:
                    cuts[chunks] = cut
        degree = self._degree(pipeline, cuts, counted=len(self.chunks))
        for chunks in self.chunks:
            if chunks in cuts and len(degree.rows):
                yield from self._bounded(degree, chunks, index)
            else:
                self.tally.removed["layers"] += len(degree.rows) * self._each

    def _balanced(self, pipeline: int, chunks: int, index: int) -> Iterator[Candidates]:
        """Plans with a cut for each row; rows that no partition could save are left out first."""
        degree = self._degree(pipeline, {}, counted=1)
        stages = pipeline * chunks
        if stages > max(self.problem.base.layer_count, 1):
            self.tally.removed["layers"] += len(degree.rows) * self._each
            return
        if stages == 1 and "layers" in self.partitions:
            self.tally.removed["one stage"] += len(degree.rows) * self._each
            return
        hopeful = _any_partition(degree, chunks) * SLACK < self.limit
        self.tally.removed["time"] += int((~hopeful).sum()) * self._each
        if not hopeful.any():
            return
        rows = degree.rows[hopeful]
        weights = self.table.weights[self.partitions[index]][rows]
        # beside equal counts only cuts that differ from them are other plans
        cuts = balanced_cuts(weights, stages)
        if "layers" in self.partitions:
            equal = counted_cuts(self.table.layers[0], stages, "layers")
            other = np.ones(len(rows), np.bool_) if equal is None else (cuts != equal).any(axis=1)
            self.tally.removed["equal counts"] += int((~other).sum()) * self._each
            rows, cuts = rows[other], cuts[other]
            hopeful[hopeful] = other
        if len(rows):
            own = Degree(
                self.problem, self.table, pipeline, rows, degree.data[hopeful],
                degree.microbatches[hopeful], self.zeros, {chunks: cuts},
            )  # fmt: skip
            yield from self._bounded(own, chunks, index)

    def _lone_device(self, pipeline: int, chunks: int, schedule: str) -> bool:
        """Whether a plan without a pipeline has a schedule or chunks of one.

        Launchers have no such plan. It may take another time than the plain one all the same,
        since the order of passes says which exchange of gradients overlaps, and chunks cut it.
        """
        return self.plain and pipeline == 1 and (chunks, schedule) != (1, PLAIN)

    def _lone_chunk(self, pipeline: int, chunks: int, schedule: str) -> bool:
        """Whether a schedule of many chunks on a device is given one.

        With one chunk nothing interleaves: what is left is 1F1B, GPipe or ZB-H1 with another
        warm-up or drain, under a name that means something else.
        """
        return pipeline > 1 and chunks == 1 and SCHEDULES[schedule].chunks == "many"

    @property
    def _each(self) -> int:
        """Plans of a row with one number of chunks and one partition."""
        return len(self.schedules) * len(self.zeros)

    def _degree(self, pipeline: int, cuts: dict[int, Whole], *, counted: int) -> Degree:
        """The rows that divide the devices, the batch, the experts; counts the others.

        Args:
            pipeline: The degree.
            cuts: Chunks → layers before each stage.
            counted: Numbers of chunks that each row stands for in the tally.
        """
        table, problem, base = self.table, self.problem, self.problem.base
        rows = np.arange(len(table.keys))
        across = table.column("tensor") * table.column("context") * pipeline
        whole = problem.devices % across == 0
        data = problem.devices // across
        keep = whole
        if problem.space.data != "auto":
            keep = whole & np.isin(data, problem.options("data"))
        each = self._each * counted
        self.tally.considered += len(rows) * each
        self.tally.removed["devices"] += int((~whole).sum()) * each
        self.tally.removed["data"] += int((whole & ~keep).sum()) * each
        batch, micro = base.training.global_batch, table.column("microbatch")
        divides = batch % (micro * np.maximum(data, 1)) == 0
        self.tally.removed["batch"] += int((keep & ~divides).sum()) * each
        expert = table.column("expert")
        group = data * table.column("context") * table.column("tensor")
        fair = group % (expert * (base.plan.expert_tensor or table.column("tensor"))) == 0
        self.tally.removed["expert"] += int((keep & divides & ~fair).sum()) * each
        chosen = np.flatnonzero(keep & divides & fair)
        microbatches = batch // (micro[chosen] * data[chosen])
        return Degree(
            self.problem, table, pipeline, chosen, data[chosen], microbatches, self.zeros, cuts
        )

    def _bounded(self, degree: Degree, chunks: int, index: int) -> Iterator[Candidates]:
        """Plans of one cut that fit and may be the best, and those for the front."""
        cut = Cut(degree, chunks)
        for number, schedule in enumerate(self.schedules):
            if self._lone_device(degree.pipeline, chunks, schedule):
                self.tally.removed["one device"] += len(degree.rows) * len(self.zeros)
                continue
            if self._lone_chunk(degree.pipeline, chunks, schedule):
                self.tally.removed["one chunk"] += len(degree.rows) * len(self.zeros)
                continue
            legal = takes(schedule, degree.pipeline, degree.microbatches, chunks)
            self.tally.removed["schedule"] += int((~legal).sum()) * len(self.zeros)
            if not legal.any():
                continue
            memory = cut.memory(schedule) * SLACK
            fits = legal[:, None] & (memory <= self.capacity)
            self.tally.removed["memory"] += int(legal.sum()) * len(self.zeros) - int(fits.sum())
            bound = np.where(fits, cut.seconds(schedule) * SLACK, math.inf)
            chosen = bound < self.limit
            kept = chosen | _front(bound, memory, self.capacity)
            self.tally.removed["time"] += int(fits.sum()) - int((fits & kept).sum())
            row, zero = np.nonzero(kept)
            if len(row):
                count = len(row)
                yield Candidates(
                    self.table, bound[row, zero], memory[row, zero], degree.rows[row],
                    np.full(count, degree.pipeline), np.full(count, chunks), degree.data[row],
                    np.full(count, number), np.asarray(self.zeros)[zero], np.full(count, index),
                    _cuts(cut, row, index),
                )  # fmt: skip


def _cuts(cut: Cut, rows: Whole, index: int) -> dict[tuple[int, int, int], Whole]:
    """The cuts of some rows by (row of the table, stages, partition), where each has its own."""
    if cut.cuts.ndim == 1:
        return {}
    chosen = np.unique(rows)
    names = cut.degree.rows[chosen].tolist()
    return {
        (name, cut.num_stages, index): cut.cuts[row]
        for name, row in zip(names, chosen, strict=True)
    }


def _front(bound: Floats, memory: Floats, capacity: float) -> NDArray[np.bool_]:
    """The least bound in each part of the capacity: what may lie on the front."""
    kept = np.zeros(bound.shape, np.bool_)
    part = np.minimum(memory / capacity * _FRONT_BINS, _FRONT_BINS).astype(np.int64)
    least = np.full(_FRONT_BINS + 1, math.inf)
    np.minimum.at(least, part.ravel(), bound.ravel())
    # a bin counts only where it beats all that need less memory
    better = least < np.minimum.accumulate(np.concatenate([[math.inf], least[:-1]]))
    found = (bound == least[part]) & np.isfinite(bound) & better[part]
    first = np.unique(part[found], return_index=True)[1]
    kept.ravel()[np.flatnonzero(found.ravel())[first]] = True
    return kept


def _any_partition(degree: Degree, chunks: int) -> Floats:  # (K,) s
    """No contiguous partition gives a shorter step.

    With one stage a device, T >= Σ_{i<j} x_i + m w_j for each stage j, where w is its work for a
    microbatch and x what passes before and after it, ρ w at the least. The stages sum to W, so

        T >= ρ W / (1 - (1 - ρ / m)^p)

    and with several stages a device T >= m W / p.
    """
    table, m = degree.table, degree.microbatches.astype(np.float64)
    forward, backward = (
        np.diff(part[degree.rows], axis=1)
        for part in (table.forward, table.backward_input + table.backward_weight)
    )
    work = (forward + backward).sum(axis=1)
    if chunks > 1 or degree.problem.base.plan.slices > 1:
        return np.asarray(m * work / degree.pipeline)
    split = any(SCHEDULES[name].splits_backward for name in degree.problem.options("schedule"))
    if any(both_ways(name) for name in degree.problem.options("schedule")):
        return np.asarray(m * work / degree.pipeline)
    share = np.ones(len(work))
    if split:  # a device may end with weight gradients: only forwards must have passed before it
        ahead = (forward / np.maximum(forward + backward, 1e-30)).min(axis=1)
        share = np.maximum(ahead, 1e-6)
    return np.asarray(share * work / (1 - (1 - share / m) ** degree.pipeline))
