"""Lower bounds on what a pipeline takes and holds, whatever the times of its ops.

Letters: K rows, S stages, P devices of the pipeline, m microbatches, v chunks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mpsim.planner.stage_sums import Stages
from mpsim.schedule.orders import SCHEDULES

Floats = NDArray[np.float64]
Whole = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Placement:
    """Which stages each device holds, and what share of the microbatches it runs of each."""

    stages: Whole  # (P, v') stages of each device
    share: float  # of the microbatches: 1, or 1/2 where pipelines run both ways

    @property
    def first(self) -> Whole:  # (P,)
        """The earliest stage of each device."""
        return np.asarray(self.stages.min(axis=1), np.int64)

    @property
    def device(self) -> Whole:  # (S,)
        """A device of each stage."""
        found = np.zeros(int(self.stages.max()) + 1, np.int64)
        found[self.stages[::-1].T.ravel()] = np.tile(
            np.arange(len(self.stages))[::-1], self.stages.shape[1]
        )
        return found


def both_ways(schedule: str) -> bool:
    """Whether a schedule runs a pipeline in each direction, with a copy of the weights for each."""
    return SCHEDULES[schedule].placement == "bidirectional"


def placement(kind: str, devices: int, chunks: int) -> Placement:
    """Where stages lie: in a loop, a V, a wave, or one pipeline in each direction."""
    device = np.arange(devices)[:, None]
    turn = np.arange(chunks)[None, :]
    loop = turn * devices + device
    wave = turn * devices + np.where(turn % 2 == 0, device, devices - 1 - device)
    if kind == "bidirectional":
        return Placement(np.concatenate([wave, wave[::-1]], axis=1), 0.5)
    return Placement(loop if kind == "loop" else wave, 1.0)


def pipeline_seconds(
    stages: Stages, hops: Floats, where: Placement, microbatches: Whole, *, split: bool
) -> Floats:  # (K, P) s
    """No device ends its passes sooner, all of its microbatches run.

    A device begins when the first microbatch has come through the stages before its earliest, then
    runs all its ops, and where backwards are whole its last one must still go back through those
    stages:

        head + m Σ (f + i + w) + tail

    and no step is shorter than one microbatch's way through all stages and back.

    A split backward may end with weight gradients, after which nothing is waited for: no tail.
    With a pipeline in each direction a device runs half of the microbatches of each stage.

    Args:
        stages: Seconds of the stages, (K, S).
        hops: Seconds from the stage before to each stage, (K, S).
        where: Placement of the stages.
        microbatches: m of each row, (K,).
        split: Whether backwards are split.
    """
    way = np.cumsum(hops, axis=1)
    head = (np.cumsum(stages.forward, axis=1) - stages.forward + way)[:, where.first]
    work = stages.forward + stages.backward
    busy = microbatches[:, None] * where.share * work[:, where.stages].sum(axis=2)
    back = stages.backward_input if split else stages.backward
    chain = (stages.forward + back + 2 * hops).sum(axis=1)[:, None]
    if split:
        return np.asarray(np.maximum(head + busy, chain))
    tail = (np.cumsum(stages.backward, axis=1) - stages.backward + way)[:, where.first]
    return np.asarray(np.maximum(head + busy + tail, chain))


Rule = Callable[[int, Whole, int], NDArray[np.bool_]]
"""Whether a schedule takes p devices, m microbatches, v chunks."""

_RULES: dict[str, Rule] = {
    "interleaved_1f1b": lambda p, m, v: (m % p == 0) | (v == 1),
    "combined_1f1b": lambda p, m, v: ((m % p == 0) | (v == 1)) & (v > 1 or p == 1),
    "interleaved_zb": lambda p, m, v: m % np.maximum(1, m // p) == 0,
    "dualpipe": lambda p, m, v: (m % 2 == 0) & (m >= 2 * p) & (p % 2 == 0),
    "dualpipe_v": lambda p, m, v: m >= 2 * p,
    "chimera": lambda p, m, v: ((m % p == 0) | (m < p)) & (p % 2 == 0),
    "bitpipe": lambda p, m, v: (m % p == 0) & (p % 2 == 0),
    "pipedream_2bw": lambda p, m, v: m >= p,
    "hanayo": lambda p, m, v: np.full(m.shape, v % 2 == 0),
}
"""What ``mpsim.schedule.orders`` refuses, for schedules that refuse some numbers."""


def takes(schedule: str, devices: int, microbatches: Whole, chunks: int) -> NDArray[np.bool_]:
    """Whether a schedule takes these numbers: False only where its order would be refused."""
    wanted = SCHEDULES[schedule].chunks
    if (wanted == "one" and chunks != 1) or (wanted == "two" and chunks != 2):
        return np.zeros(microbatches.shape, np.bool_)
    if schedule not in _RULES:
        return np.ones(microbatches.shape, np.bool_)
    return np.broadcast_to(_RULES[schedule](devices, microbatches, chunks), microbatches.shape)


_Held = Callable[[int, int, Whole, int], Whole | int]
"""Chunks that device r of p holds at its peak, with m microbatches and v chunks on a device."""

_HELD: dict[str, _Held] = {
    "gpipe": lambda r, p, m, v: m,
    "looped_bfs": lambda r, p, m, v: m * v,
    "1f1b": lambda r, p, m, v: np.minimum(m, p - r),
    "eager_1f1b": lambda r, p, m, v: np.minimum(m, 2 * (p - r) - 1),
    "interleaved_1f1b": lambda r, p, m, v: np.minimum(
        m * v, 2 * (p - r - 1) + (v - 1) * p + 1 if v > 1 else p - r
    ),
    "dualpipe": lambda r, p, m, v: p + 1,
    "dualpipe_v": lambda r, p, m, v: 2 * p + 1,
    "chimera": lambda r, p, m, v: np.where(
        m >= p, p // 2 + 1 + min(r, p - 1 - r), np.minimum(m, p // 2 if r == 0 else 1)
    ),
    "bitpipe": lambda r, p, m, v: np.where(m >= p, p + p // 2 + 1 + min(r, p - 1 - r), 1),
    "zb_v": lambda r, p, m, v: np.where(m >= 2 * p, 2 * p, np.minimum(m, p)),
    "zb_h1": lambda r, p, m, v: np.minimum(m, p),
    "zb_h2": lambda r, p, m, v: np.minimum(m, 2 * p - 1),
    "interleaved_zb": lambda r, p, m, v: np.minimum(m, p) * v,
}
"""From the docstrings of the orders; activations of a split backward are held until W."""

_HELD_OF_CHUNK: dict[str, Callable[[int, int, Whole, bool], Whole]] = {
    "looped_bfs": lambda r, p, m, last: m,
    "interleaved_zb": lambda r, p, m, last: np.minimum(m, p),
    "interleaved_1f1b": lambda r, p, m, last: np.minimum(
        m, min(p, 2 * (p - r - 1) + 1) if last else p
    ),
}
"""The same of each chunk, where groups of microbatches go through one chunk after the other."""

_HELD_UNTIL_INPUT = {"zb_h1", "zb_h2", "interleaved_zb"}
"""Schedules of which fewer are held where the plan frees activations at I: as many as 1F1B."""


def held_nbytes(
    schedule: str, place: tuple[int, int], microbatches: Whole, kept: Floats, *, release: str
) -> Floats:  # (K,) B
    """Activations that a device holds at its peak, at the least.

    Args:
        schedule: Its name; of one that is not in the tables, one chunk's is held.
        place: The device, and how many there are.
        microbatches: m of each row.
        kept: Activations of each chunk of the device for a microbatch, (K, v).
        release: Backward part that frees activations, ``input`` or ``weight``.
    """
    if schedule in _HELD_UNTIL_INPUT and release == "input":
        return np.asarray(kept.min(axis=1))
    chunks = kept.shape[1]
    held = _HELD[schedule](*place, microbatches, chunks) if schedule in _HELD else 1
    least: Floats = np.maximum(held, 1) * kept.min(axis=1)
    of_chunk = _HELD_OF_CHUNK.get(schedule)
    if of_chunk is None or chunks == 1:
        return least
    each = [of_chunk(*place, microbatches, chunk == chunks - 1) for chunk in range(chunks)]
    return np.asarray(np.maximum(least, (np.stack(each, axis=1) * kept).sum(axis=1)))
