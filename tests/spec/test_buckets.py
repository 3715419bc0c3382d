"""Gradient buckets: what torch and Megatron do where nothing is stated."""

import math

import pytest

from mpsim.simulation import simulate
from mpsim.spec.plan import PlanSpec, TrainingSpec, bucket_nbytes
from mpsim.spec.reader import build

WEAK = {
    "name": "weak",
    "model": {"layers": 8, "hidden": 4096, "heads": 32, "vocab": 32000},
    "cluster": {"base": "dgx-a100-80gb", "nodes": 1},
    "plan": {"tensor": 8, "sequence_parallel": True, "zero": 1},
    "training": {"global_batch": 1, "sequence": 2048},
}


def training(**fields):
    return TrainingSpec.model_validate({"global_batch": 1, "sequence": 1, **fields})


@pytest.mark.parametrize(
    ("replicas", "elements"),
    # megatron/core/distributed/distributed_data_parallel.py: max(40e6, 1e6 x replicas)
    [(8, 40e6), (40, 40e6), (1024, 1024e6)],
)
def test_megatrons_buckets_grow_with_the_ring(replicas, elements):
    plan = PlanSpec(data=replicas)
    assert bucket_nbytes(plan, training(gradient_type="fp32")) == 4 * elements
    assert bucket_nbytes(plan, training(gradient_type="bf16")) == 2 * elements


def test_what_is_not_hidden_goes_at_once_and_torch_fills_25_mib():
    assert bucket_nbytes(PlanSpec(data=8, overlap_data=False), training()) == math.inf
    assert bucket_nbytes(PlanSpec(data=8), training(framework="torch")) == 25 * 2**20
    assert bucket_nbytes(PlanSpec(data=8, bucket="1 MB"), training()) == 1e6


def test_a_longer_ring_of_megatron_pays_its_latency_less_often():
    """The same work for each device: from 64 to 1024 replicas only the hops of a ring grow.

    A device's 0.2e9 gradients of 2 B are one bucket of Megatron and 16 of 25 MiB, the last of which
    are not hidden.
    """

    def step(replicas: int, **plan: object) -> float:
        nodes = {"cluster.nodes": replicas, "plan.data": replicas}
        batch = {"training.global_batch": 16 * replicas}
        return simulate(build(WEAK, {**nodes, **batch, **plan}), engine="fast").step_time

    torch = {"plan.bucket": "25 MiB"}
    assert 0 < step(1024) - step(64) < 0.5 * (step(1024, **torch) - step(64, **torch))
