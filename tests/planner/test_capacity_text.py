"""What capacity planning shows: every candidate, in 80 columns, and no verdict without a demand."""

import io
import re

import pytest
from rich.console import Console

from mpsim.planner.capacity import Demand, LeftOut, best_choice, capacity, format_duration
from mpsim.planner.capacity_text import capacity_record, show_capacity
from mpsim.planner.space import problem_of
from mpsim.spec.reader import declared

DAY = 86400.0
SIZES = {"aws-p4de": [1, 2, 16], "aws-p5": [1], "lambda-8xh100": [1, 16]}
TREE = {
    "name": "small",
    "model": "llama2-7b",
    "cluster": {"base": "aws-p4de", "nodes": 1},
    "candidates": [{"base": name, "nodes": nodes} for name, nodes in SIZES.items()],
    "plan": {"tensor": [1, 2, 8], "recompute": ["none", "full"], "zero": [1]},
    "training": {"global_batch": 128, "microbatch": [1], "sequence": 4096},
}


@pytest.fixture(scope="module")
def space():
    return problem_of(declared(TREE))


def text_of(found, width=80):
    console = Console(file=io.StringIO(), width=width)
    show_capacity(found, console)
    return console.file.getvalue()


DEMANDS = [
    Demand(tokens=2e10),
    Demand(tokens=2e10, deadline=12 * DAY),
    Demand(tokens=2e12, budget=1e8),
    Demand(deadline=5 * DAY),
]


@pytest.mark.parametrize("demand", DEMANDS)
def test_every_candidate_is_a_line_or_is_left_out_with_a_reason(space, demand):
    found = capacity(space, demand)
    shown = [(one.found.scenario.cluster.name, one.found.scenario.cluster.nodes)
             for one in found.choices]  # fmt: skip
    out = [(one.cluster.name, one.cluster.nodes) for one in found.left_out]
    assert sorted([*shown, *out]) == sorted((a, n) for a, sizes in SIZES.items() for n in sizes)
    record, text = capacity_record(found), text_of(found)
    assert len(record["choices"]) + len(record["left_out"]) == 6
    for name, nodes in [*shown, *out]:
        assert f"{nodes} x {name}" in text
    for one in found.left_out:
        assert one.reason.split(":")[0] in text


def test_a_candidate_that_is_late_at_its_peak_is_left_out_for_that(space):
    found = capacity(space, Demand(tokens=2e10, deadline=3 * DAY))
    assert found.left_out
    assert all(one.reason.startswith("too late: at the peak") for one in found.left_out)


def test_a_candidate_on_which_nothing_fits_says_what_is_missing(space):
    tight = problem_of(declared(TREE, {"cluster.device.memory": "8 GiB", "candidates": []}))
    left = best_choice(tight, Demand(tokens=1e9))
    assert isinstance(left, LeftOut)
    assert left.reason.endswith("8 GiB a device")


@pytest.mark.parametrize(
    ("demand", "asked"), list(zip(DEMANDS, [False, True, True, False], strict=True))
)
def test_meets_is_a_column_only_where_something_is_asked(space, demand, asked):
    assert ("meets" in text_of(capacity(space, demand))) == asked


@pytest.mark.parametrize("demand", DEMANDS)
def test_the_table_is_whole_at_80_columns(space, demand):
    found = capacity(space, demand)
    text = text_of(found)
    assert "…" not in text
    assert not re.search(r"\de[+-]\d", text)
    assert max(map(len, text.splitlines())) <= 80
    for one in found.choices:  # the name of a cluster stands on one line with its devices
        cluster = one.found.scenario.cluster
        assert re.search(rf"{cluster.nodes} x {cluster.name} +{one.devices} ", text)


def test_one_node_is_a_node(space):
    text = " ".join(text_of(capacity(space, Demand(tokens=1e9))).split())
    assert "(1 node of " in text
    assert "1 nodes" not in text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(1460 * DAY, "1,460 days"), (999.4 * DAY, "999 days"), (999.6 * DAY, "1,000 days")],
)
def test_long_durations_have_no_exponent(seconds, text):
    assert format_duration(seconds) == text
