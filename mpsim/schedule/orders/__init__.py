"""Every pipeline order by its name: one function each, and what it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from mpsim.errors import ScheduleError, did_you_mean
from mpsim.schedule.ops import Order
from mpsim.schedule.orders.build import OpTimes, Shape
from mpsim.schedule.orders.flat import (
    eager_one_forward_one_backward,
    gpipe,
    naive,
    one_forward_one_backward,
    pipedream,
    pipedream_2bw,
)
from mpsim.schedule.orders.interleaved import interleaved_1f1b, looped_bfs

__all__ = ["SCHEDULES", "OpTimes", "Schedule", "Shape", "make_order"]

Placement = Literal["loop", "v", "wave", "bidirectional"]


@dataclass(frozen=True)
class Schedule:
    """What is known of a schedule besides its order."""

    name: str
    function: Callable[[Shape], Order]
    placement: Placement = "loop"
    splits_backward: bool = False

    @property
    def summary(self) -> str:
        """First line of the docstring of its function."""
        return (self.function.__doc__ or "").partition("\n")[0]


SCHEDULES: dict[str, Schedule] = {
    schedule.name: schedule
    for schedule in (
        Schedule("naive", naive),
        Schedule("gpipe", gpipe),
        Schedule("1f1b", one_forward_one_backward),
        Schedule("eager_1f1b", eager_one_forward_one_backward),
        Schedule("pipedream", pipedream),
        Schedule("pipedream_2bw", pipedream_2bw),
        Schedule("interleaved_1f1b", interleaved_1f1b),
        Schedule("looped_bfs", looped_bfs),
    )
}


def make_order(
    name: str,
    *,
    num_devices: int,
    num_microbatches: int,
    num_chunks: int = 1,
    group_size: int | None = None,
    num_slices: int = 1,
    drain: Literal["ascending", "descending"] = "ascending",
    times: OpTimes | None = None,
    memory_limit: float | None = None,
) -> Order:
    """The order of a schedule.

    Args:
        name: A key of ``SCHEDULES``.
        num_devices: Devices of the pipeline, p.
        num_microbatches: Microbatches of an iteration, m.
        num_chunks: Stages on each device, v; a V takes two.
        group_size: Microbatches dealt together by interleaved schedules; None: their default.
        num_slices: Slices of the sequence in sequence-level schedules.
        drain: In which order GPipe's backwards run.
        times: Seconds of the ops, for schedules that adapt to them; None: all alike, no hop.
        memory_limit: Activations (of one stage and microbatch) that zb_auto may hold.

    Raises:
        ScheduleError: If the schedule cannot be had for these numbers.
    """
    schedule = SCHEDULES.get(name)
    if schedule is None:
        hint = did_you_mean(name, SCHEDULES)
        raise ScheduleError(f"'{name}' is not a schedule{hint}; there are {', '.join(SCHEDULES)}")
    shape = Shape(
        num_devices,
        num_microbatches,
        num_chunks,
        group_size,
        num_slices,
        drain,
        times,
        memory_limit,
    )
    return schedule.function(shape)
