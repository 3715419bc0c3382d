"""The zoo: devices, links, clusters, models and profiles by name, as plain mappings.

A kind is a file of entries, one top-level key each, or a folder with a file for each entry. Only
the text of the entry that is asked for is parsed, so the zoo may grow without a start growing
slow; anchors therefore reach no further than their entry.
"""

from __future__ import annotations

import copy
import re
from functools import cache
from importlib.resources import files
from typing import Any

from mpsim.errors import ScenarioError, did_you_mean
from mpsim.spec.yaml_text import parse_yaml

_ENTRY = re.compile(r"^([A-Za-z0-9][\w.\-]*):", re.MULTILINE)
"""The first line of an entry: its name, at the margin."""


@cache
def kinds() -> list[str]:
    """What the zoo holds: the stems of its files and folders.

    >>> kinds()[:3]
    ['clusters', 'devices', 'links']
    """
    found = files("mpsim.zoo").iterdir()
    return sorted(
        item.name.removesuffix(".yaml")
        for item in found
        if item.name.endswith(".yaml") or (item.is_dir() and item.name.isidentifier())
        if not item.name.startswith("_")
    )


def names(kind: str) -> list[str]:
    """Names of the entries of a kind, in the order of the zoo."""
    return list(_texts(kind))


def load_entry(kind: str, name: str) -> dict[str, Any]:
    """The entry of a kind and name as its YAML gives it: quantities are texts with their units.

    Raises:
        ScenarioError: If the zoo has no such entry; with the nearest name, if one is near.
    """
    # a copy, so that no caller can change what the next one gets
    return copy.deepcopy(_entry(kind, name))


@cache
def _entry(kind: str, name: str) -> dict[str, Any]:
    """The parsed entry."""
    texts = _texts(kind)
    if name not in texts:
        near = did_you_mean(name, texts) or f"; `mpsim zoo {kind}` lists them"
        raise ScenarioError(kind, f"no {kind.removesuffix('s')} '{name}' in the zoo{near}")
    tree = parse_yaml(texts[name], where=f"zoo: {kind}: {name}")
    entry: dict[str, Any] = tree[name] if set(tree) == {name} else tree
    return entry


@cache
def _texts(kind: str) -> dict[str, str]:
    """The YAML text of each entry of a kind, by name."""
    zoo = files("mpsim.zoo")
    folder = zoo / kind
    if folder.is_dir():
        found = sorted(item.name for item in folder.iterdir() if item.name.endswith(".yaml"))
        return {
            name.removesuffix(".yaml"): (folder / name).read_text(encoding="utf-8")
            for name in found
        }
    if kind not in kinds():
        raise ScenarioError(kind, f"the zoo holds {', '.join(kinds())}")
    text = (zoo / f"{kind}.yaml").read_text(encoding="utf-8")
    starts = list(_ENTRY.finditer(text))
    ends = [start.start() for start in starts[1:]] + [len(text)]
    return {start[1]: text[start.start() : end] for start, end in zip(starts, ends, strict=True)}
