"""The devices that a record names, as entries of the zoo."""

from __future__ import annotations

import re

from mpsim.errors import ScenarioError
from mpsim.spec.zoo import load_entry, names
from mpsim.units import parse
from mpsim.validation.record_parts import RecordedCluster

Tree = dict[str, object]

_MAKERS = {
    *("nvidia", "amd", "intel", "google", "aws", "tesla", "geforce", "quadro", "instinct", "gpu"),
    *("generation", "accelerator"),
}
"""Words of a device's name that do not tell it from another."""
_MEMORY = re.compile(r"(\d+)gb")
_FORM = re.compile(r"sxm\d")
_POWER = re.compile(r"(\d+)w")
_VARIANT = re.compile(r"[-_ ]*\b(hbm\w*|gddr\w*|\d+w)\b", re.IGNORECASE)
"""What tells a variant of a part: its kind of memory, its power limit."""
_INSTEAD: dict[str, tuple[str, ...]] = {
    "nvfp4": ("mxfp8", "fp8"),
    "mxfp8": ("fp8",),
    "bf16": ("fp16", "fp32"),
    "fp16": ("bf16", "fp32"),
    "tf32": ("fp32",),
}
"""What a device without units for a format computes it in, the likeliest first. A device without
any 8-bit units runs no 8-bit recipe."""


def supported(precision: str, device: str) -> str:
    """The precision, or that in which a device of the zoo computes it for lack of units."""
    peak = load_entry("devices", device)["peak"]
    forms = (precision, *_INSTEAD.get(precision, ()))
    return next((form for form in forms if form in peak), precision)


def device_of(
    recorded: RecordedCluster, precision: str, notes: list[str]
) -> tuple[str, str | Tree]:
    """The device of a record: its name in the zoo, and what the reader takes as ``device``.

    Of several kinds it is the slowest in the precision of the run, which the others wait for, with
    the memory of the smallest. A name without form factor is that of the SXM part, if there is one.

    Args:
        recorded: The cluster of the record.
        precision: Number format of the matrix products.
        notes: Where assumptions are appended, as ``path = value``.

    Raises:
        ScenarioError: If the zoo does not have the device.
    """
    if recorded.device != "mixed":
        name, changed = _match(recorded.device)
        tree: str | Tree = {"base": name, **changed} if changed else name
        if recorded.device != name:
            notes.append(f"cluster.device = {name}")
        return name, tree
    kinds = _mixed(recorded.device_note or "")
    slowest, changed = min(kinds, key=lambda kind: _rate(kind[0], precision))
    sizes = (str(its.get("memory", load_entry("devices", name)["memory"])) for name, its in kinds)
    notes.append(f"cluster.device = {slowest}")
    return slowest, {"base": slowest, **changed, "memory": min(sizes, key=_nbytes)}


def _rate(device: str, precision: str) -> float:
    """Peak of a device in a precision, FLOP/s."""
    peak = load_entry("devices", device)["peak"]
    return parse(str(peak[supported(precision, device)]), "FLOP/s")


def _nbytes(memory: str) -> float:
    return parse(memory, "B")


def _mixed(note: str) -> list[tuple[str, Tree]]:
    """The devices that a note names, each as ``_match`` gives it.

    All before the first comma, and those behind it if known.

    Raises:
        ScenarioError: If one before the comma is not in the zoo, or none is named.
    """
    listed, _, rest = note.partition(",")
    found = [_match(_alone(kind)) for kind in re.split(r"\s*[+/&]\s*|\s+and\s+", listed)]
    for kind in re.split(r"\s*[+/&,;]\s*|\s+and\s+", rest):
        try:
            found.append(_match(_alone(kind)))
        except ScenarioError:  # behind the comma a note may say anything
            continue
    return found


def _alone(kind: str) -> str:
    """A device without how many there are of it: '8x A100' is an A100."""
    return re.sub(r"^\s*\d+\s*(x|×)\s+|\s+(x|×)\s*\d+\s*$", "", kind, flags=re.IGNORECASE)


def _match(text: str) -> tuple[str, Tree]:
    """The device of the zoo that a text names, and the memory and power that it states otherwise.

    Raises:
        ScenarioError: If the zoo has no such device.
    """
    if text in names("devices"):
        return text, {}
    plain = _VARIANT.sub("", text)
    if plain != text:
        name, changed = _match(plain)
        power = next((f"{found[1]} W" for found in _POWER.finditer(text.lower())), None)
        return name, {**changed, **({"power": power} if power else {})}
    wanted, size = _key(text)
    known = {name: _key(name) for name in names("devices")}
    alike = [name for name, (key, _) in known.items() if wanted and key == wanted]
    if not alike:  # a part sold in several form factors
        parts = [f"{wanted}sxm", f"{wanted}pcie", f"rtx{wanted}", f"{wanted}nvl"]
        alike = next(
            (a for p in parts if wanted and (a := [n for n, (k, _) in known.items() if k == p])), []
        )
    if not alike:
        load_entry("devices", text)  # raises, with a near miss
    if size is None:
        return alike[0], {}
    memory = {name: _nbytes(str(load_entry("devices", name)["memory"])) / 2**30 for name in alike}
    near = min(alike, key=lambda name: abs(memory[name] - size))
    return near, {} if abs(memory[near] / size - 1) < 0.1 else {"memory": f"{size} GiB"}


def _key(text: str) -> tuple[str, int | None]:
    """A name without case, signs, makers and generation of the socket; and its memory, GB."""
    words = re.split(r"[^a-z0-9]+", re.sub(r"(\d+)\s*gi?b\b", r"\1gb", text.lower()))
    memory = next((int(found[1]) for word in words if (found := _MEMORY.fullmatch(word))), 0)
    kept = [
        "sxm" if _FORM.fullmatch(word) else word
        for word in words
        if word and word not in _MAKERS and not _MEMORY.fullmatch(word)
    ]
    key = "".join(kept)
    return re.sub(r"^rtx(a\d)", r"\1", key), memory or None
