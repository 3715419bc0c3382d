"""What the step time rests on: each figure, where it comes from, and its share of the step.

The seconds of the waterfall are given to the figures that make them. A factor (the share of a
bandwidth that is reached) bears the seconds that it adds to those of the full rate; what adds up
(latency, then bytes) is divided in proportion. The device's own fit of matrix products, attention
or collectives stands for the data sheet that it was made with, since only the two together were
measured. Waiting for other devices (bubble, imbalance) rests on what the compute rests on. A
collective over nodes rests on the network alone, which is its slower part; an exchange beside
compute half on its link, half on the overlap factors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from mpsim.cost.compiled import machine_of, stages_of
from mpsim.cost.passes import Machine
from mpsim.report.attribution import (
    Shares,
    exchange_figures,
    host_figures,
    kernel_figures,
    launch_figures,
    memory_figures,
    mixed,
    transfer_figures,
)
from mpsim.report.metrics import Report
from mpsim.report.sources import KINDS, Figure, Kind
from mpsim.workload.layers import Layer

_SHOWN = 0.0005
"""Share of the step below which a figure is left out of the table for people."""


@dataclass(frozen=True)
class Ledger:
    """Figures, and the seconds of the step that rest on each, most first."""

    entries: tuple[tuple[Figure, float], ...]  # s

    @property
    def step_time(self) -> float:
        """Seconds of the step."""
        return sum(seconds for _, seconds in self.entries)

    @property
    def shares(self) -> dict[Kind, float]:
        """Share of the step by class, those that occur; they sum to 1."""
        step = self.step_time
        found = {
            kind: sum(seconds for figure, seconds in self.entries if figure.kind == kind) / step
            for kind in KINDS
        }
        return {kind: share for kind, share in found.items() if share}


def ledger(report: Report) -> Ledger:
    """The figures that a report's step time rests on."""
    machine = machine_of(report.scenario, report.profile)
    stages = stages_of(report.scenario, machine)
    compute, launch = kernel_figures(stages, machine), launch_figures(machine)
    passes = [(compute, "compute"), (launch, "launch")]
    known = {"compute": compute, "launch": launch, "update": memory_figures(machine)}
    waiting = mixed((shares, report.waterfall.get(name, 0.0)) for shares, name in passes)
    total: dict[Figure, float] = {}
    for cause, seconds in report.waterfall.items():
        shares = known.get(cause) or _moved(cause, report, stages, machine) or waiting
        for figure, share in shares.items():
            total[figure] = total.get(figure, 0.0) + seconds * share
    entries = sorted(total.items(), key=lambda item: (-item[1], item[0].what))
    return Ledger(tuple(entries))


def _moved(
    cause: str, report: Report, stages: Sequence[Sequence[Layer]], machine: Machine
) -> Shares | None:
    """What a cause that moves bytes rests on; None for one that does not."""
    if cause == "transfers":
        return transfer_figures(report.graph, report.work, machine)
    if cause == "offload":
        return host_figures(stages, machine)
    if cause.endswith(("exchange", "gather", "norm")):
        return exchange_figures(cause, stages, machine)
    return None


def ledger_record(found: Ledger) -> dict[str, Any]:
    """The ledger as plain values for machines."""
    step = found.step_time
    return {
        "shares": dict(found.shares),
        "entries": [
            {
                "what": figure.what,
                "value": figure.value,
                "class": figure.kind,
                "source": figure.source,
                "date": figure.date or None,
                "time_s": seconds,
                "share": seconds / step,
            }
            for figure, seconds in found.entries
        ],
    }


def ledger_table(found: Ledger) -> RenderableType:
    """The ledger for people: shares by class, the figures, and their sources by number."""
    table = Table(box=box.SIMPLE, title="What the step time rests on", title_justify="left")
    for name in ("share", "figure", "value", "class", "source"):
        left = name not in ("share", "source")
        wraps = name in ("figure", "value")
        table.add_column(name, justify="left" if left else "right", no_wrap=not wraps)
    numbers: dict[str, int] = {}
    step = found.step_time
    for figure, seconds in found.entries:
        if seconds < _SHOWN * step:
            continue
        number = numbers.setdefault(_dated(figure), len(numbers) + 1)
        row = (f"{seconds / step:.1%}", figure.what, figure.value, figure.kind)
        table.add_row(*row, Text(f"[{number}]"))
    by_class = sorted(found.shares.items(), key=lambda item: -item[1])
    whole = ", ".join(f"{kind} {share:.1%}" for kind, share in by_class if share >= _SHOWN)
    notes = Table.grid(padding=(0, 1))
    for source, number in numbers.items():
        notes.add_row(Text(f"[{number}]", style="dim"), Text(source, style="dim"))
    return Group(table, Text(f"by class: {whole}"), notes)


def _dated(figure: Figure) -> str:
    """The source, with its date where its text does not have it."""
    known = not figure.date or figure.date in figure.source
    return figure.source if known else f"{figure.source}, {figure.date}"
