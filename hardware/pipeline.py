"""A pipeline run for real: any schedule given as text, on as many workers as it has rows."""

from __future__ import annotations

import csv
import io
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mpsim.errors import CalibrationError, ScheduleError
from mpsim.schedule.ops import Kind, Op

from .clocks import offset_to_first, open_clock
from .counting import Counter
from .faults import Faults, with_faults
from .memory import peak_memory
from .models import (
    Model,
    boundary_shapes,
    build_layers,
    count_layers,
    loss_of,
    make_batch,
)
from .runtime import OpEvent, Recorder, Stage, instrumented, load
from .timing import agree
from .transport import Transport
from .worker import Context
from .workers import Workers


@dataclass(frozen=True)
class PipelineJob:
    """What a pipeline run does.

    Attributes:
        model: The model; every worker builds the layers of its stages from the seed.
        counts: Layers of each stage.
        schedule: Order as text: one row a worker, cells such as ``2F0``; with communication as
            torch dumps it, if ``communication``.
        microbatches: Microbatches of a step.
        batch: Samples of a step.
        sequence: Tokens of a sample, of transformers.
        communication: Whether the text has sends and receives.
        steps: Steps timed.
        warmup: Steps before them, not timed.
        budget: Seconds to fill with timed steps; ``steps`` is then the least number.
        learning_rate: Of plain gradient descent after each step; 0: weights stay, and gradients are
            returned.
        seed: Of weights and data.
        record: Whether each op is stamped.
        memory: Whether a further step tracks the peak memory.
        count: Whether a further step counts the kernels of each op.
        faults: What is made to go wrong.
    """

    model: Model
    counts: tuple[int, ...]
    schedule: str
    microbatches: int
    batch: int
    sequence: int = 1
    communication: bool = False
    steps: int = 1
    warmup: int = 0
    budget: float = 0.0
    learning_rate: float = 0.0
    seed: int = 0
    record: bool = True
    memory: bool = False
    count: bool = False
    faults: Faults = field(default_factory=Faults)

    def __post_init__(self) -> None:
        """Check that the counts and the batch divide as they must."""
        layers = count_layers(self.model)
        if sum(self.counts) != layers or min(self.counts) < 1:
            raise CalibrationError(
                f"the stages have {self.counts} layers, but the model has {layers}, and each "
                "stage needs one"
            )
        if self.batch % self.microbatches:
            raise CalibrationError(
                f"a batch of {self.batch} cannot be cut into {self.microbatches} equal microbatches"
            )


@dataclass(frozen=True)
class PipelineRun:
    """What was seen of a pipeline run.

    Attributes:
        step_seconds: Seconds of each timed step: from the call on the worker of the first stage to
            the end of the last worker, the update included.
        events: Every op of every timed step, on one clock.
        losses: Loss of each timed step.
        gradients: Gradients by parameter (``layer.name``) after the last step, if weights stay.
        peak_bytes: Peak memory of each worker with its weights, if asked for; on a CPU without the
            batch and the buffers for messages.
        clock_offsets: Seconds that each worker's clock was ahead of the first one's.
        spans: Begin and end of each timed step on each worker, by worker.
        kernels: Kernels that each op launches, by its text, if asked for.
    """

    step_seconds: tuple[float, ...]
    events: tuple[OpEvent, ...]
    losses: tuple[float, ...]
    gradients: dict[str, Tensor]
    peak_bytes: tuple[int, ...]
    clock_offsets: tuple[float, ...]
    spans: tuple[tuple[tuple[float, float], ...], ...]
    kernels: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class _Share:
    """What one worker saw."""

    begins: list[float]
    ends: list[float]
    events: list[OpEvent]
    losses: list[float]
    gradients: dict[str, Tensor]
    peak: int
    ahead: float
    kernels: dict[str, int] = field(default_factory=dict)


def run_pipeline(workers: Workers, job: PipelineJob) -> PipelineRun:
    """Run a pipeline on workers.

    Raises:
        ScheduleError: If the text is not a schedule that torch's runtime can run here.
        CalibrationError: If a worker fails.
    """
    owners = owners_of(job.schedule, len(job.counts))
    if len(workers.placement.workers) != len(read_rows(job.schedule)):
        raise ScheduleError(
            f"the schedule has {len(read_rows(job.schedule))} rows, but "
            f"{len(workers.placement.workers)} workers run"
        )
    shares = workers.run(_run_share, job, owners)
    first = shares[owners[0]]
    step_ends = zip(*(share.ends for share in shares), strict=True)
    return PipelineRun(
        step_seconds=tuple(
            max(ends) - begin for begin, ends in zip(first.begins, step_ends, strict=True)
        ),
        events=tuple(event for share in shares for event in share.events),
        losses=tuple(shares[owners[-1]].losses),
        gradients={name: grad for share in shares for name, grad in share.gradients.items()},
        peak_bytes=tuple(share.peak for share in shares),
        clock_offsets=tuple(share.ahead for share in shares),
        spans=tuple(tuple(zip(share.begins, share.ends, strict=True)) for share in shares),
        kernels={op: count for share in shares for op, count in share.kernels.items()},
    )


def read_rows(schedule: str) -> list[list[str]]:
    """Cells of each row of a schedule's text; empty rows at the end are not rows."""
    rows = [[cell.strip() for cell in row] for row in csv.reader(io.StringIO(schedule.strip()))]
    return [row for row in rows if row]


def owners_of(schedule: str, stages: int) -> tuple[int, ...]:
    """Worker of each stage.

    Raises:
        ScheduleError: If a cell is not an op that torch's runtime knows, or a stage lies on no
            worker, or on two (bidirectional schedules).
    """
    owners: dict[int, int] = {}
    for rank, row in enumerate(read_rows(schedule)):
        for op in (op for cell in row for op in _ops(cell)):
            if op.slice >= 0:
                raise ScheduleError(f"'{op}': torch's runtime does not cut the sequence")
            if op.kind > Kind.REDUCE_GRAD:
                raise ScheduleError(f"'{op}': torch's runtime does not know this op")
            if owners.setdefault(op.stage, rank) != rank:
                raise ScheduleError(
                    f"stage {op.stage} lies on workers {owners[op.stage]} and {rank}; torch's "
                    "runtime holds each stage once (no bidirectional schedules)"
                )
    if sorted(owners) != list(range(stages)):
        raise ScheduleError(f"the schedule has stages {sorted(owners)}, but there are {stages}")
    return tuple(owners[stage] for stage in range(stages))


def _ops(cell: str) -> list[Op]:
    """Ops of a cell: none, one, or those of an overlapped block ``(0F1;1B0)OVERLAP_F_B``."""
    inner = cell.partition(")")[0].lstrip("(") if cell.startswith("(") else cell
    try:
        return [Op.parse(text) for text in inner.split(";") if text.strip()]
    except ValueError as error:
        raise ScheduleError(str(error)) from None


def _run_share(context: Context, job: PipelineJob, owners: tuple[int, ...]) -> _Share:
    """Task: this worker's part of a run."""
    share = _Share([], [], [], [], {}, 0, offset_to_first(context).correction)
    transport = Transport(context, job.faults.throttle.get(context.rank))
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "order.csv"
            path.write_text("\n".join(",".join(row) for row in read_rows(job.schedule)))
            step = _Step(context, job, owners, transport=transport, path=path)
        for number in range(-job.warmup, 0):
            step.run(share, number)
        for number in range(_timed_steps(job, step, share)):
            step.run(share, number)
        if job.count:
            share.kernels.update(step.count_kernels())
        if job.memory:
            with peak_memory(context.device) as peak:
                step.run(share, -1)
            weights = 0 if context.device.type == "cuda" else step.weight_bytes
            share = _Share(**{**share.__dict__, "peak": peak.nbytes + weights})
    finally:
        transport.close()
    if not job.learning_rate:
        share.gradients.update(step.gradients())
    return share


def _timed_steps(job: PipelineJob, step: _Step, share: _Share) -> int:
    """Number of steps to time: as asked for, or as fill the budget by the first worker's clock."""
    if not job.budget:
        return job.steps
    begin = time.perf_counter()
    step.run(share, -1)
    once = time.perf_counter() - begin
    return int(agree(max(job.steps, min(200, job.budget / once))))


class _Step:
    """One worker's stages under torch's runtime, ready to run steps."""

    def __init__(
        self,
        context: Context,
        job: PipelineJob,
        owners: Sequence[int],
        *,
        transport: Transport,
        path: Path,
    ) -> None:
        self.context, self.job, self.transport = context, job, transport
        self.holds_first, self.holds_last = owners[0] == context.rank, owners[-1] == context.rank
        inputs, target = make_batch(job.model, job.batch, seed=job.seed, sequence=job.sequence)
        self.inputs, self.target = inputs.to(context.device), target.to(context.device)
        mine = [stage for stage, owner in enumerate(owners) if owner == context.rank]
        shapes = self._shapes(inputs)
        self.layers: dict[int, nn.Module] = {}
        stages = [self._stage(index, shapes, inputs) for index in mine]
        self.runtime = load(
            stages,
            str(path),
            microbatches=job.microbatches,
            loss=loss_of(job.model),
            communication=job.communication,
        )
        parameters = [
            parameter for layer in self.layers.values() for parameter in layer.parameters()
        ]
        self.optimizer = (
            torch.optim.SGD(parameters, lr=job.learning_rate)
            if job.learning_rate and parameters
            else None
        )
        self.recorder = Recorder(open_clock(context), enabled=job.record)

    def _shapes(self, inputs: Tensor) -> list[tuple[int, ...]]:
        """Shapes of one microbatch between the stages."""
        job = self.job
        with torch.device("meta"):
            layers = build_layers(job.model, range(count_layers(job.model)))
            part = torch.empty(job.batch // job.microbatches, *inputs.shape[1:], dtype=inputs.dtype)
            return boundary_shapes(layers, job.counts, part)

    def _stage(self, index: int, shapes: list[tuple[int, ...]], inputs: Tensor) -> Stage:
        """One stage, with faults if it is to have some."""
        job, device = self.job, self.context.device
        start = sum(job.counts[:index])
        places = range(start, start + job.counts[index])
        layers = [layer.to(device) for layer in build_layers(job.model, places, job.seed)]
        self.layers.update(zip(places, layers, strict=True))
        module = with_faults(nn.Sequential(*layers), index, job.faults)
        entering = torch.empty(
            shapes[index],
            device="meta",
            dtype=inputs.dtype if index == 0 else torch.float32,
            requires_grad=index > 0,
        )
        leaving = torch.empty(shapes[index + 1], device="meta", requires_grad=True)
        return Stage(
            module,
            index,
            stages=len(job.counts),
            device=device,
            example=(entering, leaving),
        )

    def run(self, share: _Share, number: int) -> None:
        """One step after a barrier; a negative number is a step that is not noted."""
        self._clear_gradients()
        losses: list[Tensor] = []
        arguments = (self.inputs,) if self.holds_first else ()
        target = self.target if self.holds_last else None
        dist.barrier()
        clock, recorder = self.recorder.clock, self.recorder
        clock.start()
        begin = clock.stamp()
        with instrumented(recorder, self.transport):
            self.runtime.step(*arguments, target=target, losses=losses, return_outputs=False)
        if self.optimizer is not None:
            with recorder.action("STEP"):
                self.optimizer.step()
        end = clock.stamp()
        events = recorder.events(self.context.rank, number, ahead=share.ahead)
        if number < 0:
            return
        begin, end = clock.resolve([begin, end])
        share.begins.append(begin - share.ahead)
        share.ends.append(end - share.ahead)
        share.events.extend(events)
        if self.holds_last:
            share.losses.append(sum(loss.item() for loss in losses) / len(losses))

    def count_kernels(self) -> dict[str, int]:
        """Kernels that each op launches: a step whose actions are stamped with a count."""
        timed, share = self.recorder, _Share([], [], [], [], {}, 0, 0.0)
        with Counter() as counter:
            self.recorder = Recorder(counter)
            self.run(share, 0)
        self.recorder = timed
        return {event.op: round(event.end - event.begin) for event in share.events}

    def _clear_gradients(self) -> None:
        """Forget the gradients of the step before."""
        for layer in self.layers.values():
            layer.zero_grad(set_to_none=True)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the parameters of this worker's stages."""
        layers = self.layers.values()
        return sum(value.nbytes for layer in layers for value in layer.parameters())

    def gradients(self) -> dict[str, Tensor]:
        """Gradients on the CPU, by layer and name."""
        return {
            f"{place}.{name}": parameter.grad.cpu()
            for place, layer in self.layers.items()
            for name, parameter in layer.named_parameters()
            if parameter.grad is not None
        }
