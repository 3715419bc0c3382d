"""Files that a command writes, and those checked before its work begins."""

from __future__ import annotations

import os
from pathlib import Path

import click

from mpsim.errors import ScenarioError

_ENDINGS = (".svg", ".png", ".pdf")


def require_picture(path: Path) -> None:
    """Refuse a picture that could not be written: its ending, its folder, a right that lacks.

    Raises:
        ScenarioError: Naming the path and what is wrong with it.
    """
    if path.suffix not in _ENDINGS:
        raise ScenarioError(str(path), "the picture's ending must be .svg, .png or .pdf")
    if path.is_dir():
        raise ScenarioError(str(path), "is a folder, not a file to write a picture to")
    if not path.parent.is_dir():
        raise ScenarioError(str(path), f"there is no folder {path.parent} to write it to")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ScenarioError(str(path), "cannot be written there: no permission")


def write_text(text: str, out: Path | None) -> None:
    """The text to a file, said on the error stream, or to the terminal."""
    if out is None:
        click.echo(text.rstrip("\n"))
        return
    out.write_text(text, encoding="utf-8")
    click.echo(f"wrote {out}", err=True)
