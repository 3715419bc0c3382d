"""torch's single-process DataParallel as a graph."""

import numpy as np
import pytest

from mpsim.cost.work import Work
from mpsim.engine import longest_path
from mpsim.schedule.data_parallel import LOSS, MODEL, lower_data_parallel
from mpsim.schedule.ops import Kind

TIMES = {
    (Kind.SCATTER, MODEL): 1.0, (Kind.BROADCAST, MODEL): 10.0, (Kind.F, MODEL): 100.0,
    (Kind.GATHER, MODEL): 2.0, (Kind.F, LOSS): 3.0, (Kind.B, LOSS): 4.0,
    (Kind.SCATTER, LOSS): 2.0, (Kind.B, MODEL): 200.0, (Kind.REDUCE_GRAD, MODEL): 10.0,
    (Kind.STEP, MODEL): 5.0,
}  # fmt: skip


def run(devices):
    graph = lower_data_parallel(devices)
    ops = zip(graph.kind.tolist(), graph.stage.tolist(), strict=True)
    seconds = np.array([TIMES[kind, stage] for kind, stage in ops])
    work = Work(seconds, np.zeros(graph.num_ops), np.full(graph.num_ops, -1, np.int32))
    return graph, longest_path.run(graph, work)


def test_a_single_device_sends_nothing():
    graph, timeline = run(1)
    assert not np.any(graph.peer >= 0)
    assert timeline.makespan == 100 + 3 + 4 + 200 + 5


@pytest.mark.parametrize("devices", [2, 3, 8])
def test_a_step_is_the_chain_of_its_parts(devices):
    _, timeline = run(devices)
    assert timeline.makespan == sum(TIMES.values())


@pytest.mark.parametrize("devices", [2, 5])
def test_every_copy_computes_its_shard_at_once(devices):
    graph, timeline = run(devices)
    forward = (graph.kind == Kind.F) & (graph.stage == MODEL)
    assert np.array_equal(np.sort(graph.device[forward]), np.arange(devices))
    assert np.all(timeline.begin[forward] == 11.0)


def test_inputs_outputs_weights_and_gradients_move_between_the_first_device_and_each_other():
    graph, _ = run(4)
    moves = np.flatnonzero(graph.peer >= 0)
    out = np.isin(graph.kind[moves], (Kind.SCATTER, Kind.BROADCAST))
    assert np.all(graph.device[moves][out] == 0)
    assert np.all(graph.peer[moves][~out] == 0)
    assert len(moves) == 3 * 5


def test_the_loss_and_the_update_are_on_the_first_device():
    graph, _ = run(4)
    alone = (graph.stage == LOSS) & np.isin(graph.kind, (Kind.F, Kind.B))
    alone |= graph.kind == Kind.STEP
    assert np.all(graph.device[alone] == 0)
    assert alone.sum() == 3
