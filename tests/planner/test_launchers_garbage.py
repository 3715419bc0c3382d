"""Nothing that a launcher's file can hold ends in a traceback."""

import contextlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpsim.errors import MpsimError
from mpsim.planner.launchers.megatron import MEGATRON
from mpsim.planner.launchers.options import Options, nest
from mpsim.planner.launchers.torchtitan import TORCHTITAN
from mpsim.planner.launchers.translate import (
    LAUNCHERS,
    export_scenario,
    guess_launcher,
    import_text,
)
from mpsim.spec.reader import build

QUICK = settings(max_examples=60, deadline=None)
STRANGE = st.one_of(
    st.sampled_from([None, True, False, -1, 0, 1, 2, 3, 7, 10**30, 1.5, -0.5, float("inf")]),
    st.sampled_from(["", "x", "auto", "none", "8", "-3", "[1]", "([0]*3", "Et|tL", "a,b"]),
    st.lists(st.sampled_from([0, "x", None, ["layers.0"], {}]), max_size=3),
    st.just({}),
)
CLUSTER = "dgx-a100-80gb"


def entries(target):
    """What mpsim writes for an ordinary scenario: the names a reader asks for."""
    tree = {
        "model": "deepseek-v2-lite",
        "cluster": {"base": CLUSTER, "nodes": 2},
        "plan": {"tensor": 2, "pipeline": 3, "chunks": 3, "schedule": "interleaved_1f1b"},
        "training": {"global_batch": 8, "sequence": 64},
    }
    tree["cluster"] = {"base": CLUSTER, "node": {"devices": 6}}
    return dict(LAUNCHERS[target].write(build(tree)))


@pytest.mark.parametrize("target", ["megatron", "torchtitan", "deepspeed"])
@QUICK
@given(data=st.data())
def test_strange_values_are_read_or_refused(target, data):
    values = {k: v for k, v in entries(target).items() if v is not None and v is not False}
    names = sorted({*values} - {"--nnodes", "--nproc-per-node"})  # a command needs those two
    for name in data.draw(st.lists(st.sampled_from(names), min_size=1, max_size=3)):
        values[name] = data.draw(STRANGE)
    launcher = LAUNCHERS[target]
    with contextlib.suppress(MpsimError):
        if target == "deepspeed":
            text = json.dumps(nest(values), allow_nan=True)
        else:
            text = launcher.render({k: v for k, v in values.items() if v is not None}, [])
        import_text(text, source=target, cluster=CLUSTER, model="deepseek-v2-lite")


HUGGING_FACE = {
    "model_type": "deepseek_v3",
    "num_hidden_layers": 4,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "intermediate_size": 96,
    "n_routed_experts": 4,
    "moe_intermediate_size": 16,
    "num_experts": 4,
    "num_local_experts": 4,
    "max_position_embeddings": 64,
    "sliding_window": 16,
    "attn_config": {"alibi": True, "kv_n_heads": 2},
    "tie_word_embeddings": False,
    "mlp_only_layers": [],
    "new_decoder_architecture": True,
    "topk_method": "noaux_tc",
    "head_dim": 16,
    "word_embed_proj_dim": 32,
    "expansion_ratio": 4,
}


@QUICK
@given(data=st.data())
def test_strange_configurations_are_read_or_refused(data):
    kinds = ["llama", "mixtral", "qwen3_moe", "deepseek_v3", "falcon", "opt", "mpt", "gpt_oss"]
    values = HUGGING_FACE | {"model_type": data.draw(st.sampled_from(kinds))}
    for name in data.draw(st.lists(st.sampled_from(sorted(values)), max_size=3)):
        values[name] = data.draw(STRANGE)
    with contextlib.suppress(MpsimError):
        import_text(json.dumps(values), source="huggingface")


@QUICK
@given(text=st.text(alphabet="-{}[]\"':=,\n abc0123456789_$()|&;<>!`\\#@", max_size=60))
def test_any_text_is_read_or_refused(text):
    for source in (None, *LAUNCHERS):
        with contextlib.suppress(MpsimError):
            import_text(text, source=source, model="gpt2")


def test_deep_nesting_is_refused():
    for text, source in (("[" * 100_000, None), ("a = " + "[" * 100_000, "torchtitan")):
        with pytest.raises(MpsimError):
            import_text(text, source=source)


def test_an_entry_that_looks_right_is_guessed_before_it_is_parsed():
    assert guess_launcher("--num-layers") == "megatron"
    assert MEGATRON.parse("--num-layers 3 --swiglu") == {"--num-layers": "3", "--swiglu": True}
    assert TORCHTITAN.parse("[training]\nseq_len = 3") == {"training.seq_len": 3}
    options = Options({"train_batch_sise": 3})
    options.has("train_batch_size")
    assert options.unread == ["train_batch_sise; did you mean 'train_batch_size'?"]


def test_an_exported_file_has_no_comment_where_all_is_expressed_but_the_cluster():
    tree = {
        "model": {"layers": 2, "hidden": 64, "heads": 4, "vocab": 96},
        "cluster": {"base": CLUSTER, "node": {"devices": 1}},
        "training": {"global_batch": 2, "precision": "fp32", "sequence": 32},
    }
    text = export_scenario(build(tree), "megatron").files[".sh"]
    comments = [line for line in text.splitlines() if line.startswith("#")]
    assert comments[1:] == [f"# not expressed: cluster = {CLUSTER} (the format has no word for it)"]
