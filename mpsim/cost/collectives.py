"""How long a collective takes: fitted inside a node, textbook between nodes, both together.

``nbytes`` follows nccl-tests everywhere (see ``cost/textbook.py``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import ArrayLike

from mpsim.cost.surface import surface_factor
from mpsim.cost.textbook import textbook_seconds, unfitted_seconds
from mpsim.cost.work import Floats
from mpsim.errors import ScenarioError
from mpsim.spec.cluster import LinkSpec
from mpsim.spec.profile import LinkFit, Surface, load_profile
from mpsim.spec.zoo import load_entry, names

_STAND_INS = {"broadcast": "all_gather"}
"""Collective whose fitted factor serves one that was not measured: both move each byte once."""

_TREE_RATE = 0.92
"""Share of the ring's rate that NCCL's trees reach (NCCL, src/graph/tuning.cc)."""

_TREE_HOP = 4.5e-6
"""What a level of a tree costs between nodes beyond a hop of the ring, whatever the network: 8.5
against 4.0 us with the LL128 protocol (NCCL, src/graph/tuning.cc)."""


@dataclass(frozen=True)
class _Level:
    """The devices of a collective at one level of the topology, and what joins them."""

    count: int
    link: LinkSpec
    fit: LinkFit | None

    def seconds(self, op: str, nbytes: Floats) -> Floats:
        """Seconds of the collective over this level alone."""
        return fitted_seconds(op, nbytes, self.count, self.link, fit=self.fit)


def collective_seconds(
    op: str,
    nbytes: ArrayLike,
    *,
    group: int,
    link: LinkSpec,
    fit: LinkFit | None = None,
    nodes: int = 1,
    network: LinkSpec | None = None,
    network_fit: LinkFit | None = None,
) -> Floats:
    """Seconds of a collective over ``nodes`` nodes with ``group`` devices of it in each.

    Inside a node, or with one device a node: ``fitted_seconds`` of that link. Over both, the two
    levels work at once on pieces of the buffer, so that the slower one counts, plus the latencies
    of the way through the network: NCCL's flat ring or tree, the quicker one. With g devices in
    each of p nodes, n = p g, latencies l inside and L outside, g network links of rate R a node and
    a startup S of the network:

        ring:  S + steps ((n - p) l + p L) + max(inside, steps (n - 1) / n N / (g R))
        tree:  S + 2 (log2 p (L + T) + (g - 1) l) + max(inside, 2 N / (0.92 g R)),
               half of the last for two nodes, with T what a level costs beyond a hop of a ring

    with steps = 2 for an all-reduce, which alone has the tree, and 1 for an all-gather and a
    reduce-scatter. An all-to-all sends (p - 1) / p of its bytes through the network while the rest
    moves inside; a broadcast goes through the network once, cut over the g links. A transfer
    between nodes sees the network alone. A group of one takes no time.

    Args:
        op: all_reduce, all_gather, reduce_scatter, all_to_all, broadcast or send.
        nbytes: Sizes as nccl-tests counts, bytes, any shape.
        group: Devices of the collective in each node.
        link: Link between devices of a node, as one device sees it.
        fit: Fitted factors of that link; null: textbook.
        nodes: Nodes that the collective spans.
        network: Link between nodes, one device's share.
        network_fit: Fitted factors of the network; null: textbook.

    Returns:
        Seconds, of the shape of ``nbytes``.

    Raises:
        ScenarioError: If it spans nodes without a network, or has less than one device.

    Source:
        NVIDIA NCCL, src/graph/tuning.cc (algorithms and how they scale); measured over EFA by
        ML Engineering (S. Bekman), 32 B200: the flat ring, at 95 % of the network's rate.
    """
    sizes: Floats = np.asarray(nbytes, float)
    if nodes <= 1:
        return fitted_seconds(op, sizes, group, link, fit=fit)
    if network is None:
        raise ScenarioError("cluster.network", f"{op} over {nodes} nodes needs a network")
    inner, outer = _Level(group, link, fit), _Level(nodes, network, network_fit)
    if group == 1 or op == "send":
        return outer.seconds(op, sizes)
    match op:
        case "all_to_all":
            return np.maximum(outer.seconds(op, sizes), inner.seconds(op, sizes / nodes))
        case "broadcast":
            across = outer.seconds(op, sizes / group)
            return np.maximum(across, inner.seconds(op, sizes)) + link.latency
        case "all_reduce":
            return np.minimum(_ring(op, sizes, inner, outer), _tree(sizes, inner, outer))
    return _ring(op, sizes, inner, outer)


def fitted_seconds(
    op: str, nbytes: Floats, group: int, link: LinkSpec, *, fit: LinkFit | None = None
) -> Floats:
    """Seconds over one kind of link: the textbook time, times the fitted factor.

    The factor, over group and size, holds what protocols (LL, LL128, Simple) and algorithms (ring,
    tree, NVLS) do; beyond the fitted sizes and groups that of the nearest holds, so that large
    messages scale with the bandwidth and small ones with the latency of ``link``. A broadcast
    that was not measured has the factor of the all-gather; a transfer stays with the textbook.
    Without a factor the startup of the link comes on top. Of direct links a group has those between
    its members (``LinkSpec.among``).

    Args:
        op: As for ``collective_seconds``.
        nbytes: Sizes, bytes, any shape.
        group: Number of devices.
        link: The link, which may be another than the fitted one.
        fit: Factors; null: the textbook.

    Returns:
        Seconds, of the shape of ``nbytes``.
    """
    link = link.among(group)
    if fit is None or group == 1:
        return unfitted_seconds(op, nbytes, group, link)
    surface = next((fit.ops[name] for name in (op, _STAND_INS.get(op)) if name in fit.ops), None)
    if surface is None:
        return unfitted_seconds(op, nbytes, group, link)
    sizes = np.ravel(nbytes)
    groups = np.full_like(sizes, group)
    factor = surface_factor(surface, groups, sizes)
    return (_chords(op, sizes, group, link, surface) * factor).reshape(np.shape(nbytes))


def _chords(op: str, sizes: Floats, group: int, link: LinkSpec, surface: Surface) -> Floats:
    """The textbook time, between the knots of a surface as chords of logarithm over logarithm.

    The factors are such chords too, so that their product keeps the measured times in order.
    """
    knots = np.array(surface.axes["nbytes"])
    logs = np.log(textbook_seconds(op, knots, group, link))
    chords = np.exp(np.interp(np.log(np.maximum(sizes, 1e-30)), np.log(knots), logs))
    inside = (sizes >= knots[0]) & (sizes <= knots[-1])
    seconds: Floats = np.where(inside, chords, textbook_seconds(op, sizes, group, link))
    return seconds


def _ring(op: str, nbytes: Floats, inner: _Level, outer: _Level) -> Floats:
    """Seconds of rings through all devices, one ring for each network link of a node."""
    devices, steps = inner.count * outer.count, 2 if op == "all_reduce" else 1
    latency = (devices - outer.count) * inner.link.latency + outer.count * outer.link.latency
    share = (devices - 1) / devices / inner.count
    across = outer.seconds("send", steps * share * nbytes) - outer.seconds("send", nbytes * 0)
    latency = outer.link.startup + steps * latency
    return latency + np.maximum(inner.seconds(op, nbytes), across)


def _tree(nbytes: Floats, inner: _Level, outer: _Level) -> Floats:
    """Seconds of an all-reduce by trees between nodes and chains inside them."""
    levels, passes = math.ceil(math.log2(outer.count)), 1 if outer.count == 2 else 2
    level = outer.link.latency + (_TREE_HOP if outer.link.startup else 0.0)
    latency = 2 * (levels * level + (inner.count - 1) * inner.link.latency) + outer.link.startup
    share = passes / _TREE_RATE / inner.count
    across = outer.seconds("send", share * nbytes) - outer.seconds("send", nbytes * 0)
    return latency + np.maximum(inner.seconds("all_reduce", nbytes), across)


def suits(fit: LinkFit, link: LinkSpec) -> bool:
    """Whether factors are of the technology of a link: of its kind, and switched as it is.

    Or of the profile that the link names: four devices that are all wired to each other take as
    long as four behind a switch (a mesh of A100: 2 to 5 % at the median with the factors measured
    through NVSwitch, openfabric-systems/simllm, A100 hardware envelope v1). Whatever the bandwidth
    and latency, lest a better link be timed by other means and come out slower. Factors of a link
    of the user's own suit any.
    """
    known = _technology(fit.link)
    if link.kind == "loopback" or known in (None, (link.kind, link.switched)):
        return True
    named = load_profile(link.profile).link if link.profile else None
    return named is not None and named.link == fit.link


@cache
def _technology(name: str) -> tuple[str, bool] | None:
    """Kind of a link of the zoo, and whether it is switched; None for a link of the user's own."""
    if name not in names("links"):
        return None
    entry = load_entry("links", name)
    return entry.get("kind", "network"), entry.get("switched", True)
