"""A profile held against measurement tables: predicted seconds of each row, and the errors."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from mpsim.cost.attention import attention_seconds
from mpsim.cost.collectives import fitted_seconds
from mpsim.cost.compute import gemm_fit, peak_rate
from mpsim.cost.gemm import gemm_seconds
from mpsim.cost.work import Floats
from mpsim.spec.cluster import PRECISION_BYTES, DeviceSpec, LinkSpec
from mpsim.spec.profile import CollectiveOp, LinkFit, Profile, Residual
from mpsim.spec.tables import Table

SMALL = 1e9
"""FLOPs of a product up to which it counts as small: most of its time is latency."""

SKINNY = 128
"""Rows or columns of a result up to which a product counts as skinny: memory binds it."""

Mask = NDArray[np.bool_]


def device_of(profile: Profile) -> DeviceSpec:
    """The device that a profile was fitted with, as far as its data sheet matters to kernels."""
    sheet = profile.sheet
    return DeviceSpec.model_construct(
        name=profile.device,
        memory=0.0,
        memory_bandwidth=sheet.memory_bandwidth,
        peak=dict(sheet.peak),
        multiprocessors=sheet.multiprocessors,
        vector_peak=None,
    )


def link_of(fit: LinkFit) -> LinkSpec:
    """The link that a fit of collectives was made with."""
    return LinkSpec.model_construct(
        name=fit.link, bandwidth=fit.bandwidth, efficiency=fit.efficiency, latency=fit.latency
    )


def predicted_seconds(
    table: Table, profile: Profile, device: DeviceSpec, *, link: LinkSpec | None = None
) -> Floats:
    """Seconds that a profile predicts for each row of a table, at the clock of a benchmark.

    Rows that it cannot predict, such as collectives without a link, are NaN.

    Args:
        table: One of gemm, attention_fwd, attention_bwd, memory_bound, collectives.
        profile: The profile.
        device: Data sheet to apply it to.
        link: Link of the collectives; null: that of the profile.
    """
    match table.name:
        case "gemm":
            return _gemm(table, profile, device)
        case "attention_fwd" | "attention_bwd":
            return _attention(table, profile, device)
        case "memory_bound":
            rate = profile.memory.bandwidth_fraction * device.memory_bandwidth
            seconds: Floats = profile.memory.floor + table["bytes"] / rate
            return seconds
        case "collectives":
            return _collectives(table, profile.link, link)
    return np.full(len(table), np.nan)


def _gemm(table: Table, profile: Profile, device: DeviceSpec) -> Floats:
    """Products, with the casts that a call in 8 bits includes."""
    seconds = np.full(len(table), np.nan)
    for precision in np.unique(table["dtype"].astype(str)):
        if precision not in PRECISION_BYTES:
            continue
        mask = table["dtype"] == precision
        rows = table.rows(mask)
        shape = np.column_stack([np.ones(len(rows)), rows["m"], rows["n"], rows["k"]])
        seconds[mask] = gemm_seconds(
            shape,
            gemm_fit(profile, precision),
            peak=peak_rate(device, precision),
            bandwidth=device.memory_bandwidth,
            multiprocessors=device.multiprocessors or profile.sheet.multiprocessors,
            element=PRECISION_BYTES[precision],
            benchmark=True,
        )
    return seconds


def _attention(table: Table, profile: Profile, device: DeviceSpec) -> Floats:
    """Causal attention of whole sequences."""
    names = ("batch", "heads", "kv_heads", "seq", "seq", "head_dim")
    return attention_seconds(
        np.column_stack([table[name] for name in names]),
        np.ones(len(table), bool),
        np.full(len(table), table.name == "attention_bwd"),
        profile.attention,
        peak=peak_rate(device, "bf16"),
        bandwidth=device.memory_bandwidth,
        multiprocessors=device.multiprocessors or profile.sheet.multiprocessors,
    )


def _collectives(table: Table, fit: LinkFit | None, link: LinkSpec | None) -> Floats:
    """Collectives inside a node."""
    seconds = np.full(len(table), np.nan)
    if link is None and fit is None:
        return seconds
    link = link or (link_of(fit) if fit else None)
    for op in np.unique(table["op"].astype(str)):
        for group in np.unique(table["gpus"]):
            mask = (table["op"] == op) & (table["gpus"] == group)
            if link is not None and op in OPS and mask.any():
                sizes = table["bytes"][mask]
                seconds[mask] = fitted_seconds(op, sizes, int(group), link, fit=fit)
    return seconds


OPS: tuple[CollectiveOp, ...] = (
    *("all_reduce", "all_gather", "reduce_scatter"),
    *("all_to_all", "broadcast", "send"),
)
"""Collectives that can be predicted."""


def residuals(table: Table, predicted: Floats) -> list[Residual]:
    """Errors of the predictions by kind of row: for each number format or collective, by region."""
    error = np.abs(predicted / table.seconds - 1)
    found = []
    for what, region, mask in _regions(table):
        known = error[mask & np.isfinite(error)]
        if len(known):
            found.append(
                Residual(
                    table=table.name,
                    what=what,
                    region=region,
                    rows=len(known),
                    median=round(float(np.median(known)), 4),
                    p90=round(float(np.quantile(known, 0.9)), 4),
                    within_12=round(float(np.mean(known <= 0.12)), 4),
                )
            )
    return found


def _regions(table: Table) -> Iterator[tuple[str, str, Mask]]:
    """(what, region, rows) of a table."""
    everything: Mask = np.ones(len(table), bool)
    match table.name:
        case "gemm":
            flops = 2 * table["m"] * table["n"] * table["k"]
            skinny = np.minimum(table["m"], table["n"]) <= SKINNY
            for dtype in np.unique(table["dtype"].astype(str)):
                mask = table["dtype"] == dtype
                yield dtype, "above 1 GFLOP", mask & (flops > SMALL)
                yield dtype, "large", mask & (flops > SMALL) & ~skinny
                yield dtype, "skinny", mask & (flops > SMALL) & skinny
                yield dtype, "small", mask & (flops <= SMALL)
        case "attention_fwd" | "attention_bwd":
            small = table["batch"] * table["heads"] * table["seq"] ** 2 <= 2**28
            yield "bf16", "all", everything
            yield "bf16", "small", small
            yield "bf16", "large", ~small
        case "collectives" | "memory_bound":
            for op in np.unique(table["op"].astype(str)):
                mask = table["op"] == op
                yield op, "all", mask
                for group in np.unique(table["gpus"][mask]) if "gpus" in table.columns else ():
                    yield op, f"{int(group)} devices", mask & (table["gpus"] == group)
