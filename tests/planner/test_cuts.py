"""Cuts of many rows are those of the partition of one."""

import numpy as np
import pytest

from mpsim.planner.cuts import balanced_cuts, counted_cuts
from mpsim.workload.partition import balanced


@pytest.mark.parametrize(("layers", "stages"), [(3, 1), (5, 5), (10, 3), (40, 8), (98, 64)])
def test_compiled_cuts_are_those_of_the_exact_partition(layers, stages):
    weights = np.random.default_rng(layers).random((12, layers))
    weights[6:, 1:-1] = 1.0  # equal layers between two ends, with all their ties
    cuts = balanced_cuts(weights, stages)
    for row, cut in zip(weights, cuts, strict=True):
        assert cut.tolist() == [0, *(part.stop for part in balanced(row.tolist(), stages))]


def test_too_many_stages_cannot_be_cut():
    assert counted_cuts([], 4, "layers") is None
