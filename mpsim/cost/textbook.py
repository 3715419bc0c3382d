"""Textbook times of collectives over one kind of link: latency and bandwidth, the best algorithm.

Sizes follow nccl-tests: ``nbytes`` is the whole buffer of an all-reduce, a broadcast or a
transfer, the gathered buffer of an all-gather, the unscattered one of a reduce-scatter, and each
device's whole buffer of an all-to-all.

Legend of the formulas: n devices, a buffer of N bytes, a link of latency L and rate R.
"""

from __future__ import annotations

import math

import numpy as np

from mpsim.cost.work import Floats
from mpsim.errors import ScenarioError
from mpsim.spec.cluster import LinkSpec

_CHUNKS = 8
"""Pieces that a tree's pipeline holds at once: NCCL_STEPS of NCCL's src/include/device.h."""


def ring_all_reduce(nbytes: Floats, group: int, link: LinkSpec) -> Floats:
    """Time of a ring all-reduce: a reduce-scatter, then an all-gather.

        t = 2 (n - 1) (L + N / (n R))

    A group of one takes no time. Reducing the numbers themselves is not counted.

    Source:
        Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms for clusters of workstations",
        J. Parallel Distrib. Comput. 69(2), 2009.
    """
    return 2 * ring_gather(nbytes, group, link)


def ring_gather(nbytes: Floats, group: int, link: LinkSpec) -> Floats:
    """Time of an all-gather, or of a reduce-scatter, along a ring.

        t = (n - 1) (L + N / (n R))

    Source:
        Thakur, Rabenseifner and Gropp, "Optimization of collective communication operations in
        MPICH", Int. J. High Perform. Comput. Appl. 19(1), 2005.
    """
    return (group - 1) * (link.latency + nbytes / (group * link.rate))


def tree_all_reduce(nbytes: Floats, group: int, link: LinkSpec) -> Floats:
    """Time of an all-reduce up and down a double binary tree, the buffer in pieces.

        t = 2 ceil(log2 n) (L + N / (c R n)) + 2 (n - 1) / n N / R,  with c = 8 pieces in flight

    Each device sends and receives the buffer about twice; what the pipeline needs to fill is one
    piece a level.

    Source:
        Sanders, Speck and Träff, "Two-tree algorithms for full bandwidth broadcast, reduction and
        scan", Parallel Computing 35(12), 2009; NVIDIA, "Massively scale your deep learning
        training with NCCL 2.4", 2019.
    """
    levels = math.ceil(math.log2(group))
    piece = nbytes / (_CHUNKS * group * link.rate)
    return 2 * levels * (link.latency + piece) + 2 * (group - 1) / group * nbytes / link.rate


def pairwise_all_to_all(nbytes: Floats, group: int, link: LinkSpec) -> Floats:
    """Time of an all-to-all: each device sends 1/n of its buffer to each of the others.

        t = L + (n - 1) / n N / R

    The transfers are issued together (NCCL's grouped send and receive), so that their latencies
    overlap.

    Source:
        NVIDIA NCCL User Guide, "Point-to-point communication".
    """
    return link.latency + (group - 1) / group * nbytes / link.rate


def tree_broadcast(nbytes: Floats, group: int, link: LinkSpec) -> Floats:
    """Time of a broadcast of a buffer in pieces, along a tree.

        t = ceil(log2 n) L + N / R

    Source:
        As for ``tree_all_reduce``, one way, once.
    """
    return math.ceil(math.log2(group)) * link.latency + nbytes / link.rate


def transfer(nbytes: Floats, link: LinkSpec) -> Floats:
    """Time of one message from a device to another, its startup aside: t = L + N / R."""
    return link.latency + nbytes / link.rate


def textbook_seconds(op: str, nbytes: Floats, group: int, link: LinkSpec) -> Floats:
    """Time of a collective over one kind of link by the best algorithm for each size.

    The startup of the link is not counted (see ``unfitted_seconds``). A group of one takes no time.

    Args:
        op: all_reduce, all_gather, reduce_scatter, all_to_all, broadcast or send.
        nbytes: Sizes, bytes, any shape.
        group: Number of devices.
        link: Each device's link.

    Returns:
        Seconds, of the shape of ``nbytes``.

    Raises:
        ScenarioError: If the group is less than 1 or the collective is unknown.
    """
    if group < 1:
        raise ScenarioError("", f"a collective needs one device at least, not {group}")
    sizes: Floats = np.asarray(nbytes, float)
    if group == 1:
        return np.zeros_like(sizes)
    match op:
        case "all_reduce":
            ring, tree = ring_all_reduce, tree_all_reduce
            return np.minimum(ring(sizes, group, link), tree(sizes, group, link))
        case "all_gather" | "reduce_scatter":
            return ring_gather(sizes, group, link)
        case "all_to_all":
            return pairwise_all_to_all(sizes, group, link)
        case "broadcast":
            return tree_broadcast(sizes, group, link)
        case "send":
            return transfer(sizes, link)
    raise ScenarioError("", f"'{op}' is no collective")


def unfitted_seconds(op: str, nbytes: Floats, group: int, link: LinkSpec) -> Floats:
    """Time of a collective over a link that nobody measured: its startup, then the textbook's time.

    Startup is what the library spends once, whatever the group and the bytes: the base latencies of
    NCCL's model (src/graph/tuning.cc, 2.28) for the links of the zoo. A group of one takes no time.
    """
    seconds = textbook_seconds(op, nbytes, group, link)
    return seconds + link.startup if group > 1 else seconds
