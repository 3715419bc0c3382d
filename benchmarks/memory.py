"""Predicted against measured peak memory, by source: `python benchmarks/memory.py [DATA] [-v]`.

DATA is the folder with `measured/*.jsonl` (default: `../shared/data` beside the repository). Each
record with a peak is expressed as a scenario; each device's order is walked op by op, so that no
kernel needs a time. Reserved memory is compared where that was measured, else allocated.
"""

from __future__ import annotations

import statistics
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from mpsim.cost.memory import StageMemory, stage_memory
from mpsim.errors import MpsimError
from mpsim.schedule.ops import Kind, Order
from mpsim.schedule.orders import make_order
from mpsim.spec.scenario import Scenario
from mpsim.validation.conversion import to_scenario
from mpsim.validation.records import Record, read_records
from mpsim.workload.build import build_layers
from mpsim.workload.partition import assign, partition

GIB = 2**30


def main(arguments: list[str]) -> None:
    """Print one line a source, and with ``-v`` one a record."""
    paths = [Path(text) for text in arguments if text != "-v"]
    root = paths[0] if paths else Path(__file__).resolve().parents[2] / "shared" / "data"
    records, _ = read_records([root / "measured"])
    errors: dict[str, list[float]] = {}
    for record in records:
        measured = record.measured.peak_memory_bytes
        if not measured or record.measured.oom:
            continue
        try:
            predicted, parts = fullest(record)
        except MpsimError as error:
            print(f"{record.id:44} skipped: {error}")
            continue
        errors.setdefault(record.source, []).append(predicted / measured - 1)
        if "-v" in arguments:
            figures = f"{predicted / GIB:7.2f} {measured / GIB:7.2f} GiB"
            print(f"{record.id:44} {figures} {predicted / measured - 1:+.1%} {parts}")
    every = [error for found in errors.values() for error in found]
    for source, found in {**errors, "all": every}.items():
        print(
            f"{source:20} {len(found):4} rows, "
            f"median error {statistics.median(map(abs, found)):.1%}, "
            f"bias {statistics.median(found):+.1%}"
        )


def fullest(record: Record) -> tuple[float, str]:
    """Peak of the fullest device as measured (allocated or reserved), and its largest parts."""
    scenario = to_scenario(record).scenario
    plan, training = scenario.plan, scenario.training
    layers = build_layers(scenario.model, plan, training)
    slices = partition(
        layers, plan.stages, how=plan.partition if plan.partition != "time" else "layers"
    )
    stages = assign(layers, slices, recompute_layers=plan.recompute_layers)
    order = _order(scenario)
    peaks = []
    for device in range(order.num_devices):
        own = slice(order.starts[device], order.starts[device + 1])
        held = sorted(set(order.stage[own].tolist()))
        memory = stage_memory([stages[stage] for stage in held], plan, training)
        peak, parts = walked(order, own, held, memory)
        kind = record.measured.memory_kind
        peaks.append((memory.reserved(peak) if kind == "reserved" else peak, device, parts))
    peak, device, parts = max(peaks)
    return peak, f"device {device}: {parts}"


def _order(scenario: Scenario) -> Order:
    plan = scenario.plan
    return make_order(
        plan.schedule,
        num_devices=plan.pipeline,
        num_microbatches=scenario.microbatches,
        num_chunks=plan.chunks,
        group_size=plan.group_size,
        memory_limit=plan.memory_limit,
    )


def walked(order: Order, own: slice, held: Sequence[int], memory: StageMemory) -> tuple[float, str]:
    """Peak of one device over its ops, and what it is made of."""
    chunk_of = {stage: memory.chunks[index] for index, stage in enumerate(held)}
    live: Counter[int] = Counter()
    stored: Counter[int] = Counter()
    worst, parts = memory.static_nbytes, ""
    for kind, stage in zip(order.kind[own].tolist(), order.stage[own].tolist(), strict=True):
        chunk = chunk_of[stage]
        live[stage] += kind == Kind.F
        transient = chunk.forward_transient if kind == Kind.F else 0.0
        if kind in (Kind.B, Kind.I):
            transient = chunk.backward_transient
        kept = sum(chunk_of[s].nbytes * count for s, count in live.items())
        kept += sum(chunk_of[s].weight_store * count for s, count in stored.items())
        total = memory.static_nbytes + kept + transient
        if total > worst:
            worst, flight = total, sum(live.values())
            parts = f"activations {kept / GIB:.2f} ({flight}), transient {transient / GIB:.2f}"
        live[stage] -= kind in (Kind.B, Kind.I)
        stored[stage] += (kind == Kind.I) - (kind == Kind.W)
    static = ", ".join(f"{name} {nbytes / GIB:.2f}" for name, nbytes in memory.static.items())
    return worst, f"{parts}, {static}"


if __name__ == "__main__":
    main(sys.argv[1:])
