"""Modules like those of torchvision and transformers, traced: counts known by hand."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from mpsim.errors import ScenarioError
from mpsim.hardware.models import SMALL_CNN, block_stack, build
from mpsim.hardware.tracing import trace, trace_module
from mpsim.spec.model import TorchModule


class BasicBlock(nn.Module):
    """The residual block of a ResNet-18, with in-place activations."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride > 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x):
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += identity
        return self.relu(out)


class ResNet18(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        widths = [(64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2)]
        for index, (inputs, outputs, stride) in enumerate(widths, 1):
            blocks = nn.Sequential(
                BasicBlock(inputs, outputs, stride), BasicBlock(outputs, outputs, 1)
            )
            self.add_module(f"layer{index}", blocks)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(512, 1000)

    def forward(self, x):
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


class GptBlock(nn.Module):
    """A layer of GPT-2 with a causal mask in a buffer."""

    def __init__(self, width, heads, context):
        super().__init__()
        self.heads = heads
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.c_attn, self.c_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.c_fc, self.c_out = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.register_buffer("mask", torch.ones(context, context, dtype=torch.bool).tril())

    def attend(self, x):
        batch, time, width = x.shape
        q, k, v = self.c_attn(x).split(width, dim=2)
        q, k, v = (
            part.view(batch, time, self.heads, width // self.heads).transpose(1, 2)
            for part in (q, k, v)
        )
        scores = (q @ k.transpose(-2, -1)) * (width // self.heads) ** -0.5
        scores = scores.masked_fill(~self.mask[:time, :time], float("-inf")).softmax(-1)
        return self.c_proj((scores @ v).transpose(1, 2).reshape(batch, time, width))

    def forward(self, x):
        x = x + self.attend(self.ln_1(x))
        return x + self.c_out(functional.gelu(self.c_fc(self.ln_2(x))))


class Gpt(nn.Module):
    def __init__(self, width=64, heads=4, layers=3, vocab=100, context=16):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(vocab, width), nn.Embedding(context, width)
        self.h = nn.ModuleList(GptBlock(width, heads, context) for _ in range(layers))
        self.ln_f = nn.LayerNorm(width)
        self.lm_head = nn.Linear(width, vocab, bias=False)
        self.lm_head.weight = self.wte.weight

    def forward(self, tokens):
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.h:
            x = block(x)
        return self.lm_head(self.ln_f(x))


def traced(module_type, *shape, integer=False):
    with torch.device("meta"):
        module = module_type()
    dtype = torch.long if integer else torch.float32
    inputs = torch.empty(2, *shape, dtype=dtype, device="meta")
    return trace_module(module, inputs, name="model", source="test"), module, inputs


def counted_flops(module, inputs):
    with FlopCounterMode(display=False) as counter:
        module(inputs)
    return counter.get_total_flops() // len(inputs)


def test_resnet_is_cut_at_its_blocks():
    network, module, inputs = traced(ResNet18, 3, 64, 64)
    labels = [layer.label for layer in network.network]
    blocks = [f"layer{stage}.{block}" for stage in range(1, 5) for block in (0, 1)]
    assert labels[:4] == ["conv1", "bn1", "relu", "maxpool"]
    assert labels[4:12] == blocks
    assert labels[-1] == "fc"
    # 11,689,512 parameters: torchvision's documentation of resnet18
    assert sum(layer.parameters for layer in network.network) == 11_689_512
    assert sum(layer.forward_flops for layer in network.network) == counted_flops(module, inputs)
    assert network.network[-1].output == [1000]
    assert network.network[4].output == [64, 16, 16]


def test_first_convolution_of_a_resnet_by_hand():
    network, *_ = traced(ResNet18, 3, 64, 64)
    conv, norm = network.network[:2]
    assert conv.parameters == 3 * 64 * 7 * 7
    assert conv.forward_flops == 2 * 3 * 64 * 7 * 7 * 32 * 32
    assert conv.output == [64, 32, 32]
    assert conv.saved_elements == 3 * 64 * 64  # its input
    assert conv.moved_elements == 3 * 64 * 64 + 64 * 32 * 32
    assert conv.kernels == 1
    assert norm.parameters == 2 * 64
    # its input, which the convolution made but did not keep, and two statistics a channel, halved
    # as if they grew with the batch of two
    assert norm.saved_elements == 64 * 32 * 32 + 64


def test_gpt_is_cut_at_its_blocks():
    network, module, inputs = traced(Gpt, 16, integer=True)
    assert [layer.label for layer in network.network][1:4] == ["h.0", "h.1", "h.2"]
    assert sum(layer.parameters for layer in network.network) == sum(
        parameter.numel() for parameter in module.parameters()
    )
    assert sum(layer.forward_flops for layer in network.network) == counted_flops(module, inputs)


def test_a_gpt_block_by_hand():
    network, *_ = traced(Gpt, 16, integer=True)
    time, width = 16, 64
    block = network.network[2]
    assert block.label == "h.1"
    assert block.parameters == 12 * width**2 + 13 * width
    products = 2 * time * width * 12 * width  # 3 + 1 + 4 + 4 squares
    attention = 2 * 2 * time * time * width
    assert block.forward_flops == products + attention
    assert block.output == [time, width]
    heads = 4
    scores = heads * time * time
    # at least what any implementation keeps: both norms' inputs and outputs, q k v, the attention's
    # output, the MLP's two, and the weights of attention
    assert block.saved_elements >= (4 + 3 + 1 + 8) * time * width + scores
    assert block.saved_elements <= (4 + 6 + 1 + 8 + 2) * time * width + 4 * scores


def test_tied_weights_count_where_they_are_first_used():
    network, *_ = traced(Gpt, 16, integer=True)
    head = network.network[-1]
    assert head.label == "lm_head"
    assert head.parameters == 0
    assert head.output == [16, 100]


def test_fused_attention_is_one_kernel_that_keeps_no_scores():
    with torch.device("meta"):
        module = build(block_stack(64, 1))
    inputs = torch.empty(2, 16, dtype=torch.long, device="meta")
    block = trace_module(module, inputs, name="blocks", source="test").network[1]
    time, width, heads = 16, 64, 4
    products, attention = 2 * time * width * 12 * width, 2 * 2 * time * time * width
    assert block.forward_flops == products + attention
    assert block.parameters == 12 * width**2 + 13 * width
    # both norms' inputs and outputs with two statistics a token, q k v in one, the attention's
    # output with its sums of exponentials a head and token, the MLP's two of four widths
    kept = (4 + 3 + 1 + 8) * time * width + 2 * 2 * time + heads * time
    # and one more of the seed and offset of a dropout that is not there
    assert block.saved_elements == kept + 1


def test_small_cnn_traced_has_the_counts_of_its_declaration():
    with torch.device("meta"):
        module = build(SMALL_CNN)
    inputs = torch.empty(2, *SMALL_CNN.input, device="meta")
    network = trace_module(module, inputs, name="cnn", source="test")
    assert sum(layer.parameters for layer in network.network) == 21_840
    flops = {layer.label: layer.forward_flops for layer in network.network}
    assert flops["0"] == 2 * 10 * 25 * 24 * 24
    assert flops["3"] == 2 * 10 * 20 * 25 * 8 * 8
    assert sum(flops.values()) == flops["0"] + flops["3"] + 2 * (320 * 50 + 50 * 10)


MODULE = """
from torch import nn

def mlp():
    return nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))

def pair():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(8, 8)
        def forward(self, x):
            return self.a(x), x
    return Two()

def number():
    return 3

def loud():
    print("building")
    class Loud(nn.Linear):
        def forward(self, x):
            print("running")
            return super().forward(x)
    return Loud(8, 2)

def leaving():
    raise SystemExit(3)

def leaving_later():
    class Leaving(nn.Linear):
        def forward(self, x):
            raise SystemExit("enough")
    return Leaving(8, 2)

def branching():
    class Branch(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(8, 8)
        def forward(self, x):
            x = self.a(x)
            return x if x.sum() > 0 else -x
    return Branch()
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "traced_models_for_tests.py").write_text(MODULE)
    return tmp_path


def declared(function, *shape):
    return TorchModule(torch=f"traced_models_for_tests:{function}", input=list(shape))


def test_a_declared_module_is_built_and_traced(folder):
    network = trace(declared("mlp", 8), folder=folder)
    assert [layer.label for layer in network.network] == ["0", "1", "2"]
    assert [layer.parameters for layer in network.network] == [36, 0, 10]
    assert network.source == "traced from traced_models_for_tests:mlp"
    assert network.input == [8]


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("nowhere", "'nowhere' is not a place; write it as 'package.module:function'"),
        ("no_such_package.x:y", "'no_such_package.x:y' cannot be built: ModuleNotFoundError"),
        ("traced_models_for_tests:nothing", "cannot be built: AttributeError"),
        ("traced_models_for_tests:number", "returned int, not an nn.Module"),
        ("traced_models_for_tests:pair", "the module returns tuple; it must return one tensor"),
        ("traced_models_for_tests:branching", "the module does not run on the meta device"),
    ],
)
def test_modules_that_cannot_be_traced_are_refused(folder, place, message):
    with pytest.raises(ScenarioError) as caught:
        trace(TorchModule(torch=place, input=[8]), folder=folder)
    assert caught.value.where == "model.torch"
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("leaving", "'traced_models_for_tests:leaving' cannot be built: SystemExit: 3"),
        ("leaving_later", "the module does not run on the meta device: SystemExit: enough"),
    ],
)
def test_a_module_that_ends_the_program_is_refused(folder, function, message):
    with pytest.raises(ScenarioError, match=message):
        trace(declared(function, 8), folder=folder)


def test_what_a_module_prints_stays_out_of_the_output(folder, capsys):
    trace(declared("loud", 8), folder=folder)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == "building\nrunning\n"


def test_an_input_of_the_wrong_shape_is_refused(folder):
    with pytest.raises(ScenarioError, match="does not run on the meta device: RuntimeError"):
        trace(declared("mlp", 9), folder=folder)
