"""Every pipeline order by its name: one function each, and what it is."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from mpsim.errors import ScheduleError, did_you_mean
from mpsim.schedule.ops import Order
from mpsim.schedule.orders.bidirectional import bitpipe, chimera
from mpsim.schedule.orders.build import OpTimes, Shape, require
from mpsim.schedule.orders.dualpipe import dualpipe, dualpipe_v
from mpsim.schedule.orders.flat import (
    eager_one_forward_one_backward,
    gpipe,
    naive,
    one_forward_one_backward,
    pipedream,
    pipedream_2bw,
)
from mpsim.schedule.orders.grouped import grouped_interleaved
from mpsim.schedule.orders.hanayo import hanayo
from mpsim.schedule.orders.interleaved import (
    combined_1f1b,
    interleaved_1f1b,
    interleaved_zb,
    looped_bfs,
)
from mpsim.schedule.orders.pattern import v_half, v_min
from mpsim.schedule.orders.sequence import seq_1f1b, terapipe
from mpsim.schedule.orders.v_1f1b import v_1f1b
from mpsim.schedule.orders.zb_auto import zb_auto
from mpsim.schedule.orders.zb_v import zb_v
from mpsim.schedule.orders.zb_v_greedy import zb_v_greedy
from mpsim.schedule.orders.zero_bubble import zb_h1, zb_h2

__all__ = ["SCHEDULES", "OpTimes", "Schedule", "Shape", "make_order"]

MOST_PASSES = 10_000_000
"""Passes of an order at the most: lowered, each is several ops, and memory ends soon above this."""

Placement = Literal["loop", "v", "wave", "bidirectional"]


@dataclass(frozen=True)
class Schedule:
    """What is known of a schedule besides its order; its function's docstring has the rest.

    ``chunks`` is the number of stages on a device that it takes: one, two (a V), or many, of which
    it names the default.
    """

    name: str
    function: Callable[[Shape], Order]
    placement: Placement = "loop"
    chunks: Literal["one", "two", "many"] = "one"
    splits_backward: bool = False
    slices: bool = False  # whether it cuts the sequence
    groups: bool = False  # whether it takes a group size
    searched: bool = False  # whether the order depends on the op times

    @property
    def default_chunks(self) -> int:
        """Stages on a device where the user names none."""
        return 1 if self.chunks == "one" else 2

    @property
    def summary(self) -> str:
        """First line of the docstring of its function."""
        return (self.function.__doc__ or "").partition("\n")[0]

    @property
    def source(self) -> str:
        """The paper, from the docstring of its function or of the module; empty if none."""
        for text in (self.function.__doc__, sys.modules[self.function.__module__].__doc__):
            _, found, source = (text or "").partition("Source:\n")
            if found:
                return " ".join(source.split())
        return ""


SCHEDULES: dict[str, Schedule] = {
    schedule.name: schedule
    for schedule in (
        Schedule("naive", naive),
        Schedule("gpipe", gpipe),
        Schedule("1f1b", one_forward_one_backward),
        Schedule("eager_1f1b", eager_one_forward_one_backward),
        Schedule("pipedream", pipedream),
        Schedule("pipedream_2bw", pipedream_2bw),
        Schedule("interleaved_1f1b", interleaved_1f1b, chunks="many", groups=True),
        Schedule("combined_1f1b", combined_1f1b, chunks="many", groups=True),
        Schedule("looped_bfs", looped_bfs, chunks="many"),
        Schedule("zb_h1", zb_h1, splits_backward=True),
        Schedule("zb_h2", zb_h2, splits_backward=True),
        Schedule("zb_auto", zb_auto, splits_backward=True, searched=True),
        Schedule("interleaved_zb", interleaved_zb, chunks="many", splits_backward=True),
        Schedule("zb_v", zb_v, "v", chunks="two", splits_backward=True),
        Schedule("zb_v_greedy", zb_v_greedy, "v", "two", splits_backward=True, searched=True),
        Schedule("v_half", v_half, "v", chunks="two", splits_backward=True),
        Schedule("v_min", v_min, "v", chunks="two", splits_backward=True),
        Schedule("1f1b_v", v_1f1b, "v", chunks="two"),
        Schedule("dualpipe", dualpipe, "bidirectional", splits_backward=True),
        Schedule("dualpipe_v", dualpipe_v, "v", chunks="two", splits_backward=True),
        Schedule("chimera", chimera, "bidirectional", groups=True),
        Schedule("bitpipe", bitpipe, "bidirectional", chunks="two"),
        Schedule("hanayo", hanayo, "wave", chunks="many", searched=True),
        Schedule("seq_1f1b", seq_1f1b, slices=True),
        Schedule("terapipe", terapipe, slices=True),
        Schedule(
            "grouped_interleaved",
            grouped_interleaved,
            chunks="many",
            splits_backward=True,
            groups=True,
            searched=True,
        ),
    )
}


def make_order(
    name: str,
    *,
    num_devices: int,
    num_microbatches: int,
    num_chunks: int | None = None,
    group_size: int | None = None,
    num_slices: int = 1,
    drain: Literal["ascending", "descending"] = "ascending",
    times: OpTimes | None = None,
    memory_limit: float | None = None,
    freed_at_input: float = 0.5,
) -> Order:
    """The order of a schedule.

    Args:
        name: A key of ``SCHEDULES``.
        num_devices: Devices of the pipeline, p.
        num_microbatches: Microbatches of an iteration, m.
        num_chunks: Stages on each device, v; None: the schedule's own, 1 or 2.
        group_size: Microbatches dealt together by interleaved schedules, pipelines of Chimera;
            None: their default.
        num_slices: Slices of the sequence in sequence-level schedules, Q.
        drain: In which order GPipe's backwards run.
        times: Seconds of the ops, for schedules that are searched; None: all alike, no hop.
        memory_limit: Activations (of one stage and microbatch) that zb_auto and zb_v_greedy may
            hold; None: what pays, and 2 p.
        freed_at_input: Share of an activation that those two take to be freed at I, not at W.

    Raises:
        ScheduleError: If the schedule cannot be had for these numbers.
    """
    schedule = SCHEDULES.get(name)
    if schedule is None:
        hint = did_you_mean(name, SCHEDULES)
        raise ScheduleError(f"'{name}' is not a schedule{hint}; there are {', '.join(SCHEDULES)}")
    for what, count in (
        ("devices", num_devices),
        ("microbatches", num_microbatches),
        ("chunks", num_chunks),
        ("group size", group_size),
        ("slices", num_slices),
    ):
        require(count is None or count >= 1, f"{name}: {what} must be 1 or more, not {count}")
    chunks = schedule.default_chunks if num_chunks is None else num_chunks
    passes = 2 * num_devices * chunks * num_microbatches * (num_slices if schedule.slices else 1)
    require(
        passes <= MOST_PASSES,
        f"{name}: {num_devices} devices x {chunks} chunks x {num_microbatches} microbatches are "
        f"{passes:,} forward and backward passes, more than the {MOST_PASSES:,} that are simulated "
        "at most: fewer microbatches (of more samples), or fewer stages",
    )
    _require_chunks(schedule, chunks)
    shape = Shape(
        num_devices=num_devices,
        num_microbatches=num_microbatches,
        num_chunks=chunks,
        group_size=group_size if schedule.groups else None,
        num_slices=num_slices if schedule.slices else 1,
        drain=drain,
        times=times or OpTimes(),
        memory_limit=memory_limit,
        freed_at_input=freed_at_input,
    )
    return replace(schedule.function(shape), num_slices=shape.num_slices)


def _require_chunks(schedule: Schedule, chunks: int) -> None:
    """Refuse a number of stages on a device that the schedule does not have."""
    name = schedule.name
    near = {"1f1b": "interleaved_1f1b", "zb_h1": "interleaved_zb", "gpipe": "looped_bfs"}
    instead = f" (or the schedule {near[name]})" if name in near else ""
    require(
        schedule.chunks != "one" or chunks == 1,
        f"{name} places one stage on a device, not {chunks}: use chunks 1{instead}",
    )
    require(
        schedule.chunks != "two" or chunks == 2,
        f"{name} places two stages on a device, not {chunks}: use chunks 2",
    )
