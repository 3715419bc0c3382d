"""FLOP conventions agree with the formulas of the papers that state them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpsim.spec.model import Experts, Transformer
from mpsim.spec.plan import PlanSpec, TrainingSpec
from mpsim.workload.build import build_layers
from mpsim.workload.flops import model_flops
from mpsim.workload.layers import Kernel
from mpsim.workload.parameters import active_parameters, parameter_count

GPT3 = Transformer(layers=96, hidden=12288, heads=96, vocab=51200, positions=2048)


def training(**fields):
    return TrainingSpec(**{"global_batch": 8, "sequence": 2048} | fields)


@given(
    layers=st.integers(1, 128),
    heads=st.sampled_from([8, 12, 96]),
    sequence=st.integers(1, 8192),
    vocab=st.integers(1000, 260_000),
)
def test_full_recompute_equals_the_formula_of_narayanan_et_al(layers, heads, sequence, vocab):
    hidden = 128 * heads
    model = Transformer(layers=layers, hidden=hidden, heads=heads, vocab=vocab)
    flops = model_flops(model, PlanSpec(recompute="full"), training(sequence=sequence))
    s, l, h, v = sequence, layers, hidden, vocab  # noqa: E741  (the paper's letters)
    assert flops.hardware == pytest.approx(
        96 * s * l * h**2 * (1 + s / (6 * h) + v / (16 * l * h)), rel=1e-12
    )
    assert flops.model == pytest.approx(
        72 * s * l * h**2 * (1 + s / (6 * h) + v / (12 * l * h)), rel=1e-12
    )


def test_gpt3_takes_6_n_a_token():
    flops = model_flops(GPT3, PlanSpec(), training())
    assert flops.six_n == 6 * parameter_count(GPT3) * 2048
    assert flops.with_attention - flops.six_n == 12 * 96 * 12288 * 2048 * 2048
    assert flops.hardware == flops.model


def test_selective_recompute_runs_the_attention_core_again():
    once = model_flops(GPT3, PlanSpec(), training())
    again = model_flops(GPT3, PlanSpec(recompute="selective"), training())
    core = 4 * 2048 * 2048 * 12288 * 96
    assert again.hardware - once.hardware == core


def test_recomputing_some_layers_costs_their_share():
    whole = model_flops(GPT3, PlanSpec(recompute="full", pipeline=8), training())
    some = model_flops(GPT3, PlanSpec(recompute="full", recompute_layers=3, pipeline=8), training())
    assert some.hardware - some.model == pytest.approx((whole.hardware - whole.model) / 4)


@pytest.mark.parametrize("tensor", [1, 2, 4])
@pytest.mark.parametrize("recompute", ["none", "full"])
def test_kernels_of_unfused_attention_take_the_hardware_flops(tensor, recompute):
    plan = PlanSpec(tensor=tensor, recompute=recompute, attention="math")
    model = Transformer(layers=3, hidden=256, heads=4, vocab=1024)
    train = training(sequence=128, global_batch=1)
    layers = build_layers(model, plan, train)
    counted = sum(
        step.flops * step.count
        for layer in layers
        for step in (*layer.forward, *layer.backward_input, *layer.backward_weight)
        if isinstance(step, Kernel) and step.kind == "gemm"
    )
    assert counted * tensor == pytest.approx(model_flops(model, plan, train).hardware, rel=1e-12)


def test_experts_count_for_the_tokens_that_visit_them():
    model = Transformer(
        layers=4,
        hidden=64,
        heads=4,
        vocab=128,
        bias=False,
        experts=Experts(count=8, per_token=2, ffn=128),
    )
    one = model.model_copy(update={"experts": Experts(count=8, per_token=1, ffn=128)})
    added = active_parameters(model) - active_parameters(one)
    assert added == 4 * 2 * 64 * 128
    more = model_flops(model, PlanSpec(), training()).model
    assert more - model_flops(one, PlanSpec(), training()).model == 6 * 2048 * added
