"""Whole-number arithmetic of a shell, ``$((GPUS * NODES))``."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable

_LONGEST = 200
"""Letters of an expression that is worked out."""
_PARTS = re.compile(r"(?:[A-Za-z_]\w*\b|\d+\b|[-+*/%()\s])*")
"""Names, whole numbers and signs: what else Python reads, a shell reads otherwise."""
_OPERATORS: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    # a shell's division cuts off towards zero, Python's towards minus infinity
    ast.Div: lambda a, b: abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1),
    ast.Mod: lambda a, b: abs(a) % abs(b) * (-1 if a < 0 else 1),
}


def evaluate(text: str, variable: Callable[[str], str]) -> int | None:
    """The value of an expression of + - * / % and brackets; None where it cannot be known.

    Args:
        text: The expression, with what ``$`` stands for already in its place.
        variable: The text of a variable, which needs no ``$`` here; empty where it has none.

    >>> evaluate("(GPUS + 1) * 2 / 3", {"GPUS": "7"}.__getitem__)
    5
    >>> evaluate("GPUS * $1", {"GPUS": "7"}.__getitem__)
    """
    if len(text) > _LONGEST or not _PARTS.fullmatch(text):
        return None
    try:
        return _value(ast.parse(text.strip(), mode="eval").body, variable)
    except (ArithmeticError, MemoryError, RecursionError, SyntaxError, ValueError):
        return None


def _value(node: ast.expr, variable: Callable[[str], str]) -> int:
    """The value of a part; ValueError where it is none of a shell's whole numbers."""
    match node:
        case ast.Constant(value=int(number)):
            return int(number)
        case ast.Name(id=name):
            return int(variable(name))
        case ast.UnaryOp(op=ast.USub(), operand=part):
            return -_value(part, variable)
        case ast.BinOp(left=left, op=kind, right=right) if type(kind) in _OPERATORS:
            return _OPERATORS[type(kind)](_value(left, variable), _value(right, variable))
    raise ValueError
