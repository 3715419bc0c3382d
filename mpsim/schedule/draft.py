"""A graph that is being put together: ops and waits are appended pass by pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mpsim.errors import ScheduleError
from mpsim.schedule.graph import OpGraph
from mpsim.schedule.ops import Ints, Kind, Op
from mpsim.schedule.topology import Edges, by_waiting_op, sequenced

_COLUMNS = {
    "kind": 0, "stage": -1, "microbatch": -1, "slice": -1, "part": -1, "num_parts": 1, "entry": -1,
    "block": -1, "device": 0, "peer": -1, "stream": 0,
}  # fmt: skip
"""Columns of the ops, and what they hold where nothing is said."""


class Draft:
    """Ops and edges of a graph that is being put together, pass by pass."""

    def __init__(self, num_streams: int, *, capacity: int) -> None:
        """An empty graph with room for some ops; it grows when they do not suffice."""
        self.num_streams, self.num_ops = num_streams, 0
        self.edges: list[Edges] = []
        # In one piece: the system would take many pieces back and clear them anew each time.
        self._table = np.empty((len(_COLUMNS), capacity), np.int32)

    def column(self, name: str) -> Ints:  # (N,)
        """A column of the ops so far."""
        return self._table[list(_COLUMNS).index(name), : self.num_ops]

    def add(self, count: int, **columns: ArrayLike) -> Ints:
        """Appends ops with the given columns, the others at their default; returns the indices."""
        first, self.num_ops = self.num_ops, self.num_ops + count
        if self.num_ops > self._table.shape[1]:
            room = np.empty((len(_COLUMNS), self.num_ops), np.int32)
            self._table = np.hstack([self._table[:, :first], room])
        for name, default in _COLUMNS.items():
            self.column(name)[first:] = columns.get(name, default)
        return np.arange(first, self.num_ops, dtype=np.int32)

    def wait(self, after: ArrayLike, before: ArrayLike) -> None:
        """Lets the ops ``after`` wait for the ops ``before``, pair by pair."""
        pairs = np.broadcast_arrays(np.asarray(after, np.int32), np.asarray(before, np.int32))
        self.edges.append(Edges(pairs[0].ravel(), pairs[1].ravel()))

    def graph(self, *, num_devices: int, num_stages: int, num_microbatches: int) -> OpGraph:
        """The graph.

        Raises:
            ScheduleError: If ops wait for each other in a circle; ``ops`` are the entries of the
                order among them.
        """
        columns: dict[str, NDArray[Any]] = {name: self.column(name) for name in _COLUMNS}
        columns["kind"] = columns["kind"].astype(np.int8)
        starts, pred = by_waiting_op(self.edges, self.num_ops)
        try:
            previous, topological = sequenced(
                columns["stream"], self.num_streams, pred_starts=starts, pred=pred
            )
        except ScheduleError as error:
            raise _deadlock(columns, error.ops) from None
        return OpGraph(
            num_devices=num_devices,
            num_stages=num_stages,
            num_microbatches=num_microbatches,
            **columns,
            pred_starts=starts,
            pred=pred,
            topological=topological,
            previous=previous,
            num_streams=self.num_streams,
        )


def _deadlock(columns: dict[str, NDArray[Any]], circle: Sequence[int]) -> ScheduleError:
    """The error that names the ops of a circle, each waiting for the next."""
    fields = [columns[name].tolist() for name in ("stage", "kind", "microbatch", "slice")]
    names = [
        str(Op(stage, Kind(kind), microbatch, cut))
        for stage, kind, microbatch, cut in ([field[op] for field in fields] for op in circle)
    ]
    shown = names if len(names) <= 8 else [*names[:7], f"… ({len(names) - 7} more)"]
    entries = dict.fromkeys(int(columns["entry"][op]) for op in circle)
    return ScheduleError(
        "deadlock: each of these ops waits for the next, and the last for the first: "
        + ", ".join(shown),
        ops=[entry for entry in entries if entry >= 0],
    )
