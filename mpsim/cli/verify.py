"""``mpsim verify``: rules that every prediction must obey, on random scenarios or on given ones."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor

import click
import numpy as np
from rich.console import Console
from rich.progress import Progress

from mpsim.schedule.compiled import warm
from mpsim.spec.reader import load_variants, to_yaml
from mpsim.validation.random_scenarios import random_scenario
from mpsim.validation.rules import RULES, Violation, broken

_BATCH = 50
"""Random scenarios that a worker takes at a time."""


@click.command()
@click.argument("files", nargs=-1)
@click.option(
    "--scenarios", type=click.IntRange(min=1), default=1000, show_default=True, help="How many."
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--list", "list_rules", is_flag=True, help="List the rules.")
def verify(files: Sequence[str], *, scenarios: int, seed: int, list_rules: bool) -> None:
    """Check the rules that every prediction must obey.

    On scenario FILES and their variants, or on random scenarios. Exit code 1 and the scenario as
    YAML if a rule is broken.
    """
    if list_rules:
        for name, rule in RULES.items():
            click.echo(f"{name:24} {(rule.__doc__ or '').splitlines()[0]}")
        return
    if files:
        given = [one for file in files for one in load_variants(file)]
        found = [violation for one in given for violation in broken(one)]
        count = len(given)
    else:
        found, count = list(_random(scenarios, seed)), scenarios
    for violation in found[:5]:
        click.echo(f"{violation.rule}: {violation.text}\n{to_yaml(violation.scenario)}", err=True)
    click.echo(f"{count} scenarios, {len(RULES)} rules: {len(found)} broken")
    if found:
        raise SystemExit(1)


def _random(scenarios: int, seed: int) -> Iterator[Violation]:
    """Violations of random scenarios, found on all cores."""
    batches = [
        (seed, start, min(_BATCH, scenarios - start)) for start in range(0, scenarios, _BATCH)
    ]
    context = multiprocessing.get_context("forkserver" if os.name == "posix" else "spawn")
    with (
        Progress(console=Console(stderr=True), transient=True) as progress,
        ProcessPoolExecutor(os.cpu_count(), mp_context=context, initializer=warm) as pool,
    ):
        task = progress.add_task("verifying", total=scenarios)
        for (_, _, size), found in zip(batches, pool.map(_batch, batches), strict=True):
            progress.advance(task, size)
            yield from found


def _batch(batch: tuple[int, int, int]) -> list[Violation]:
    """Violations of one batch; its scenarios depend on the seed and its place alone."""
    seed, start, size = batch
    generator = np.random.default_rng([seed, start])
    return [found for _ in range(size) for found in broken(random_scenario(generator))]
