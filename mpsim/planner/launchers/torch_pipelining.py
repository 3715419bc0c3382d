"""torch.distributed.pipelining: the schedule as its CSV, and a script that runs it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from mpsim.errors import ScenarioError, ScheduleError
from mpsim.planner.launchers.fields import Lost, fields_of, lost_between, stage_layers
from mpsim.planner.launchers.torch_pipelining_script import SCRIPT
from mpsim.schedule.ops import Order
from mpsim.schedule.orders import make_order
from mpsim.schedule.text import order_of, read_csv, rows_of, write_csv
from mpsim.spec.model import Transformer
from mpsim.spec.plan import PlanSpec, TrainingSpec
from mpsim.spec.scenario import Scenario
from mpsim.workload.partition import equal_counts

CSV_NAME = "schedule.csv"
"""File name that the script looks for beside itself, unless told otherwise."""

_TYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
_OPTIMIZERS = {
    "sgd": "torch.optim.SGD(parameters, lr=1e-4)",
    "momentum": "torch.optim.SGD(parameters, lr=1e-4, momentum=0.9)",
    "adam": "torch.optim.AdamW(parameters, lr=1e-4)",
}


def pipelining_files(
    scenario: Scenario, *, csv_name: str = CSV_NAME
) -> tuple[Mapping[str, str], list[Lost]]:
    """The schedule's CSV and the script, by suffix, and the fields they do not express.

    Raises:
        ScenarioError: If the model is not a transformer by its dimensions.
        ScheduleError: If the schedule cannot be had for these numbers, or torch cannot run it.
    """
    model = scenario.model
    if not isinstance(model, Transformer):
        raise ScenarioError("model", "the script builds transformers by their dimensions only")
    order = _order(scenario)
    run = _as_run(scenario, model)
    script = _script(run, order, csv_name=csv_name)
    lost = lost_between(fields_of(scenario), fields_of(run))
    return {".csv": write_csv(rows_of(order)), ".py": script}, lost


def _order(scenario: Scenario) -> Order:
    """The order of the scenario, refused where torch's runtime cannot run it."""
    plan = scenario.plan
    path = Path(plan.schedule)
    if path.suffix == ".csv":
        text = path.read_text(encoding="utf-8")
        order = order_of(read_csv(text, name=path.name), name=path.name)
    else:
        order = make_order(
            plan.schedule,
            num_devices=plan.pipeline,
            num_microbatches=scenario.microbatches,
            num_chunks=plan.chunks,
            group_size=plan.group_size,
            num_slices=plan.slices,
            drain=plan.drain,
            memory_limit=plan.memory_limit,
        )
    reasons = {
        "is asynchronous": not order.synchronous,
        "cuts the sequence": order.num_slices > 1,
        "holds stages on two devices": order.weight_copies > 1,
    }
    for reason, applies in reasons.items():
        if applies:
            raise ScheduleError(f"{plan.schedule} {reason}, which torch's pipeline runtime cannot")
    return order


def _as_run(scenario: Scenario, model: Transformer) -> Scenario:
    """The scenario that the script runs: pipeline and replicas of a plain transformer."""
    plan, training = scenario.plan, scenario.training
    learned = model.position == "learned"
    counts = stage_layers(scenario) or equal_counts(model.layers, plan.stages)
    kind: Literal["fp32", "fp16", "bf16"] = "bf16"
    if training.stored_type in ("fp32", "fp16"):
        kind = "fp32" if training.stored_type == "fp32" else "fp16"
    optimizer = training.optimizer if training.optimizer in _OPTIMIZERS else "adam"
    return scenario.model_copy(
        update={
            "model": Transformer(
                layers=model.layers,
                hidden=model.hidden,
                heads=model.heads,
                kv_heads=model.kv_head_count,
                head_dim=model.head_width,
                ffn=model.ffn_width,
                gated_mlp=model.gated_mlp,
                vocab=model.vocab,
                tied_embeddings=False,
                position="learned" if learned else "none",
                bias=model.bias,
                norm=model.norm,
                causal=model.causal,
            ),
            "plan": PlanSpec(
                pipeline=plan.pipeline,
                data=plan.data,
                chunks=plan.chunks,
                schedule=plan.schedule,
                group_size=plan.group_size,
                drain=plan.drain,
                partition=counts,
                memory_limit=plan.memory_limit,
                overlap_data=False,
                step_barrier=False,
                fused=False,
            ),
            "training": TrainingSpec(
                global_batch=training.global_batch,
                microbatch=training.microbatch,
                sequence=training.sequence,
                precision=kind,
                parameter_type=kind,
                optimizer=optimizer,
                state_type=kind,
                master_weights=False,
                gradient_clipping=False,
                steps=training.steps,
                framework="torch",
            ),
        }
    )


def _script(run: Scenario, order: Order, *, csv_name: str) -> str:
    model, plan, training = run.model, run.plan, run.training
    if not isinstance(model, Transformer):
        raise ScenarioError("model", "the script builds transformers by their dimensions only")
    devices = plan.pipeline * plan.data
    per_node = min(run.cluster.node.devices, devices)
    ends = zip(order.starts[:-1].tolist(), order.starts[1:].tolist(), strict=True)
    return SCRIPT.format(
        csv_name=csv_name,
        nodes=-(-devices // per_node),
        per_node=per_node,
        pipeline=plan.pipeline,
        data=plan.data,
        microbatches=run.microbatches,
        stages_of_device=[sorted({*order.stage[begin:end].tolist()}) for begin, end in ends],
        layers_of_stage=stage_layers(run),
        hidden=model.hidden,
        heads=model.heads,
        kv_heads=model.kv_head_count,
        head_dim=model.head_width,
        ffn=model.ffn_width,
        gated=model.gated_mlp,
        vocab=model.vocab,
        bias=model.bias,
        norm={"layernorm": "LayerNorm", "rmsnorm": "RMSNorm"}[model.norm],
        learned=model.position == "learned",
        causal=model.causal,
        sequence=training.sequence,
        microbatch=training.microbatch,
        dtype=_TYPES[training.stored_type],
        optimizer=_OPTIMIZERS[training.optimizer],
    )
