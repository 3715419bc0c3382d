"""Rows of the measurement tables, and the records of steps, appended to files as they come."""

from __future__ import annotations

import csv
import json
import os
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mpsim.schedule.ops import Op
from mpsim.spec.model import Network, Transformer

from .pipeline import PipelineJob, PipelineRun
from .runtime import OpEvent

TABLES: dict[str, tuple[str, ...]] = {
    "gemm": ("dtype", "m", "n", "k", "ms"),
    "memory_bound": ("op", "bytes", "ms"),
    "collectives": ("op", "gpus", "bytes", "ms", "link"),
    "launch": ("what", "us"),
    "layers": ("layer", "batch", "fwd_ms", "bwd_input_ms", "bwd_weight_ms", "bwd_ms", "spec"),
    "overlap": ("compute_ms", "comm_ms", "compute_with_comm_ms", "comm_with_compute_ms", "bytes"),
    "drift": ("elapsed_s", "ms", "stolen"),
}
"""Columns of each table, besides those of ``COMMON``."""

COMMON = ("worker", "device", "spread", "samples", "round")
"""Columns that all tables end with; ``spread`` is the relative MAD of the samples."""

Row = Mapping[str, Any]

_BLOCK = 2**16
"""Bytes read at once where a last line is looked for: a record of a step has some ten thousand."""


def append_rows(folder: Path, table: str, rows: Sequence[Row]) -> None:
    """Add rows to a table, which is begun with its header if it is not there.

    A last row that an interruption cut off is dropped first: its cell is not noted as done, and so
    is measured again.
    """
    path = folder / f"{table}.csv"
    columns = (*TABLES[table], *COMMON)
    _drop_torn(path)
    new = not path.exists() or not path.stat().st_size
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="")
        if new:
            writer.writeheader()
        writer.writerows({name: _plain(value) for name, value in row.items()} for row in rows)


def append_json(path: Path, record: Mapping[str, Any]) -> None:
    """Add one line of JSON to a file; a last line that an interruption cut off is dropped first."""
    _drop_torn(path)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record, separators=(",", ":")) + "\n")


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a file; a last line that was cut off by an interruption is left out."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


def _drop_torn(path: Path) -> None:
    """End a file with its last whole line: what is added to half a line is lost with it."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        begin = end = file.seek(0, os.SEEK_END)
        tail = b""
        while begin and b"\n" not in tail:
            begin = max(0, begin - _BLOCK)
            file.seek(begin)
            tail = file.read(end - begin)
        file.truncate(begin + tail.rfind(b"\n") + 1)


def _plain(value: Any) -> Any:  # noqa: ANN401  (a cell of a table)
    """Floats with seven digits, which is more than any clock here has."""
    return f"{value:.7g}" if isinstance(value, float) else value


def op_medians(events: Sequence[OpEvent]) -> dict[str, float]:
    """Median seconds of the ops' own work by stage and letter, such as ``0F``; update as ``STEP``.

    Waiting for messages is not in them.
    """
    seconds: dict[str, list[float]] = defaultdict(list)
    for event in events:
        seconds[kind_of(event)].append(event.seconds)
    return {kind: statistics.median(values) for kind, values in sorted(seconds.items())}


def kind_of(event: OpEvent) -> str:
    """Stage and letter of an event; the worker and STEP for the update."""
    if event.op == "STEP":
        return f"{event.worker}STEP"
    op = Op.parse(event.op)
    return f"{op.stage}{op.kind.name}"


def step_record(
    schedule: str, job: PipelineJob, run: PipelineRun, *, identity: str, machine: Mapping[str, Any]
) -> dict[str, Any]:
    """A measured step in the format of whole-step records, with what a fit needs besides.

    Beyond the format: ``mpsim_model`` (the model as a scenario declares it), ``layer_counts``
    (layers of each stage), ``step_times_s`` (all samples), ``op_seconds`` (median own time of ops
    by stage and letter), ``peak_bytes`` (peak memory by worker), ``order`` (the schedule's text).
    """
    stages, workers = len(job.counts), len(machine["devices"])
    gpt = job.model if isinstance(job.model, Transformer) else None
    median = statistics.median(run.step_seconds)
    return {
        "id": identity,
        "source": "mpsim",
        "where": f"measured by mpsim on {machine['device']}, torch {machine['torch']}",
        "model": _model_fields(job.model),
        "cluster": {
            "device": machine["device"],
            "devices": workers,
            "devices_per_node": workers,
            "intra_node": machine["link"],
            "inter_node": "none",
            "inter_node_gbit_s_per_device": None,
        },
        "plan": {
            **dict.fromkeys(("tensor", "context", "data", "expert", "expert_tensor"), 1),
            "pipeline": workers,
            "chunks": stages // workers,
            "schedule": schedule,
            "stage_layers": list(job.counts) if gpt is None else None,
            "sequence_parallel": False,
            "zero": 0,
            "recompute": "none",
            "precision": "fp32",
            "gradient_dtype": "fp32",
            "optimizer": "sgd",
            "compiled": False,
            "offload": None,
        },
        "training": {
            "global_batch": job.batch,
            "microbatch": job.batch // job.microbatches,
            "sequence": job.sequence,
        },
        "measured": {
            "step_time_s": median,
            "step_time_origin": "reported",
            "tokens_per_s_per_device": job.batch * job.sequence / median / workers,
            "peak_memory_bytes": max(run.peak_bytes) or None,
            "memory_kind": "allocated",
            "samples": len(run.step_seconds),
        },
        "unknown": [],
        "completeness": "full",
        "trust": "high",
        "notes": "",
        "mpsim_model": job.model.model_dump(mode="json", exclude_defaults=True),
        "layer_counts": list(job.counts),
        "step_times_s": [round(value, 9) for value in run.step_seconds],
        "op_seconds": {kind: round(value, 9) for kind, value in op_medians(run.events).items()},
        "peak_bytes": list(run.peak_bytes),
        "order": job.schedule,
    }


def _model_fields(model: Network | Transformer) -> dict[str, Any]:
    """The model in the fields of the record format."""
    if isinstance(model, Network):
        return {"name": model.name, "family": "other", "layers": len(model.network)}
    return {
        "name": model.name,
        "family": "gpt",
        "layers": model.layers,
        "hidden": model.hidden,
        "heads": model.heads,
        "kv_heads": model.kv_head_count,
        "head_dim": model.head_width,
        "ffn": model.ffn_width,
        "gated_mlp": model.gated_mlp,
        "vocab": model.vocab,
        "tied_embeddings": model.tied_embeddings,
        "position": model.position,
        "bias": model.bias,
    }
