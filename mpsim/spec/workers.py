"""Workers of one machine as they were measured: the fitted parameters and how sure they are."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PlainSerializer, model_validator

from mpsim.spec.quantities import (
    Bandwidth,
    Bytes,
    Count,
    CountOrZero,
    Declaration,
    FlopRate,
    Positive,
    Ratio,
    Seconds,
)

Floats = NDArray[np.float64]

Row = Annotated[
    tuple[float, ...],
    PlainSerializer(lambda row: [float(f"{value:.4g}") for value in row], when_used="json"),
]
"""A row of numbers, written with four digits."""


class WorkerFit(Declaration):
    """How long a worker that launches and computes by itself takes (``cost/worker.py``)."""

    forward: Seconds
    """Host time of a forward op of the pipeline's runtime, layers apart."""
    backward: Seconds
    """The same of a whole backward op."""
    input_gradient: Seconds
    """The same of a backward op for the input alone."""
    weight_gradient: Seconds
    """The same of a backward op for the weights alone."""
    loss: Seconds
    """What the loss adds to a forward op of the last stage: the runtime's bookkeeping."""
    views: Seconds
    """Host time of the views around a fused attention: heads split, transposed, joined."""
    kernel: Seconds
    """Host time of a kernel of a forward pass: its dispatch and its node in the graph."""
    backward_kernel: Seconds
    """Host time of a kernel of a whole backward pass."""
    split_kernel: Seconds
    """Host time of a kernel of a backward pass for the input or for the weights alone."""
    rate: FlopRate
    """Rate of large matrix products."""
    half_rows: Positive
    """Rows m of a result at which a product runs at half its rate."""
    half_columns: Positive
    """Columns n of a result at which it does."""
    half_depth: Positive
    """Depth k at which it does."""
    operands: Bandwidth
    """Rate at which a product's operands and result are moved."""
    stream: Bandwidth
    """Rate of elementwise kernels."""
    functions: Positive
    """Elements that exponentials, logarithms and the like are taken of, 1/s."""
    attention: FlopRate
    """Rate of fused attention."""
    send: Seconds
    """Host time to begin to send a message."""
    receive: Seconds
    """Host time to begin to receive a message."""
    fresh: Bandwidth
    """Rate at which a step's gradients are first touched: pages of memory that the system gives."""
    wake: Seconds
    """Time of a wait for a message that is there."""
    slice: Seconds
    """Longest that a message waits for a core that computes: the scheduler's slice."""
    copying: Bandwidth
    """Rate at which a worker's core moves a message into or out of the network."""
    latency: Seconds
    """Time from the begin of a message to the end of the wait for it, for no bytes."""
    bandwidth: Bandwidth
    """Rate of a message between the cores, their own copying apart."""
    gap: Seconds
    """Host time between two actions of the runtime."""
    setup: Seconds
    """Host time of a worker from the call of a step to its first action."""
    update: Seconds
    """Host time from a worker's last action to the end of the update, tensors apart."""
    tensor: Seconds
    """What each parameter tensor adds to it: gradients scaled, weights updated."""

    @classmethod
    def of(cls, values: Mapping[str, float]) -> WorkerFit:
        """The fit of plain numbers in SI units, by name."""
        fields: dict[str, Any] = dict(values)
        return cls.model_construct(**fields)

    @property
    def values(self) -> dict[str, float]:
        """The parameters as plain numbers, by name."""
        return {name: float(getattr(self, name)) for name in type(self).model_fields}


class StepErrors(Declaration):
    """How far predicted steps are off on cells that their fit has not seen."""

    cells: Count
    """Number of cells."""
    median: Annotated[float, Field(ge=0)]
    """Median absolute relative error."""
    p90: Annotated[float, Field(ge=0)]
    """Ninetieth percentile of it."""
    within_15: Ratio
    """Share of cells within 15 %."""
    covered: Ratio
    """Share of cells inside the 90 % interval that the other cells give."""


class Workers(Declaration):
    """Measured workers of one machine: parameters, covariance, spread, range, errors."""

    devices: list[str] = Field(min_length=1)
    """Device of each worker: cpu, cuda:0."""
    memory: Bytes
    """Memory that a worker may use."""
    versions: dict[str, str] = Field(default_factory=dict)
    """Versions of what was measured with: torch, python, system, driver."""
    fit: WorkerFit
    """The parameters."""
    names: list[str]
    """Parameters that the covariance is of."""
    covariance: list[Row]
    """Covariance of the logarithms of the named parameters."""
    residuals: Row
    """Logarithms of measured over predicted steps, each of a cell that its fit has not seen."""
    spread: Annotated[float, Field(ge=0)] = 0.0
    """Run-to-run spread of a step: median relative deviation of its samples, as a normal's."""
    fit_range: dict[str, tuple[float, float]] = Field(default_factory=dict)
    """Smallest and largest value fitted on: microbatches, stages, rows, width, message."""
    errors: StepErrors | None = None
    """Errors of steps on cells held out."""
    noise: Annotated[float, Field(ge=0)] = 0.0
    """Relative deviation of the probes while measuring."""
    seconds: Annotated[float, Field(ge=0)] = 0.0
    """Seconds that the measurement took."""
    cells: CountOrZero = 0
    """Cells that were measured."""

    @model_validator(mode="after")
    def _square(self) -> Self:
        count = len(self.names)
        if len(self.covariance) != count or any(len(row) != count for row in self.covariance):
            raise ValueError(f"covariance must have {count} rows of {count} numbers, as names")
        unknown = [name for name in self.names if name not in WorkerFit.model_fields]
        if unknown:
            raise ValueError(f"names: no parameter '{unknown[0]}'")
        return self

    @cached_property
    def matrix(self) -> Floats:
        """The covariance as an array."""
        return np.array(self.covariance, float).reshape(len(self.names), len(self.names))

    def outside(self, facts: Mapping[str, float]) -> dict[str, float]:
        """Facts that lie outside the fitted range: name → logarithm of the factor beyond it."""
        found: dict[str, Any] = {}
        for name, value in facts.items():
            low, high = self.fit_range.get(name, (value, value))
            beyond = max(np.log(low / value), np.log(value / high), 0.0) if value > 0 else 0.0
            if beyond > 1e-9:
                found[name] = float(beyond)
        return found
