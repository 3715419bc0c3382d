"""Whether a split network computes what the unsplit one does: loss and gradients compared."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from mpsim.errors import CalibrationError

from .models import Model, build, loss_of, make_batch
from .pipeline import PipelineJob, run_pipeline
from .splits import SPLITS
from .worker import Context
from .workers import Workers

TOLERANCE = 1e-5  # relative, fp32: sums in another order differ by some 1e-7 a term


@dataclass(frozen=True)
class Agreement:
    """How far a split is from the unsplit network; errors are relative.

    The gradient error is the largest difference of an entry over the largest entry of its tensor.
    """

    loss: float
    loss_error: float
    gradient_error: float

    @property
    def holds(self) -> bool:
        """Whether both errors are within 1e-5."""
        return max(self.loss_error, self.gradient_error) <= TOLERANCE


def check_split(workers: Workers, name: str, model: Model, *, batch: int) -> Agreement:
    """Run a split for real: the worst agreement of all workers.

    Raises:
        CalibrationError: If the model cannot be split so, or a worker fails.
    """
    world = len(workers.placement.workers)
    if batch % world:
        raise CalibrationError(f"a batch of {batch} cannot be dealt to {world} workers")
    agreements = workers.run(_check_share, name, model, batch)
    return Agreement(
        agreements[0].loss,
        max(agreement.loss_error for agreement in agreements),
        max(agreement.gradient_error for agreement in agreements),
    )


def check_pipeline(workers: Workers, job: PipelineJob) -> Agreement:
    """Run a pipeline for real and compare it with the unsplit model, computed here on the CPU.

    The job's learning rate must be zero, so that gradients are returned.
    """
    run = run_pipeline(workers, job)
    batch = make_batch(job.model, job.batch, seed=job.seed, sequence=job.sequence)
    loss, gradients = _whole(job.model, *batch, seed=job.seed)
    pairs = ((run.gradients[name], gradient) for name, gradient in gradients.items())
    return _compare(run.losses[-1], loss, pairs)


def _check_share(context: Context, name: str, model: Model, batch: int) -> Agreement:
    """Task: one worker's part of a split, compared with the whole."""
    inputs, target = (part.to(context.device) for part in make_batch(model, batch))
    loss, gradients = _whole(model, inputs, target)
    split = SPLITS[name](context, model)
    found = split.backward(inputs, target)
    pairs = (
        (value.grad, split.cut(parameter, gradients[parameter]))
        for parameter, value in split.parameters()
        if value.grad is not None
    )
    return _compare(loss if found is None else found.item(), loss, pairs)


def _whole(
    model: Model, inputs: Tensor, target: Tensor, seed: int = 0
) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of the unsplit network."""
    module = build(model, seed).to(inputs.device)
    loss = loss_of(model)(module(inputs), target)
    torch.autograd.backward(loss)
    named = module.named_parameters()
    return loss.item(), {name: value.grad for name, value in named if value.grad is not None}


def _compare(found: float, loss: float, pairs: Iterable[tuple[Tensor, Tensor]]) -> Agreement:
    """Errors of a loss and of some gradients, each beside the true one."""
    worst = 0.0
    for gradient, truth in pairs:
        scale = max(truth.abs().max().item(), torch.finfo(truth.dtype).tiny)
        worst = max(worst, (gradient - truth).abs().max().item() / scale)
    return Agreement(loss, abs(found - loss) / abs(loss), worst)
