"""The cells of a calibration: what is measured, in sizes that suit the devices."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from mpsim.errors import ScheduleError
from mpsim.schedule.orders import SCHEDULES, make_order
from mpsim.spec.model import Network

from .devices import Placement
from .kernels import MEMORY_OPS
from .links import COLLECTIVES
from .models import Model, block_stack, count_layers, deal, layer_stack
from .pipeline import PipelineJob
from .schedules import torch_text

KIB = 1024


@dataclass(frozen=True)
class Cell:
    """One thing to measure.

    Attributes:
        table: Table that its rows go to.
        key: Its name, unique and the same in every run, by which a run is resumed.
        arguments: What its task takes.
        weight: Share of the time that it gets, relative to others.
    """

    table: str
    key: str
    arguments: tuple[Any, ...]
    weight: float = 1.0


@dataclass(frozen=True)
class Scale:
    """Sizes that take long enough to be timed and short enough to be many."""

    dtypes: tuple[str, ...]
    rows: tuple[int, ...]  # m of matrix products: samples or tokens of a microbatch
    widths: tuple[int, ...]  # n and k, widths of layers
    messages: tuple[int, ...]  # B
    streams: tuple[int, ...]  # B of memory-bound ops
    batch: int  # samples of a step
    step_widths: tuple[int, ...]
    block_widths: tuple[int, ...]
    sequence: int


ON_CPU = Scale(
    dtypes=("fp32",),
    rows=(1, 4, 16, 64, 256),
    widths=(64, 128, 256, 512),
    messages=tuple(256 * 4**power for power in range(7)),
    streams=(4 * KIB, 64 * KIB, KIB * KIB, 16 * KIB * KIB),
    batch=256,
    step_widths=(64, 128, 256, 384, 512),
    block_widths=(32, 64, 128),
    sequence=16,
)
ON_GPU = Scale(
    dtypes=("bf16", "fp32"),
    rows=(16, 128, 1024, 8192),
    widths=(512, 1024, 2048, 4096, 8192),
    messages=tuple(256 * 4**power for power in range(10)),
    streams=(64 * KIB, KIB * KIB, 16 * KIB * KIB, 256 * KIB * KIB),
    batch=4096,
    step_widths=(512, 1024, 2048, 4096),
    block_widths=(512, 1024),
    sequence=64,
)

MICROBATCHES = (1, 2, 4, 8, 16, 32, 64)
STEP_SCHEDULES = (
    *("gpipe", "1f1b", "interleaved_1f1b", "looped_bfs"),
    *("zb_h1", "interleaved_zb", "zb_v", "v_half"),
)


def plan_cells(placement: Placement, *, only: frozenset[str] | None = None) -> list[Cell]:
    """All cells for a placement, in an interleaved order that is the same in every run.

    The overheads come first, since no step can be predicted without them. The rest is shuffled with
    a fixed seed, so that drift of the machine meets all tables alike and whatever was measured when
    a run stops is a fair share of the whole.

    Args:
        placement: The workers; two GPUs get the sizes of GPUs, all else those of CPUs.
        only: Tables to measure; None: all.
    """
    scale = ON_GPU if "cpu" not in placement.devices else ON_CPU
    makers = (_gemms, _streams, _launches, _layers, _messages, _overlaps, _steps)
    made = {cell.key: cell for make in makers for cell in make(scale, placement)}
    cells = [cell for cell in made.values() if only is None or cell.table in only]
    shuffled = [cells[place] for place in np.random.default_rng(0).permutation(len(cells))]
    return sorted(shuffled, key=lambda cell: cell.table not in ("launch", "runtime"))


def _gemms(scale: Scale, placement: Placement) -> Iterator[Cell]:
    """Matrix products of forward and backward passes of square and of 4:1 layers."""
    pairs = [(w, w) for w in scale.widths]
    pairs += [pair for w in scale.widths[:-1] for pair in ((4 * w, w), (w, 4 * w))]
    for dtype, rows, (n, k) in itertools.product(scale.dtypes, scale.rows, pairs):
        for shape in {(rows, n, k), (n, k, rows)} if n == k else {(rows, n, k)}:
            yield Cell("gemm", f"gemm {dtype} {'x'.join(map(str, shape))}", (dtype, *shape))


def _streams(scale: Scale, placement: Placement) -> Iterator[Cell]:
    """Memory-bound ops, and copies between host and GPU where there is one."""
    for op, nbytes in itertools.product(MEMORY_OPS, scale.streams):
        yield Cell("memory_bound", f"{op} {nbytes}", (op, nbytes))
    if any(device != "cpu" for device in placement.devices):
        for op, nbytes in itertools.product(("h2d", "d2h"), scale.messages):
            yield Cell("host_copy", f"{op} {nbytes}", (op, nbytes))


def _launches(scale: Scale, placement: Placement) -> Iterator[Cell]:
    """Overheads of the host, and those of the pipeline runtime."""
    yield Cell("launch", "launch", (), weight=4.0)
    yield Cell("runtime", "runtime", (), weight=8.0)


def _layers(scale: Scale, placement: Placement) -> Iterator[Cell]:
    """Passes of layers that have weights."""
    for width, batch in itertools.product(scale.widths, scale.rows):
        networks = {
            f"linear_{width}x{width}": [{"type": "linear", "inputs": width, "outputs": width}],
            f"layer_norm_{width}": [{"type": "layer_norm", "features": width}],
        }
        for name, layers in networks.items():
            network = Network.model_validate({"name": name, "input": [width], "network": layers})
            yield Cell("layers", f"{name} {batch}", (network, batch), weight=2.0)
    for batch in scale.rows[:4]:
        network = Network.model_validate(
            {
                "name": "conv2d_10_20_k5",
                "input": [10, 12, 12],
                "network": [{"type": "conv2d", "inputs": 10, "outputs": 20, "kernel": 5}],
            }
        )
        yield Cell("layers", f"conv2d_10_20_k5 {batch}", (network, batch), weight=2.0)


def _messages(scale: Scale, placement: Placement) -> Iterator[Cell]:
    """Messages and collectives."""
    staged = placement.backend == "gloo" and any(d != "cpu" for d in placement.devices)
    # gloo reduces and scatters no GPU memory; broadcast and all-reduce it does
    ops = ("all_reduce", "broadcast") if staged else COLLECTIVES
    for nbytes in scale.messages:
        for way in ("sendrecv", "sendrecv_both"):
            yield Cell("collectives", f"{way} {nbytes}", (way, nbytes), weight=2.0)
        for op in ops:
            yield Cell("collectives", f"{op} {nbytes}", (op, nbytes))


def _overlaps(scale: Scale, placement: Placement) -> Iterator[Cell]:
    """Compute and messages at once."""
    for nbytes in scale.messages[-3:]:
        for width in scale.widths[1:3]:
            yield Cell("overlap", f"overlap {width} {nbytes}", (width, nbytes), weight=4.0)


def _steps(scale: Scale, placement: Placement) -> Iterator[Cell]:
    """Whole steps: series over microbatch counts, and a sample of the grid of all else."""
    for width, microbatches in itertools.product(scale.step_widths[1::2], MICROBATCHES):
        job = step_job(layer_stack(width, 8), "1f1b", microbatches, batch=scale.batch)
        if job is not None:
            yield _step_cell("1f1b", job)
    generator = np.random.default_rng(1)
    for schedule, microbatches, draw in itertools.product(STEP_SCHEDULES, MICROBATCHES, (0, 1)):
        blocks = generator.random() < 0.25
        if blocks:
            model: Model = block_stack(int(generator.choice(scale.block_widths)), 6)
            batch, sequence = scale.batch // 4, scale.sequence
        else:
            model = layer_stack(int(generator.choice(scale.step_widths)), 8)
            batch, sequence = int(generator.choice((scale.batch // 2, scale.batch))), 1
        shift = int(generator.integers(-1, 2)) if draw else 0
        job = step_job(model, schedule, microbatches, batch=batch, sequence=sequence, shift=shift)
        if job is not None:
            yield _step_cell(schedule, job)


def step_job(
    model: Model, schedule: str, microbatches: int, *, batch: int, sequence: int = 1, shift: int = 0
) -> PipelineJob | None:
    """A pipeline step on two workers; None where the schedule or the batch does not allow it.

    Args:
        model: What is trained.
        schedule: Name of the schedule, with its default number of chunks.
        microbatches: Microbatches of the step.
        batch: Samples of the step.
        sequence: Tokens of a sample.
        shift: Layers that the first stage has more than the last, halved: 0 is the even split.
    """
    if batch % microbatches:
        return None
    try:
        order = make_order(
            schedule,
            num_devices=2,
            num_microbatches=microbatches,
            num_chunks=SCHEDULES[schedule].default_chunks,
        )
        text = torch_text(order)
    except ScheduleError:
        return None
    counts = list(deal(count_layers(model), order.num_stages))
    moved = max(-counts[0] + 1, min(counts[-1] - 1, 2 * shift))
    counts[0], counts[-1] = counts[0] + moved, counts[-1] - moved
    return PipelineJob(
        model, tuple(counts), text, microbatches, batch, sequence, learning_rate=1e-3, warmup=2
    )


def _step_cell(schedule: str, job: PipelineJob) -> Cell:
    """The cell of a step."""
    counts = "-".join(map(str, job.counts))
    key = f"step {job.model.name} {schedule} m{job.microbatches} b{job.batch} {counts}"
    return Cell("steps", key, (schedule, job), weight=4.0)
