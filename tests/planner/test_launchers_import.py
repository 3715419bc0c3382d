"""Launchers' files as people write them, read into scenarios."""

import json
import math

import pytest

from mpsim.errors import ScenarioError
from mpsim.planner.launchers.megatron_text import expand_pattern, layout_counts
from mpsim.planner.launchers.translate import guess_launcher, import_text
from mpsim.spec.plan import bucket_nbytes
from mpsim.spec.reader import load
from mpsim.spec.scenario import Scenario
from mpsim.spec.zoo import load_entry
from mpsim.workload.parameters import parameter_count

# the shape of the scripts in Megatron-LM/examples, arrays and continuation lines as there
MEGATRON = r"""
#!/bin/bash
GPUS_PER_NODE=8
DISTRIBUTED_ARGS=(
    --nproc_per_node 8
    --nnodes 16
    --master_addr $MASTER_ADDR
)
GPT_MODEL_ARGS=(
    --num-layers 96   # GPT-3
    --hidden-size 12288
    --num-attention-heads 96
    --seq-length 2048
    --max-position-embeddings 2048
    --attention-backend auto
    --vocab-size 50257
)
TRAINING_ARGS=(
    --micro-batch-size 1 \
    --global-batch-size 1536
    --train-iters 500000
    --lr 6.0e-5
    --bf16
    --clip-grad 1.0
    --attention-dropout 0.0 --hidden-dropout 0.0
    --recompute-granularity=selective
    --use-distributed-optimizer --overlap-grad-reduce --overlap-param-gather
)
MODEL_PARALLEL_ARGS=(
	--tensor-model-parallel-size 8
	--pipeline-model-parallel-size 16
	--num-layers-per-virtual-pipeline-stage 3
	--sequence-paralel
)
torchrun ${DISTRIBUTED_ARGS[@]} pretrain_gpt.py ${GPT_MODEL_ARGS[@]} ${TRAINING_ARGS[@]} \
    ${MODEL_PARALLEL_ARGS[@]}
"""


def megatron(*extra, drop=()):
    """A small argument list."""
    flags = {
        "--num-layers": 12,
        "--hidden-size": 64,
        "--num-attention-heads": 4,
        "--seq-length": 128,
        "--max-position-embeddings": 128,
        "--micro-batch-size": 1,
        "--vocab-size": 1000,
    }
    words = [f"{name} {value}" for name, value in flags.items() if name not in drop]
    return " ".join([*words, *extra])


@pytest.mark.parametrize(
    ("flags", "nbytes"),
    [
        ("--overlap-grad-reduce", 64_000_000 * 4),  # a million for each of 16 x 4 replicas
        ("", math.inf),  # an exchange that nothing hides is not cut
        ("--overlap-grad-reduce --ddp-bucket-size 1000", 4000),
        ("--ddp-bucket-size 1000", math.inf),
    ],
)
def test_the_bucket_is_megatrons_own_unless_the_file_has_one(flags, nbytes):
    text = f"torchrun --nnodes 8 --nproc-per-node 8 p.py {megatron(flags)}"
    imported = import_text(text + " --bf16 --context-parallel-size 4")
    plan = imported.scenario.plan
    assert (plan.data, plan.context) == (16, 4)
    assert ("bucket" in imported.tree["plan"]) == (nbytes == 4000)
    assert bucket_nbytes(plan, imported.scenario.training) == nbytes


def test_a_megatron_script_is_read_with_megatrons_defaults():
    imported = import_text(MEGATRON)
    plan, training = imported.scenario.plan, imported.scenario.training
    assert imported.launcher == "megatron"
    assert (plan.tensor, plan.pipeline, plan.chunks, plan.data) == (8, 16, 2, 1)
    assert plan.schedule == "interleaved_1f1b"
    assert plan.recompute == "selective"
    assert plan.recompute_modules == ["core_attention"]
    assert (plan.zero, plan.overlap_data, plan.sequence_parallel) == (1, True, False)
    assert (training.global_batch, training.precision) == (1536, "bf16")
    assert training.gradient_type == "fp32"  # Megatron accumulates gradients of bf16 in fp32
    # 50257 padded to a multiple of 128 x 8, the Megatron-LM default
    assert imported.scenario.model.vocab == 51200
    assert imported.scenario.cluster.devices == 128
    assert "--sequence-paralel; did you mean '--sequence-parallel'?" in imported.unread
    assert {"--train-iters", "--lr", "--master-addr"} <= set(imported.unread)


def test_the_imported_yaml_is_the_same_scenario_and_keeps_the_names_of_the_zoo(tmp_path):
    imported = import_text(MEGATRON, cluster="hgx-h100")
    path = tmp_path / "scenario.yaml"
    path.write_text(imported.to_yaml())
    assert load(path) == imported.scenario
    assert imported.tree["cluster"] == {"base": "hgx-h100", "nodes": 16}
    assert "# not read: --" in imported.to_yaml()


def test_a_yaml_of_arguments_reads_as_the_flags_do():
    yaml = """
    model: {num_layers: 12, hidden_size: 64, num_attention_heads: 4, add_bias_linear: false}
    seq_length: 128
    max_position_embeddings: 128
    micro_batch_size: 1
    vocab_size: 1000
    bf16: true
    sequence_parallel: false
    """
    read = import_text(yaml).scenario
    assert read == import_text(megatron("--disable-bias-linear --bf16"), source="megatron").scenario


def test_a_yaml_may_have_flags_as_its_keys():
    words = megatron().replace("--", "").split()
    pairs = ", ".join(
        f'"--{key}": {value}' for key, value in zip(words[::2], words[1::2], strict=True)
    )
    read = import_text(f"{{{pairs}}}", source="megatron").scenario
    assert read == import_text(megatron(), source="megatron").scenario


def test_a_string_of_flags_in_quotes_is_a_script():
    script = f'ARGS="{megatron()}"\npython pretrain_gpt.py $ARGS'
    assert import_text(script).scenario == import_text(megatron(), source="megatron").scenario


@pytest.mark.parametrize(
    ("extra", "field", "value"),
    [
        (
            "--pipeline-model-parallel-size 2 --decoder-first-pipeline-num-layers 5",
            "partition",
            [5, 7],
        ),
        (
            "--pipeline-model-parallel-size 2 --decoder-last-pipeline-num-layers 4",
            "partition",
            [8, 4],
        ),
        (
            "--pipeline-model-parallel-size 7 --account-for-embedding-in-pipeline-split "
            "--account-for-loss-in-pipeline-split",
            "partition",
            [1, 2, 2, 2, 2, 2, 1],
        ),
        (
            "--pipeline-model-parallel-size 2 --pipeline-model-parallel-layout 'Et*3|t*4|t*4|tL'",
            "chunks",
            2,
        ),
        ("--recompute-activations", "recompute", "selective"),
        (
            "--recompute-granularity full --recompute-method block --recompute-num-layers 3",
            "recompute_layers",
            3,
        ),
        ("--use-megatron-fsdp --data-parallel-sharding-strategy optim_grads_params", "zero", 3),
        ("--use-torch-fsdp2", "zero", 3),
        ("--attention-backend local", "attention", "math"),
        ("--optimizer-cpu-offload", "offload", ["optimizer"]),
    ],
)
def test_a_megatron_flag_sets_its_field(extra, field, value):
    plan = import_text(megatron(extra)).scenario.plan
    assert getattr(plan, field) == value


@pytest.mark.parametrize(
    ("freq", "lead", "every"),
    [("([0]*3+[1]*9)", 3, 1), ("'([0]+[1])*6'", 0, 2), ("'[0,0,1]*4'", 0, 3), ("1", 0, 1)],
)
def test_a_pattern_of_expert_layers_becomes_lead_and_period(freq, lead, every):
    text = megatron(f"--num-experts 8 --moe-ffn-hidden-size 32 --moe-layer-freq {freq!s}")
    text = text.replace("([0]*3+[1]*9)", "'([0]*3+[1]*9)'")
    experts = import_text(text).scenario.model.experts
    assert (experts.dense_layers, experts.every) == (lead, every)


def test_a_pattern_without_words_for_it_is_named():
    text = megatron("--num-experts 8 --moe-ffn-hidden-size 32 --moe-layer-freq 2")
    imported = import_text(text)  # layers 0, 2, 4, ...: mpsim counts the last of each group
    assert any("6 of 12 layers have experts" in note for note in imported.assumed)
    assert imported.scenario.model.experts.every == 2


TITAN = """
[model]
name = "llama3"
flavor = "70B"
[training]
local_batch_size = 16
seq_len = 8192
[parallelism]
tensor_parallel_degree = 8
pipeline_parallel_degree = 4
pipeline_parallel_schedule = "interleaved1f1b"
data_parallel_shard_degree = -1
[activation_checkpoint]
mode = "full"
[checkpoint]
interval = 500
"""


def test_a_torchtitan_file_takes_the_leftover_devices_of_the_cluster():
    imported = import_text(TITAN, cluster={"base": "hgx-h100", "nodes": 16})
    plan = imported.scenario.plan
    assert (plan.tensor, plan.pipeline, plan.data, plan.chunks) == (8, 4, 4, 2)
    # 80 layers, embedding and head as one each: 82 over 8 stages, the first two with one more
    assert plan.partition == [10, 11, 10, 10, 10, 10, 10, 9]
    assert plan.zero == 2  # parameters stay gathered between microbatches of a pipeline
    assert imported.scenario.training.global_batch == 64
    assert imported.unread == ("checkpoint.interval",)
    assert imported.tree["model"] == {"base": "llama3-70b"}


def test_a_deepspeed_file_with_auto_takes_what_the_cluster_leaves():
    text = json.dumps(
        {
            "train_micro_batch_size_per_gpu": 2,
            "gradient_accumulation_steps": 4,
            "train_batch_size": "auto",
            "bf16": {"enabled": True},
            "zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}},
            "wall_clock_breakdown": False,
        }
    )
    imported = import_text(text, cluster="hgx-h100", model="llama2-7b")
    plan, training = imported.scenario.plan, imported.scenario.training
    assert (plan.data, plan.zero, plan.offload, plan.overlap_data) == (8, 3, ["weights"], True)
    assert (training.global_batch, training.microbatch) == (64, 2)
    assert imported.unread == ("wall_clock_breakdown",)


# config.json of the models' pages on Hugging Face; the published counts are the zoo's
CONFIGS = {
    "gpt2": {"model_type": "gpt2", "n_embd": 768, "n_head": 12, "n_layer": 12, "n_positions": 1024}
    | {"vocab_size": 50257},
    "llama2-70b": {"model_type": "llama", "hidden_size": 8192, "intermediate_size": 28672}
    | {"num_attention_heads": 64, "num_hidden_layers": 80, "num_key_value_heads": 8}
    | {"vocab_size": 32000, "max_position_embeddings": 4096, "tie_word_embeddings": False},
    "mistral-7b": {"model_type": "mistral", "hidden_size": 4096, "intermediate_size": 14336}
    | {"num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8}
    | {"vocab_size": 32000, "max_position_embeddings": 32768, "sliding_window": 4096},
    "mixtral-8x7b": {"model_type": "mixtral", "hidden_size": 4096, "intermediate_size": 14336}
    | {"num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8}
    | {"vocab_size": 32000, "num_local_experts": 8, "num_experts_per_tok": 2}
    | {"max_position_embeddings": 32768, "sliding_window": None},
    "qwen2-7b": {"model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944}
    | {"num_attention_heads": 28, "num_hidden_layers": 28, "num_key_value_heads": 4}
    | {"vocab_size": 152064, "max_position_embeddings": 131072, "sliding_window": 131072}
    | {"use_sliding_window": False, "tie_word_embeddings": False},
    "qwen3-0.6b": {"model_type": "qwen3", "hidden_size": 1024, "intermediate_size": 3072}
    | {"num_attention_heads": 16, "num_hidden_layers": 28, "num_key_value_heads": 8}
    | {"head_dim": 128, "vocab_size": 151936, "tie_word_embeddings": True}
    | {"max_position_embeddings": 40960, "attention_bias": False},
    "qwen3-30b-a3b": {"model_type": "qwen3_moe", "hidden_size": 2048, "intermediate_size": 6144}
    | {"num_attention_heads": 32, "num_hidden_layers": 48, "num_key_value_heads": 4}
    | {"head_dim": 128, "vocab_size": 151936, "num_experts": 128, "num_experts_per_tok": 8}
    | {"moe_intermediate_size": 768, "decoder_sparse_step": 1, "mlp_only_layers": []}
    | {"max_position_embeddings": 40960, "tie_word_embeddings": False},
    "qwen1.5-moe-a2.7b": {"model_type": "qwen2_moe", "hidden_size": 2048}
    | {"intermediate_size": 5632, "moe_intermediate_size": 1408, "num_experts": 60}
    | {"shared_expert_intermediate_size": 5632, "num_experts_per_tok": 4}
    | {"num_attention_heads": 16, "num_hidden_layers": 24, "num_key_value_heads": 16}
    | {"vocab_size": 151936, "max_position_embeddings": 8192, "decoder_sparse_step": 1},
    "deepseek-v3": {"model_type": "deepseek_v3", "hidden_size": 7168, "intermediate_size": 18432}
    | {"num_attention_heads": 128, "num_key_value_heads": 128, "num_hidden_layers": 61}
    | {"vocab_size": 129280, "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128}
    | {"qk_rope_head_dim": 64, "v_head_dim": 128, "n_routed_experts": 256, "n_shared_experts": 1}
    | {"moe_intermediate_size": 2048, "num_experts_per_tok": 8, "first_k_dense_replace": 3}
    | {"num_nextn_predict_layers": 1, "topk_method": "noaux_tc", "moe_layer_freq": 1}
    | {"max_position_embeddings": 163840, "tie_word_embeddings": False},
    "deepseek-v2-lite": {"model_type": "deepseek_v2", "hidden_size": 2048}
    | {"intermediate_size": 10944, "num_attention_heads": 16, "num_key_value_heads": 16}
    | {"num_hidden_layers": 27, "vocab_size": 102400, "q_lora_rank": None, "kv_lora_rank": 512}
    | {"qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128}
    | {"n_routed_experts": 64, "n_shared_experts": 2, "moe_intermediate_size": 1408}
    | {"num_experts_per_tok": 6, "first_k_dense_replace": 1, "topk_method": "greedy"}
    | {"max_position_embeddings": 163840},
    "gemma-2b": {"model_type": "gemma", "hidden_size": 2048, "intermediate_size": 16384}
    | {"num_attention_heads": 8, "num_hidden_layers": 18, "num_key_value_heads": 1}
    | {"head_dim": 256, "vocab_size": 256000, "max_position_embeddings": 8192},
    "gemma2-2b": {"model_type": "gemma2", "hidden_size": 2304, "intermediate_size": 9216}
    | {"num_attention_heads": 8, "num_hidden_layers": 26, "num_key_value_heads": 4}
    | {"head_dim": 256, "vocab_size": 256000, "max_position_embeddings": 8192}
    | {"sliding_window": 4096},
    "falcon-7b": {"model_type": "falcon", "hidden_size": 4544, "num_attention_heads": 71}
    | {"num_hidden_layers": 32, "vocab_size": 65024, "multi_query": True, "parallel_attn": True}
    | {"new_decoder_architecture": False, "bias": False, "alibi": False},
    "falcon-40b": {"model_type": "falcon", "hidden_size": 8192, "num_attention_heads": 128}
    | {"num_hidden_layers": 60, "vocab_size": 65024, "num_kv_heads": 8, "bias": False}
    | {"new_decoder_architecture": True, "alibi": False, "parallel_attn": True},
    "bloom-560m": {"model_type": "bloom", "hidden_size": 1024, "n_layer": 24, "n_head": 16}
    | {"vocab_size": 250880},
    "opt-1.3b": {"model_type": "opt", "hidden_size": 2048, "ffn_dim": 8192}
    | {"num_attention_heads": 32, "num_hidden_layers": 24, "vocab_size": 50272}
    | {"max_position_embeddings": 2048, "word_embed_proj_dim": 2048, "do_layer_norm_before": True},
    "opt-350m": {"model_type": "opt", "hidden_size": 1024, "ffn_dim": 4096}
    | {"num_attention_heads": 16, "num_hidden_layers": 24, "vocab_size": 50272}
    | {"max_position_embeddings": 2048, "word_embed_proj_dim": 512}
    | {"do_layer_norm_before": False},
    "mpt-7b": {"model_type": "mpt", "d_model": 4096, "n_heads": 32, "n_layers": 32}
    | {"vocab_size": 50432, "max_seq_len": 2048, "expansion_ratio": 4, "no_bias": True}
    | {"attn_config": {"alibi": True, "clip_qkv": None}},
    "gpt-neox-20b": {"model_type": "gpt_neox", "hidden_size": 6144, "intermediate_size": 24576}
    | {"num_attention_heads": 64, "num_hidden_layers": 44, "vocab_size": 50432}
    | {"max_position_embeddings": 2048, "tie_word_embeddings": False},
    "gpt-j-6b": {"model_type": "gptj", "n_embd": 4096, "n_head": 16, "n_layer": 28}
    | {"n_positions": 2048, "vocab_size": 50400, "tie_word_embeddings": False},
    "phi-2": {"model_type": "phi", "hidden_size": 2560, "intermediate_size": 10240}
    | {"num_attention_heads": 32, "num_hidden_layers": 32, "vocab_size": 51200}
    | {"max_position_embeddings": 2048, "tie_word_embeddings": False},
    "phi-3-mini": {"model_type": "phi3", "hidden_size": 3072, "intermediate_size": 8192}
    | {"num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32}
    | {"vocab_size": 32064, "max_position_embeddings": 4096, "sliding_window": 2047},
    "starcoder2-3b": {"model_type": "starcoder2", "hidden_size": 3072, "intermediate_size": 12288}
    | {"num_attention_heads": 24, "num_hidden_layers": 30, "num_key_value_heads": 2}
    | {"vocab_size": 49152, "max_position_embeddings": 16384, "use_bias": True},
    "gpt-oss-20b": {"model_type": "gpt_oss", "hidden_size": 2880, "intermediate_size": 2880}
    | {"num_attention_heads": 64, "num_hidden_layers": 24, "num_key_value_heads": 8}
    | {"head_dim": 64, "vocab_size": 201088, "num_local_experts": 32, "num_experts_per_tok": 4}
    | {"sliding_window": 128, "attention_bias": True, "max_position_embeddings": 131072}
    | {"tie_word_embeddings": False},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_hugging_face_configuration_has_the_published_number_of_parameters(name):
    imported = import_text(json.dumps(CONFIGS[name]), cluster="hgx-h100")
    scenario = imported.scenario
    assert imported.launcher == "huggingface"
    published = load_entry("models", name)["published_parameters"]
    sequence = scenario.training.sequence
    # exact: the same weights, counted from the file; publications leave out extra prediction layers
    assert parameter_count(scenario.model, sequence=sequence, with_mtp=False) == published
    assert scenario.plan.data == 8


def test_what_a_configuration_does_not_say_is_assumed_aloud():
    imported = import_text(json.dumps(CONFIGS["gemma2-2b"] | {"attn_logit_softcapping": 50.0}))
    assert imported.assumed == (
        "model.window = null: only some layers have the sliding window",
        "training.sequence = 8192: the longest that the model is made for",
        "plan.data = 1: a model's configuration has no plan",
        "training.global_batch = 1: one sequence on each replica",
        "cluster = dgx-a100-80gb: the file names none (see --cluster)",
        "cluster: 1 nodes of 1 devices, as many as the plan needs",
    )
    assert imported.unread == ("attn_logit_softcapping",)
    assert isinstance(imported.scenario, Scenario)


@pytest.mark.parametrize(
    ("text", "source"),
    [
        (MEGATRON, "megatron"),
        ("num_layers: 4\nhidden_size: 8\n", "megatron"),
        (TITAN, "torchtitan"),
        ('{"train_batch_size": 8}', "deepspeed"),
        ('{"model_type": "gpt2"}', "huggingface"),
    ],
)
def test_the_launcher_is_guessed_from_the_content(text, source):
    assert guess_launcher(text) == source


@pytest.mark.parametrize(
    ("text", "source", "message"),
    [
        (
            "hello",
            None,
            "file: is none of Megatron-LM arguments, a torchtitan TOML, a DeepSpeed JSON",
        ),
        ("", None, "file: is none of"),
        ("[1, 2]", None, "configuration: expected a JSON object of settings"),
        ('{"a": 1', None, "configuration: is not JSON: line 1, column 8"),
        ('{"a": 1}', None, "file: is none of"),
        ('{"train_batch_size": NaN}', None, "configuration: NaN is not a finite number"),
        ('{"train_batch_size": 8}', "deepspeed", "model: a DeepSpeed configuration does not name"),
        ("[training]\nseq_len = ", None, "job configuration: is not TOML: "),
        (
            "[model]\nname = 'llama3'\nflavor = '9B'",
            None,
            "model.flavor: the dimensions of 'llama3 9B'",
        ),
        (
            '{"model_type": "lama"}',
            None,
            "model_type: 'lama' is not a model that mpsim can read; did",
        ),
        ('{"model_type": "gpt2", "n_embd": 8}', None, "n"),
        (
            "x",
            "slurm",
            "--from: 'slurm' is not one of megatron, torchtitan, deepspeed, huggingface",
        ),
        ("--num-layers 'x", None, "line 1: the ' that stands there is not closed"),
        ("3", "megatron", "arguments: expected flags such as --num-layers 32, or a YAML of them"),
    ],
)
def test_what_cannot_be_meant_is_said(text, source, message):
    with pytest.raises(ScenarioError) as caught:
        import_text(text, source=source)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("--bf16 --fp16", "--bf16: contradicts --fp16; give one of them"),
        (
            "--num-layers twelve",
            "--num-layers: expected a whole number of at least 1, not 'twelve'",
        ),
        ("--num-layers 0", "--num-layers: expected a whole number of at least 1, not '0'"),
        (
            "--nproc-per-node 8 --tensor-model-parallel-size 3",
            "plan: tensor (3) x pipeline (1) x context (1) = 3 does not divide the 8 devices",
        ),
        (
            "--pipeline-model-parallel-size 2 --num-layers-per-virtual-pipeline-stage 5",
            "2 devices with stages of 5 layers do not divide the 12 layers",
        ),
        (
            "--pipeline-model-parallel-size 2 --pipeline-model-parallel-layout 'Et|tL'",
            "has 2 stages of 2 layers, but the pipeline is of 2 and --num-layers is 12",
        ),
        ("--pipeline-model-parallel-layout 'Ex'", "'Ex' is not a layout such as Et*3|t*4|t*3L"),
        ("--num-experts 4 --moe-layer-freq '[1]*5'", "lists 5 layers, but --num-layers is 12"),
        ("--num-experts 4 --moe-layer-freq '[1]*'", "is not a pattern such as ([0]*3+[1]*58)"),
        ("--recompute-granularity some", "'some' is not one of full, selective"),
        ("--normalization RMSnorm", "'RMSnorm' is not one of LayerNorm, RMSNorm; did you mean"),
        (
            "--micro-batch-size 3 --global-batch-size 8",
            "training.global_batch: 8 is not a multiple",
        ),
        ("--tensor-model-parallel-size 8", "plan.tensor: 8 does not divide the 4 heads"),
        ("--window-size wide", "--window-size: expected two numbers such as 4096,0, not 'wide'"),
        ("--use-distributed-optimizer --num-distributed-optimizer-instances 3", "does not divide"),
    ],
)
def test_contradictory_megatron_flags_are_refused(extra, message):
    with pytest.raises(ScenarioError) as caught:
        import_text(megatron(extra))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "flag", ["--num-layers", "--hidden-size", "--seq-length", "--micro-batch-size"]
)
def test_a_missing_megatron_flag_is_named(flag):
    with pytest.raises(ScenarioError, match=f"{flag}: is missing"):
        import_text(megatron(drop=(flag,)), source="megatron")


def test_contradictory_batch_sizes_of_deepspeed_are_refused():
    sizes = {"train_batch_size": 10, "train_micro_batch_size_per_gpu": 4}
    text = json.dumps(sizes | {"gradient_accumulation_steps": 1})
    with pytest.raises(ScenarioError) as caught:
        import_text(text, model="llama2-7b")
    assert str(caught.value) == (
        "train_batch_size: 10 is not train_micro_batch_size_per_gpu (4) x "
        "gradient_accumulation_steps (1) x a number of replicas"
    )


def test_a_pattern_that_explodes_is_refused_before_it_is_written_out():
    with pytest.raises(ScenarioError):
        expand_pattern("[1]*9999999*9999999", where="--moe-layer-freq")
    with pytest.raises(ScenarioError):
        layout_counts("((t*9999)*9999)*9999", where="--pipeline-model-parallel-layout")


def test_the_nodes_that_are_set_give_the_leftover_devices():
    imported = import_text(TITAN, cluster="hgx-h100", fields={"cluster.nodes": 8})
    assert imported.scenario.plan.data == 2
    assert imported.tree["cluster"] == {"base": "hgx-h100", "nodes": 8}


def test_a_cluster_smaller_than_one_replica_grows():
    imported = import_text(TITAN, cluster="hgx-h100")
    assert imported.scenario.plan.data == 1
    assert imported.scenario.cluster.nodes == 4
    assert "plan.data = 1: one replica takes 32 devices" in imported.assumed


def test_a_field_that_is_set_wins_over_the_file():
    imported = import_text(TITAN, cluster="hgx-h100", fields={"training.sequence": 4096})
    assert imported.scenario.training.sequence == 4096
    changed = import_text(MEGATRON, cluster="hgx-h100", fields={"cluster.network.latency": "9 us"})
    assert changed.scenario.cluster.network.latency == 9e-6
    assert changed.tree["cluster"]["network"]["latency"] == "9e-06 s"
