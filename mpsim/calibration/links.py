"""Fit of collectives over the link inside a node."""

from __future__ import annotations

import numpy as np

from mpsim.cost.tables import OPS
from mpsim.cost.textbook import textbook_seconds
from mpsim.cost.work import Floats
from mpsim.spec.cluster import LinkSpec
from mpsim.spec.profile import CollectiveOp, LinkFit, Surface
from mpsim.spec.tables import Table


def fit_link(table: Table, link: LinkSpec) -> LinkFit:
    """Factors over the textbook by collective, group and size.

    The knots are the groups and the powers of two of the sizes that were measured. For each group
    the measured times, logarithm over logarithm, are joined by monotone cubics (a curve that adds
    no bumps of its own: changes of protocol and algorithm are steps), after times that fall with
    the size have been pooled: a larger message never is faster.

    Args:
        table: Collectives inside a node.
        link: Their link.

    Source:
        Fritsch and Carlson, "Monotone piecewise cubic interpolation", SIAM J. Numer. Anal. 17(2),
        1980; Barlow et al., "Statistical inference under order restrictions", 1972 (pooling).
    """
    ops: dict[CollectiveOp, Surface] = {}
    for op in OPS:
        mask = (table["op"] == op) & (table["gpus"] > 1)
        if mask.any():
            ops[op] = _factor(table.rows(mask), op, link)
    return LinkFit(
        link=link.name,
        bandwidth=f"{link.bandwidth!r} B/s",
        efficiency=link.efficiency,
        latency=f"{link.latency!r} s",
        ops=ops,
    )


def _factor(table: Table, op: str, link: LinkSpec) -> Surface:
    """The factor of one collective."""
    low = int(np.floor(np.log2(table["bytes"].min())))
    high = max(int(np.ceil(np.log2(table["bytes"].max()))), low + 1)
    sizes: Floats = 2.0 ** np.arange(low, high + 1, dtype=float)
    groups = sorted({int(group) for group in table["gpus"]})
    rows = []
    for group in groups:
        measured = table.rows(table["gpus"] == group)
        textbook = textbook_seconds(op, sizes, group, link)
        rows.append(np.log(_curve(measured, sizes, op, link) / textbook).round(3))
    if len(groups) == 1:  # an axis needs two knots; beyond the first the factor is the same
        groups, rows = [groups[0], 2 * groups[0]], rows * 2
    axes = {"group": tuple(map(float, groups)), "nbytes": tuple(map(float, sizes))}
    return Surface(axes=axes, rows=[tuple(map(float, row)) for row in rows])


def _curve(table: Table, sizes: Floats, op: str, link: LinkSpec) -> Floats:
    """Seconds of one collective and group at some sizes, from its measurements.

    Beyond the measured sizes the factor over the textbook stays that of the last one.
    """
    from scipy.interpolate import PchipInterpolator  # loaded when a fit is made

    measured = np.unique(table["bytes"])
    medians = [np.median(table.seconds[table["bytes"] == size]) for size in measured]
    logs = _pooled(np.log(medians))
    if len(measured) == 1:
        measured, logs = np.array([measured[0], 2 * measured[0]]), logs[[0, 0]]
    inside = np.clip(sizes, measured[0], measured[-1])
    curve = np.exp(PchipInterpolator(np.log(measured), logs)(np.log(inside)))
    group = int(table["gpus"][0])
    beyond = textbook_seconds(op, sizes, group, link) / textbook_seconds(op, inside, group, link)
    seconds: Floats = curve * beyond
    return seconds


def _pooled(values: Floats) -> Floats:
    """The non-decreasing sequence nearest to the values: neighbours that fall are averaged."""
    blocks: list[list[float]] = []
    for value in values:
        blocks.append([float(value)])
        while len(blocks) > 1 and np.mean(blocks[-2]) > np.mean(blocks[-1]):
            last = blocks.pop()
            blocks[-1] += last
    return np.concatenate([np.full(len(block), np.mean(block)) for block in blocks])
