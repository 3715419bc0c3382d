"""What torch's autograd keeps, by its compiler and by its loss over a cut vocabulary."""

import pytest

from mpsim.spec.model import Transformer
from mpsim.spec.plan import PlanSpec, TrainingSpec
from mpsim.workload.build import build_layers

LLAMA = Transformer(
    layers=2, hidden=4096, heads=32, ffn=14336, vocab=128256, gated_mlp=True, position="rope",
    norm="rmsnorm", bias=False, tied_embeddings=False,
)  # fmt: skip
TOKENS = 8192


def layers(framework, **plan):
    training = TrainingSpec(global_batch=8, sequence=TOKENS, framework=framework)
    return build_layers(LLAMA, PlanSpec(**plan), training)


def kept(layer):
    return {saved.name: saved.nbytes for saved in layer.saved}


def test_the_compiler_keeps_no_elementwise_function_of_what_is_kept():
    eager, compiled = kept(layers("fsdp", fused=False)[1]), kept(layers("fsdp")[1])
    gone = {"qkv_input", "mlp_up_input", "mlp_down_input"}
    assert gone < set(eager)
    assert gone.isdisjoint(compiled)
    assert {"attention_norm_input", "query_key_value", "mlp_norm_input"} < set(compiled)
    # h of each norm, 3 h of queries, keys and values, h of the core, two of the gated MLP
    plain = sum(nbytes for name, nbytes in compiled.items() if "statistics" not in name)
    assert plain == 2 * TOKENS * (6 * 4096 + 2 * 14336)


def test_megatron_and_gathered_inputs_are_kept_as_they_are():
    assert "qkv_input" in kept(layers("megatron")[1])
    sequence = {"tensor": 8, "sequence_parallel": True}
    assert "qkv_input" in kept(layers("fsdp", **sequence)[1])


@pytest.mark.parametrize(
    ("framework", "tensor", "fused", "held", "forward", "backward"),
    [
        ("megatron", 1, False, 4, 2, 2),
        ("megatron", 8, False, 4, 2, 2),
        ("fsdp", 1, False, 4, 6, 8),
        ("fsdp", 8, False, 4, 10, 12),  # torch/distributed/tensor/parallel/loss.py
        ("fsdp", 1, True, 2, 2, 2),
    ],
)
def test_bytes_of_a_logit(framework, tensor, fused, held, forward, backward):
    plan = {"tensor": tensor, "sequence_parallel": tensor > 1, "fused_loss": fused}
    head = layers(framework, **plan)[-1]
    logits = TOKENS * 128256 / tensor
    assert kept(head)["softmax_of_logits"] == held * logits
    assert head.forward_workspace_nbytes == forward * logits
    hidden = 2 * TOKENS * 4096 * 2  # gradients of the hidden states stand beside
    assert head.workspace_nbytes == backward * logits + hidden
