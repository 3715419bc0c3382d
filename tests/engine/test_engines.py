"""Both engines on random orders: one contract, checked against each other and by brute force."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mpsim.cost.work import Link, Work
from mpsim.engine import events, longest_path
from mpsim.engine.disturbance import sample
from mpsim.errors import ScheduleError
from mpsim.schedule import compiled
from mpsim.schedule.lowering import lower
from mpsim.schedule.ops import Kind, Order
from mpsim.schedule.orders import make_order

F, B, INPUT, W = Kind.F, Kind.B, Kind.I, Kind.W


@st.composite
def orders(draw):
    """Any order that can be run: ops dealt to devices by a random list schedule."""
    devices, stages = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    microbatches, splits = draw(st.integers(1, 4)), draw(st.booleans())
    holder = draw(st.lists(st.integers(0, devices - 1), min_size=stages, max_size=stages))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    ready = [(F, 0, k) for k in range(microbatches)]
    lists = [[] for _ in range(devices)]
    while ready:
        kind, stage, k = ready.pop(generator.integers(len(ready)))
        lists[holder[stage]].append((kind, stage, k))
        if kind == F:
            last = stage == stages - 1
            back = INPUT if splits else B
            ready.append((back, stage, k) if last else (F, stage + 1, k))
        elif kind in (B, INPUT):
            if stage:
                ready.append((kind, stage - 1, k))
            if splits:
                ready.append((W, stage, k))
    ops = np.array([op for ops in lists for op in ops])
    none = np.full(len(ops), -1, np.int32)
    return Order(
        schedule="random",
        num_stages=stages,
        num_microbatches=microbatches,
        kind=ops[:, 0].astype(np.int8),
        stage=ops[:, 1].astype(np.int32),
        microbatch=ops[:, 2].astype(np.int32),
        slice=none,
        block=none,
        starts=np.cumsum([0, *map(len, lists)]).astype(np.int32),
    )


lowerings = st.fixed_dictionaries(
    {
        "p2p": st.sampled_from(["latency", "async", "batched", "serial"]),
        "reductions": st.sampled_from(["none", "last", "each", "end"]),
        "gathers": st.sampled_from(["none", "start", "use", "end"]),
        "buckets": st.integers(1, 3),
        "step": st.booleans(),
        "barrier": st.booleans(),
    }
)
seeds = st.integers(0, 2**32 - 1)


def lowered(order, how):
    """The graph of an order; one that deadlocks because its transfers block is no example."""
    try:
        return lower(order, **how)
    except ScheduleError:
        assume(how["p2p"] in ("latency", "async"))
        raise


def random_work(graph, seed, links=()):
    """Seconds for every op, some none; bytes for transfers over random links."""
    generator = np.random.default_rng(seed)
    seconds = generator.random(graph.num_ops) * generator.integers(0, 2, graph.num_ops)
    moves = graph.peer >= 0
    link = np.full(graph.num_ops, -1, np.int32)
    nbytes = np.zeros(graph.num_ops)
    if links:
        link[moves] = generator.integers(0, len(links), int(moves.sum()))
        nbytes[moves] = 10 * generator.random(int(moves.sum()))
    return Work(seconds, nbytes, link, tuple(links))


def by_relaxation(graph, seconds):
    """Begins by raising them until no wait is broken: slow and independent of any order."""
    begin = np.zeros(graph.num_ops)
    waits = [
        graph.pred[graph.pred_starts[op] : graph.pred_starts[op + 1]].tolist()
        for op in range(graph.num_ops)
    ]
    last = {}
    for op, stream in enumerate(graph.stream.tolist()):
        if stream in last:
            waits[op].append(last[stream])
        last[stream] = op
    while True:
        raised = np.array([max((begin[w] + seconds[w] for w in ws), default=0.0) for ws in waits])
        if np.array_equal(raised, begin):
            return begin
        begin = raised


@settings(max_examples=60, deadline=None)
@given(orders(), lowerings, seeds)
def test_the_fast_engine_keeps_every_wait_and_no_more(order, how, seed):
    graph = lowered(order, how)
    work = random_work(graph, seed)
    timeline = longest_path.run(graph, work)
    assert np.array_equal(timeline.begin, by_relaxation(graph, work.seconds))
    assert np.array_equal(timeline.end, timeline.begin + work.seconds)


@settings(max_examples=100, deadline=None)
@given(orders(), lowerings, seeds)
def test_engines_agree_where_no_link_is_shared(order, how, seed):
    graph = lowered(order, how)
    work = random_work(graph, seed, links=[Link("a", 3.0), Link("b", 0.5)])
    fast, slow = longest_path.run(graph, work), events.run(graph, work)
    np.testing.assert_allclose(slow.begin, fast.begin, rtol=1e-12, atol=0)
    np.testing.assert_allclose(slow.end, fast.end, rtol=1e-12, atol=0)


@settings(max_examples=100, deadline=None)
@given(orders(), lowerings, seeds)
def test_no_op_ends_earlier_on_shared_links(order, how, seed):
    graph = lowered(order, how)
    links = [Link("shared", 3.0, shared=True), Link("own", 1.0), Link("slow", 0.5, shared=True)]
    work = random_work(graph, seed, links=links)
    fast, slow = longest_path.run(graph, work), events.run(graph, work)
    # Sums of the same numbers in another order: equal to rounding where links are not contended.
    assert np.all(slow.end >= fast.end * (1 - 1e-12))
    for op in range(graph.num_ops):
        waits = graph.pred[graph.pred_starts[op] : graph.pred_starts[op + 1]]
        assert slow.begin[op] >= slow.end[waits].max(initial=0.0)


@settings(max_examples=30, deadline=None)
@given(orders(), seeds)
def test_a_shared_link_of_one_channel_is_not_contended(order, seed):
    graph = lower(order, p2p="async")
    channels = np.unique(graph.stream[graph.peer >= 0])
    links = tuple(Link(f"{channel}", 2.0, shared=True) for channel in channels)
    work = random_work(graph, seed)
    nbytes = np.where(graph.peer >= 0, 1.0, 0.0)
    link = np.where(graph.peer >= 0, np.searchsorted(channels, graph.stream), -1).astype(np.int32)
    work = Work(work.seconds, nbytes, link, links)
    fast, slow = longest_path.run(graph, work), events.run(graph, work)
    np.testing.assert_allclose(slow.end, fast.end, rtol=1e-12, atol=0)


@settings(max_examples=30, deadline=None)
@given(orders(), seeds)
def test_more_seconds_never_make_anything_end_sooner(order, seed):
    graph = lower(order)
    work = random_work(graph, seed)
    generator = np.random.default_rng(seed)
    longer = Work(
        work.seconds + generator.random(graph.num_ops) * (generator.random(graph.num_ops) < 0.2),
        work.nbytes,
        work.link,
    )
    assert np.all(longest_path.run(graph, longer).end >= longest_path.run(graph, work).end)


@settings(max_examples=20, deadline=None)
@given(orders(), lowerings, seeds)
def test_samples_are_runs_of_their_own(order, how, seed):
    graph = lowered(order, how)
    work = sample(
        random_work(graph, seed), jitter=0.3, samples=3, generator=np.random.default_rng(seed)
    )
    together = longest_path.run(graph, work)
    for index in range(3):
        alone = longest_path.run(graph, Work(work.seconds[:, index], work.nbytes, work.link))
        assert np.array_equal(together.sample(index).begin, alone.begin)
        assert np.array_equal(together.sample(index).end, alone.end)


@pytest.mark.parametrize("samples", [0, 4])
def test_compiled_and_plain_loops_give_the_same_bits(monkeypatch, samples, seconds_of):
    def run(pays):
        for module in ("schedule.topology", "engine.longest_path"):
            monkeypatch.setattr(f"mpsim.{module}.pays", lambda num_ops: pays)
        graph = lower(make_order("1f1b", num_devices=5, num_microbatches=11), p2p="batched")
        work = random_work(graph, 3)
        if samples:
            generator = np.random.default_rng(1)
            work = sample(work, jitter=0.1, samples=samples, generator=generator)
        return graph.topological, longest_path.run(graph, work).end

    for plain, fast in zip(run(False), run(True), strict=True):
        assert np.array_equal(plain, fast)


SMALL = """
import sys
from mpsim.cost.work import Work
from mpsim.engine import events, longest_path
from mpsim.schedule.lowering import lower
from mpsim.schedule.orders import make_order
import numpy as np

graph = lower(make_order("1f1b", num_devices=16, num_microbatches=300))
work = Work(np.ones(graph.num_ops), np.zeros(graph.num_ops), np.full(graph.num_ops, -1))
longest_path.run(graph, work)
print(graph.num_ops, "numba" in sys.modules)
"""


def test_small_graphs_do_not_load_numba():
    shown = subprocess.run(
        [sys.executable, "-c", SMALL], capture_output=True, text=True, check=True
    )
    count, loaded = shown.stdout.split()
    assert 15_000 < int(count) < compiled.THRESHOLD
    assert loaded == "False"


def test_the_event_engine_refuses_samples(seconds_of):
    graph = lower(make_order("gpipe", num_devices=2, num_microbatches=2))
    work = sample(seconds_of(graph), jitter=0.1, samples=2, generator=np.random.default_rng(0))
    with pytest.raises(ValueError, match="one sample at a time"):
        events.run(graph, work)


def test_a_deadlock_is_found_not_waited_for():
    order = make_order("gpipe", num_devices=2, num_microbatches=1)
    turned = Order(
        "turned", 2, 1, order.kind[[1, 0, 2, 3]], order.stage, order.microbatch, order.slice,
        order.block, order.starts,
    )  # fmt: skip
    with pytest.raises(ScheduleError, match="deadlock"):
        lower(turned)
