"""Orders equal to those that torch's own generators make, over many shapes."""

import importlib.util
import json
import subprocess
import sys

import pytest

from mpsim.schedule.orders import make_order
from mpsim.schedule.text import rows_of, write_csv

TORCH_ORDERS = """
import json
from torch.distributed.pipelining import schedules
CLASSES = {
    "interleaved_1f1b": schedules.ScheduleInterleaved1F1B,
    "interleaved_zb": schedules.ScheduleInterleavedZeroBubble,
    "looped_bfs": schedules.ScheduleLoopedBFS,
    "zb_v": schedules.ScheduleZBVZeroBubble,
    "dualpipe_v": schedules.ScheduleDualPipeV,
}
for name, made in CLASSES.items():
    for p in range(1, 6):
        for m in range(1, 11):
            for v in (2,) if name in ("zb_v", "dualpipe_v") else (1, 2, 3):
                rounds = max(1, m // p)
                if m % rounds or (name == "dualpipe_v" and m < 2 * p):
                    continue
                one = object.__new__(made)
                one.pp_group_size, one._n_microbatches, one.n_local_stages = p, m, v
                one.num_stages = one._num_stages = p * v
                one.number_of_rounds, one.microbatches_per_round = rounds, m // rounds
                one._stages = [None] * v
                rows = [one._calculate_single_rank_operations(rank) for rank in range(p)]
                texts = [[str(op) for op in row if op is not None] for row in rows]
                texts = [[op for op in row if "REDUCE" not in op] for row in texts]
                print(json.dumps([name, p, m, v, texts]))
"""


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
def test_orders_are_those_of_torch():
    done = subprocess.run(
        [sys.executable, "-c", TORCH_ORDERS], capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    assert len(lines) > 250
    for line in lines:
        name, p, m, v, expected = json.loads(line)
        group = m // max(1, m // p) if name == "interleaved_1f1b" else None
        order = make_order(name, num_devices=p, num_microbatches=m, num_chunks=v, group_size=group)
        assert write_csv(rows_of(order)).splitlines() == [",".join(row) for row in expected], line
