"""Parameter counts are those that the models' authors published, and those of torch's modules."""

import pytest

from mpsim.errors import ScenarioError
from mpsim.spec.model import Experts, LatentAttention, Network, TorchModule, Transformer
from mpsim.workload.parameters import active_parameters, parameter_count

LLAMA = {
    "gated_mlp": True,
    "tied_embeddings": False,
    "position": "rope",
    "bias": False,
    "norm": "rmsnorm",
}

DEEPSEEK_V3 = Transformer(
    layers=61,
    hidden=7168,
    heads=128,
    ffn=18432,
    vocab=129280,
    experts=Experts(count=256, per_token=8, ffn=2048, shared_ffn=2048, dense_layers=3),
    latent_attention=LatentAttention(
        q_rank=1536, kv_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128
    ),
    **LLAMA,
)

# Counts of the published weights (safetensors headers of the models' pages on Hugging Face;
# GPT-3 from its dimensions, Brown et al., arXiv:2005.14165, table 2.1).
PUBLISHED = [
    (Transformer(layers=12, hidden=768, heads=12, vocab=50257, positions=1024), 124_439_808),
    (Transformer(layers=96, hidden=12288, heads=96, vocab=50257, positions=2048), 174_604_259_328),
    (
        Transformer(layers=32, hidden=4096, heads=32, kv_heads=8, ffn=14336, vocab=128256, **LLAMA),
        8_030_261_248,
    ),
    (
        Transformer(
            layers=36,
            hidden=4096,
            heads=32,
            kv_heads=8,
            head_dim=128,
            ffn=12288,
            vocab=151936,
            qk_norm=True,
            **LLAMA,
        ),
        8_190_735_360,
    ),
    (
        Transformer(
            layers=28,
            hidden=3584,
            heads=28,
            kv_heads=4,
            ffn=18944,
            vocab=152064,
            qkv_bias=True,
            **LLAMA,
        ),
        7_615_616_512,
    ),
    (
        Transformer(
            layers=32,
            hidden=4096,
            heads=32,
            kv_heads=8,
            ffn=14336,
            vocab=32000,
            experts=Experts(count=8, per_token=2, ffn=14336),
            **LLAMA,
        ),
        46_702_792_704,
    ),
    (DEEPSEEK_V3, 671_026_404_352),
]


@pytest.mark.parametrize(("model", "published"), PUBLISHED)
def test_parameter_count_equals_the_published_one(model, published):
    assert parameter_count(model) == published


def test_deepseek_v3_activates_37_billion_parameters():
    assert active_parameters(DEEPSEEK_V3) / 1e9 == pytest.approx(37, abs=0.6)  # "37B" is rounded


def test_dense_model_is_active_as_a_whole():
    model = PUBLISHED[0][0]
    assert active_parameters(model) == parameter_count(model)


def test_mtp_layer_adds_a_layer_a_projection_and_three_norms():
    model = DEEPSEEK_V3.model_copy(update={"mtp_layers": 1})
    one_more = DEEPSEEK_V3.model_copy(update={"layers": 62})
    added = parameter_count(model) - parameter_count(one_more)
    assert added == 2 * 7168 * 7168 + 3 * 7168
    assert parameter_count(model, with_mtp=False) == parameter_count(DEEPSEEK_V3)


def test_position_table_follows_the_sequence_where_the_model_does_not_say():
    model = Transformer(layers=1, hidden=8, heads=2, vocab=10)
    assert parameter_count(model, sequence=32) - parameter_count(model) == 32 * 8


def test_untraced_torch_module_is_refused():
    with pytest.raises(ScenarioError, match="has to be traced"):
        parameter_count(TorchModule(torch="a.b:c", input=[1]))


def network(*layers, shape=(8,)):
    return Network(input=list(shape), network=list(layers))


def test_small_cnn_has_21840_parameters():
    layers = [
        {"type": "conv2d", "inputs": 1, "outputs": 10, "kernel": 5},
        {"type": "max_pool", "kernel": 2},
        {"type": "conv2d", "inputs": 10, "outputs": 20, "kernel": 5},
        {"type": "max_pool", "kernel": 2},
        {"type": "flatten"},
        {"type": "linear", "inputs": 320, "outputs": 50},
        {"type": "linear", "inputs": 50, "outputs": 10},
        {"type": "cross_entropy"},
    ]
    assert parameter_count(network(*layers, shape=(1, 28, 28))) == 21_840


# What torch.nn.<module> holds, by hand: recurrent cells have a matrix for the input and one for
# the state, and a bias for each of them, per gate.
BY_HAND = [
    ({"type": "linear", "inputs": 10, "outputs": 20}, 220),
    ({"type": "linear", "inputs": 10, "outputs": 20, "bias": False}, 200),
    ({"type": "conv2d", "inputs": 4, "outputs": 6, "kernel": 3, "groups": 2}, 6 * 2 * 9 + 6),
    ({"type": "rnn", "inputs": 3, "hidden": 5}, 5 * 3 + 5 * 5 + 10),
    ({"type": "lstm", "inputs": 3, "hidden": 5}, 4 * (5 * 3 + 5 * 5 + 10)),
    ({"type": "gru", "inputs": 3, "hidden": 5, "bias": False}, 3 * (5 * 3 + 5 * 5)),
    ({"type": "batch_norm", "features": 7}, 14),
    ({"type": "rms_norm", "features": 7}, 7),
    ({"type": "embedding", "rows": 11, "width": 7}, 77),
    ({"type": "attention", "width": 8, "heads": 2}, 4 * 8 * 9),
    ({"type": "relu"}, 0),
    (
        {
            "type": "traced",
            "label": "x",
            "parameters": 5,
            "forward_flops": 1,
            "output": [1],
            "saved_elements": 0,
            "moved_elements": 0,
        },
        5,
    ),
]


@pytest.mark.parametrize(("layer", "count"), BY_HAND)
def test_layer_has_the_parameters_of_its_torch_module(layer, count):
    assert parameter_count(network(layer)) == count


def test_counts_equal_those_of_torch():
    nn = pytest.importorskip("torch.nn")
    modules = {
        0: nn.Linear(10, 20),
        2: nn.Conv2d(4, 6, 3, groups=2),
        3: nn.RNN(3, 5),
        4: nn.LSTM(3, 5),
        5: nn.GRU(3, 5, bias=False),
        6: nn.BatchNorm2d(7),
        8: nn.Embedding(11, 7),
        9: nn.MultiheadAttention(8, 2),
    }
    for index, module in modules.items():
        count = sum(parameter.numel() for parameter in module.parameters())
        assert parameter_count(network(BY_HAND[index][0])) == count
