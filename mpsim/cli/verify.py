"""``mpsim verify``: rules that every prediction must obey, on random scenarios or on given ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import click
import numpy as np
from rich.console import Console
from rich.progress import Progress

from mpsim.spec.reader import load_variants, to_yaml
from mpsim.validation.pool import cores, each
from mpsim.validation.random_scenarios import random_scenario
from mpsim.validation.rules import RULES, Violation, broken

_BATCH = 50
"""Random scenarios that a worker takes at a time."""

_INTERRUPTED = 130
"""Exit code of a program that Ctrl-C ended (128 + SIGINT)."""


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
    YAML if a rule is broken. Ctrl-C prints what was found until then (exit code 130).
    """
    if list_rules:
        for name, rule in RULES.items():
            click.echo(f"{name:24} {(rule.__doc__ or '').splitlines()[0]}")
        return
    done, found = 0, list[Violation]()
    try:
        for count, violations in _given(files) if files else _random(scenarios, seed):
            done += count
            found += violations
    except KeyboardInterrupt:
        click.echo("interrupted", err=True)
        _show(done, found)
        raise click.exceptions.Exit(_INTERRUPTED) from None
    _show(done, found)
    if found:
        raise SystemExit(1)


def _show(done: int, found: Sequence[Violation]) -> None:
    """The first violations with their scenarios, and how many there are in all."""
    for violation in found[:5]:
        click.echo(f"{violation.rule}: {violation.text}\n{to_yaml(violation.scenario)}", err=True)
    for rule, count in Counter(violation.rule for violation in found).items():
        click.echo(f"{rule}: broken {count} times", err=True)
    click.echo(f"{done} scenarios, {len(RULES)} rules: {len(found)} broken")


def _given(files: Sequence[str]) -> Iterator[tuple[int, list[Violation]]]:
    """Violations of each scenario of the files, and of each variant."""
    for scenario in [one for file in files for one in load_variants(file)]:
        yield 1, list(broken(scenario))


def _random(scenarios: int, seed: int) -> Iterator[tuple[int, list[Violation]]]:
    """Sizes of batches of random scenarios and their violations, as they are done on all cores."""
    batches = [
        (seed, start, min(_BATCH, scenarios - start)) for start in range(0, scenarios, _BATCH)
    ]
    workers = min(cores(), len(batches))
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("verifying", total=scenarios)
        for place, found in each(_batch, batches, workers=workers, chunk=1):
            size = batches[place][2]
            progress.advance(task, size)
            yield size, found


def _batch(batch: tuple[int, int, int]) -> list[Violation]:
    """Violations of one batch; its scenarios depend on the seed and its place alone."""
    seed, start, size = batch
    generator = np.random.default_rng([seed, start])
    return [found for _ in range(size) for found in broken(random_scenario(generator))]
