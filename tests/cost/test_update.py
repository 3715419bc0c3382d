"""The optimizer's update: bytes over memory bandwidth, gradients of several microbatches."""

import pytest

from mpsim.cost.compiled import machine_of, stages_of
from mpsim.cost.stages import stage_costs, update_seconds


def machine(small, **training):
    fields = {f"training.{name}": value for name, value in training.items()}
    return machine_of(small({"plan.pipeline": 1, "plan.data": 4, **fields}))


def test_adam_of_torch_passes_once_for_each_of_its_operations(small):
    eager = machine(small, framework="torch", parameter_type="fp32", gradient_clipping=False)
    fused = machine(small, framework="fsdp", parameter_type="fp32", gradient_type="fp32")
    # 20 numbers of 4 B against the gradient, two states and the weight read and written
    ratio = update_seconds(1e9, 0, eager) / update_seconds(1e9, 0, fused)
    clipped = 4.0 * fused.training.gradient_clipping
    assert ratio == pytest.approx(80 / (28 + clipped), rel=0.01)


def zero(small, stage, **fields):
    scenario = small({"plan.pipeline": 1, "plan.data": 4, "plan.zero": stage, **fields})
    one = machine_of(scenario)
    return stage_costs(stages_of(scenario, one), one)[0]


def test_sharded_gradients_are_scattered_for_each_microbatch(small):
    several = {"training.global_batch": 16, "training.microbatch": 1}
    whole, cut = zero(small, 1, **several), zero(small, 2, **several)
    assert whole.reduce > 0
    assert cut.reduce == 0
    assert cut.backward_input["gradient exchange"] > 0
    assert cut.gather == whole.gather


def test_with_one_microbatch_sharding_gradients_changes_nothing(small):
    one = {"training.global_batch": 4, "training.microbatch": 1}
    assert zero(small, 2, **one) == zero(small, 1, **one)


def test_deepspeed_of_2021_gathers_each_matrix_by_itself(small):
    fields = {"training.global_batch": 4, "training.microbatch": 1, "plan.overlap_data": False}
    fields["plan.recompute"] = "full"
    today = zero(small, 3, **fields, **{"training.framework": "fsdp"})
    then = zero(small, 3, **fields, **{"training.framework": "legacy_megatron"})
    assert then.forward["parameter gather"] > 2 * today.forward["parameter gather"]
    # once for the forward pass that is repeated, once for the backward pass
    again = then.backward_input["parameter gather"]
    assert again == pytest.approx(2 * then.forward["parameter gather"])
    once = today.backward_input["parameter gather"]
    assert once == pytest.approx(today.forward["parameter gather"])
