"""Where a figure comes from: measured, fitted, a data sheet, declared, a default, a guess."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from mpsim.spec.cluster import ClusterSpec, DeviceSpec, LinkSpec
from mpsim.spec.reader import declared
from mpsim.spec.zoo import load_entry, names

Kind = Literal["measured", "fitted", "data sheet", "declared", "default", "guess"]

KINDS: tuple[Kind, ...] = ("measured", "fitted", "data sheet", "declared", "default", "guess")
"""Classes of figures, the most trustworthy first: measured on such a machine; fitted to
measurements of such a device; printed by a vendor; declared by the user; a stated default; taken
over from another device or format."""

_DATE = re.compile(r"\b(?:19|20)\d\d(?:-\d\d(?:-\d\d)?)?\b")


@dataclass(frozen=True)
class Figure:
    """A number that times rest on, and where it comes from."""

    what: str
    value: str  # with its unit
    kind: Kind
    source: str
    date: str = ""  # year or day; empty where the source names none


def from_text(source: str, field: str) -> tuple[Kind, str, str]:
    """Class, source and date of a field by the text of its entry.

    Clauses are divided by semicolons; one that begins with names and a colon speaks of those alone,
    any other of all fields.

    >>> from_text("NVIDIA A100 data sheet, 2020; latency and efficiency: default", "latency")
    ('default', 'default of the zoo', '')
    >>> from_text("NVIDIA A100 data sheet, 2020; latency: default", "bandwidth")
    ('data sheet', 'NVIDIA A100 data sheet, 2020', '2020')
    """
    named, general = [], []
    for clause in source.split(";"):
        words, colon, rest = clause.strip().partition(": ")
        fields = re.split(r", | and ", words)
        if colon and all(re.fullmatch(r"[a-z_ ]+", word) for word in fields):
            if field in fields:
                named.append(rest)
            elif words == "default":
                general.append(clause.strip())
        else:
            general.append(clause.strip())
    text = "; ".join(named or general) or source
    found = _DATE.search(text)
    shown = "default of the zoo" if text == "default" else text
    return _kind(text), shown, found[0] if found else ""


def _kind(text: str) -> Kind:
    """Class of a clause by its words."""
    if text.startswith("declared in the scenario"):
        return "declared"
    if text.startswith("default"):
        return "default"
    return "measured" if "measured" in text.split(":")[0] else "data sheet"


def link_figure(link: LinkSpec, field: str, value: str, *, cluster: ClusterSpec) -> Figure:
    """A figure of a link: of its zoo entry, of its cluster's, or declared."""
    zoo = _zoo_values("links", link.name)
    kind, source, date = from_text(link.source, field)
    if getattr(link, field) != zoo.get(field, getattr(link, field)):
        kind, source, date = from_text(cluster.source, field)
        if not _in_cluster(cluster, link, field):
            kind, source, date = "declared", "declared in the scenario", ""
    return Figure(f"{field} of {link.name}", value, kind, source, date)


def device_figure(device: DeviceSpec, field: str, what: str, value: str) -> Figure:
    """A figure of a device: of its zoo entry, or declared. ``field`` may be ``peak.bf16``."""
    name, _, key = field.partition(".")
    zoo = _zoo_values("devices", device.name)
    mine, theirs = getattr(device, name), zoo.get(name)
    if key and theirs is not None:
        mine, theirs = mine.get(key), theirs.get(key)
    kind, source, date = from_text(device.source, name)
    if zoo and mine != theirs:
        kind, source, date = "declared", "declared in the scenario", ""
    return Figure(what, value, kind, source, date)


@cache
def _zoo_values(kind: str, name: str) -> dict[str, Any]:
    """The fields of a zoo entry as numbers; empty where there is no such entry."""
    if name not in names(kind):
        return {}
    model = LinkSpec if kind == "links" else DeviceSpec
    return dict(model.model_validate({"name": name, **load_entry(kind, name)}))


def _in_cluster(cluster: ClusterSpec, link: LinkSpec, field: str) -> bool:
    """Whether the cluster's own zoo entry gives one of its links this figure."""
    if cluster.name not in names("clusters"):
        return False
    tree = declared({"cluster": cluster.name})["cluster"]
    links = [tree.get("network"), *(tree["node"].get(name) for name in ("link", "host_link"))]
    values = [getattr(LinkSpec.model_validate(one), field) for one in links if one]
    return getattr(link, field) in values
