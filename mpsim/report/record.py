"""A report as plain values for machines; every key with a unit ends in it."""

from __future__ import annotations

from typing import Any

from mpsim.report.ledger import ledger, ledger_record
from mpsim.report.metrics import DeviceUse, Report


def record(report: Report) -> dict[str, Any]:
    """The report as nested dictionaries, lists, numbers and texts, ready for JSON."""
    scenario = report.scenario
    return {
        "name": scenario.name,
        "variant": scenario.variant,
        "fits": report.fits,
        "devices": scenario.cluster.devices,
        "step_time_s": report.step_time,
        "step_time_interval_s": list(report.interval) if report.interval else None,
        "span_s": report.span,
        "samples_per_s": report.samples_per_second,
        "tokens_per_s": report.tokens_per_second,
        "run_time_s": report.step_time * scenario.training.steps,
        "peak_memory_bytes": report.peak_memory,
        "reserved_memory_bytes": report.fullest.reserved,
        "capacity_bytes": scenario.cluster.device.memory,
        "usd_per_step": report.usd_per_step,
        "engine": report.engine,
        "seed": scenario.seed,
        "waterfall_s": dict(report.waterfall),
        "phases": dict(report.phases),
        "phases_s": dict(report.phase_seconds),
        "busy_at_once": report.busy_at_once,
        "idle_fraction": report.idle_fraction,
        "bubble_fraction": report.bubble_fraction,
        "bubble_fraction_closed_form": report.bubble_formula,
        "amdahl": _amdahl(report),
        "traffic": {
            "stage_to_stage_bytes": report.traffic.measured,
            "stage_to_stage_formula_bytes": report.traffic.formula,
            "by_link_bytes": dict(report.traffic.by_link),
            "exchanged_per_device_bytes": dict(report.traffic.exchanges),
        },
        "model_flops_utilisation": _utilisation(report),
        "minimum_devices": dict(report.minimum_devices),
        "device": [_device(device) for device in report.devices],
        "ledger": ledger_record(ledger(report)),
        "notes": list(report.notes),
    }


def _amdahl(report: Report) -> dict[str, Any]:
    """Amdahl's law as read off the simulation; an infinite limit is null."""
    amdahl = report.amdahl
    finite = amdahl.limit != float("inf")
    return {
        "devices": amdahl.devices,
        "one_device_s": amdahl.one_device,
        "speed_up": amdahl.speed_up,
        "parallel_fraction": amdahl.fraction,
        "limit": amdahl.limit if finite else None,
        "serial_fraction_by_cause": dict(amdahl.causes),
    }


def _utilisation(report: Report) -> dict[str, float] | None:
    """MFU by FLOP convention."""
    use = report.utilisation
    if use is None:
        return None
    return {"6n": use.six_n, "with_attention": use.with_attention, "hardware": use.hardware}


def _device(device: DeviceUse) -> dict[str, Any]:
    """One device's use of time and memory."""
    return {
        "index": device.index,
        "stages": list(device.stages),
        "layers": device.layers,
        "compute_s": device.compute,
        "exchange_s": device.exchange,
        "idle_s": device.idle,
        "peak_memory_bytes": device.memory.peak,
        "peak_memory_time_s": device.memory.peak_time,
        "peak_memory_components_bytes": dict(device.memory.at_peak),
        "reserved_memory_bytes": device.reserved,
        "fragmentation_bytes": device.fragmentation,
        "outside_allocator_bytes": dict(device.outside),
    }
