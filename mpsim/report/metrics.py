"""Numbers from a timeline: what the report of one scenario holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from mpsim.bounds import amdahl_fraction, amdahl_limit
from mpsim.cost.work import Work
from mpsim.engine.timeline import Timeline
from mpsim.schedule.graph import OpGraph
from mpsim.schedule.ops import Kind, Order
from mpsim.spec.profile import Profile
from mpsim.spec.scenario import Scenario

Floats = NDArray[np.float64]

COMPUTE_KINDS = (Kind.F, Kind.B, Kind.I, Kind.W, Kind.STEP)
TRANSFER_KINDS = (Kind.SEND_F, Kind.SEND_B, Kind.SCATTER, Kind.BROADCAST, Kind.GATHER)
KERNEL_PARTS = ("compute", "launch", "update")
"""Parts of an op during which its device computes, or its host keeps it waiting for kernels."""


@dataclass(frozen=True, eq=False)
class MemoryUse:
    """Memory of one device over the step. K moments at which it changes."""

    times: Floats  # (K,) s
    total: Floats  # (K,) B, from each moment to the next
    peak: float  # B
    peak_time: float  # s
    at_peak: Mapping[str, float]  # component → B at the peak
    components: Mapping[str, Floats]  # component → (K,) B


@dataclass(frozen=True, eq=False)
class DeviceUse:
    """What one device (one position of the pipeline) does in the step."""

    index: int
    stages: tuple[int, ...]
    layers: str  # what it holds, as text
    compute: float  # s in kernels and update
    exchange: float  # s in exposed exchanges inside its ops
    idle: float  # s with nothing on its compute stream
    memory: MemoryUse
    reserved: float  # B that the driver reports at the peak: context, buffers, fragmentation too
    outside: Mapping[str, float]  # of it what stands outside the allocator, B by name

    @property
    def fragmentation(self) -> float:
        """Bytes that the allocator reserves at the peak beyond what it hands out."""
        return self.reserved - sum(self.outside.values()) - self.memory.peak


@dataclass(frozen=True)
class Amdahl:
    """Amdahl's law read off a simulation: S = 1 / (1 - α + α / n)."""

    devices: int
    one_device: float  # s of the step on one, imaginary, large enough device
    speed_up: float
    causes: Mapping[str, float]  # cause → its share of 1 - α

    @property
    def fraction(self) -> float:
        """α, the fraction of the work that the devices divide."""
        return amdahl_fraction(self.speed_up, self.devices)

    @property
    def limit(self) -> float:
        """Speed-up for any number of devices at this α."""
        return amdahl_limit(self.fraction)


@dataclass(frozen=True)
class Traffic:
    """Bytes between stages in one step, counted on the links and from C = 2 Σ s_i b."""

    measured: float  # B that one replica's transfers move
    formula: float  # B of the cut-volume formula for the same replica
    by_link: Mapping[str, float]  # link → B
    exchanges: Mapping[str, float]  # axis → B that one device sends in collectives


@dataclass(frozen=True)
class Utilisation:
    """Model FLOP/s over the peak of the devices, by convention."""

    six_n: float  # 6 N FLOPs a token
    with_attention: float  # and the attention's products
    hardware: float  # and what is computed again
    peak: float  # FLOP/s of one device at the precision


@dataclass(frozen=True, eq=False)
class Report:
    """Everything that is said about one simulated scenario."""

    scenario: Scenario
    order: Order | None  # None for torch's DataParallel, which has no pipeline
    graph: OpGraph
    work: Work
    timeline: Timeline
    devices: tuple[DeviceUse, ...]
    engine: str
    waterfall: Mapping[str, float]  # cause → s; sums to the step
    phases: Mapping[str, str]  # the six parts of a step, as text
    phase_seconds: Mapping[str, float]  # of those parts that take time
    amdahl: Amdahl
    bubble_formula: float | None  # idle fraction of the closed form; None where there is none
    traffic: Traffic
    utilisation: Utilisation | None
    minimum_devices: Mapping[str, int]  # the memory wall: what must fit → devices at the least
    profile: Profile  # what timed the kernels
    interval: tuple[float, float] | None = None  # s, 90 % of the samples
    steady_step: float | None = None  # s of a step in the steady state, asynchronous schedules
    notes: tuple[str, ...] = ()

    @property
    def makespan(self) -> float:
        """Seconds of the timeline: the end of its last op."""
        return float(self.timeline.end.max())

    @property
    def step_time(self) -> float:
        """Seconds of one step.

        The makespan, or, of an asynchronous schedule that is never flushed, its microbatches in
        the steady state.
        """
        return self.makespan if self.steady_step is None else self.steady_step

    @cached_property
    def span(self) -> float:
        """Longest time from the begin of a device's first pass to the end of its last, s.

        Schedules "without a bubble" are without one in the span only: it leaves out filling the
        pipeline, and the update.
        """
        passes = np.isin(self.graph.kind, COMPUTE_KINDS[:4])
        ends = [
            float(self.timeline.end[ops].max() - self.timeline.begin[ops].min())
            for device in range(self.graph.num_devices)
            if len(ops := np.flatnonzero(passes & (self.graph.device == device)))
        ]
        return max(ends, default=0.0)

    @property
    def device_names(self) -> tuple[str, ...]:
        """What lanes and tables call each device."""
        each = self.scenario.plan.tensor * self.scenario.plan.data * self.scenario.plan.context
        if self.order is None or each == 1:
            return tuple(f"device {index}" for index in range(self.graph.num_devices))
        return tuple(f"position {index} (x{each})" for index in range(self.graph.num_devices))

    @property
    def idle_fraction(self) -> float:
        """Idle share of all device time."""
        return sum(device.idle for device in self.devices) / (len(self.devices) * self.step_time)

    @property
    def bubble_fraction(self) -> float:
        """Share of the step that the waterfall gives to the pipeline's bubble."""
        return self.waterfall.get("bubble", 0.0) / self.step_time

    @property
    def samples_per_second(self) -> float:
        """Samples trained per second."""
        return self.scenario.training.global_batch / self.step_time

    @property
    def tokens_per_second(self) -> float:
        """Tokens trained per second."""
        return self.samples_per_second * self.scenario.training.sequence

    @property
    def peak_memory(self) -> float:
        """Bytes on the fullest device."""
        return max(device.memory.peak for device in self.devices)

    @property
    def fullest(self) -> DeviceUse:
        """The device with the highest peak."""
        return max(self.devices, key=lambda device: device.reserved)

    @property
    def fits(self) -> bool:
        """Whether each device holds what it must, context and fragmentation included."""
        return self.fullest.reserved <= self.scenario.cluster.device.memory

    @property
    def usd_per_step(self) -> float | None:
        """Dollars of one step; None without a price."""
        price = self.scenario.cluster.price
        return None if price is None else price * self.scenario.cluster.devices * self.step_time

    @property
    def busy_at_once(self) -> int:
        """Most devices computing at one moment."""
        ops = np.flatnonzero(np.isin(self.graph.kind, COMPUTE_KINDS[:4]))
        begin, end = self.timeline.begin[ops], self.timeline.end[ops]
        long = end > begin
        times = np.concatenate([begin[long], end[long]])
        change = np.concatenate([np.ones(long.sum()), -np.ones(long.sum())])
        # at equal times ends come first: one op handing over to the next is not two at once
        by_time = np.lexsort((change, times))
        return int(np.cumsum(change[by_time]).max(initial=0))


def busy_seconds(graph: OpGraph, work: Work) -> tuple[Floats, Floats]:
    """Seconds that each device computes, and that it waits for exchanges inside its ops.

    Returns:
        Two arrays of shape (P,), s.
    """
    on_compute = np.isin(graph.kind, COMPUTE_KINDS)
    kernels = sum(
        (work.parts[part] for part in KERNEL_PARTS if part in work.parts),
        start=np.zeros(graph.num_ops),
    )
    seconds = work.seconds
    count = graph.num_devices
    device = graph.device[on_compute]
    compute: Floats = np.bincount(device, kernels[on_compute], count).astype(np.float64)
    whole: Floats = np.bincount(device, seconds[on_compute], count).astype(np.float64)
    return compute, whole - compute
