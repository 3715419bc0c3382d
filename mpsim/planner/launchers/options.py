"""What a launcher's file says, as a flat table that knows which of its entries were read."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from mpsim.errors import ScenarioError, did_you_mean


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted names of a nested mapping; an empty mapping has no entry.

    >>> flatten({"bf16": {"enabled": True}, "steps": 3})
    {'bf16.enabled': True, 'steps': 3}
    """
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The nested mapping of dotted names; the inverse of :func:`flatten`.

    >>> nest({"bf16.enabled": True, "steps": 3})
    {'bf16': {'enabled': True}, 'steps': 3}
    """
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, last = path.split(".")
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = value
    return tree


class Options:
    """Entries of a launcher's file by name; reading one checks its type and marks it as read.

    A value of ``"auto"`` or null counts as absent. ``assume`` collects what a reader had to make
    up, for the user to see.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        """Keep the entries; none is read yet."""
        self.values = {name: value for name, value in values.items() if value is not None}
        self.assumed: list[str] = []
        self._read: set[str] = set()
        self._asked: set[str] = set()

    @property
    def unread(self) -> list[str]:
        """Entries that no reader asked for, each with a near miss among those asked for."""
        names = [name for name in self.values if name not in self._read]
        asked = self._asked - set(self.values)
        return [f"{name}{did_you_mean(name, asked)}" for name in names]

    def assume(self, text: str) -> None:
        """Note what was made up or read as something near."""
        self.assumed.append(text)

    def has(self, name: str) -> bool:
        """Whether the entry is there and not ``auto``."""
        self._asked.add(name)
        if name in self.values:
            self._read.add(name)
        return bool(self.values.get(name, "auto") != "auto")

    def raw(self, name: str, default: Any = None) -> Any:  # noqa: ANN401  (whatever the file holds)
        """The value as the file has it."""
        return self.values[name] if self.has(name) else default

    def count(self, name: str, default: int = 1, *, least: int = 1) -> int:
        """A whole number of at least ``least``; the default where the entry is absent."""
        if not self.has(name):
            return default
        value = self.values[name]
        number = _whole(value)
        if number is None or number < least:
            what = f"expected a whole number of at least {least}, not '{value}'"
            raise ScenarioError(name, what + _unsaid(value))
        return number

    def maybe(self, name: str, *, least: int = 1) -> int | None:
        """A whole number, or None where the entry is absent."""
        return self.count(name, least=least) if self.has(name) else None

    def number(self, name: str, default: float) -> float:
        """A number, infinity included."""
        value = self.raw(name, default)
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if isinstance(value, bool) or math.isnan(number):
            raise ScenarioError(name, f"expected a number, not '{value}'{_unsaid(value)}")
        return number

    def flag(self, name: str, *, default: bool = False) -> bool:
        """A truth value; a script's word after it that cannot be known is none of it."""
        value = self.raw(name, default)
        if _unsaid(value):
            self.values[f"{value}: the file does not set it"] = True
            return True
        if not isinstance(value, bool):
            raise ScenarioError(name, f"expected true or false, not '{value}'")
        return value

    def choice(self, name: str, default: str, allowed: Iterable[str]) -> str:
        """One of the allowed texts."""
        value, options = self.raw(name, default), list(allowed)
        if value not in options:
            hint = _unsaid(value) or did_you_mean(str(value), options)
            raise ScenarioError(name, f"'{value}' is not one of {', '.join(options)}{hint}")
        return str(value)


def _unsaid(value: object) -> str:
    """The remedy for a word of a script whose value cannot be known, such as ``$1``; or nothing."""
    word = isinstance(value, str) and value.startswith(("$", "`"))
    return ", which the file does not set: write the value into it" if word else ""


def _whole(value: Any) -> int | None:  # noqa: ANN401  (whatever the file holds)
    """The whole number a value is, or None."""
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return int(number) if number.is_integer() and abs(number) < 2**53 else None
