"""Commands of a shell that change variables without ``X=…``, such as ``let`` and ``read``."""

from __future__ import annotations

import re
from collections.abc import Callable

from mpsim.planner.launchers.shell_arithmetic import evaluate

_WHOLE = re.compile(r"\s*([A-Za-z_]\w*)\s*([-+*/%]?)=(?!=)\s*([^=]*)", re.DOTALL)
"""One assignment with an operator or none."""
_ANY = re.compile(r"([A-Za-z_]\w*)\s*(?:(?:[-+*/%&|^]|<<|>>)?=(?!=)|\+\+|--)|(?:\+\+|--)\s*(\w+)")
_NAME = re.compile(r"[A-Za-z_]\w*")
_READERS = {"read", "mapfile", "readarray"}
_LOOPS = {"for", "select"}


def arithmetic(text: str, variable: Callable[[str], str]) -> dict[str, int | None]:
    """What an arithmetic command assigns; None where the number cannot be known.

    >>> arithmetic("TP *= 2", {"TP": "4"}.__getitem__), arithmetic("I++ < 3", str)
    ({'TP': 8}, {'I': None})
    >>> arithmetic("TP == 2", str)
    {}
    """
    if match := _WHOLE.fullmatch(text):
        name, sign, rest = match.groups()
        return {name: evaluate(f"{name} {sign} ({rest})" if sign else rest, variable)}
    return {match[1] or match[2]: None for match in _ANY.finditer(text)}


def set_elsewhere(words: list[str]) -> list[str]:
    """Variables that a command sets to what no file says.

    >>> set_elsewhere(["for", "TP", "in", "2", "4"]), set_elsewhere(["read", "-r", "A", "B"])
    (['TP'], ['A', 'B'])
    """
    if words[0] in _LOOPS:
        return [word for word in words[1:2] if _NAME.fullmatch(word)]
    return [word for word in words[1:] if words[0] in _READERS and _NAME.fullmatch(word)]
