"""Transformer layers against the formulas of the papers that describe them."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpsim.errors import ScenarioError
from mpsim.spec.model import Experts, LatentAttention, Transformer
from mpsim.spec.plan import PlanSpec, TrainingSpec
from mpsim.workload.build import build_layers
from mpsim.workload.layers import Exchange, Kernel
from mpsim.workload.parameters import parameter_count

GPT3 = Transformer(layers=96, hidden=12288, heads=96, vocab=51200, positions=2048, dropout=0.1)
SBH = 2048 * 12288
SCORES = 5 * 96 * 2048 * 2048  # 5 a s² b


def layer(model=GPT3, *, training=None, **plan):
    train = training or TrainingSpec(global_batch=8, sequence=2048)
    return build_layers(model, PlanSpec(**{"attention": "math"} | plan), train)[1]


def kept(made, *, statistics=False):
    """Bytes that autograd keeps; the papers neglect the norms' statistics (16 B a token)."""
    return sum(s.nbytes for s in made.saved if statistics or "statistics" not in s.name)


class TestKept:
    """Korthikanti et al., arXiv:2205.05198, equations 1 to 4 and table 2."""

    def test_a_layer_keeps_34sbh_and_5as2b(self):
        assert kept(layer()) == 34 * SBH + SCORES

    def test_statistics_of_two_norms_take_16_bytes_a_token(self):
        made = layer()
        assert kept(made, statistics=True) - kept(made) == 16 * 2048

    def test_tensor_parallelism_divides_all_but_10sbh(self):
        assert kept(layer(tensor=8)) == 10 * SBH + (24 * SBH + SCORES) / 8

    def test_sequence_parallelism_divides_everything(self):
        assert kept(layer(tensor=8, sequence_parallel=True)) == (34 * SBH + SCORES) / 8

    def test_selective_recompute_drops_the_score_matrices(self):
        made = layer(tensor=8, sequence_parallel=True, recompute="selective")
        assert kept(made) == 34 * SBH / 8

    def test_full_recompute_keeps_the_input(self):
        assert kept(layer(tensor=8, recompute="full")) == 2 * SBH

    def test_flash_attention_keeps_a_number_a_row_in_place_of_scores(self):
        made = layer(attention="flash")
        extra = {s.name: s.nbytes for s in made.saved}["softmax_statistics"]
        assert extra == 4 * 2048 * 96
        assert kept(made) == 34 * SBH

    def test_grouped_queries_keep_fewer_keys_and_values(self):
        grouped = GPT3.model_copy(update={"kv_heads": 12})
        assert kept(layer()) - kept(layer(grouped)) == 4 * SBH * 7 / 8

    def test_context_parallelism_divides_tokens(self):
        whole, cut = layer(attention="flash"), layer(attention="flash", context=4)
        assert kept(cut, statistics=True) == kept(whole, statistics=True) / 4

    def test_dropping_modules_keeps_what_they_are_made_from(self):
        names = {s.name for s in layer(recompute="selective", recompute_modules=["mlp"]).saved}
        assert "mlp_up_input" in names
        assert not names & {"activation_input", "mlp_down_input"}

    def test_eight_bit_inputs_halve_what_matrices_keep(self):
        wide = {s.name: s.nbytes for s in layer().saved}
        train = TrainingSpec(global_batch=8, sequence=2048, precision="fp8")
        small = {s.name: s.nbytes for s in layer(training=train).saved}
        for name in ("qkv_input", "mlp_up_input", "mlp_down_input"):
            assert small[name] == wide[name] / 2
        assert small["attention_norm_input"] == wide["attention_norm_input"]


def ring_bytes(steps, group):
    """Bytes that a device sends in ring collectives over a group."""
    factor = {"all_reduce": 2, "all_gather": 1, "reduce_scatter": 1}
    return sum(
        factor[step.op] * step.nbytes * step.count * (group - 1) / group
        for step in steps
        if isinstance(step, Exchange)
    )


class TestExchanges:
    """Megatron's layers: arXiv:1909.08053 and 2205.05198, and their implementation."""

    def test_two_all_reduces_in_each_direction(self):
        made = layer(tensor=8)
        for steps in (made.forward, made.backward_input):
            found = [step for step in steps if isinstance(step, Exchange)]
            assert [(step.op, step.nbytes) for step in found] == [("all_reduce", 2 * SBH)] * 2

    def test_sequence_parallelism_sends_as_much_forward_and_half_more_backward(self):
        plain, cut = layer(tensor=8), layer(tensor=8, sequence_parallel=True)
        assert ring_bytes(cut.forward, 8) == ring_bytes(plain.forward, 8)
        assert ring_bytes(cut.backward_input, 8) == 1.5 * ring_bytes(plain.backward_input, 8)

    def test_backward_all_reduce_may_run_beside_the_weights_product(self):
        found = [step for step in layer(tensor=8).backward_input if isinstance(step, Exchange)]
        assert {step.beside for step in found} == {"qkv_wgrad", "mlp_up_wgrad"}
        # of the backward products, 24 h² + 4 s h a token, the MLP's first takes 4 h² for its
        # weight and that of queries, keys and values 3 h²
        total = 24 * 12288 + 4 * 2 * 2048 / 2
        shares = {step.beside: step.hidden_behind for step in found}
        assert shares["mlp_up_wgrad"] == pytest.approx(4 * 12288 / total)
        assert shares["qkv_wgrad"] == pytest.approx(3 * 12288 / total)

    def test_full_recompute_repeats_the_forward_exchanges(self):
        plain, again = layer(tensor=8), layer(tensor=8, recompute="full")
        more = ring_bytes(again.backward_input, 8) - ring_bytes(plain.backward_input, 8)
        assert more == ring_bytes(plain.forward, 8)

    @pytest.mark.parametrize(
        ("kind", "forward", "backward"),
        [("ring", 3, 6), ("all_gather", 3, 6), ("all_to_all", 3, 3)],
    )
    def test_context_exchanges(self, kind, forward, backward):
        made = layer(attention="flash", context=4, context_exchange=kind)
        keys = 2 * 2 * SBH / 4  # keys and values of this device
        sent = {"send": 1, "all_gather": 3 / 4, "reduce_scatter": 3 / 4, "all_to_all": 3 / 4}

        def volume(steps):
            return sum(sent[s.op] * s.nbytes * s.count for s in steps if isinstance(s, Exchange))

        scale = keys if kind != "all_to_all" else keys / 2  # four tensors of b s/c h
        assert volume(made.forward) == pytest.approx(forward * scale)
        assert volume(made.backward_input) == pytest.approx(backward * scale)

    def test_experts_exchange_each_token_for_each_expert_it_visits(self):
        model = Transformer(
            layers=2, hidden=64, heads=4, vocab=100, experts=Experts(count=8, per_token=2, ffn=32)
        )
        train = TrainingSpec(global_batch=8, sequence=128)
        made = build_layers(model, PlanSpec(expert=4, data=4), train)[1]
        for steps in (made.forward, made.backward_input):
            found = [s.nbytes for s in steps if isinstance(s, Exchange)]
            assert found == [128 * 2 * 64 * 2] * 2

    def test_loss_of_a_cut_vocabulary_reduces_three_numbers_a_token(self):
        head = build_layers(GPT3, PlanSpec(tensor=8), TrainingSpec(global_batch=1, sequence=2048))[
            -1
        ]
        found = [step for step in head.forward if isinstance(step, Exchange)]
        assert [(s.op, s.nbytes, s.count) for s in found] == [("all_reduce", 4 * 2048, 3)]


MODELS = st.builds(
    Transformer,
    layers=st.integers(1, 6),
    hidden=st.sampled_from([64, 128]),
    heads=st.just(8),
    kv_heads=st.sampled_from([8, None]),
    ffn=st.sampled_from([256, 512]),
    gated_mlp=st.booleans(),
    vocab=st.just(1024),
    tied_embeddings=st.booleans(),
    position=st.sampled_from(["learned", "rope", "alibi"]),
    positions=st.just(64),
    bias=st.booleans(),
    norm=st.sampled_from(["layernorm", "rmsnorm"]),
    norms_per_layer=st.integers(1, 4),
    qk_norm=st.booleans(),
    dropout=st.sampled_from([0.0, 0.1]),
    mtp_layers=st.integers(0, 1),
    experts=st.none()
    | st.builds(
        Experts,
        count=st.just(8),
        per_token=st.integers(1, 8),
        ffn=st.just(64),
        shared_ffn=st.sampled_from([0, 64]),
        every=st.integers(1, 2),
    ),
    latent_attention=st.none()
    | st.just(
        LatentAttention(q_rank=16, kv_rank=8, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=8)
    ),
)


@given(model=MODELS)
def test_layers_on_one_device_hold_all_parameters(model):
    layers = build_layers(model, PlanSpec(), TrainingSpec(global_batch=1, sequence=64))
    assert sum(layer.parameters for layer in layers) == parameter_count(model)


@given(model=MODELS, tensor=st.sampled_from([2, 4, 8]))
def test_cut_parameters_add_up_to_the_whole(model, tensor):
    """Over the tensor group everything is there once, but what is whole on each device."""
    train = TrainingSpec(global_batch=1, sequence=64)
    whole = build_layers(model, PlanSpec(), train)
    cut = build_layers(model, PlanSpec(tensor=tensor), train)
    for one, part in zip(whole, cut, strict=True):
        assert one.parameters / tensor <= part.parameters <= one.parameters
        # what is repeated: norms, biases of row-cut matrices, router, latents, positions
        repeated = (part.parameters * tensor - one.parameters) / (tensor - 1)
        assert repeated == pytest.approx(round(repeated), abs=1e-6)


@given(model=MODELS.filter(lambda model: model.experts), expert=st.sampled_from([2, 4, 8]))
def test_expert_parallelism_divides_the_experts_alone(model, expert):
    train = TrainingSpec(global_batch=8, sequence=64)
    whole = build_layers(model, PlanSpec(), train)
    cut = build_layers(model, PlanSpec(expert=expert, data=8), train)
    for one, part in zip(whole, cut, strict=True):
        assert part.expert_parameters * expert == one.expert_parameters
        assert part.parameters - part.expert_parameters == one.parameters - one.expert_parameters


@pytest.mark.parametrize(("tensor", "sequence_parallel"), [(1, False), (4, False), (4, True)])
@pytest.mark.parametrize("expert_tensor", [1, 2, 4])
def test_cutting_experts_shares_their_work_and_loses_none(tensor, sequence_parallel, expert_tensor):
    """Experts of 1/k of the width see the tokens of k devices, where those have their own."""
    model = Transformer(
        layers=1, hidden=64, heads=4, vocab=128, experts=Experts(count=4, per_token=1, ffn=64)
    )
    train = TrainingSpec(global_batch=4, sequence=64)
    base = {"tensor": tensor, "data": 4, "sequence_parallel": sequence_parallel}

    def work(degree: int) -> float:
        (layer,) = (
            one
            for one in build_layers(model, PlanSpec(**base, expert_tensor=degree), train)
            if one.kind == "experts"
        )
        return sum(
            step.flops * step.count
            for step in layer.forward
            if isinstance(step, Kernel) and step.kind == "gemm" and step.shape[0] > 1
        )

    # without sequence parallelism a tensor group of the layers has the same tokens four times over
    copies = tensor if not sequence_parallel else 1
    assert work(expert_tensor) * min(copies, expert_tensor) == pytest.approx(work(1))


@given(
    model=MODELS,
    attention=st.sampled_from(["math", "flash"]),
    modules=st.lists(
        st.sampled_from(["core_attention", "layernorm", "mlp", "moe_act", "moe", "mla_up_proj"]),
        unique=True,
    ),
    tensor=st.sampled_from([1, 2]),
)
@settings(max_examples=50)
def test_recomputation_never_keeps_more_and_never_works_less(model, attention, modules, tensor):
    train = TrainingSpec(global_batch=1, sequence=64)
    plan = PlanSpec(attention=attention, tensor=tensor, sequence_parallel=tensor > 1)
    ways = [
        plan,
        plan.model_copy(update={"recompute": "selective", "recompute_modules": modules}),
        plan.model_copy(update={"recompute": "full"}),
    ]
    found = [build_layers(model, way, train)[1] for way in ways]
    holds = [kept(made, statistics=True) for made in found]
    works = [
        sum(s.flops * s.count for s in made.backward_input if isinstance(s, Kernel))
        for made in found
    ]
    assert holds[0] >= holds[1]
    assert holds[0] >= holds[2]
    assert works[0] <= works[1] <= works[2]


def test_equal_layers_are_one_object():
    layers = build_layers(GPT3, PlanSpec(), TrainingSpec(global_batch=1, sequence=2048))
    assert len(layers) == 98
    assert len({id(layer) for layer in layers}) == 3


def test_every_second_layer_is_recomputed():
    plan = PlanSpec(recompute="selective", recompute_modules=["every_2nd_layer"])
    layers = build_layers(GPT3, plan, TrainingSpec(global_batch=1, sequence=2048))[1:-1]
    assert [layer.plain is None for layer in layers] == [True, False] * 48


def test_gpt3_is_built_within_milliseconds():
    plan = PlanSpec(tensor=8, sequence_parallel=True)
    train = TrainingSpec(global_batch=8, sequence=2048)
    build_layers(GPT3, plan, train)
    begin = time.perf_counter()
    for _ in range(20):
        build_layers(GPT3, plan, train)
    # 0.3 ms each here; ten times that leaves room for a busy machine
    assert (time.perf_counter() - begin) / 20 < 3e-3


REFUSED = [
    ({"tensor": 7}, "plan.tensor: 7 does not divide model.heads (96)"),
    (
        {"tensor": 2, "split": "row"},
        "plan.split: 'row' cuts explicit layers; a transformer is cut in pairs of columns and "
        "rows ('megatron')",
    ),
    (
        {"context": 64, "context_exchange": "all_to_all"},
        "plan.context: 64 does not divide the 96 heads that all_to_all deals over the context "
        "group; use ring or all_gather",
    ),
    ({"expert": 2, "data": 2}, "plan.expert: 2, but the model has no experts"),
    (
        {"recompute": "selective", "recompute_modules": ["core_atention"]},
        "plan.recompute_modules: unknown part 'core_atention'; did you mean 'core_attention'?; "
        "known: core_attention, layernorm, mlp, moe_act, moe, shared_experts, mla_up_proj, "
        "per_op, every_2nd_layer",
    ),
]


@pytest.mark.parametrize(("plan", "message"), REFUSED)
def test_a_plan_that_cannot_cut_the_model_is_refused(plan, message):
    with pytest.raises(ScenarioError) as caught:
        build_layers(GPT3, PlanSpec(**plan), TrainingSpec(global_batch=8, sequence=2048))
    assert str(caught.value) == message


def test_autocast_moves_six_bytes_a_weight_forward_and_six_backward():
    small = Transformer(layers=2, hidden=256, heads=4, vocab=1024)
    plain = {"global_batch": 1, "sequence": 128, "precision": "bf16", "framework": "torch"}
    cast = layer(small, training=TrainingSpec(**plain, parameter_type="fp32"))
    stored = layer(small, training=TrainingSpec(**plain, parameter_type="bf16"))

    def casts(steps):
        return sum(k.nbytes for k in steps if isinstance(k, Kernel) and "_cast_weight" in k.name)

    matrices = 12 * 256**2
    assert casts(cast.forward) == casts(cast.backward_weight) == 6 * matrices
    assert casts(stored.forward) == casts(stored.backward_weight) == 0


@pytest.mark.parametrize(
    ("framework", "dropout", "again"), [("fsdp", 0.0, 8), ("fsdp", 0.1, 12), ("megatron", 0.0, 12)]
)
def test_checkpoints_of_torch_stop_before_the_last_product(framework, dropout, again):
    model = Transformer(layers=2, hidden=512, heads=8, vocab=1024, dropout=dropout)
    train = TrainingSpec(global_batch=1, sequence=128, framework=framework)
    made = layer(model, training=train, recompute="full")
    plain = layer(model, training=train)

    def products(steps):
        names = ("attention_", "head")  # the scores' products, which are of another size
        return sum(
            k.flops
            for k in steps
            if isinstance(k, Kernel)
            and k.kind == "gemm"
            and (k.name == "attention_output" or not k.name.startswith(names))
        )

    once = products(made.backward_input) - products(plain.backward_input)
    assert once == again * 512**2 * 2 * 128  # of 12 h² multiply-adds a token, 4 h² are the last's
