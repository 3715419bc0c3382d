"""Predictions of measured runs: one scenario each, on all cores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from mpsim.errors import MpsimError
from mpsim.report.metrics import Report
from mpsim.simulation import simulate
from mpsim.spec.model import Transformer
from mpsim.spec.scenario import Scenario
from mpsim.validation.comparison import Comparison
from mpsim.validation.conversion import Expressed, to_scenario
from mpsim.validation.kept import memory_kind
from mpsim.validation.pool import cores, each
from mpsim.validation.records import Record

_CHUNK = 12
"""Records that a worker takes at a time: few enough to balance, enough to share their layers."""
_MICROBATCHES = (1, 2, 4, 8, 16)
"""Microbatches tried where a record states none."""
_SHARES = (1 / 4, 1 / 3, 1 / 2, 2 / 3, 1.0)
"""Shares of recomputed layers tried where a record states none."""
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
    found = dict(compare_each(records, profile=profile, processes=processes))
    return [found[place] for place in range(len(records))]


def compare_each(
    records: Sequence[Record], *, profile: str | None = None, processes: int | None = None
) -> Iterator[tuple[int, Comparison]]:
    """As :func:`compare_all`, each with its place, in the order in which they are done."""
    workers = processes or cores()
    one = partial(compare, profile=profile)
    if len(records) <= _SERIAL:
        workers = 1
    # runs of one model and device side by side: a worker times their layers once
    order = sorted(range(len(records)), key=lambda index: _alike(records[index]))
    alike = [records[index] for index in order]
    for place, row in each(one, alike, workers=workers, chunk=_CHUNK):
        yield order[place], row


def _alike(record: Record) -> tuple[str, ...]:
    """Key by which records that share layers are neighbours."""
    return record.cluster.device, record.model.name, str(record.plan.tensor), record.id


def compare(record: Record, *, profile: str | None = None) -> Comparison:
    """A record beside its prediction; what cannot be predicted carries the reason."""
    try:
        expressed = to_scenario(record)
        report, assumptions, fits = _predicted(expressed, profile)
    except MpsimError as error:
        return Comparison(record, skipped=str(error).partition("\n")[0])
    except ArithmeticError as error:
        return Comparison(record, skipped=f"numbers that cannot be computed with ({error})")
    # the peak of a choice of our own says nothing of a run that did not state it
    hidden = fits is None and record.measured.peak_memory_bytes is None
    return Comparison(
        record,
        step_time=report.step_time,
        memory=None if hidden else memory_of_kind(report, memory_kind(record)),
        fits=fits,
        parts=dict(report.waterfall),
        memory_parts=dict(report.fullest.memory.at_peak),
        assumptions=assumptions,
    )


def memory_of_kind(report: Report, kind: str) -> float:
    """Predicted peak of the kind that was measured, bytes.

    ``allocated`` is what tensors take; ``reserved`` adds what the allocator holds besides;
    ``nvidia_smi`` adds the context and the libraries' buffers.
    """
    if kind == "nvidia_smi":
        return report.fullest.reserved
    if kind == "reserved":
        return report.peak_memory * (1 + report.scenario.plan.fragmentation)
    return report.peak_memory


def _predicted(
    expressed: Expressed, profile: str | None
) -> tuple[Report, tuple[str, ...], bool | None]:
    """The report of a record's scenario, its assumptions, and whether the run fits.

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
    assumptions = (*expressed.assumptions, *((f"tuned: {text}",) if text else ()))
    return best, assumptions, _verdict(expressed, [report for report, _ in found])


def _verdict(expressed: Expressed, found: Sequence[Report]) -> bool | None:
    """Whether a run fits; None where that hangs on what its record leaves open.

    Without a microbatch nothing can be said to fit. Without recomputation stated, what fits with
    none of it fits in any case; else it may. What fits under no choice does not fit.
    """
    if expressed.open_memory or not {"plan.recompute", "plan.recompute_layers"}.isdisjoint(
        expressed.open
    ):
        if found[0].fits and not expressed.open_memory:
            return True
        # where one nearly fitted, those that hold less were not tried
        least = min(report.scenario.training.microbatch for report in found)
        open_still = any(_nearly_fits(report) for report in found) or least > 1
        return None if open_still else False
    return found[0].fits


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
    kinds = _kinds(expressed)
    for size in sizes:
        training = scenario.training.model_copy(update={"microbatch": size})
        plans = [(text, scenario.plan.model_copy(update=kind)) for text, kind in kinds.items()]
        changed = [f"training.microbatch = {size}"] if sizes[1:] else []
        yield [
            (
                ", ".join(changed + ([text] if text else [])),
                scenario.model_copy(update={"plan": plan, "training": training}),
            )
            for text, plan in plans
        ]


def _kinds(expressed: Expressed) -> dict[str, dict[str, object]]:
    """Ever more recomputation, where a record leaves it open: what is said of it → fields.

    Selective recomputation of torch FSDP, where no modules are named, is of a share of whole layers
    (fms-fsdp: ``selective_checkpointing``; torchtitan: every n-th layer).
    """
    scenario = expressed.scenario
    modules = _recomputed_first(scenario)
    if "plan.recompute" in expressed.open:
        return {
            f"plan.recompute = {kind}": {"recompute": kind, **modules}
            for kind in ("none", "selective", "full")
        }
    model = scenario.model
    if "plan.recompute_layers" not in expressed.open or not isinstance(model, Transformer):
        return {"": dict(modules)}
    each = max(1, model.layers // (scenario.plan.pipeline * scenario.plan.chunks))
    counts = sorted({max(1, round(each * share)) for share in _SHARES})
    return {
        f"plan.recompute_layers = {count}": {
            "recompute": "full",
            "recompute_layers": count if count < each else None,
        }
        for count in counts
    }


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
