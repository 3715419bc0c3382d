"""``mpsim demo``: the small networks of the scenarios, run for real on two devices."""

from __future__ import annotations

import statistics
from pathlib import Path

# The one exception to imports at the top: torch is optional, and `mpsim.hardware` says so where it
# is not installed. This module is itself loaded when its command is called.
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from mpsim.cli.check import compile_for, lay_beside
from mpsim.units import format_seconds

if TYPE_CHECKING:
    from mpsim.hardware.demos import Epoch, Trained
    from mpsim.hardware.pipeline import PipelineRun

_NAMES = ("two-device", "cnn", "two-layer")


@click.command()
@click.argument("name", type=click.Choice(_NAMES))
@click.option("--devices", help="Devices of the two workers, as cuda:0,cuda:1 or cuda:0,cpu.")
@click.option("--profile", help="Lay the simulated step beside: a profile of mpsim calibrate.")
@click.option("--epochs", type=click.IntRange(1, 1000), default=5, show_default=True)
def demo(name: str, *, devices: str | None, profile: str | None, epochs: int) -> None:
    """Train a small network on two devices and compare it with the unsplit one.

    \b
    two-device  Linear 10-20, ReLU | Linear 20-10, ReLU, Linear 10-2, cut by layer
    cnn         two convolutions, two linear layers, under DataParallel and DistributedDataParallel
    two-layer   two linear layers, cut by layer, by column and by row
    """
    from mpsim.hardware import demos
    from mpsim.hardware.measure import choose_placement
    from mpsim.hardware.workers import Workers

    placement = choose_placement(devices, count=2)
    if profile is None and name == "two-device" and Path("machine.yaml").exists():
        profile = "machine.yaml"
    compiled = compile_for("two_device_mlp.yaml", profile) if profile is not None else None
    click.echo(f"{demos.DEMOS[name].model.name} on {placement.describes}")
    if placement.warning:
        click.secho(f"warning: {placement.warning}", fg="yellow", err=True)
    with Workers(placement) as workers:
        for split in demos.DEMOS[name].splits:
            click.echo(f"\n{demos.SPLITS[split].title}, batch {demos.BATCH}, SGD {demos.RATE}")
            told = _Teller()
            _conclude(demos.train(workers, name, split, epochs=epochs, told=told))
        if name == "two-device":
            run = demos.measure_step(workers)
            _show_step(run)
            if compiled is not None:
                click.echo()
                lay_beside(compiled, run, Console(emoji=False))
            else:
                click.echo("for the simulated step beside it: mpsim calibrate, then --profile")


class _Teller:
    """Prints epochs; where the weights live is said again when it changes."""

    def __init__(self) -> None:
        self._where: dict[str, str] = {}

    def __call__(self, epoch: Epoch) -> None:
        median = statistics.median(epoch.step_seconds)
        click.echo(f"epoch {epoch.number}  loss {epoch.loss:.6f}  step {format_seconds(median)}")
        if epoch.where != self._where:
            for parameter, place in sorted(epoch.where.items()):
                click.echo(f"    {parameter:<9} {place}")
            self._where = epoch.where


def _conclude(trained: Trained) -> None:
    """Say how far the split network is from the unsplit one."""
    agreement = trained.agreement
    verdict = "the same as" if agreement.holds else "NOT the same as"
    click.echo(
        f"{verdict} the unsplit network: loss of a batch off by {agreement.loss_error:.1e}, "
        f"gradients by {agreement.gradient_error:.1e}, losses of the epochs by "
        f"{trained.loss_error:.1e}"
    )


def _show_step(run: PipelineRun) -> None:
    """The measured step and its ops; the simulated one is laid beside it by its caller."""
    click.echo(f"\nmeasured step {format_seconds(statistics.median(run.step_seconds))}, of which")
    times: dict[str, list[Any]] = {}
    for event in run.events:
        times.setdefault(event.op, []).append(event)
    for op, events in times.items():
        seconds = statistics.median(event.seconds for event in events)
        waited = statistics.median(event.waited for event in events)
        wait = f", after waiting {format_seconds(waited)}" if waited > 0 else ""
        click.echo(f"    worker {events[0].worker}  {op:<13} {format_seconds(seconds)}{wait}")
