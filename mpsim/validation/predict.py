"""Predictions of measured runs: one scenario each, on all cores."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial

from mpsim.errors import MpsimError
from mpsim.report.metrics import Report
from mpsim.simulation import simulate
from mpsim.spec.model import Transformer
from mpsim.spec.scenario import Scenario
from mpsim.validation.comparison import Comparison
from mpsim.validation.conversion import Expressed, to_scenario
from mpsim.validation.records import Record

_CHUNK = 12
"""Records that a worker takes at a time: few enough to balance, enough to share their layers."""
_MICROBATCHES = (1, 2, 4, 8, 16)
"""Microbatches tried where a record states none."""
_SLACK = 1.1
"""Predicted over available memory up to which an open choice is taken to have fitted."""
_SERIAL = 24
"""Records below which starting workers costs more than it saves."""


def compare_all(
    records: Sequence[Record], *, profile: str | None = None, processes: int | None = None
) -> list[Comparison]:
    """Each record beside its prediction, in the order given.

    Args:
        records: Measured runs.
        profile: Name or file of a profile to time all kernels with; None: each device's own.
        processes: Workers; None: as many as there are cores.
    """
    workers = processes or os.cpu_count() or 1
    one = partial(compare, profile=profile)
    if workers == 1 or len(records) <= _SERIAL:
        return [one(record) for record in records]
    # runs of one model and device side by side: a worker times their layers once
    order = sorted(range(len(records)), key=lambda index: _alike(records[index]))
    context = multiprocessing.get_context("forkserver" if os.name == "posix" else "spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        done = pool.map(one, [records[index] for index in order], chunksize=_CHUNK)
        found = dict(zip(order, done, strict=True))
    return [found[index] for index in range(len(records))]


def _alike(record: Record) -> tuple[str, ...]:
    """Key by which records that share layers are neighbours."""
    return record.cluster.device, record.model.name, str(record.plan.tensor), record.id


def compare(record: Record, *, profile: str | None = None) -> Comparison:
    """A record beside its prediction; what cannot be predicted carries the reason."""
    try:
        expressed = to_scenario(record)
        report, assumptions = _predicted(expressed, profile)
    except MpsimError as error:
        return Comparison(record, skipped=str(error).partition("\n")[0])
    return Comparison(
        record,
        step_time=report.step_time,
        memory=memory_of_kind(report, record.measured.memory_kind),
        fits=None if expressed.open_memory else report.fits,
        parts=dict(report.waterfall),
        memory_parts=dict(report.fullest.memory.at_peak),
        assumptions=assumptions,
    )


def memory_of_kind(report: Report, kind: str | None) -> float:
    """Predicted peak of the kind that was measured, bytes.

    ``allocated`` is what tensors take; ``reserved`` adds what the allocator holds besides;
    ``nvidia_smi`` adds the context and the libraries' buffers. Without a kind: allocated.
    """
    if kind == "nvidia_smi":
        return report.fullest.reserved
    if kind == "reserved":
        return report.fullest.reserved - report.scenario.cluster.device.reserved
    return report.peak_memory


def _predicted(expressed: Expressed, profile: str | None) -> tuple[Report, tuple[str, ...]]:
    """The report of a record's scenario, and its assumptions.

    What a table leaves out, its authors had tuned: of the choices that it leaves open, the
    prediction is that of the fastest that fits (of the smallest, where none fits).
    """
    found: list[tuple[Report, str]] = []
    for choices in _choices(expressed):
        for text, scenario in choices:
            try:
                report = simulate(_with_profile(scenario, profile), engine="fast")
            except MpsimError:
                if not found:
                    raise
                continue
            found.append((report, text))
            if _nearly_fits(report):  # what is saved by more recomputation is not needed
                break
    best, text = min(found, key=lambda pair: _likelihood(pair[0]))
    return best, (*expressed.assumptions, *((f"tuned: {text}",) if text else ()))


def _likelihood(report: Report) -> tuple[bool, float]:
    """Key by which the likelier choice comes first."""
    fits = _nearly_fits(report)
    return not fits, report.step_time if fits else report.fullest.reserved


def _nearly_fits(report: Report) -> bool:
    """Whether a report fits, give or take what is not known of a table's run."""
    return report.fullest.reserved <= _SLACK * report.scenario.cluster.device.memory


def _choices(expressed: Expressed) -> Iterator[list[tuple[str, Scenario]]]:
    """The ways to fill what a record leaves open; each a list of ever more recomputation."""
    scenario = expressed.scenario
    share = scenario.training.global_batch // scenario.plan.data
    sizes = [scenario.training.microbatch]
    if "training.microbatch" in expressed.open:
        sizes = [size for size in _MICROBATCHES if share % size == 0] or sizes
    kinds = [scenario.plan.recompute]
    if "plan.recompute" in expressed.open:
        kinds = ["none", "selective", "full"]
    modules = _recomputed_first(scenario)
    for size in sizes:
        training = scenario.training.model_copy(update={"microbatch": size})
        plans = [scenario.plan.model_copy(update={"recompute": kind} | modules) for kind in kinds]
        changed = [f"training.microbatch = {size}"] if sizes[1:] else []
        yield [
            (
                ", ".join(changed + ([f"plan.recompute = {plan.recompute}"] if kinds[1:] else [])),
                scenario.model_copy(update={"plan": plan, "training": training}),
            )
            for plan in plans
        ]


def _recomputed_first(scenario: Scenario) -> dict[str, list[str]]:
    """What selective recomputation would drop where a record leaves it open: what is cheap."""
    model = scenario.model
    if not isinstance(model, Transformer) or scenario.plan.recompute == "selective":
        return {}
    cheap = ["core_attention"] if scenario.plan.attention == "math" else ["layernorm"]
    cheap += ["moe_act"] if model.experts else []
    cheap += ["mla_up_proj"] if model.latent_attention else []
    return {"recompute_modules": cheap}


def _with_profile(scenario: Scenario, profile: str | None) -> Scenario:
    """The scenario with a profile for device and node link, where one is given."""
    if profile is None:
        return scenario
    cluster = scenario.cluster
    link = cluster.node.link.model_copy(update={"profile": profile})
    changed = {
        "device": cluster.device.model_copy(update={"profile": profile}),
        "node": cluster.node.model_copy(update={"link": link}),
    }
    return scenario.model_copy(update={"cluster": cluster.model_copy(update=changed)})
