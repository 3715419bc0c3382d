"""Orders equal to those that the catalogue of schedules writes out for four devices."""

import os
import re
from pathlib import Path

import pytest

from mpsim.schedule.orders import make_order
from mpsim.schedule.text import cell_text, rows_of

SHARED = Path(os.environ.get("MPSIM_DATA", Path(__file__).parents[3] / "shared"))
CATALOGUE = SHARED / "schedules" / "CATALOGUE.md"

EIGHT = {"num_devices": 4, "num_microbatches": 8}
FOUR = {"num_devices": 4, "num_microbatches": 4}
LISTED = {
    "1": [("naive", FOUR | {"num_microbatches": 2})],
    "2": [("gpipe", EIGHT | {"drain": "descending"})],
    "3": [("1f1b", EIGHT)],
    "4": [("eager_1f1b", EIGHT)],
    "6": [("interleaved_1f1b", EIGHT), ("combined_1f1b", EIGHT)],
    "7": [("looped_bfs", EIGHT)],
    "8": [("zb_h1", EIGHT)],
    "9": [("zb_h2", EIGHT)],
    "10": [("zb_auto", EIGHT | {"memory_limit": 4}), ("zb_auto", EIGHT | {"memory_limit": 8})],
    "11": [("interleaved_zb", EIGHT)],
    "12": [("zb_v", EIGHT)],
    "13": [("v_half", EIGHT), ("v_min", EIGHT), ("1f1b_v", EIGHT)],
    "14": [("dualpipe", EIGHT)],
    "15": [("dualpipe_v", EIGHT)],
    "16": [("chimera", EIGHT)],
    "17": [("bitpipe", FOUR)],
    "19": [
        ("seq_1f1b", FOUR | {"num_slices": 2}),
        ("terapipe", FOUR | {"num_microbatches": 2, "num_slices": 4}),
    ],
}
"""The orders of each section, as they stand there."""


@pytest.mark.skipif(not CATALOGUE.is_file(), reason=f"no {CATALOGUE}: set MPSIM_DATA")
@pytest.mark.parametrize("section", list(LISTED))
def test_orders_of_the_catalogue(section):
    text = CATALOGUE.read_text(encoding="utf-8")
    body = re.search(rf"^## {section}\. .*?(?=^## )", text, re.MULTILINE | re.DOTALL).group()
    blocks = re.findall(r"```\n(rank0: .*?)```", body, re.DOTALL)
    assert len(blocks) == len(LISTED[section])
    for block, (name, asked) in zip(blocks, LISTED[section], strict=True):
        expected = [line.partition(": ")[2].split() for line in block.splitlines()]
        found = [[cell_text(cell) for cell in row] for row in rows_of(make_order(name, **asked))]
        if name == "combined_1f1b":  # there, a fused pair is two ops next to each other
            found = [[op for cell in row for op in cell.strip("()").split("+")] for row in found]
        assert found == expected, name
