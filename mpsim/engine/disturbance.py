"""Chance as numbers before the run: the same work, jittered, in S samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mpsim.cost.work import Work
from mpsim.engine.timeline import Floats
from mpsim.schedule.graph import OpGraph


def sample(
    work: Work,
    *,
    jitter: float,
    samples: int,
    generator: np.random.Generator,
    graph: OpGraph | None = None,
    device_jitter: float = 0.0,
    slowness: Sequence[float] = (),
) -> Work:
    """The work of S samples, each op's seconds multiplied by chance and by its device's slowness.

    An op takes ``seconds * exp(sigma z - sigma^2 / 2)`` with z standard normal, drawn for each op
    and sample on its own: a lognormal factor of mean 1, whose coefficient of variation is
    ``sqrt(exp(sigma^2) - 1)``, about sigma. A device is slow by one such factor a sample, of
    ``device_jitter``, for all its ops, and by ``slowness`` always. Numbers are drawn for all ops,
    whatever their seconds, so that variants with the same ops meet the same luck. Bytes stay as
    they are.

    Args:
        work: Seconds of the ops, (N,).
        jitter: sigma of each op.
        samples: S.
        generator: Source of all chance.
        graph: The ops, needed for what depends on devices.
        device_jitter: sigma of each device.
        slowness: Factor of each device, at least its number of entries; empty: 1.

    Returns:
        Work with ``seconds`` of (N, S).

    Raises:
        ValueError: If sigma is negative, or devices are to be slow and there is no graph.
    """
    if jitter < 0 or device_jitter < 0:
        raise ValueError("jitter is a standard deviation: it must not be negative")
    count = len(work.seconds)
    factor = _lognormal(jitter, (count, samples), generator)
    if device_jitter or len(slowness):
        if graph is None:
            raise ValueError("slow devices need the graph, which knows where each op runs")
        by_device = _lognormal(device_jitter, (graph.num_devices, samples), generator)
        if len(slowness):
            by_device *= np.asarray(slowness)[: graph.num_devices, None]
        factor *= by_device[graph.device]
    return replace(work, seconds=work.seconds[:, None] * factor)


def _lognormal(sigma: float, shape: tuple[int, int], generator: np.random.Generator) -> Floats:
    """Lognormal factors of mean 1."""
    return np.asarray(np.exp(sigma * generator.standard_normal(shape) - sigma**2 / 2))
