"""The pictures: lanes of the right height and place, bars where ops are, legends off the data."""

import itertools
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from matplotlib.collections import PolyCollection

from mpsim.report import plot
from mpsim.report.lanes import COLOURS, lanes
from mpsim.schedule.ops import Kind
from mpsim.simulation import simulate
from mpsim.spec.reader import build


@pytest.fixture
def report(small):
    return simulate(small({"plan.data": 2, "plan.pipeline": 2, "plan.zero": 1}))


@pytest.fixture(scope="module")
def many():
    """Forty devices in a row."""
    node = {"devices": 40, "link": "nvlink3"}
    tree = {
        "model": {"layers": 40, "hidden": 256, "heads": 4, "vocab": 1024},
        "cluster": {"device": "a100-sxm-80gb", "node": node},
        "plan": {"pipeline": 40},
        "training": {"global_batch": 8, "sequence": 64},
    }
    return simulate(build(tree), engine="fast")


def bars(figure):
    """Corners of the bars of each lane, from the top."""
    return [
        np.array([path.vertices[:4] for path in one.get_paths()])
        for one in figure.axes[0].collections
        if isinstance(one, PolyCollection)
    ]


def test_each_op_is_a_bar_from_its_begin_to_its_end(report):
    drawn = bars(plot._timeline(report))
    found = list(lanes(report.graph))
    assert len(drawn) == len(found)
    for corners, lane in zip(drawn, found, strict=True):
        begin, end = corners[:, :, 0].min(axis=1), corners[:, :, 0].max(axis=1)
        assert begin == pytest.approx(report.timeline.begin[lane.ops] * 1e3)
        assert end == pytest.approx(report.timeline.end[lane.ops] * 1e3)


def test_transfers_and_collectives_are_thin_and_no_lane_covers_another(report):
    drawn, found = bars(plot._timeline(report)), list(lanes(report.graph))
    spans = [(c[:, :, 1].min(), c[:, :, 1].max()) for c in drawn]
    for (low, high), lane in zip(spans, found, strict=True):
        assert high - low == pytest.approx(0.8 if lane.stream == 0 else 0.3)
    assert all(a[1] < b[0] for a, b in itertools.pairwise(spans))


def test_a_narrow_bar_keeps_its_colour(report):
    figure = plot._timeline(report)
    transfers = [one for one in figure.axes[0].collections if isinstance(one, PolyCollection)][1]
    edges = {tuple(colour) for colour in transfers.get_edgecolors().round(3)}
    assert (1.0, 1.0, 1.0, 1.0) not in edges  # a white edge would hide them


def test_of_many_devices_only_compute_is_drawn(many):
    figure = plot._timeline(many)
    assert len(bars(figure)) == 40
    labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert labels == [f"device {index}" for index in range(40)]
    assert figure.get_size_inches()[1] < 10


def test_the_legend_names_the_kinds_that_are_drawn(report):
    figure = plot._timeline(report)
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names[:2] == ["forward", "backward"]
    assert names[-1] == "idle"
    assert "exchange gradients" in names
    assert "input gradient" not in names


def test_every_kind_of_op_has_a_colour():
    assert set(COLOURS) == set(Kind)


def test_lines_of_memory_are_the_devices_totals(report):
    totals = plot._memory(report).axes[0]
    lines = [line for line in totals.get_lines() if len(line.get_xdata()) > 2]
    assert len(lines) == len(report.devices)
    for line, device in zip(lines, report.devices, strict=True):
        assert line.get_ydata()[:-1] == pytest.approx(device.memory.total / 2**20)


def test_components_are_stacked_up_to_the_total(report):
    parts = plot._memory(report).axes[1]
    top = max(path.vertices[:, 1].max() for one in parts.collections for path in one.get_paths())
    assert top == pytest.approx(report.fullest.memory.peak / 2**20, rel=1e-6)
    names = parts.get_legend_handles_labels()[1]
    assert {"optimizer state", "workspace", "the rest"} <= set(names)


@pytest.mark.parametrize(("memory", "dashed"), [("200 MiB", True), ("80 GiB", False)])
def test_the_capacity_is_drawn_where_the_lines_are_near_it(small, memory, dashed):
    report = simulate(small({"cluster.device.memory": memory}))
    figure = plot._memory(report)
    title = figure.axes[0].get_title(loc="left")
    assert f"capacity {memory}" in title
    assert ("dashed" in title) is dashed
    peak = max(device.memory.peak for device in report.devices)
    assert figure.axes[0].get_ylim()[1] > peak / 2**20


@pytest.mark.parametrize("share", [0.99, 1.01])
def test_the_dashed_line_is_where_the_verdict_turns(small, share):
    """A peak is above the line exactly where the step does not fit."""
    needed = simulate(small({"cluster.device.memory": "80 GiB"})).fullest.reserved
    report = simulate(small({"cluster.device.memory": f"{needed * share} B"}))
    totals = plot._memory(report).axes[0]
    level = {line.get_linestyle(): line.get_ydata()[0] * 2**20 for line in totals.get_lines()}
    assert totals.get_ylabel() == "allocated (MiB)"
    assert (report.fullest.memory.peak <= level["--"]) is report.fits is (share > 1)


def test_of_many_lines_the_ends_and_the_fullest_are_named(many):
    legend = plot._memory(many).axes[0].get_legend()
    names = [text.get_text().split(":")[0] for text in legend.get_texts()]
    assert {"device 0", "device 39"} <= set(names)
    assert len(names) <= 3
    assert "more between" in legend.get_title().get_text()


@pytest.mark.parametrize("function", [plot.plot_timeline, plot.plot_memory])
def test_equal_reports_give_equal_files(report, tmp_path, function):
    for kind in ("svg", "png", "pdf"):
        paths = [tmp_path / f"{name}.{kind}" for name in "ab"]
        for path in paths:
            function(report, path)
        assert paths[0].read_bytes() == paths[1].read_bytes()


def test_pictures_are_svg_text(report):
    found = plot.pictures(report)
    assert list(found) == ["timeline", "memory"]
    for text in found.values():
        assert ET.fromstring(text).tag.endswith("svg")
