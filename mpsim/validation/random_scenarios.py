"""Random scenarios over the whole range of declarations, from an explicit generator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mpsim.errors import MpsimError
from mpsim.schedule.orders import SCHEDULES
from mpsim.spec.reader import build
from mpsim.spec.scenario import Scenario
from mpsim.spec.zoo import names

_SCHEDULES = ("1f1b", *(name for name, one in SCHEDULES.items() if not one.searched))
"""All but those that choose among orders by the times of ops: with better hardware they choose
anew, and the rules compare a plan with itself. ``partition: time`` is not drawn for that reason."""

_PRECISIONS = ("bf16", "fp16", "fp32", "bf16", "fp8")
_MODULES = ("core_attention", "layernorm", "mlp")


def random_scenario(generator: np.random.Generator) -> Scenario:
    """A scenario that can be meant; draws again where one cannot."""
    while True:
        try:
            return build(_tree(generator))
        except MpsimError:
            continue


def _pick(generator: np.random.Generator, options: Sequence[Any]) -> Any:  # noqa: ANN401
    """One of the options."""
    return options[int(generator.integers(len(options)))]


def _power(generator: np.random.Generator, most: int) -> int:
    """A power of two up to ``most``."""
    return 1 << int(generator.integers(most.bit_length()))


def _tree(generator: np.random.Generator) -> dict[str, Any]:
    """The mapping of a scenario; it may be impossible."""
    tensor, pipeline = _power(generator, 8), _power(generator, 8)
    data, context = _power(generator, 8), _power(generator, 2)
    schedule = _pick(generator, _SCHEDULES) if pipeline > 1 else "1f1b"
    known = SCHEDULES[schedule]
    chunks = known.default_chunks
    model = _network(generator) if generator.random() < 0.15 else None
    if model is not None:
        tensor, context = 1, 1
    model = model or _model(generator, pipeline * chunks)
    each = _pick(generator, (1, tensor))  # tensor degree of experts
    microbatch = _power(generator, 4)
    microbatches = pipeline * int(generator.integers(1, 5))
    blocking = ("async", "batched", "serial")
    return {
        "model": model,
        "cluster": _cluster(generator, tensor * pipeline * data * context),
        "plan": {
            "tensor": tensor,
            "pipeline": pipeline,
            "data": data,
            "context": context,
            "context_exchange": _pick(generator, ("ring", "all_gather", "all_to_all")),
            "expert": _power(generator, data * tensor // each) if "experts" in model else 1,
            "expert_tensor": each if "experts" in model else None,
            "chunks": chunks,
            "schedule": schedule,
            "slices": _power(generator, 4) if known.slices else 1,
            "zero": int(generator.integers(4)),
            "recompute": _pick(generator, ("none", "selective", "full")),
            "recompute_modules": [one for one in _MODULES if generator.random() < 0.6],
            "attention": _pick(generator, ("flash", "math")),
            "sequence_parallel": bool(tensor > 1 and generator.random() < 0.5),
            "overlap_data": bool(generator.random() < 0.5),
            "overlap_tensor": bool(generator.random() < 0.5),
            "overlap_expert": bool(generator.random() < 0.5),
            "offload": _offload(generator),
            "p2p": _pick(generator, blocking) if known.chunks == "one" else "async",
        },
        "training": {
            "global_batch": microbatch * microbatches * data,
            "microbatch": microbatch,
            "sequence": 1 if "network" in model else 64 * context * _power(generator, 32),
            "precision": _pick(generator, _PRECISIONS),
            "optimizer": _pick(generator, ("sgd", "momentum", "adam", "adafactor")),
        },
    }


def _cluster(generator: np.random.Generator, devices: int) -> dict[str, Any]:
    """A cluster of so many devices, of any kind of the zoo."""
    per_node = min(devices, _power(generator, 8))
    return {
        "device": _pick(generator, names("devices")),
        "nodes": devices // per_node,
        "node": {
            "devices": per_node,
            "link": {
                "kind": _pick(generator, ("nvlink", "nvlink", "pcie")),
                "bandwidth": f"{float(generator.uniform(10, 900)):.6g} GB/s",
                "latency": f"{float(generator.uniform(0, 20)):.6g} us",
                "switched": bool(generator.random() < 0.7),
            },
            "host_link": "pcie4",
        },
        "network": {
            "bandwidth": f"{float(generator.uniform(1, 50)):.6g} GB/s",
            "latency": f"{float(generator.uniform(1, 50)):.6g} us",
        },
    }


def _offload(generator: np.random.Generator) -> list[str]:
    """What is kept in host memory: mostly nothing."""
    kinds = ("optimizer", "weights", "activations")
    return [kind for kind in kinds if generator.random() < 0.1]


def _model(generator: np.random.Generator, stages: int) -> dict[str, Any]:
    """A transformer's dimensions."""
    heads = 8 * _power(generator, 8)
    experts = {"experts": _experts(generator)} if generator.random() < 0.2 else {}
    return experts | {
        "layers": stages * int(generator.integers(1, 5)),
        "hidden": heads * _pick(generator, (32, 64, 128)),
        "heads": heads,
        "kv_heads": _pick(generator, (None, 8)),
        "gated_mlp": bool(generator.random() < 0.5),
        "vocab": 128 * int(generator.integers(8, 400)),
        "tied_embeddings": bool(generator.random() < 0.5),
        "norm": _pick(generator, ("layernorm", "rmsnorm")),
    }


def _experts(generator: np.random.Generator) -> dict[str, Any]:
    """A mixture of experts."""
    return {
        "count": _power(generator, 64),
        "per_token": _power(generator, 8),
        "ffn": 128 * int(generator.integers(1, 33)),
        "shared_ffn": _pick(generator, (0, 512)),
        "every": _pick(generator, (1, 1, 2)),
    }


def _network(generator: np.random.Generator) -> dict[str, Any]:
    """Convolutions with their activations and pools, and a classifier."""
    channels, size = 3, 32 * _power(generator, 4)
    whole, layers = [channels, size, size], list[dict[str, Any]]()
    for _ in range(int(generator.integers(4, 13))):
        width = 16 * _power(generator, 16)
        groups = _pick(generator, (1, 1, 1, channels))
        width = width // groups * groups or groups
        layers += [
            {"type": "conv2d", "inputs": channels, "outputs": width, "kernel": 3, "padding": 1}
            | {"groups": groups},
            {"type": "relu"},
        ]
        channels = width
        if size > 8 and generator.random() < 0.4:
            layers.append({"type": "max_pool", "kernel": 2})
            size //= 2
    classes = 10 * _power(generator, 100)
    layers += [
        {"type": "flatten"},
        {"type": "linear", "inputs": channels * size * size, "outputs": classes},
        {"type": "cross_entropy"},
    ]
    return {"input": whole, "network": layers}
