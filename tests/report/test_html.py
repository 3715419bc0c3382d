"""The page: well formed, self-contained, with the facts of the report."""

import re
from html.parser import HTMLParser

import pytest

from mpsim.report.html import page
from mpsim.report.metrics import Report
from mpsim.simulation import simulate
from mpsim.spec.reader import load, load_variants

VOID = {"meta", "br", "image"}


class Checker(HTMLParser):
    """Collects tags and text, and notes what is not closed in order."""

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.ids, self.text = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data.strip())


def checked(text):
    checker = Checker()
    checker.feed(text)
    checker.close()
    assert checker.open == []
    return checker


@pytest.fixture(scope="module")
def single() -> Report:
    return simulate(load("two_device_mlp.yaml"))


@pytest.fixture(scope="module")
def both() -> str:
    return page([simulate(one) for one in load_variants("cnn_data_parallel.yaml")])


def test_the_page_is_well_formed_and_has_the_facts(single):
    text = page([single])
    found = checked(text)
    words = " ".join(found.text)
    for fact in ("two-device MLP", "FITS", "Where the time goes", "Devices", "Bounds"):
        assert fact in words
    assert "What the step time rests on" in words
    assert [tag for tag, _ in found.seen].count("svg") == 2


def test_the_page_loads_nothing(both):
    outside = [
        value
        for _, attrs in checked(both).seen
        for name, value in attrs.items()
        if name in ("src", "href", "xlink:href") and value and not value.startswith(("#", "data:"))
    ]
    assert outside == []
    assert "<script" not in both
    assert "@import" not in both


def test_names_inside_the_pictures_are_unique_and_known(both):
    ids = checked(both).ids
    assert len(ids) == len(set(ids))
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', both))
    assert used <= set(ids)


def test_variants_are_compared_first(both):
    assert both.index("DistributedDataParallel") < both.index("<h1>")
    assert both.count("<h1>") == 3


def test_text_of_the_user_is_escaped(small):
    text = page([simulate(small({"name": "<b>&"}))])
    assert "<b>" not in text
    assert "&lt;b&gt;&amp;" in text


def test_what_does_not_fit_is_marked(small):
    text = page([simulate(small({"cluster.device.memory": "100 MiB"}))])
    assert '<div class="headline no">' in text
    assert "DOES NOT FIT" in text


def test_equal_reports_give_equal_pages(single):
    assert page([single]) == page([single])
