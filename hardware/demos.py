"""The networks of the scenarios trained for real on two workers, beside the unsplit network."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mpsim.spec.model import Network

from .agreement import Agreement, check_split
from .models import (
    SMALL_CNN,
    TWO_DEVICE_MLP,
    boundary_shapes,
    build,
    build_layers,
    count_layers,
    deal,
    loss_of,
    two_layer,
)
from .pipeline import PipelineJob, PipelineRun, run_pipeline
from .splits import SPLITS
from .worker import Context
from .workers import Workers

BATCH, RATE, EPOCHS = 64, 0.01, 5
BATCHES = 16  # of an epoch: 1024 samples


@dataclass(frozen=True)
class Demo:
    """A network and the ways it is split."""

    model: Network
    splits: tuple[str, ...]


DEMOS = {
    "two-device": Demo(TWO_DEVICE_MLP, ("layer",)),
    "cnn": Demo(SMALL_CNN, ("data_parallel", "ddp")),
    "two-layer": Demo(two_layer(32, 64), ("layer", "column", "row")),
}
"""The demonstrations by name."""


@dataclass(frozen=True)
class Epoch:
    """One epoch of a split network."""

    number: int  # from 1
    loss: float  # mean over its steps
    unsplit_loss: float  # of the unsplit network, trained alike
    step_seconds: tuple[float, ...]  # s of each step, forward, backward and update
    where: dict[str, str]  # parameter → shape, device and worker it lives on


@dataclass(frozen=True)
class Trained:
    """A split network after training.

    Attributes:
        split: Name of the split.
        agreement: Loss and gradients of the first batch against the unsplit network.
        epochs: What each epoch was like.
    """

    split: str
    agreement: Agreement
    epochs: tuple[Epoch, ...]

    @property
    def loss_error(self) -> float:
        """Largest relative difference of an epoch's loss from the unsplit network's."""
        return max(abs(e.loss - e.unsplit_loss) / abs(e.unsplit_loss) for e in self.epochs)


def train(
    workers: Workers,
    name: str,
    split: str,
    *,
    epochs: int = EPOCHS,
    told: Callable[[Epoch], None] = lambda epoch: None,
) -> Trained:
    """Train the network of a demonstration under one of its splits, and unsplit beside it.

    Args:
        workers: Where it runs.
        name: Name of the demonstration.
        split: Name of the split.
        epochs: Epochs of 16 batches of 64.
        told: Called with each epoch as it ends.

    Raises:
        CalibrationError: If a worker fails.
    """
    model = DEMOS[name].model
    agreement = check_split(workers, split, model, batch=BATCH)
    unsplit = unsplit_losses(model, epochs)
    done = []
    shares = workers.run(train_share, split, model, epochs)
    for number in range(epochs):
        losses = [share[number].loss for share in shares if share[number].loss is not None]
        where = _join([share[number].where for share in shares])
        seconds = zip(*(share[number].seconds for share in shares), strict=True)
        epoch = Epoch(
            number + 1, losses[-1] or 0.0, unsplit[number], tuple(map(max, seconds)), where
        )
        told(epoch)
        done.append(epoch)
    return Trained(split, agreement, tuple(done))


def _join(places: Sequence[dict[str, str]]) -> dict[str, str]:
    """Where each parameter lives, of all workers that hold it or a part of it."""
    names = sorted({name for place in places for name in place})
    return {name: "; ".join(p[name] for p in places if name in p) for name in names}


@dataclass(frozen=True)
class ShareOfEpoch:
    """What one worker knows of an epoch; the loss is None where it does not know it."""

    loss: float | None
    seconds: tuple[float, ...]
    where: dict[str, str]


def train_share(context: Context, split: str, model: Network, epochs: int) -> list[ShareOfEpoch]:
    """Task: one worker's part of the training."""
    batches = [(x.to(context.device), y.to(context.device)) for x, y in make_data(model)]
    network = SPLITS[split](context, model)
    held = [value for _, value in network.parameters()]
    optimizer = torch.optim.SGD(held, lr=RATE) if held else None
    told = []
    for _ in range(epochs):
        losses, seconds = [], []
        for inputs, target in batches:
            dist.barrier()
            begin = time.perf_counter()
            loss = network.backward(inputs, target)
            if optimizer is not None:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            context.synchronize()
            seconds.append(time.perf_counter() - begin)
            if loss is not None:
                losses.append(loss.item())
        mean = sum(losses) / len(losses) if losses else None
        told.append(ShareOfEpoch(mean, tuple(seconds), network.where()))
    return told


def unsplit_losses(model: Network, epochs: int) -> list[float]:
    """Mean loss of each epoch of the unsplit network, trained alike on the CPU."""
    module, loss_of_batch = build(model), loss_of(model)
    optimizer = torch.optim.SGD(module.parameters(), lr=RATE)
    means = []
    for _ in range(epochs):
        losses = []
        for inputs, target in make_data(model):
            loss = loss_of_batch(module(inputs), target)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            losses.append(loss.item())
        means.append(sum(losses) / len(losses))
    return means


def make_data(model: Network) -> list[tuple[Tensor, Tensor]]:
    """Batches of one epoch: random inputs, labelled by the sign of their sums.

    A network with several outputs gets the classes 0 and 1, one with a single output the
    probabilities 0 and 1.
    """
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(BATCHES, BATCH, *model.input, generator=generator)
    labels = inputs.flatten(2).sum(-1) > 0
    with torch.device("meta"):
        layers: list[nn.Module] = build_layers(model, range(count_layers(model)))
        shapes = boundary_shapes(layers, [len(layers)], torch.empty(BATCH, *model.input))
    single = shapes[-1][-1] == 1
    targets = labels.float().unsqueeze(-1) if single else labels.long()
    return list(zip(inputs, targets, strict=True))


def measure_step(workers: Workers, name: str = "two-device", *, steps: int = 50) -> PipelineRun:
    """Steps of a demonstration's network under torch's pipeline runtime, each op stamped.

    Its layers are dealt as evenly as they go, those of ``two-device`` 2 + 3. There is one
    microbatch, so that the order is the naive one. For a simulated step to be laid beside it.
    """
    model = DEMOS[name].model
    job = PipelineJob(
        model,
        deal(count_layers(model), 2),
        "0F0,0B0\n1F0,1B0",
        microbatches=1,
        batch=BATCH,
        steps=steps,
        warmup=5,
        learning_rate=RATE,
    )
    return run_pipeline(workers, job)
