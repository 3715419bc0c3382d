"""Random scenarios over the whole range of declarations, from an explicit generator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mpsim.errors import MpsimError
from mpsim.spec.reader import build
from mpsim.spec.scenario import Scenario

_DEVICES = ("a100-sxm-80gb", "h100-sxm-80gb", "v100-sxm-32gb", "b200-sxm-180gb", "mi300x")
_SCHEDULES = ("1f1b", "gpipe", "interleaved_1f1b", "zb_h1", "looped_bfs", "eager_1f1b", "naive")


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
    devices = tensor * pipeline * data * context
    per_node = min(devices, _power(generator, 8))
    schedule = _pick(generator, _SCHEDULES) if pipeline > 1 else "1f1b"
    chunks = 2 if schedule in ("interleaved_1f1b", "looped_bfs") else 1
    microbatch = _power(generator, 4)
    microbatches = pipeline * int(generator.integers(1, 5))
    return {
        "model": _model(generator, pipeline * chunks),
        "cluster": {
            "device": _pick(generator, _DEVICES),
            "nodes": devices // per_node,
            "node": {
                "devices": per_node,
                "link": {
                    "kind": "nvlink",
                    "bandwidth": f"{float(generator.uniform(10, 900)):.6g} GB/s",
                    "latency": f"{float(generator.uniform(0, 20)):.6g} us",
                },
                "host_link": "pcie4",
            },
            "network": {
                "bandwidth": f"{float(generator.uniform(1, 50)):.6g} GB/s",
                "latency": f"{float(generator.uniform(1, 50)):.6g} us",
            },
        },
        "plan": {
            "tensor": tensor,
            "pipeline": pipeline,
            "data": data,
            "context": context,
            "chunks": chunks,
            "schedule": schedule,
            "zero": int(generator.integers(4)),
            "recompute": _pick(generator, ("none", "selective", "full")),
            "attention": _pick(generator, ("flash", "math")),
            "sequence_parallel": bool(tensor > 1 and generator.random() < 0.5),
            "overlap_data": bool(generator.random() < 0.5),
            "overlap_tensor": bool(generator.random() < 0.5),
            "offload": _offload(generator),
            "p2p": _pick(generator, ("async", "batched", "serial")) if chunks == 1 else "async",
        },
        "training": {
            "global_batch": microbatch * microbatches * data,
            "microbatch": microbatch,
            "sequence": 64 * context * _power(generator, 32),
            "precision": _pick(generator, ("bf16", "fp16", "fp32")),
            "optimizer": _pick(generator, ("sgd", "momentum", "adam")),
        },
    }


def _offload(generator: np.random.Generator) -> list[str]:
    """What is kept in host memory: mostly nothing."""
    kinds = ("optimizer", "weights", "activations")
    return [kind for kind in kinds if generator.random() < 0.1]


def _model(generator: np.random.Generator, stages: int) -> dict[str, Any]:
    """A transformer's dimensions."""
    heads = 8 * _power(generator, 8)
    return {
        "layers": stages * int(generator.integers(1, 5)),
        "hidden": heads * _pick(generator, (32, 64, 128)),
        "heads": heads,
        "kv_heads": _pick(generator, (None, 8)),
        "gated_mlp": bool(generator.random() < 0.5),
        "vocab": 128 * int(generator.integers(8, 400)),
        "tied_embeddings": bool(generator.random() < 0.5),
        "norm": _pick(generator, ("layernorm", "rmsnorm")),
    }
