"""torch's pipeline runtime with its messages and its clock in our hands.

torch 2.13 offers no hooks for sends, receives and waits. The module ``schedules`` looks up three
names of its own when it runs an action: ``record_function`` (around each action), ``_batch_p2p``
(begins messages) and ``_wait_batch_p2p`` (waits for them). They are exchanged while a step runs, in
worker processes only. Everything else, the order of actions above all, stays torch's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, schedules

from .clocks import Clock
from .transport import Pending, Transport

Runtime: Any = schedules._PipelineScheduleRuntime
"""torch's runtime for orders given as text; not public, hence its module is pinned to 2.13."""


@dataclass(frozen=True)
class OpEvent:
    """One op as it was run; times are seconds of the clock all workers are aligned to."""

    worker: int
    op: str  # as in the schedule's text: 2F0, 1SEND_F3; STEP for the update, LEAVE for last sends
    step: int
    begin: float  # s, the worker turned to the op
    ready: float  # s, what it had to wait for was there; begin where it waits for nothing
    end: float  # s

    @property
    def waited(self) -> float:
        """Seconds it waited for a message."""
        return self.ready - self.begin

    @property
    def seconds(self) -> float:
        """Seconds of its own work, waiting apart."""
        return self.end - self.ready


class Recorder:
    """Stamps the actions of one worker."""

    def __init__(self, clock: Clock, *, enabled: bool = True) -> None:
        """Record with a clock; nothing if not enabled."""
        self.clock, self.enabled = clock, enabled
        self._stamps: list[Any] = []
        self._names: list[str] = []
        self._ready: Any = None

    @contextlib.contextmanager
    def action(self, name: str) -> Iterator[None]:
        """Stamp the begin, the last end of waiting, and the end of an action."""
        if not self.enabled:
            yield
            return
        begin, self._ready = self.clock.stamp(), None
        yield
        ready = begin if self._ready is None else self._ready
        self._stamps += (begin, ready, self.clock.stamp())
        self._names.append(name.removeprefix("PP:"))
        self._ready = None

    def waited(self) -> None:
        """A wait inside the present action is over."""
        if self.enabled:
            self._ready = self.clock.stamp()

    def events(self, worker: int, step: int, *, ahead: float) -> list[OpEvent]:
        """The actions since the last call; ``ahead`` seconds are taken from every time."""
        times = [moment - ahead for moment in self.clock.resolve(self._stamps)]
        names, self._stamps, self._names = self._names, [], []
        return [
            OpEvent(worker, name, step, *times[3 * place : 3 * place + 3])
            for place, name in enumerate(names)
        ]


@contextlib.contextmanager
def instrumented(recorder: Recorder, transport: Transport) -> Iterator[None]:
    """Have torch's runtime stamp its actions and send its messages through a transport."""

    def begin(messages: Sequence[Any], desc: str | None = None) -> list[Pending]:
        return [
            transport.isend(message.tensor, message.peer)
            if message.op is dist.isend
            else transport.irecv(message.tensor, message.peer)
            for message in messages
        ]

    def finish(pending: Sequence[Pending]) -> None:
        for message in pending:
            message.wait()
        if pending:
            recorder.waited()

    with (
        patch.object(schedules, "record_function", recorder.action),
        patch.object(schedules, "_batch_p2p", begin),
        patch.object(schedules, "_wait_batch_p2p", finish),
    ):
        yield


class Stage(PipelineStage):
    """A stage whose tensor shapes are known, so that workers need no messages to agree on them."""

    def __init__(
        self,
        module: nn.Module,
        index: int,
        *,
        stages: int,
        device: torch.device,
        example: tuple[Tensor, Tensor],
    ) -> None:
        """Stage ``index`` of ``stages``; ``example`` are tensors like its input and its output."""
        inputs, outputs = example
        super().__init__(module, index, stages, device, input_args=inputs, output_args=outputs)

    def _warmup_forward_vote(
        self, has_backward: bool, received_acc: Tensor | None = None
    ) -> Tensor:
        """Every stage is of known shape: no vote is taken."""
        return torch.ones(1, dtype=torch.int32)

    def _warmup_backward_result(self, received_result: Tensor | None = None) -> Tensor:
        """The vote that was not taken is unanimous."""
        return torch.ones(1, dtype=torch.int32)


def load(
    stages: Sequence[Stage],
    path: str,
    *,
    microbatches: int,
    loss: Callable[[Tensor, Tensor], Tensor],
    communication: bool,
) -> Any:  # noqa: ANN401  (torch's runtime, which is untyped)
    """Torch's runtime for an order in its text format.

    Overlapped pairs are laid one after the other, which is how torch runs them, so that each op has
    its own times. Padding of a text with communication is dropped.
    """
    runtime = Runtime(list(stages), microbatches, loss_fn=loss)
    runtime._load_csv(path, "compute_comms" if communication else "compute_only")
    order = runtime.pipeline_order_with_comms
    for rank, actions in order.items():
        order[rank] = [part for action in actions for part in action.sub_actions or (action,)]
    return runtime
