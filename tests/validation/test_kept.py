"""What the software that a record names keeps in memory, and how it reports memory."""

import pytest

from mpsim.validation.conversion import to_scenario
from mpsim.validation.kept import fused_loss, memory_kind, quantised_copies, sums_in_16_bits
from mpsim.validation.records import Record

MODEL = {
    "name": "m", "family": "llama", "layers": 12, "hidden": 1024, "heads": 16, "vocab": 51200,
    "tied_embeddings": False, "position": "rope", "bias": False, "gated_mlp": True,
}  # fmt: skip
CLUSTER = {
    "device": "h100-sxm-80gb", "devices": 8, "devices_per_node": 8, "intra_node": "nvlink4",
    "inter_node": "none",
}  # fmt: skip
PLAN = {
    "tensor": 1, "pipeline": 1, "chunks": 1, "context": 1, "data": 8, "schedule": "none",
    "zero": 1, "recompute": "none", "attention": "flash", "precision": "bf16",
}  # fmt: skip


def record(where: str = "", *, plan=None, measured=None, training=None) -> Record:
    sizes = {"global_batch": 64, "microbatch": 2, "sequence": 1024}
    return Record.model_validate(
        {
            "id": "r",
            "where": where,
            "model": MODEL,
            "cluster": CLUSTER,
            "plan": PLAN | (plan or {}),
            "training": sizes | (training or {}),
            "measured": {"step_time_s": 1.0} | (measured or {}),
        }
    )


TITAN = "pytorch/torchtitan benchmarks, June 2025"


@pytest.mark.parametrize(
    ("where", "plan", "fused"),
    [
        ("mosaicml/llm-foundry scripts", {}, True),  # its default is flash-attn's loss
        (TITAN, {"compiled": True}, True),
        (TITAN, {"precision": "fp8"}, True),  # 8-bit layers are compiled
        (TITAN, {"precision": "fp8", "compiled": False}, False),
        (TITAN, {"compiled": False}, False),
        (TITAN, {"compiled": True, "tensor": 8, "data": 1}, False),  # DTensor's own loss
        ("pytorch/torchtitan benchmarks, December 2024", {"compiled": True}, False),
        ("somewhere", {"compiled": True}, False),
    ],
)
def test_whose_loss_copies_no_logits(where, plan, fused):
    named = record(where, plan=plan)
    assert fused_loss(named) == fused
    assert to_scenario(named).scenario.plan.fused_loss == fused


PAGE = "NVIDIA-NeMo/Megatron-Bridge docs, performance summary"


def test_performance_recipes_sum_gradients_in_16_bits():
    assert sums_in_16_bits(record(PAGE))
    assert not sums_in_16_bits(record("NVIDIA/NeMo-Framework-Launcher, performance of GPT-3"))
    assert to_scenario(record(PAGE)).scenario.training.gradient_type == "bf16"
    assert to_scenario(record("Megatron-LM")).scenario.training.gradient_type == "fp32"
    stated = record(PAGE, plan={"gradient_dtype": "fp32"})
    assert to_scenario(stated).scenario.training.gradient_type == "fp32"


@pytest.mark.parametrize(
    ("where", "precision", "kept"),
    [(PAGE, "fp8", True), (PAGE, "bf16", False), ("Megatron-LM", "fp8", False)],
)
def test_8_bit_recipes_keep_no_16_bit_weights(where, precision, kept):
    training = to_scenario(record(where, plan={"precision": precision})).scenario.training
    assert training.quantised_parameters == kept


@pytest.mark.parametrize(
    ("device", "precision", "copies"),
    [("gb200", "fp8", 1), ("gb200", "mxfp8", 2), ("h100-sxm-80gb", "fp8", 2)],
)
def test_blackwell_keeps_fp8_weights_once(device, precision, copies):
    assert quantised_copies(device, precision) == copies


@pytest.mark.parametrize(
    ("where", "measured", "kind"),
    [
        ("Megatron-LM", {"peak_memory_bytes": 1e9, "memory_kind": "reserved"}, "reserved"),
        ("AMD-AGI/Primus", {"peak_memory_bytes": 1e9, "memory_kind": "allocated"}, "allocated"),
        ("AMD-AGI/Primus", {"peak_memory_bytes": 1e9}, "nvidia_smi"),
        ("Megatron-LM", {"peak_memory_bytes": 1e9}, "allocated"),
        ("Megatron-LM", {"peak_memory_bytes": 7019 * 2**20}, "nvidia_smi"),
        ("Megatron-LM", {"peak_memory_bytes": 7 * 2**30}, "allocated"),
        ("Megatron-LM", {}, "nvidia_smi"),
    ],
)
def test_what_a_prediction_is_compared_with(where, measured, kind):
    assert memory_kind(record(where, measured=measured)) == kind


def test_without_a_batch_there_is_no_fastest_microbatch():
    open_size = {"microbatch": None}
    assert "training.microbatch" in to_scenario(record(training=open_size)).open
    neither = to_scenario(record(training=open_size | {"global_batch": None}))
    assert "training.microbatch" not in neither.open
    assert neither.scenario.training.microbatch == 1
    assert neither.open_memory
