"""``mpsim zoo``: what the zoo holds, each entry with its source."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

import click
import yaml
from rich import box
from rich.console import Console, OverflowMethod
from rich.table import Table
from rich.text import Text

from mpsim.errors import ScenarioError, did_you_mean
from mpsim.spec.model import Transformer
from mpsim.spec.zoo import kinds, load_entry, names
from mpsim.units import format_si, parse
from mpsim.workload.parameters import parameter_count

Entry = Mapping[str, Any]

_COLUMNS = {
    "clusters": ("device", "node", "network", "price"),
    "devices": ("memory", "bandwidth", "fp32 / 16 / 8 bit TFLOP/s", "power", "profile"),
    "links": ("kind", "bandwidth", "latency", "efficiency"),
    "models": ("parameters", "layers", "hidden", "heads", "experts"),
    "profiles": ("kind", "date"),
}
"""What a table shows of each kind, between name and source."""

_PIPE_WIDTH = 160
"""Columns of a table that goes into a pipe or a file."""


@click.command()
@click.argument("what", required=False, metavar="[KIND | show]")
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def zoo(what: str | None, name: str | None, *, as_json: bool) -> None:
    """List and show devices, links, clusters, models, profiles with their sources.

    \b
    mpsim zoo                          everything
    mpsim zoo models                   one kind
    mpsim zoo show a100-sxm-80gb       one entry, as a scenario may write it
    mpsim zoo devices a100-sxm-80gb    the same, of one kind
    """
    chosen = _choose(what, name)
    if as_json:
        click.echo(json.dumps(chosen, indent=2, default=str))
        return
    # a pipe has no width; a table cut to 80 columns would help nobody who reads it with a pager
    console = Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH, emoji=False)
    for kind, entries in chosen.items():
        if name:
            _show(kind, entries, console)
        else:
            console.print(_table(kind, entries, brief=what is None))


def _choose(what: str | None, name: str | None) -> dict[str, dict[str, Entry]]:
    """The entries that were asked for, by kind and name."""
    if what == "show":
        if not name:
            raise ScenarioError("zoo show", "give the name of an entry, as in: show llama2-7b")
        held = [kind for kind in kinds() if name in names(kind)]
        if not held:
            known = [known for kind in kinds() for known in names(kind)]
            raise ScenarioError("zoo", f"no entry '{name}'{did_you_mean(name, known)}")
        return {kind: {name: load_entry(kind, name)} for kind in held}
    if what is not None and what not in kinds():
        hint = did_you_mean(what, [*kinds(), "show"]) or f"; it holds {', '.join(kinds())}"
        raise ScenarioError("zoo", f"no kind '{what}'{hint}")
    shown = kinds() if what is None else [what]
    if name:
        return {kind: {name: load_entry(kind, name)} for kind in shown}
    return {kind: {known: load_entry(kind, known) for known in names(kind)} for kind in shown}


def _show(kind: str, entries: Mapping[str, Entry], console: Console) -> None:
    """An entry as YAML, its comments first."""
    for name, entry in entries.items():
        console.print(Text(f"# {kind}: {name}", style="dim"))
        for line in _remarks(kind, entry):
            console.print(Text(f"# {line}", style="dim"))
        text = yaml.safe_dump(dict(entry), sort_keys=False, allow_unicode=True, width=100)
        console.print(Text(text.rstrip("\n")), soft_wrap=True)


def _remarks(kind: str, entry: Entry) -> list[str]:
    """What can be worked out from an entry and is worth knowing."""
    if kind != "models":
        return []
    count = parameter_count(Transformer.model_validate(entry), with_mtp=False)
    published = entry.get("published_parameters")
    exact = "as published" if published == count else "from its dimensions"
    return [f"{count:,} parameters, {exact}; {format_si(4.0 * count, 'B')} in fp32"]


def _table(kind: str, entries: Mapping[str, Entry], *, brief: bool) -> Table:
    """All entries of a kind; in brief with one line of each source."""
    title = f"{kind} ({len(entries)})"
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", expand=True)
    columns = _COLUMNS.get(kind, ())
    for column in ("name", *columns):
        right = column in ("parameters", "layers", "hidden", "heads")
        table.add_column(column, no_wrap=True, justify="right" if right else "left")
    cut: OverflowMethod = "ellipsis" if brief else "fold"
    table.add_column("source", no_wrap=brief, overflow=cut, style="dim", ratio=1, min_width=20)
    for name, entry in entries.items():
        cells = _cells(kind, entry)
        table.add_row(name, *(cells[column] for column in columns), _source(entry))
    return table


def _source(entry: Entry) -> str:
    """Where an entry comes from, in one line; of a price as well."""
    source = entry.get("source", "")
    parts = [str(source), str(entry.get("price_source") or "")]
    return "; ".join(part for part in parts if part)


def _cells(kind: str, entry: Entry) -> dict[str, str]:
    """The cells of a row, by column."""
    shown = {key: "" if value is None else str(value) for key, value in entry.items()}
    if kind == "devices":
        special = {"bandwidth": shown["memory_bandwidth"], _COLUMNS[kind][2]: _peaks(entry["peak"])}
    elif kind == "links":
        lanes = f"gen {shown.get('generation')} x{shown.get('width')}"
        special = {"bandwidth": shown.get("bandwidth", lanes)}
    elif kind == "clusters":
        node = entry["node"]
        special = {
            "node": f"{node['devices']} x {_named(node['link'])}",
            "network": _named(entry.get("network")),
        }
    elif kind == "models":
        special = _model_cells(entry)
    else:
        special = {}
    return dict.fromkeys(_COLUMNS.get(kind, ()), "") | shown | special


def _peaks(peak: Mapping[str, str]) -> str:
    """Peak rates of fp32, 16-bit and 8-bit products in TFLOP/s, a dash for what is missing."""
    texts = (peak.get("fp32"), peak.get("bf16") or peak.get("fp16"), peak.get("fp8"))
    rates = (f"{parse(text, 'FLOP/s') / 1e12:.4g}" if text else "–" for text in texts)
    return " / ".join(rates)


def _named(link: Any) -> str:  # noqa: ANN401  (a name, or a mapping that builds on one)
    """A link by its name, and its bandwidth where that differs."""
    if isinstance(link, dict):
        return " ".join(str(link[key]) for key in ("base", "bandwidth") if key in link)
    return link or ""


def _model_cells(entry: Entry) -> dict[str, str]:
    """Parameters as counted, and the experts of a model."""
    count = parameter_count(Transformer.model_validate(entry), with_mtp=False)
    experts = entry.get("experts")
    return {
        "parameters": f"{count:,}",
        "experts": f"{experts['per_token']} of {experts['count']}" if experts else "",
    }
