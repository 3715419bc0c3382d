"""How long the passes of a layer take: kernels, host launches, exchanges, by part."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mpsim.cost.collectives import collective_seconds, suits
from mpsim.cost.compute import kernel_seconds
from mpsim.cost.overlap import overlapped
from mpsim.cost.software import SOFTWARE, Software, pass_seconds, slowdown
from mpsim.cost.textbook import ring_all_reduce, ring_gather, textbook_seconds
from mpsim.cost.topology import group_of
from mpsim.cost.work import Floats
from mpsim.spec.cluster import ClusterSpec, LinkSpec
from mpsim.spec.plan import PlanSpec, TrainingSpec
from mpsim.spec.profile import LinkFit, Profile, load_profile
from mpsim.spec.workers import Workers
from mpsim.workload.layers import Exchange, Kernel, Layer

COMPUTE, LAUNCH, UPDATE = "compute", "launch", "update"
"""Parts of an op in which its device computes, or waits for its host to launch."""

Steps = tuple[Kernel | Exchange, ...]

Parts = Mapping[str, float]
"""Seconds by part: compute, launch, update, and exchanges such as ``tensor exchange``."""


@dataclass(frozen=True)
class Machine:
    """Everything that kernel and collective times depend on, apart from the work."""

    cluster: ClusterSpec
    plan: PlanSpec
    training: TrainingSpec
    profile: Profile
    network_fit: LinkFit | None = None

    def exchange_seconds(self, op: str, axis: str, nbytes: float) -> float:
        """Seconds of a collective along an axis of the plan; equal ones are timed once."""
        key = (op, axis, nbytes)
        if key not in self._timed:
            self._timed[key] = float(self.exchange_array(op, axis, np.asarray(nbytes, float)))
        return self._timed[key]

    @cached_property
    def _timed(self) -> dict[tuple[str, str, float], float]:
        """Exchanges timed already."""
        return {}

    def exchange_array(self, op: str, axis: str, nbytes: Floats) -> Floats:
        """Seconds of collectives along an axis of the plan, of the shape of ``nbytes``.

        Devices that share one uplink divide its bandwidth while all of them exchange.
        """
        node = self.cluster.node
        group = group_of(axis, self.plan, node.devices)
        link = node.link
        if node.shared_uplink and group.inside > 1:
            shared = link.bandwidth / group.inside
            link = link.model_copy(update={"bandwidth": shared})
        if self.plan.collectives == "ring" and group.size > 1:
            slowest = self.cluster.network if group.spans_nodes else link
            return _flat_ring_seconds(op, nbytes, group.size, slowest or link)
        return collective_seconds(
            op,
            nbytes,
            group=group.inside,
            link=link,
            fit=None if node.shared_uplink else self.link_fit(),
            nodes=group.nodes,
            network=self.cluster.network,
            network_fit=self.network_fit,
        )

    def link_fit(self) -> LinkFit | None:
        """Fitted factors for the node's link: the profile's own, or those that the link names.

        Either only where they are of the technology of the link.
        """
        link = self.cluster.node.link
        named = load_profile(link.profile).link if link.profile else None
        found = (fit for fit in (self.profile.link, named) if fit and suits(fit, link))
        return next(found, None)

    @property
    def host_seconds_per_launch(self) -> float:
        """Host time to launch one kernel: the driver's and the framework's share.

        A captured graph leaves the device's own step from one kernel to the next.
        """
        launch = self.profile.launch
        if self.plan.graphs:
            return launch.graph_node
        return launch.host + launch.dispatch * self.software.dispatches

    def sent_once_to_each_node(self, step: Exchange) -> float:
        """Share of an exchange's bytes that remains where a node needs one copy of each token.

        k copies for experts on N nodes at random: a token goes to N (1 - (1 - 1/N)^k) of them.
        """
        nodes = group_of(step.axis, self.plan, self.cluster.node.devices).nodes
        if step.copies == 1 or nodes == 1:
            return 1.0
        return float(nodes * (1 - (1 - 1 / nodes) ** step.copies) / step.copies)

    @property
    def software(self) -> Software:
        """What the training software adds to kernel times."""
        return SOFTWARE[self.training.framework]

    @property
    def workers(self) -> Workers | None:
        """Measured workers, where the profile has them and the plan is a pipeline alone."""
        plan = self.plan
        alone = plan.devices == plan.pipeline and plan.data_parallel == "ddp"
        return self.profile.workers if alone else None

    @property
    def gathers_each_pass(self) -> bool:
        """Whether parameters are gathered anew for each pass (ZeRO-3).

        With a pipeline they stay gathered through the step, as torchtitan and Megatron do, since a
        gather for each microbatch would cost more than it saves.
        """
        plan = self.plan
        return plan.zero == 3 and plan.pipeline == 1 and plan.data * plan.context > 1

    @property
    def scatters_each_pass(self) -> bool:
        """Whether gradients are scattered after each of several backward passes (ZeRO-2).

        A device that keeps its shard of the gradients has nowhere to sum the others' (DeepSpeed,
        stage_1_and_2.py: ``partition_gradients``). With a pipeline they stay whole, as above.
        """
        plan, training = self.plan, self.training
        several = training.global_batch > training.microbatch * plan.data
        return plan.zero == 2 and plan.pipeline == 1 and plan.data * plan.context > 1 and several


def _flat_ring_seconds(op: str, nbytes: Floats, size: int, link: LinkSpec) -> Floats:
    """Seconds of a collective by one ring over all members, whatever nodes they are on."""
    if op == "all_reduce":
        return ring_all_reduce(nbytes, size, link)
    if op in ("all_gather", "reduce_scatter"):
        return ring_gather(nbytes, size, link)
    return textbook_seconds(op, nbytes, size, link)


@dataclass(frozen=True)
class LayerSeconds:
    """Seconds of the passes of one layer for one microbatch, by part."""

    forward: Parts
    backward_input: Parts
    backward_weight: Parts


@dataclass(frozen=True)
class _Alone:
    """A pass without its exchanges' time: kernels on the device, launches of all on the host."""

    device: float
    host: float
    named: Mapping[str, float]  # kernel → s, its window for an exchange beside it

    @classmethod
    def of(cls, steps: Steps, seconds: Mapping[Kernel, float], launch: float) -> _Alone:
        """Add up the steps; a collective is launched by the host as well."""
        named: dict[str, float] = {}
        for step in steps:
            if isinstance(step, Kernel):
                named[step.name] = named.get(step.name, 0.0) + seconds[step] * step.count
        host = launch * sum(step.count for step in steps)
        return cls(sum(named.values()), host, named)

    def with_exchanges(self, exchanges: float) -> float:
        """Seconds of the pass where exchanges take so much beyond its kernels."""
        return pass_seconds(self.device + exchanges, self.host)


def layer_seconds(layers: Iterable[Layer], machine: Machine) -> dict[int, LayerSeconds]:
    """Seconds of each distinct layer by its ``id``; all kernels are timed in one call.

    A pass runs its kernels one after the other. The host launches ahead of the device, so a pass
    lasts as long as the slower of the two. An exchange that may run beside a kernel costs what the
    pair takes beyond the kernel alone, in the pass that the kernel is of. One that may run beside
    any is spread evenly over both backward passes, and costs what it takes beyond its part of each,
    gaps of a late host included. So no pass gets longer when a kernel of another gets shorter.
    """
    distinct = {id(layer): layer for layer in layers}
    passes = [
        steps
        for layer in distinct.values()
        for steps in (layer.forward, layer.backward_input, layer.backward_weight)
    ]
    kernels = list({s: None for steps in passes for s in steps if isinstance(s, Kernel)})
    timed = kernel_seconds(kernels, machine.profile, machine.cluster.device)
    software, device = machine.software, machine.cluster.device
    seconds = {
        kernel: time * slowdown(kernel, software, device)
        for kernel, time in zip(kernels, timed.tolist(), strict=True)
    }
    found = {}
    for key, layer in distinct.items():
        (forward,) = _passes((layer.forward,), seconds, machine)
        backward = _passes((layer.backward_input, layer.backward_weight), seconds, machine)
        found[key] = LayerSeconds(forward, *backward)
    return found


def _passes(
    passes: Sequence[Steps], seconds: Mapping[Kernel, float], machine: Machine
) -> list[Parts]:
    """Seconds of passes by part; exchanges of one may run beside kernels of any."""
    launch = machine.host_seconds_per_launch
    alone = [_Alone.of(steps, seconds, launch) for steps in passes]
    added: list[dict[str, float]] = [{} for _ in passes]
    anywhere: list[tuple[str, float]] = []
    for place, steps in enumerate(passes):
        for step in steps:
            if isinstance(step, Kernel):
                continue
            name = f"{step.axis.replace('_', ' ')} exchange"
            nbytes = step.nbytes * machine.sent_once_to_each_node(step)
            whole = step.count * machine.exchange_seconds(step.op, step.axis, nbytes)
            if step.beside == "*":
                anywhere.append((name, whole))
                continue
            holders = [i for i, one in enumerate(alone) if step.beside in one.named]
            holder = place if place in holders or not holders else holders[0]
            window = alone[holder].named.get(step.beside, 0.0)
            cost = overlapped(window, whole) - window if window else whole
            added[holder][name] = added[holder].get(name, 0.0) + cost
    working = sum(one.device > 0 for one in alone)
    found: list[Parts] = []
    for one, its in zip(alone, added, strict=True):
        lasts = one.with_exchanges(sum(its.values()))
        late = lasts - one.device - sum(its.values())
        parts = add({COMPUTE: one.device}, its, {LAUNCH: late} if late > 0 else {})
        window = lasts / max(1, len(anywhere))
        for name, whole in anywhere if one.device > 0 else ():
            parts = add(parts, {name: overlapped(window, whole / working) - window})
        found.append(parts)
    return found


def add(*parts: Parts) -> dict[str, float]:
    """Seconds by part, summed.

    >>> add({"compute": 1.0}, {"compute": 2.0, "launch": 0.5})
    {'compute': 3.0, 'launch': 0.5}
    """
    total: dict[str, float] = {}
    for one in parts:
        for name, seconds in one.items():
            total[name] = total.get(name, 0.0) + seconds
    return total


def scale(parts: Parts, factor: float) -> dict[str, float]:
    """Seconds by part, times a factor."""
    return {name: seconds * factor for name, seconds in parts.items()}
