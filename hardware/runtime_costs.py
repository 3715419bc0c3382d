"""What torch's pipeline runtime costs beside the layers: host time of each kind of action."""

from __future__ import annotations

import itertools
from collections import defaultdict

from mpsim.schedule.orders import make_order

from .models import layer_stack
from .pipeline import PipelineJob, PipelineRun, run_pipeline
from .records import kind_of
from .schedules import torch_text
from .timing import Timing, summarise
from .workers import Workers

SHORT, LONG = 2, 8  # pairs of layers in a stage: two points of a line through the host times
WIDTH = 4  # of layers whose arithmetic takes next to no time
MICROBATCHES = 16
SLOPED = ("F", "B", "I", "W", "STEP")  # actions whose host time grows with the layers of a stage


def runtime_costs(workers: Workers, budget: float) -> dict[str, Timing]:
    """Seconds of each kind of action of the runtime, by name.

    ``action_F`` (B, I, W) is an op of a stage without layers: the line through stages of two and
    eight pairs of tiny layers, at none; ``pair_F`` what a pair of a linear layer and a ReLU adds.
    ``action_SEND_F`` and so on is the host time to begin a message, ``gap`` the time between one
    action's end and the next one's begin, ``setup`` that from the call to the first action,
    ``finish`` that from the last action to the update, and ``action_STEP`` and ``pair_STEP`` the
    update's.
    """
    found: dict[str, Timing] = {}
    for schedule in ("1f1b", "zb_h1"):
        runs = {}
        for pairs in (SHORT, LONG):
            order = make_order(schedule, num_devices=2, num_microbatches=MICROBATCHES)
            job = PipelineJob(
                layer_stack(WIDTH, 2 * pairs),
                (2 * pairs, 2 * pairs),
                torch_text(order),
                MICROBATCHES,
                MICROBATCHES,
                steps=5,
                warmup=2,
                budget=budget / 4,
                learning_rate=1e-3,
            )
            runs[pairs] = run_pipeline(workers, job)
        found |= _line(_by_kind(runs[SHORT]), _by_kind(runs[LONG]))
        found |= _between(runs[SHORT])
    return found


def _by_kind(run: PipelineRun) -> dict[str, Timing]:
    """Own time of the actions of the middle of the pipeline, by letter."""
    seconds: dict[str, list[float]] = defaultdict(list)
    for event in run.events:
        seconds[kind_of(event)[1:]].append(event.seconds)
    return {kind: summarise(values) for kind, values in seconds.items()}


def _line(short: dict[str, Timing], long: dict[str, Timing]) -> dict[str, Timing]:
    """Intercept and slope of host time over the pairs of layers; messages have no slope."""
    found = {}
    for kind, low in short.items():
        slope = (long[kind].seconds - low.seconds) / (LONG - SHORT)
        if kind not in SLOPED or slope <= 0:
            found[f"action_{kind}"] = low
            continue
        found[f"pair_{kind}"] = Timing(slope, low.spread, low.samples)
        rest = low.seconds - SHORT * slope
        if rest > 0:
            found[f"action_{kind}"] = Timing(rest, low.spread, low.samples)
    return found


def _between(run: PipelineRun) -> dict[str, Timing]:
    """Time of a worker between its actions, before the first and after the last."""
    gaps, setups, finishes = [], [], []
    steps = sorted({event.step for event in run.events})
    for step in steps:
        for worker in (0, 1):
            events = sorted(
                (e for e in run.events if (e.step, e.worker) == (step, worker)),
                key=lambda event: event.begin,
            )
            pairs = itertools.pairwise(events)
            gaps += [after.begin - before.end for before, after in pairs if after.op != "STEP"]
            finishes.append(events[-1].begin - events[-2].end)
            begin, _ = run.spans[worker][step]
            setups.append(events[0].begin - begin)
    return {
        "gap": summarise(gaps),
        "setup": summarise(setups),
        "finish": summarise(finishes),
    }
