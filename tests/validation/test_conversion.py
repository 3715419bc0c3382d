"""Measured runs as scenarios: what the record says stands, what it omits is named."""

import json
from pathlib import Path

import pytest

from mpsim.errors import MpsimError, ScenarioError
from mpsim.validation.conversion import to_scenario
from mpsim.validation.generation import framework_of, precision_of
from mpsim.validation.records import Record, read_records

MODEL = {
    "name": "m", "family": "gpt", "layers": 12, "hidden": 1024, "heads": 16, "vocab": 51200,
    "tied_embeddings": True, "position": "learned", "bias": True, "gated_mlp": False,
}  # fmt: skip
CLUSTER = {
    "device": "a100-sxm-80gb", "devices": 16, "devices_per_node": 8, "intra_node": "nvlink3",
    "inter_node": "infiniband", "inter_node_gbit_s_per_device": 100.0,
}  # fmt: skip
PLAN = {
    "tensor": 2, "pipeline": 2, "chunks": 1, "context": 1, "data": 4, "schedule": "1f1b",
    "sequence_parallel": False, "zero": 1, "recompute": "full", "attention": "flash",
    "overlap_data": True, "overlap_tensor": False, "precision": "bf16", "optimizer": "adam",
    "expert_tensor": 1, "gradient_dtype": "fp32",
}  # fmt: skip


def record(**changes: dict[str, object]) -> Record:
    """A full record with the given fields of its parts replaced."""
    parts = {
        "model": MODEL,
        "cluster": CLUSTER,
        "plan": PLAN,
        "training": {"global_batch": 64, "microbatch": 2, "sequence": 1024},
        "measured": {"step_time_s": 1.0},
    }
    tree = {name: {**part, **changes.pop(name, {})} for name, part in parts.items()}
    return Record.model_validate({"id": "r", **tree, **changes})


def test_a_full_record_needs_no_assumption_but_dropout():
    expressed = to_scenario(record())
    assert expressed.assumptions == ("model.dropout = 0.1",)
    assert expressed.open == ()


def test_what_the_record_states_stands_in_the_scenario():
    scenario = to_scenario(record()).scenario
    plan, training, cluster = scenario.plan, scenario.training, scenario.cluster
    assert (plan.tensor, plan.pipeline, plan.data, plan.zero) == (2, 2, 4, 1)
    assert (plan.recompute, plan.attention, plan.schedule) == ("full", "flash", "1f1b")
    assert (training.global_batch, training.microbatch, training.sequence) == (64, 2, 1024)
    assert (cluster.nodes, cluster.node.devices, cluster.device.name) == (2, 8, "a100-sxm-80gb")
    assert cluster.network is not None
    assert cluster.network.bandwidth == 100e9 / 8
    assert scenario.microbatches == 8


def test_each_generation_of_software_follows_from_its_kernels():
    old = record(plan={"attention": None, "precision": "fp16"})
    assert framework_of(old) == "legacy_megatron"
    assert framework_of(record()) == "megatron"
    assert framework_of(record(plan={"zero": 3})) == "fsdp"
    alone = {"tensor": 1, "pipeline": 1, "data": 16, "zero": 0, "compiled": True}
    assert framework_of(record(plan=alone)) == "torch"


def test_unfused_attention_of_a_whole_model_is_torch_unless_megatron_is_named():
    eager = {"attention": "math", "tensor": 1, "pipeline": 1, "context": 1, "data": 16, "zero": 0}
    assert framework_of(record(plan=eager)) == "torch"
    named = record(plan=eager).model_copy(update={"notes": "Megatron code of 2021"})
    assert framework_of(named) == "legacy_megatron"
    assert framework_of(record(plan=eager | {"zero": 3})) == "fsdp"


def test_the_source_of_a_record_changes_nothing():
    first = to_scenario(record(source="vtrain_single")).scenario
    second = to_scenario(record(source="somebody")).scenario
    assert first == second


def test_legacy_megatron_hides_nothing_and_sums_gradients_in_fp16():
    old = {"attention": "math", "precision": "fp16", "overlap_data": None, "gradient_dtype": None}
    expressed = to_scenario(record(plan=old))
    plan, training = expressed.scenario.plan, expressed.scenario.training
    assert not plan.overlap_data
    assert plan.p2p == "batched"
    assert training.gradient_type == "fp16"
    assert training.keeps_master_weights
    assert "plan.overlap_data = False" in expressed.assumptions


def test_fsdp_keeps_fp32_parameters_without_a_master_copy():
    alone = {"tensor": 1, "pipeline": 1, "data": 16, "zero": 3, "overlap_data": None}
    expressed = to_scenario(record(plan=alone))
    training = expressed.scenario.training
    assert (training.parameter_type, training.keeps_master_weights) == ("fp32", False)
    assert expressed.scenario.plan.overlap_data
    assert not expressed.scenario.plan.fused


def test_precision_is_read_from_the_guess_in_the_notes():
    notes = "precision: not stated: implies more than the FP32 peak, so probably TF32; bf16 later"
    assert precision_of(record(plan={"precision": None}, notes=notes)) == "bf16"
    notes = "precision: mixed (not stated; fp16 in repo script); source gaps: precision, bf16"
    assert precision_of(record(plan={"precision": None}, notes=notes)) == "fp16"
    assert precision_of(record(plan={"precision": None})) == "bf16"


def test_a_format_without_units_is_computed_in_the_next_wider_one():
    expressed = to_scenario(record(cluster={"device": "v100-sxm-32gb"}, plan={"precision": "tf32"}))
    assert expressed.scenario.training.precision == "fp32"
    assert "training.precision = fp32" in expressed.assumptions


def test_layers_that_do_not_divide_leave_room_for_embedding_and_head():
    deep = {"pipeline": 4, "data": 2}
    expressed = to_scenario(record(model={"layers": 14}, plan=deep))
    assert expressed.scenario.plan.partition == [3, 4, 4, 3]
    assert "plan.partition = [3, 4, 4, 3]" in expressed.assumptions


def test_a_stage_may_hold_the_embedding_alone():
    plan = {"pipeline": 2, "chunks": 2, "schedule": "interleaved_1f1b"}
    stages = record(plan={**plan, "stage_layers": [0, 6, 6, 0]})
    assert to_scenario(stages).scenario.plan.partition == [0, 6, 6, 0]


def test_open_chunks_of_an_interleaved_schedule_are_the_fewest_that_divide():
    plan = {"pipeline": 2, "chunks": None, "schedule": "interleaved_1f1b"}
    expressed = to_scenario(record(model={"layers": 18}, plan=plan))
    assert expressed.scenario.plan.chunks == 3
    assert "plan.chunks" in expressed.open


def test_open_degrees_fill_the_devices():
    plan = {"tensor": None, "context": None, "data": None, "pipeline": 2}
    expressed = to_scenario(record(plan=plan))
    assert expressed.scenario.plan.devices == 16


def test_replicas_beyond_the_batch_become_context():
    plan = {"tensor": 1, "pipeline": 1, "data": 16}
    batch = {"global_batch": 4, "microbatch": 1, "sequence": 1024}
    scenario = to_scenario(record(plan=plan, training=batch)).scenario
    assert (scenario.plan.data, scenario.plan.context) == (4, 4)


def test_devices_that_do_not_fill_their_nodes_are_spread_evenly():
    rack = {
        "device": "gb200", "devices": 256, "devices_per_node": 72, "intra_node": "nvl72",
    }  # fmt: skip
    expressed = to_scenario(record(cluster=rack, plan={"data": 64}, training={"global_batch": 256}))
    cluster = expressed.scenario.cluster
    assert (cluster.nodes, cluster.node.devices) == (4, 64)
    assert "cluster.node.devices = 64" in expressed.assumptions


def test_mixed_devices_are_timed_on_the_slowest():
    mix = {"device": "mixed", "device_note": "RTX 3090 + RTX 2080, see notes", "intra_node": None}
    expressed = to_scenario(record(cluster=mix, plan={"precision": "fp16"}))
    assert expressed.scenario.cluster.device.name == "rtx-2080"
    assert "cluster.device = rtx-2080" in expressed.assumptions


def test_partly_recomputed_layers_are_full_recomputation_of_some():
    one_in_two = {"recompute": "selective", "recompute_modules": ["every_2nd_layer"]}
    plan = to_scenario(record(plan=one_in_two)).scenario.plan
    assert (plan.recompute, plan.recompute_layers) == ("full", 3)
    blocks = {"recompute": "selective", "recompute_modules": ["transformer_layer:4_of_12"]}
    plan = to_scenario(record(plan=blocks)).scenario.plan
    assert (plan.recompute, plan.recompute_layers) == ("full", 2)


def test_virtual_stages_recompute_their_share_of_the_layers():
    """Of 12 layers on 2 x 2 stages, one in three is one of each three."""
    plan = {
        "pipeline": 2, "chunks": 2, "schedule": "interleaved_1f1b", "recompute": "full",
        "recompute_modules": ["transformer_layer:1_of_3"],
    }  # fmt: skip
    assert to_scenario(record(plan=plan)).scenario.plan.recompute_layers == 1


def test_named_modules_are_what_is_recomputed():
    plan = {"recompute": None, "recompute_modules": ["mlp"]}
    expressed = to_scenario(record(plan=plan))
    assert expressed.scenario.plan.recompute == "selective"
    assert expressed.scenario.plan.recompute_modules == ["mlp"]
    assert "plan.recompute" not in expressed.open


@pytest.mark.parametrize(
    ("where", "zero", "expected"),
    [("Megatron-LM", 1, 2), ("NVIDIA Megatron-Bridge recipes", 1, 1), ("torchtitan", 3, 1)],
)
def test_experts_are_cut_as_the_layers_are(where, zero, expected):
    """Megatron's --expert-tensor-parallel-size is the tensor degree; Bridge's recipes set 1."""
    model = {"family": "moe", "experts": 8, "experts_per_token": 2, "expert_ffn": 512, "ffn": None}
    plan = {"expert": 2, "expert_tensor": None, "sequence_parallel": True, "zero": zero}
    expressed = to_scenario(record(model=model, plan=plan, where=where))
    assert expressed.scenario.plan.expert_tensor == expected
    assert f"plan.expert_tensor = {expected}" in expressed.assumptions


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        (None, []),
        ("none", []),
        ("ZeRO-Offload", ["optimizer"]),
        ("optimizer states to CPU", ["optimizer"]),
        ("ZeRO-Infinity, NVMe", ["optimizer", "weights"]),
        ("parameters", ["weights"]),
        ("cpu_offloading_num_layers=20", ["activations"]),
        ("cpu_offloading_num_layers=0", []),
        ("no offload", []),
        ("no optimizer offload", []),
        ("optimizer offload disabled", []),
        ("not stated", []),
    ],
)
def test_what_is_offloaded(stated, expected):
    expressed = to_scenario(record(plan={"offload": stated}))
    assert expressed.scenario.plan.offload == expected
    noted = f"plan.offload = {expected}" in expressed.assumptions
    assert noted == (stated not in (None, "none"))


@pytest.mark.parametrize(
    ("stated", "optimizer", "bytes_each"),
    [
        ("adamw", "adam", 8),
        ("fused adam", "adam", 8),
        ("AdamW-8bit", "momentum", 2),
        ("lion", "momentum", 4),
        ("sgd_momentum", "momentum", 4),
        ("sgd", "sgd", 0),
        ("SGD without momentum", "sgd", 0),
        ("Muon with AdamW for the embedding", "momentum", 4),
        ("a millionaire's own", "adam", 8),
        ("adafactor", "adafactor", None),
        (None, "adam", 8),
    ],
)
def test_optimizers_by_what_they_keep(stated, optimizer, bytes_each):
    training = to_scenario(record(plan={"optimizer": stated})).scenario.training
    assert training.optimizer == optimizer
    if bytes_each is not None:
        numbers = {"adam": 2, "momentum": 1, "sgd": 0}[optimizer]
        assert numbers * {"fp32": 4, "bf16": 2}[training.state_type] == bytes_each


def test_gradients_under_autocast_are_fp32_and_deepspeed_keeps_a_master_copy():
    alone = {"tensor": 1, "pipeline": 1, "data": 16, "gradient_dtype": None, "compiled": True}
    plain = to_scenario(record(plan=alone | {"zero": 0})).scenario.training
    assert (plain.framework, plain.parameter_type, plain.gradient_type) == ("torch", "fp32", "fp32")
    sharded = to_scenario(record(plan=alone | {"zero": 3})).scenario.training
    assert (sharded.parameter_type, sharded.gradient_type) == ("fp32", "bf16")
    deep = to_scenario(record(plan=alone | {"zero": 3}, where="deepspeed examples")).scenario
    assert (deep.training.stored_type, deep.training.gradient_type) == ("bf16", "bf16")
    assert deep.training.keeps_master_weights


def test_sequences_were_not_cut_in_the_megatron_of_2021():
    old = {"attention": "math", "precision": "fp16", "sequence_parallel": None}
    assert not to_scenario(record(plan=old)).scenario.plan.sequence_parallel
    assert to_scenario(record(plan={"sequence_parallel": None})).scenario.plan.sequence_parallel


@pytest.mark.parametrize(
    ("notes", "dispatch", "graphs"),
    [
        ("dispatcher hybridep, full_iteration CUDA graphs", "fused", True),
        ("DeepEP 1.1 dispatches the tokens; no full_iteration graphs", "fused", False),
        ("DeepEP off, full_iteration graphs disabled", "all_to_all", False),
        ("all-to-all instead of DeepEP", "all_to_all", False),
    ],
)
def test_what_notes_name_counts_unless_they_deny_it(notes, dispatch, graphs):
    model = {"family": "moe", "experts": 8, "experts_per_token": 2, "expert_ffn": 512, "ffn": None}
    plan = to_scenario(record(model=model, plan={"expert": 2}, notes=notes)).scenario.plan
    assert (plan.expert_dispatch, plan.graphs) == (dispatch, graphs)


@pytest.mark.parametrize(
    "notes", ["not using DeepSpeed", "faster than DeepSpeed", "compared with Megatron-LM"]
)
def test_software_that_a_run_is_set_against_is_not_its_own(notes):
    alone = {"tensor": 1, "pipeline": 1, "data": 16, "zero": 3}
    training = to_scenario(record(plan=alone, notes=notes)).scenario.training
    assert (training.framework, training.parameter_type) == ("fsdp", "fp32")


def test_the_precision_that_notes_deny_is_not_guessed():
    assert precision_of(record(plan={"precision": None}, notes="precision: bf16, not fp16")) == (
        "bf16"
    )


def test_open_degrees_leave_devices_for_the_experts():
    """64 experts on 64 devices hold a 64th of 200e9 parameters each: one device has room."""
    model = {
        "family": "moe", "layers": 64, "hidden": 4096, "heads": 32, "experts": 64,
        "experts_per_token": 2, "expert_ffn": 4000, "ffn": None, "parameters": 200e9,
    }  # fmt: skip
    plan = {"tensor": None, "pipeline": None, "context": 1, "data": None, "expert": 64}
    machine = {"devices": 64}
    expressed = to_scenario(record(model=model, plan=plan, cluster=machine))
    assert expressed.scenario.plan.expert == 64
    assert expressed.scenario.plan.devices == 64


def test_open_degrees_count_the_state_that_is_assumed():
    """Legacy Megatron is taken to be without ZeRO: 16 B x 20e9 on halves of 80 GiB, 7.5 pieces."""
    plan = {
        "tensor": None, "pipeline": None, "context": None, "data": None, "zero": None,
        "precision": "fp16", "attention": "math",
    }  # fmt: skip
    model = {"layers": 48, "hidden": 6144, "heads": 64, "parameters": 20e9}
    found = to_scenario(record(model=model, plan=plan, cluster={"devices": 64})).scenario.plan
    assert (found.zero, found.tensor, found.pipeline) == (0, 8, 1)


def test_open_degrees_are_raised_until_the_state_is_held():
    """405e9 parameters x 6 B (ZeRO-1) over 40 GiB are 57 pieces: 8 in a node, 9 stages of 14."""
    model = {"layers": 126, "hidden": 16384, "heads": 128, "ffn": 53248, "family": "llama"}
    plan = {"tensor": None, "pipeline": None, "context": None, "data": None, "zero": None}
    machine = {"device": "h100-sxm-80gb", "devices": 1008, "intra_node": "nvlink4"}
    batch = {"global_batch": 504, "microbatch": 1, "sequence": 8192}
    expressed = to_scenario(
        record(model={**model, "parameters": 405e9}, plan=plan, cluster=machine, training=batch)
    )
    found = expressed.scenario.plan
    assert (found.tensor, found.pipeline, found.devices) == (8, 9, 1008)
    small = to_scenario(record(plan=plan)).scenario.plan
    assert (small.tensor, small.pipeline) == (1, 1)


def test_a_device_without_bf16_runs_fp16_and_no_fused_attention():
    plan = {"precision": None, "attention": None}
    scenario = to_scenario(record(cluster={"device": "v100-sxm-32gb"}, plan=plan)).scenario
    assert scenario.training.precision == "fp16"
    assert scenario.plan.attention == "math"


def test_zero_bubble_names_are_the_searched_schedule_under_its_limit():
    one = {"tensor": 1, "pipeline": 4, "data": 4}
    plan = to_scenario(record(plan={**one, "schedule": "zb_1p"})).scenario.plan
    assert (plan.schedule, plan.memory_limit, plan.step_barrier) == ("zb_auto", 4.0, False)
    plan = to_scenario(record(plan={**one, "schedule": "zb_2p"})).scenario.plan
    assert plan.memory_limit == 8.0


def test_experts_and_latent_attention_are_carried_over():
    model = {
        "family": "mla", "ffn": 4096, "gated_mlp": True, "experts": 16, "experts_per_token": 2,
        "expert_ffn": 512, "shared_expert_ffn": 512, "dense_layers": 1, "q_lora_rank": 256,
        "kv_lora_rank": 128, "qk_nope_head_dim": 64, "qk_rope_head_dim": 32, "v_head_dim": 64,
        "mtp_layers": 1, "position": "rope", "bias": False,
    }  # fmt: skip
    built = to_scenario(record(model=model, plan={"expert": 4})).scenario
    transformer = built.model
    assert transformer.experts.count == 16
    assert transformer.experts.shared_ffn == 512
    assert transformer.latent_attention.kv_rank == 128
    assert transformer.mtp_layers == 1
    assert built.plan.expert == 4


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"cluster": {"device": "a100-sxn-80gb"}}, "did you mean 'a100-sxm-80gb'"),
        ({"model": {"family": "mamba_hybrid"}}, "model.family: 'mamba_hybrid' is no transformer"),
        ({"plan": {"precision": "fp8"}}, "training.precision: a100-sxm-80gb has no fp8 rate"),
        ({"cluster": {"device": "mixed", "device_note": "Foo 1"}}, "no device 'Foo 1' in the zoo"),
    ],
)
def test_what_cannot_be_expressed_says_why(changes, what):
    with pytest.raises(ScenarioError, match=what.replace("(", r"\(")):
        to_scenario(record(**changes))


def test_every_published_record_can_be_expressed(shared: Path):
    records, _ = read_records([shared / "data" / "measured"])
    refused = []
    for item in records:
        try:
            to_scenario(item)
        except MpsimError as error:
            refused.append(f"{item.id}: {error}")
    assert refused == []


def test_assumptions_are_named_by_scenario_paths(shared: Path):
    records, _ = read_records([shared / "data" / "measured" / "zero_bubble.jsonl"])
    named = {text.partition(" = ")[0] for item in records for text in to_scenario(item).assumptions}
    assert {"model.vocab", "training.precision", "plan.recompute"} <= named
    assert json.dumps(sorted(named))


def test_interleaving_takes_a_group_size_that_its_microbatches_allow():
    plan = {"pipeline": 2, "chunks": 2, "schedule": "interleaved_1f1b"}
    odd = {"global_batch": 20, "microbatch": 1}  # five microbatches on two devices
    expressed = to_scenario(record(plan=plan, training=odd))
    assert expressed.scenario.plan.group_size is not None
    assert expressed.assumptions[-1].startswith("plan.group_size = ")
