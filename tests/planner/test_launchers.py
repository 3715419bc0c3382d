"""A launcher's file says what the scenario says, or names what it does not."""

import json
import tomllib
from itertools import product

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mpsim.errors import ScenarioError
from mpsim.planner.launchers.fields import fields_of
from mpsim.planner.launchers.translate import export_scenario, import_text
from mpsim.spec.reader import build

QUICK = settings(max_examples=40, deadline=None)
FILES = {"megatron": ".sh", "torchtitan": ".toml", "deepspeed": ".json"}
COMMENT = {"megatron": "# not expressed", "torchtitan": "# not expressed", "deepspeed": "not expr"}
LINK = {"bandwidth": "100 GB/s", "latency": "1 us"}
PEAK = dict.fromkeys(["fp32", "tf32", "fp16", "bf16", "fp8", "mxfp8", "nvfp4"], "1 TFLOP/s")
DEVICE = {"memory": "80 GiB", "memory_bandwidth": "2 TB/s", "peak": PEAK}


def cluster(devices):
    """One node that holds them all."""
    return {"name": "box", "device": DEVICE, "node": {"devices": devices, "link": LINK}}


@st.composite
def models(draw):
    heads, layers = draw(st.sampled_from([4, 8])), 12
    tree = {
        "layers": layers,
        "hidden": heads * draw(st.sampled_from([16, 64])),
        "heads": heads,
        "kv_heads": draw(st.sampled_from([None, 1, 2, heads])),
        "head_dim": draw(st.sampled_from([None, 24])),
        "ffn": draw(st.sampled_from([None, 96])),
        "gated_mlp": draw(st.booleans()),
        "vocab": draw(st.integers(50, 400)),
        "tied_embeddings": draw(st.booleans()),
        "position": draw(st.sampled_from(["learned", "rope", "alibi", "none"])),
        "positions": draw(st.sampled_from([None, 512])),
        "bias": draw(st.booleans()),
        "qkv_bias": draw(st.sampled_from([None, True, False])),
        "qk_norm": draw(st.booleans()),
        "norm": draw(st.sampled_from(["layernorm", "rmsnorm"])),
        "norms_per_layer": draw(st.sampled_from([2, 2, 4])),
        "dropout": draw(st.sampled_from([0.0, 0.1])),
        "window": draw(st.sampled_from([None, 64])),
        "mtp_layers": draw(st.sampled_from([0, 1])),
    }
    if draw(st.booleans()):
        tree["experts"] = {
            "count": 8,
            "per_token": draw(st.integers(1, 4)),
            "ffn": 32,
            "shared_ffn": draw(st.sampled_from([0, 64])),
            "shared_gate": draw(st.booleans()),
            "dense_layers": draw(st.integers(0, 3)),
            "every": draw(st.integers(1, 3)),
            "capacity_factor": draw(st.sampled_from([None, 1.25])),
            "imbalance": draw(st.sampled_from([1.0, 1.5])),
            "router_bias": draw(st.booleans()),
        }
    if draw(st.integers(0, 3)) == 0:
        tree["latent_attention"] = {
            "q_rank": draw(st.sampled_from([None, 24])),
            "kv_rank": 16,
            "qk_nope_head_dim": 32,
            "qk_rope_head_dim": 16,
            "v_head_dim": 32,
        }
    return {key: value for key, value in tree.items() if value is not None}


@st.composite
def plans(draw, experts):
    tensor, pipeline, data, context = (
        draw(st.sampled_from(degrees)) for degrees in ([1, 2, 4], [1, 2, 3], [1, 2, 4], [1, 2])
    )
    schedules = {1: ["1f1b", "gpipe", "zb_h1"], 2: ["interleaved_1f1b", "zb_v", "combined_1f1b"]}
    chunks = draw(st.sampled_from([1, 2])) if pipeline > 1 else 1
    stages = pipeline * chunks
    uneven = [12 - stages + 1] + [1] * (stages - 1)
    return {
        "tensor": tensor,
        "pipeline": pipeline,
        "data": data,
        "context": context,
        "expert": draw(st.sampled_from([1, 2])) if experts and data > 1 else 1,
        "chunks": chunks,
        "schedule": draw(st.sampled_from(schedules[chunks])),
        "partition": draw(st.sampled_from(["layers", "layers", "parameters", uneven])),
        "sequence_parallel": tensor > 1 and draw(st.booleans()),
        "context_exchange": draw(st.sampled_from(["ring", "all_gather", "all_to_all"])),
        "zero": draw(st.integers(0, 3)),
        "zero_group": draw(st.sampled_from([None, 2])) if data % 2 == 0 else None,
        "recompute": draw(st.sampled_from(["none", "selective", "full"])),
        "recompute_layers": draw(st.sampled_from([None, 1, 2])),
        "recompute_modules": draw(
            st.lists(st.sampled_from(["core_attention", "layernorm", "mlp"]), unique=True)
        ),
        "attention": draw(st.sampled_from(["flash", "math"])),
        "fused": draw(st.booleans()),
        "overlap_data": draw(st.booleans()),
        "overlap_tensor": draw(st.booleans()),
        "p2p": draw(st.sampled_from(["async", "batched", "serial"])),
        "bucket": draw(st.sampled_from(["25 MiB", "100 MiB", "4 B"])),
        "offload": draw(
            st.lists(st.sampled_from(["optimizer", "weights", "activations"]), unique=True)
        ),
        "compression": {"type": draw(st.sampled_from([None, "bf16", "fp8"]))},
        "fragmentation": draw(st.sampled_from([0.0, 0.1])),
    }


@st.composite
def trainings(draw, plan):
    micro = draw(st.sampled_from([1, 2]))
    types = st.sampled_from([None, "fp32", "fp16", "bf16"])
    return {
        "global_batch": micro * plan["data"] * draw(st.sampled_from([1, 6, 12])),
        "microbatch": micro,
        "sequence": draw(st.sampled_from([64, 128])),
        "precision": draw(st.sampled_from(list(PEAK))),
        "parameter_type": draw(types),
        "gradient_type": draw(types),
        "optimizer": draw(st.sampled_from(["sgd", "momentum", "adam", "adafactor"])),
        "state_type": draw(st.sampled_from(["fp32", "bf16"])),
        "master_weights": draw(st.sampled_from([None, True, False])),
        "gradient_clipping": draw(st.booleans()),
        "framework": draw(st.sampled_from(["torch", "megatron", "fsdp", "legacy_megatron"])),
    }


@st.composite
def scenarios(draw):
    """Scenarios of every kind, most of which no launcher expresses whole."""
    model = draw(models())
    plan = draw(plans("experts" in model))
    degrees = [plan[axis] for axis in ("tensor", "pipeline", "data", "context")]
    devices = degrees[0] * degrees[1] * degrees[2] * degrees[3]
    tree = {
        "name": draw(st.text(max_size=12)),
        "model": model,
        "cluster": cluster(devices),
        "plan": {key: value for key, value in plan.items() if value is not None},
        "training": {k: v for k, v in draw(trainings(plan)).items() if v is not None},
        "seed": draw(st.sampled_from([0, 3])),
    }
    try:
        return build(tree)
    except ScenarioError:
        assume(False)


def reread(scenario, target, text):
    """The scenario of an exported file, with what the format has no word for given beside it."""
    dump = scenario.model_dump(mode="json")
    extra = {} if target == "megatron" else {"model": dump["model"]}
    fields = {"training.sequence": scenario.training.sequence} if target == "deepspeed" else {}
    return import_text(text, source=target, cluster=dump["cluster"], fields=fields, **extra)


@pytest.mark.parametrize("target", FILES)
@QUICK
@given(scenario=scenarios())
def test_every_field_returns_or_is_named(target, scenario):
    exported = export_scenario(scenario, target)
    text = exported.files[FILES[target]]
    imported = reread(scenario, target, text)
    lost = {item.path for item in exported.lost}
    meant, got = fields_of(scenario), fields_of(imported.scenario)
    differing = {path for path in {*meant, *got} if meant.get(path) != got.get(path)}
    assert differing <= lost
    assert imported.unread == ()
    for item in exported.lost:  # and the file itself says so
        assert COMMENT[target] in text
        shown = json.dumps(str(item))[1:-1] if target == "deepspeed" else str(item)
        assert shown in text


@pytest.mark.parametrize("target", FILES)
@QUICK
@given(scenario=scenarios())
def test_what_was_imported_is_expressed_whole(target, scenario):
    """import∘export changes a scenario once, to what the format expresses, and never again."""
    first = export_scenario(scenario, target)
    imported = reread(scenario, target, first.files[FILES[target]]).scenario
    second = export_scenario(imported, target)
    assert {item.path for item in second.lost} <= {"cluster", "model", "training.sequence"}
    again = reread(imported, target, second.files[FILES[target]]).scenario
    assert fields_of(again) == fields_of(imported)


def megatron_native():
    """Every combination of what Megatron-LM has a flag for, a value of each kind at a time."""
    zero = [{"zero": stage, "zero_group": group} for stage in (0, 1, 2, 3) for group in (2, 4)]
    stages = [
        {"pipeline": 1},
        {"pipeline": 2, "p2p": "batched"},
        {"pipeline": 2, "p2p": "batched", "partition": [5, 7]},
        {"pipeline": 2, "chunks": 3, "schedule": "interleaved_1f1b", "group_size": 4},
        {"pipeline": 2, "chunks": 2, "schedule": "interleaved_1f1b", "p2p": "batched"},
        {"pipeline": 2, "chunks": 2, "schedule": "interleaved_1f1b", "partition": [2, 4, 4, 2]},
    ]
    recompute = [
        {"recompute": "none"},
        {"recompute": "full"},
        {"recompute": "full", "recompute_layers": 1},
        {"recompute": "selective", "recompute_modules": ["layernorm", "mlp"]},
    ]
    for sharding, split, memory in product(zero, stages, recompute):
        yield {"tensor": 2, "data": 4, "context": 2, **sharding, **split, **memory}


def test_megatron_expresses_what_it_has_flags_for():
    model = {"layers": 12, "hidden": 64, "heads": 4, "kv_heads": 2, "vocab": 300, "bias": False}
    training = {"global_batch": 32, "sequence": 64, "precision": "mxfp8", "gradient_type": "fp32"}
    for plan in megatron_native():
        devices = 16 * plan["pipeline"]
        tree = {"model": model, "cluster": cluster(devices), "plan": plan, "training": training}
        exported = export_scenario(build(tree), "megatron")
        assert [item.path for item in exported.lost] == ["cluster"], plan


TITAN_PLANS = [
    {"tensor": 8, "zero": 3, "data": 4, "sequence_parallel": True},
    {"data": 8, "zero": 3, "zero_group": 2},
    {"data": 8, "zero": 2, "context": 2, "context_exchange": "all_gather"},
    {"data": 2, "zero": 2, "pipeline": 4, "schedule": "1f1b", "recompute": "full"},
    {"data": 2, "zero": 3, "pipeline": 4, "chunks": 2, "schedule": "interleaved_1f1b"},
    {"data": 2, "zero": 3, "pipeline": 4, "chunks": 2, "schedule": "zb_v"},
    {"data": 2, "zero": 3, "pipeline": 2, "chunks": 2, "schedule": "dualpipe_v"},
    {"data": 2, "zero": 3, "pipeline": 2, "partition": [17, 15]},
    {"data": 4, "zero": 3, "recompute": "full", "recompute_layers": 8},
    {"data": 4, "zero": 3, "offload": ["optimizer", "weights"], "fused": False},
]


@pytest.mark.parametrize("plan", TITAN_PLANS)
def test_torchtitan_expresses_what_it_has_keys_for(plan):
    devices = 1
    for axis in ("tensor", "pipeline", "data", "context"):
        devices *= plan.get(axis, 1)
    training = {
        "global_batch": 32,
        "sequence": 8192,
        "precision": "fp8",
        "parameter_type": "fp32",
        "framework": "fsdp",
    }
    tree = {"model": "llama3-8b", "cluster": cluster(devices), "plan": plan, "training": training}
    exported = export_scenario(build(tree), "torchtitan")
    assert [item.path for item in exported.lost] == ["cluster"]
    parsed = tomllib.loads(exported.files[".toml"])
    assert (parsed["model"]["name"], parsed["model"]["flavor"]) == ("llama3", "8B")
    assert imported_model(exported.files[".toml"]) == {"base": "llama3-8b"}


def imported_model(text):
    return import_text(text, cluster="hgx-h100").tree["model"]


@pytest.mark.parametrize(
    "plan",
    [
        {"data": 4, "zero": 3, "zero_group": 2, "offload": ["optimizer", "weights"]},
        {"data": 4, "zero": 2, "bucket": "2000 B", "overlap_data": False},
        {"data": 4, "zero": 1, "compression": {"type": "bf16"}},
        {"data": 2, "pipeline": 2, "recompute": "full", "partition": "parameters"},
        {"data": 2, "context": 4, "context_exchange": "all_to_all", "offload": ["activations"]},
        {"data": 2, "tensor": 2},
    ],
)
@pytest.mark.parametrize("optimizer", ["adam", "momentum"])
def test_deepspeed_expresses_what_it_has_keys_for(plan, optimizer):
    devices = 1
    for axis in ("tensor", "pipeline", "data", "context"):
        devices *= plan.get(axis, 1)
    training = {
        "global_batch": 32,
        "sequence": 4096,
        "gradient_type": "fp32",
        "optimizer": optimizer,
        "framework": "torch",
    }
    tree = {"model": "llama2-7b", "cluster": cluster(devices), "plan": plan, "training": training}
    exported = export_scenario(build(tree), "deepspeed")
    assert {item.path for item in exported.lost} == {"cluster", "model", "training.sequence"}


def test_a_lost_field_says_what_a_run_of_the_file_has():
    tree = {
        "model": {"layers": 4, "hidden": 64, "heads": 4, "vocab": 100},
        "cluster": cluster(4),
        "plan": {"pipeline": 4, "schedule": "zb_h1", "p2p": "batched", "offload": ["weights"]},
        "training": {"global_batch": 8, "gradient_type": "fp32"},
        "variants": {"other": {"plan.schedule": "1f1b"}},
    }
    exported = export_scenario(build(tree), "megatron")
    assert [str(item) for item in exported.lost] == [
        "plan.schedule = zb_h1 (the file has 1f1b)",
        "plan.offload = ['weights'] (the file has [])",
        "cluster = box (the format has no word for it)",
        "variants = other (the format has no word for it)",
    ]


def test_an_unknown_target_is_refused_with_a_near_miss():
    tree = {
        "model": {"layers": 1, "hidden": 64, "heads": 4, "vocab": 100},
        "cluster": cluster(1),
        "training": {"global_batch": 1},
    }
    with pytest.raises(ScenarioError) as caught:
        export_scenario(build(tree), "megatronn")
    assert str(caught.value) == (
        "--to: 'megatronn' is not one of megatron, torchtitan, deepspeed, torch-pipelining; "
        "did you mean 'megatron'?"
    )


def test_megatron_refuses_a_model_that_is_not_a_transformer():
    layers = [{"type": "linear", "inputs": 4, "outputs": 4}]
    tree = {
        "model": {"input": [4], "network": layers},
        "cluster": cluster(1),
        "training": {"global_batch": 1, "precision": "fp32"},
    }
    for target in ("megatron", "torch-pipelining"):
        with pytest.raises(ScenarioError, match="transformers by their dimensions only"):
            export_scenario(build(tree), target)
    lost = {item.path for item in export_scenario(build(tree), "torchtitan").lost}
    assert "model" in lost
