"""``mpsim export`` and ``mpsim import``: out of the tool and into a launcher, and back."""

from __future__ import annotations

from pathlib import Path

import click

from mpsim.cli.outputs import write_text
from mpsim.errors import ScenarioError
from mpsim.planner.launchers.formats import Tree
from mpsim.planner.launchers.huggingface import parse, read_model
from mpsim.planner.launchers.options import Options
from mpsim.planner.launchers.translate import (
    LAUNCHERS,
    TARGETS,
    export_scenario,
    import_text,
    said_of,
)
from mpsim.spec.reader import load, parse_overrides

_LIMIT = 8 * 2**20
"""Bytes of a launcher's file that are read at most: far above any, far below harm."""


@click.command()
@click.argument("file")
@click.option("--to", "target", required=True, metavar="LAUNCHER", help=f"{', '.join(TARGETS)}.")
@click.option("--set", "overrides", multiple=True, metavar="PATH=VALUE", help="Override a field.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Write to a file.")
def export(file: str, *, target: str, overrides: tuple[str, ...], out: Path | None) -> None:
    """Write the flags or the configuration of a launcher that realise the scenario FILE.

    What the launcher cannot express is named on the error stream and in the file's comments.
    torch-pipelining has two files, a schedule (.csv) and a script (.py), named for --out.
    """
    scenario = load(file, overrides)
    exported = export_scenario(scenario, target, csv_name=f"{out.stem}.csv" if out else None)
    for item in exported.lost:
        click.echo(f"not expressed: {item}", err=True)
    for suffix, text in exported.files.items():
        place = out.with_suffix(suffix) if out and len(exported.files) > 1 else out
        write_text(text, place)


@click.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--from", "source", metavar="LAUNCHER", help=f"{', '.join(LAUNCHERS)}; else guessed.")
@click.option("--cluster", metavar="NAME", help="Cluster of `mpsim zoo clusters`.")
@click.option("--model", metavar="NAME", help="Model of `mpsim zoo models`, or a config.json.")
@click.option("--set", "overrides", multiple=True, metavar="PATH=VALUE", help="Override a field.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Write to a file.")
def import_(
    file: Path,
    *,
    source: str | None,
    cluster: str | None,
    model: str | None,
    overrides: tuple[str, ...],
    out: Path | None,
) -> None:
    """Read a launcher's FILE into a scenario.

    FILE holds Megatron-LM arguments (shell text or YAML), a torchtitan TOML, a DeepSpeed JSON or a
    Hugging Face config.json. What had to be assumed and what was not read is named on the error
    stream and in the scenario's comments.
    """
    imported = import_text(
        _text(file),
        source=source,
        name=str(file),
        cluster=cluster,
        model=_model(model),
        fields=parse_overrides(overrides),
    )
    for text in imported.assumed:
        click.echo(f"assumed: {text}", err=True)
    for name in imported.unread:
        click.echo(f"not read: {name}", err=True)
    write_text(imported.to_yaml(), out)


def _model(name: str | None) -> str | Tree | None:
    """The model of a configuration file, or a name of the zoo."""
    if name is None or not name.endswith(".json"):
        return name
    text = _text(Path(name))
    with said_of(name):
        return read_model(Options(parse(text)))


def _text(path: Path) -> str:
    """The text of a file, its size checked before it is read."""
    if path.is_dir():
        raise ScenarioError(str(path), "is a folder; give a file in it")
    if path.exists() and path.stat().st_size > _LIMIT:
        size = path.stat().st_size / 2**20
        raise ScenarioError(path.name, f"{size:.0f} MiB is no launcher's file; at most 8 are read")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ScenarioError(path.name, "is not text (UTF-8)") from None
