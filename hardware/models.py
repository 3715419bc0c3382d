"""Torch modules from declarations: the networks of the scenarios, and any declared network.

A model is a list of layers, each built from a seed of its own, so that a worker builds only the
layers of its stages and all workers agree on every weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from mpsim.errors import CalibrationError
from mpsim.spec.model import Network, NetworkLayer, Transformer

from .blocks import transformer_layers

Model = Network | Transformer
Loss = Callable[[Tensor, Tensor], Tensor]

TWO_DEVICE_MLP = Network.model_validate(
    {
        "name": "two-device MLP",
        "input": [10],
        "network": [
            {"type": "linear", "inputs": 10, "outputs": 20},
            {"type": "relu"},
            {"type": "linear", "inputs": 20, "outputs": 10},
            {"type": "relu"},
            {"type": "linear", "inputs": 10, "outputs": 2},
            {"type": "cross_entropy"},
        ],
    }
)
"""Linear 10→20, ReLU on the first device; Linear 20→10, ReLU, Linear 10→2 on the second."""

SMALL_CNN = Network.model_validate(
    {
        "name": "small CNN",
        "input": [1, 28, 28],
        "network": [
            {"type": "conv2d", "inputs": 1, "outputs": 10, "kernel": 5},
            {"type": "max_pool", "kernel": 2},
            {"type": "relu"},
            {"type": "conv2d", "inputs": 10, "outputs": 20, "kernel": 5},
            {"type": "max_pool", "kernel": 2},
            {"type": "relu"},
            {"type": "flatten"},
            {"type": "linear", "inputs": 320, "outputs": 50},
            {"type": "relu"},
            {"type": "linear", "inputs": 50, "outputs": 10},
            {"type": "cross_entropy"},
        ],
    }
)
"""Two convolutions and two linear layers over images of 28 x 28."""


def two_layer(width: int, hidden: int) -> Network:
    """The two-layer network: linear d→m, ReLU, linear m→1, sigmoid, binary cross-entropy."""
    return Network.model_validate(
        {
            "name": f"two-layer {width}-{hidden}-1",
            "input": [width],
            "network": [
                {"type": "linear", "inputs": width, "outputs": hidden},
                {"type": "relu"},
                {"type": "linear", "inputs": hidden, "outputs": 1},
                {"type": "sigmoid"},
                {"type": "binary_cross_entropy"},
            ],
        }
    )


def layer_stack(width: int, layers: int, *, activation: str = "relu") -> Network:
    """A stack of equal square linear layers, each with its activation: cells of calibration."""
    pair = [{"type": "linear", "inputs": width, "outputs": width}, {"type": activation}]
    return Network.model_validate(
        {
            "name": f"stack {layers} x {width}",
            "input": [width],
            "network": [*(pair * layers), {"type": "mse"}],
        }
    )


def block_stack(width: int, layers: int, *, heads: int = 4, vocab: int = 256) -> Transformer:
    """A stack of transformer blocks by its dimensions: cells of calibration."""
    return Transformer(
        name=f"blocks {layers} x {width}",
        layers=layers,
        hidden=width,
        heads=heads,
        vocab=vocab,
        tied_embeddings=False,
        position="none",
    )


def count_layers(model: Model) -> int:
    """Layers that can be dealt to stages; a trailing loss is not one of them."""
    if isinstance(model, Transformer):
        return model.layers + 2
    return len(model.network) - (_loss_name(model) is not None)


def build_layers(model: Model, indices: Iterable[int], seed: int = 0) -> list[nn.Module]:
    """Some layers of a model, each from its own seed, in the order of ``indices``.

    Raises:
        CalibrationError: If a layer has no counterpart in torch.
    """
    if isinstance(model, Transformer):
        builders = transformer_layers(model)
    else:
        builders = [_builder(layer) for layer in model.network[: count_layers(model)]]
    built = []
    for index in indices:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed * 100_003 + index)
            built.append(builders[index]())
    return built


def build(model: Model, seed: int = 0) -> nn.Sequential:
    """The whole model on the CPU."""
    return nn.Sequential(*build_layers(model, range(count_layers(model)), seed))


def deal(layers: int, stages: int) -> tuple[int, ...]:
    """Layers of each stage, dealt as evenly as they go, the last stages taking one more.

    >>> deal(5, 2), deal(8, 4)
    ((2, 3), (2, 2, 2, 2))
    """
    whole = stages - layers % stages  # stages without an extra layer
    return tuple(layers // stages + (stage >= whole) for stage in range(stages))


def loss_of(model: Model) -> Loss:
    """The loss that ends the model; the mean squared error where it names none.

    Binary cross-entropy is of probabilities where a sigmoid or a softmax makes them, and else of
    logits, with the sigmoid in it.
    """
    if isinstance(model, Transformer):
        return _token_loss
    name = _loss_name(model) or "mse"
    if name == "binary_cross_entropy" and not _ends_in_probabilities(model):
        return nn.functional.binary_cross_entropy_with_logits
    return _LOSSES[name]


def _ends_in_probabilities(model: Network) -> bool:
    """Whether what enters the loss lies between 0 and 1; a flatten changes nothing."""
    kinds = [layer.type for layer in model.network[:-1] if layer.type != "flatten"]
    return bool(kinds) and kinds[-1] in ("sigmoid", "softmax")


def make_batch(
    model: Model, batch: int, *, seed: int = 0, sequence: int = 1
) -> tuple[Tensor, Tensor]:
    """Random inputs and targets of one batch, equal on every worker for equal seeds.

    Args:
        model: What they are fed to.
        batch: Samples.
        seed: Of the random numbers.
        sequence: Tokens of a sample; of a Transformer only.
    """
    generator = torch.Generator().manual_seed(seed)
    if isinstance(model, Transformer):
        tokens = torch.randint(model.vocab, (2, batch, sequence), generator=generator)
        return tokens[0], tokens[1]
    first = model.network[0]
    if first.type == "embedding":
        inputs = torch.randint(first.rows, (batch, *model.input), generator=generator)
    else:
        inputs = torch.randn(batch, *model.input, generator=generator)
    with torch.device("meta"):
        shape = build(model)(torch.empty_like(inputs, device="meta")).shape
    name = _loss_name(model)
    if name == "cross_entropy":
        return inputs, torch.randint(shape[-1], shape[:-1], generator=generator)
    target = torch.rand(shape, generator=generator)
    return inputs, target.round() if name == "binary_cross_entropy" else target


def boundary_shapes(
    layers: Sequence[nn.Module], counts: Sequence[int], inputs: Tensor
) -> list[tuple[int, ...]]:
    """Shape of what enters each stage and of what leaves the last, found without computing.

    Args:
        layers: All layers, on the meta device.
        counts: Layers of each stage.
        inputs: One microbatch on the meta device.
    """
    shapes, index, value = [tuple(inputs.shape)], 0, inputs
    for count in counts:
        for layer in layers[index : index + count]:
            value = layer(value)
        index += count
        shapes.append(tuple(value.shape))
    return shapes


def _loss_name(model: Network) -> str | None:
    """Name of the loss that a network ends with; None if its last layer is none."""
    last = model.network[-1].type
    return last if last in _LOSSES else None


def _cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    """Softmax cross-entropy over the last axis, the mean over all others."""
    return nn.functional.cross_entropy(output.flatten(0, -2), target.flatten())


_token_loss = _cross_entropy

_LOSSES: dict[str, Loss] = {
    "cross_entropy": _cross_entropy,
    "mse": nn.functional.mse_loss,
    "binary_cross_entropy": nn.functional.binary_cross_entropy,
}

_PLAIN: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "flatten": nn.Flatten,
    "softmax": lambda: nn.Softmax(dim=-1),
}


def _builder(layer: NetworkLayer) -> Callable[[], nn.Module]:
    """What builds the torch module of a declared layer."""
    if layer.type in _PLAIN:
        return _PLAIN[layer.type]
    build_one = _PARAMETRIC.get(layer.type)
    if build_one is None:
        raise CalibrationError(f"a layer of type '{layer.type}' cannot be run in torch")
    return lambda: build_one(layer)


class _First(nn.Module):
    """A recurrent layer without its final state: the output sequence alone."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, value: Tensor) -> Tensor:
        output: Tensor = self.layer(value)[0]
        return output


class _Attention(nn.Module):
    """Multi-head self-attention of one input."""

    def __init__(self, width: int, heads: int, *, bias: bool, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.out = nn.Linear(width, width, bias=bias)

    def forward(self, value: Tensor) -> Tensor:
        queries, keys, values = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.qkv(value).chunk(3, dim=-1)
        )
        mixed = nn.functional.scaled_dot_product_attention(
            queries, keys, values, is_causal=self.causal
        )
        output: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return output


_PARAMETRIC: dict[str, Callable[..., nn.Module]] = {
    "linear": lambda layer: nn.Linear(layer.inputs, layer.outputs, bias=layer.bias),
    "conv2d": lambda layer: nn.Conv2d(
        layer.inputs,
        layer.outputs,
        layer.kernel,
        stride=layer.stride,
        padding=layer.padding,
        groups=layer.groups,
        bias=layer.bias,
    ),
    "max_pool": lambda layer: nn.MaxPool2d(layer.kernel, layer.stride, layer.padding),
    "mean_pool": lambda layer: nn.AvgPool2d(layer.kernel, layer.stride, layer.padding),
    "rnn": lambda layer: _First(
        nn.RNN(layer.inputs, layer.hidden, bias=layer.bias, batch_first=True)
    ),
    "lstm": lambda layer: _First(
        nn.LSTM(layer.inputs, layer.hidden, bias=layer.bias, batch_first=True)
    ),
    "gru": lambda layer: _First(
        nn.GRU(layer.inputs, layer.hidden, bias=layer.bias, batch_first=True)
    ),
    "layer_norm": lambda layer: nn.LayerNorm(layer.features),
    "rms_norm": lambda layer: nn.RMSNorm(layer.features),
    "batch_norm": lambda layer: nn.BatchNorm2d(layer.features),
    "embedding": lambda layer: nn.Embedding(layer.rows, layer.width),
    "dropout": lambda layer: nn.Dropout(layer.probability),
    "attention": lambda layer: _Attention(
        layer.width, layer.heads, bias=layer.bias, causal=layer.causal
    ),
}
