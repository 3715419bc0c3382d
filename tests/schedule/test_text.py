"""Orders as CSV and grid, against torch's own text and torch itself."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mpsim.errors import ScheduleError
from mpsim.schedule.check import check
from mpsim.schedule.comms import with_comms
from mpsim.schedule.ops import Kind, Op
from mpsim.schedule.orders import SCHEDULES, make_order
from mpsim.schedule.text import cell_text, grid, order_of, read_csv, rows_of, write_csv

SHARED = Path(os.environ.get("MPSIM_DATA", Path(__file__).parents[3] / "shared"))
WITH_COMMS = [
    path
    for path in sorted((SHARED / "schedules" / "golden").glob("torch_*.json"))
    if "ops_with_comms" in json.loads(path.read_text())
] or [None]

LOAD_IN_TORCH = """
import json, sys
import torch
from torch.distributed.pipelining.schedules import _PipelineScheduleRuntime
class Stage:
    def __init__(self, index, stages, group_size):
        self.stage_index, self.num_stages, self.group_size = index, stages, group_size
        self.group_rank, self.group, self.device = 0, None, torch.device("cpu")
        self.is_first, self.is_last = index == 0, index == stages - 1
        self.has_backward, self.submod, self.stage_index_to_group_rank = True, None, None
for path, style, stages, ranks, microbatches in json.loads(sys.argv[1]):
    runtime = _PipelineScheduleRuntime(
        [Stage(index, stages, ranks) for index in range(max(1, stages // ranks))], microbatches,
        loss_fn=lambda *_: None,
    )
    runtime._load_csv(path, format=style)
    lowered = runtime.pipeline_order_with_comms
    print(json.dumps([[str(action) for action in lowered[rank]] for rank in range(ranks)]))
"""

torch_here = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="torch is not installed"
)


def texts(rows):
    return [[cell_text(cell) for cell in row] for row in rows]


@pytest.mark.parametrize("name", list(SCHEDULES))
def test_csv_reads_back(name):
    rows = rows_of(make_order(name, num_devices=4, num_microbatches=8))
    assert read_csv(write_csv(rows)) == rows
    assert read_csv(write_csv(with_comms(order_of(rows, name=name)))) == with_comms(
        order_of(rows, name=name)
    )


def test_csv_is_the_text_of_torch():
    order = make_order("dualpipe_v", num_devices=2, num_microbatches=4)
    assert write_csv(rows_of(order)).splitlines()[0] == (
        "0F0,0F1,0F2,3F0,3I0,3W0,3F1,(0F3;3B1)OVERLAP_F_B,(3F2;0B0)OVERLAP_F_B,3B2,"
        "(3F3;0B1)OVERLAP_F_B,3B3,0I2,0W2,0I3,0W3"
    )


def test_a_csv_by_hand_may_have_empty_cells_spaces_and_short_pairs():
    rows = read_csv("\ufeff0F0, , 0B0,\n,1F0,(1B0+1F1)\n\n")
    assert texts(rows) == [["0F0", "", "0B0", ""], ["", "1F0", "(1B0+1F1)"]]
    order = order_of(rows, name="mine")
    assert (order.num_devices, order.num_stages, order.num_microbatches) == (2, 2, 2)
    assert order.block.tolist() == [-1, -1, -1, 2, 2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0F0\n1F0,1X0", "own.csv: line 2, cell 2: '1X0' is not an op such as 2F0"),
        ("0F", "own.csv: line 1, cell 1: '0F' is not an op"),
        ("0UNSHARD3", "own.csv: line 1, cell 1: '0UNSHARD3' is not an op"),
        ("(0F0;1B0", "own.csv: line 1, cell 1: '(0F0;1B0' is not a fused pair such as (0F3;3B1)"),
        ("(0F0)OVERLAP_F_B", "'(0F0)OVERLAP_F_B' is not a fused pair"),
        ("(0F0;1B0)TOGETHER", "'(0F0;1B0)TOGETHER' is not a fused pair"),
    ],
)
def test_a_cell_that_is_no_op_is_named(text, message):
    with pytest.raises(ScheduleError) as error:
        read_csv(text, name="own.csv")
    assert message in str(error.value)


def test_a_csv_without_compute_ops_is_no_order():
    with pytest.raises(ScheduleError, match="holds no compute op"):
        order_of(read_csv("0SEND_F0"), name="own.csv")


@pytest.mark.parametrize("text", ["2F0", "5I3", "0F1.2", "1SEND_F0", "3UNSHARD", "0REDUCE_GRAD"])
def test_the_text_of_an_op_reads_both_ways(text):
    assert str(Op.parse(text)) == text


def test_grid_shows_one_line_a_device_and_points_at_the_mark():
    rows = read_csv("0F0,0B0\n1F0,(1B0+1F1),1B1")
    assert grid(rows, mark=(1, 1)).splitlines() == [
        "device 0: 0F0 0B0",
        "device 1: 1F0 (1B0+1F1) 1B1",
        "              ^^^^^^^^^ here",
    ]


def test_grid_of_long_rows_shows_what_is_near_the_mark():
    rows = rows_of(make_order("1f1b", num_devices=2, num_microbatches=40))
    shown = grid(rows, mark=(1, 30)).splitlines()
    assert shown[0].startswith("device 0: … ")
    assert shown[0].endswith(" …")
    assert shown[1][shown[2].index("^") :].startswith(cell_text(rows[1][30]))
    assert max(map(len, shown)) < 100


@pytest.mark.parametrize("path", WITH_COMMS, ids=lambda path: path and path.stem)
def test_communication_ops_are_those_of_torch(path):
    if path is None:
        pytest.skip(f"no golden orders at {SHARED}: set MPSIM_DATA")
    golden = json.loads(path.read_text())
    expected = [[op.removeprefix("O") for op in row] for row in golden["ops_with_comms"].values()]
    rows = read_csv("\n".join(",".join(row) for row in expected))
    check(rows)  # sends and receives of each pair in step, and without a circle
    order = order_of(rows, name=path.stem)
    assert texts(with_comms(order)) == expected


@pytest.mark.parametrize("name", list(SCHEDULES))
def test_lowered_orders_pass_the_check_of_transfers(name):
    order = make_order(name, num_devices=4, num_microbatches=8, num_slices=2)
    rows = with_comms(order)
    check(rows)
    sends = sum(op.kind in (Kind.SEND_F, Kind.SEND_B) for row in rows for op, *_ in row)
    assert sends > 0


@torch_here
def test_torch_loads_what_is_written(tmp_path):
    asked, expected = [], []
    for name, p, m in (
        ("1f1b", 3, 4), ("gpipe", 2, 3), ("interleaved_1f1b", 2, 4), ("looped_bfs", 2, 4),
        ("zb_h1", 4, 6), ("zb_auto", 3, 5), ("zb_v", 4, 9), ("v_half", 3, 6),
        ("dualpipe_v", 3, 6), ("hanayo", 2, 3), ("1f1b_v", 2, 4), ("grouped_interleaved", 3, 5),
    ):  # fmt: skip
        order = make_order(name, num_devices=p, num_microbatches=m)
        lowered = with_comms(order)
        for style, rows in (("compute_only", rows_of(order)), ("compute_comms", lowered)):
            path = tmp_path / f"{name}_{style}.csv"
            path.write_text(write_csv(rows))
            asked.append([str(path), style, order.num_stages, p, m])
            expected.append(
                [next(iter(read_row)) for read_row in [write_csv(lowered).splitlines()]]
            )
            expected[-1] = write_csv(lowered).splitlines()
    done = subprocess.run(
        [sys.executable, "-c", LOAD_IN_TORCH, json.dumps(asked)],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found = [[",".join(row) for row in json.loads(line)] for line in done.stdout.splitlines()]
    for (path, *_), ours, torchs in zip(asked, expected, found, strict=True):
        assert torchs == ours, path
