"""Conditions of a shell script: which commands run, as far as the file says it.

A test that compares words, such as ``[ $MODEL = 7B ]`` or ``[[ $NODES -gt 1 ]]``, is judged where
both are known. Everything else, loops and ``case`` included, is left open.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass

_NUMBERS: dict[str, Callable[[int, int], bool]] = {
    "-eq": operator.eq,
    "-ne": operator.ne,
    "-lt": operator.lt,
    "-le": operator.le,
    "-gt": operator.gt,
    "-ge": operator.ge,
}
_BRACKETS = {"[": "]", "[[": "]]"}
_LOOPS = {"while", "until", "for", "select", "case"}
_ENDS = {"fi", "done", "esac"}
_OPEN_MARKS = "$`*?["
"""Letters of words that are not known, or patterns."""


def judge(words: list[str]) -> bool | None:
    """Whether a command succeeds; None where the file does not say.

    >>> judge(["[", "7B", "=", "13B", "]"]), judge(["[[", "!", "-z", "x", "]]"])
    (False, True)
    >>> judge(["[", "$1", "=", "13B", "]"])
    """
    turned, words = _turned(words)
    if turned:
        verdict = judge(words)
        return None if verdict is None else not verdict
    if words in (["true"], ["false"], [":"]):
        return words != ["false"]
    if len(words) < 2 or words[-1] != _BRACKETS.get(words[0]):
        return None
    return _compare(words[1:-1])


def _turned(words: list[str]) -> tuple[bool, list[str]]:
    """Whether the ``!`` that lead the words turn what they say, and the words after them."""
    first = next((at for at, word in enumerate(words) if word != "!"), len(words))
    return first % 2 == 1, words[first:]


def _compare(words: list[str]) -> bool | None:
    """What a test says of its words."""
    if any(mark in word for word in words for mark in _OPEN_MARKS):
        return None
    turned, words = _turned(words)
    if turned:
        verdict = _compare(words)
        return None if verdict is None else not verdict
    match words:
        case ["-z", word]:
            return not word
        case ["-n", word]:
            return bool(word)
        case [one, "=" | "==", other]:
            return one == other
        case [one, "!=", other]:
            return one != other
        case [one, sign, other] if sign in _NUMBERS and one.isdecimal() and other.isdecimal():
            return _NUMBERS[sign](int(one), int(other))
    return None


@dataclass
class _Branch:
    """One condition that is begun.

    Attributes:
        runs: Whether its commands run; None: open.
        asking: Whether its test is being read.
        verdict: The test's; None: open.
        over: Whether a branch of it surely ran, so that no other does.
        unsure: Whether a branch of it may have run.
        loop: Whether it is a loop or a ``case``.
    """

    runs: bool | None = True
    asking: bool = False
    verdict: bool | None = None
    over: bool = False
    unsure: bool = False
    loop: bool = False


class Conditions:
    """Whether the command that is read now runs."""

    def __init__(self) -> None:
        """Begin outside of all conditions."""
        self._branches: list[_Branch] = []
        self._last: bool | None = None
        self._guard: bool | None = True

    @property
    def runs(self) -> bool | None:
        """True or False where the file says it, None where it does not."""
        states = [self._guard, *(branch.runs for branch in self._branches)]
        return False if False in states else None if None in states else True

    @property
    def repeats(self) -> bool:
        """Whether a loop or a ``case`` is begun, so that what is assigned is not known."""
        return any(branch.loop for branch in self._branches)

    def meet(self, word: str) -> None:
        """A word at the beginning of a command."""
        if word == "if":
            self._branches.append(_Branch(asking=True))
        elif word in _LOOPS:
            self._branches.append(_Branch(runs=None, loop=True))
        elif self._branches and word in _ENDS:
            self._branches.pop()
        elif self._branches and word in ("then", "elif", "else"):
            self._turn(self._branches[-1], word)

    def _turn(self, branch: _Branch, word: str) -> None:
        """Go on to the next part of an ``if``."""
        branch.asking = word == "elif"
        if branch.asking:
            branch.runs = not branch.over
            return
        verdict = branch.verdict if word == "then" else True
        unsure = branch.unsure and verdict is not False
        branch.runs = False if branch.over else None if unsure else verdict
        branch.over |= verdict is True
        branch.unsure |= verdict is None

    def end(self, words: list[str]) -> None:
        """A command is read: what a test says, where it surely runs."""
        if self._guard is not False:
            self._last = judge(words) if self._guard else None
        if self._branches and self._branches[-1].asking:
            self._branches[-1].verdict = self._last

    def join(self, sign: str) -> None:
        """What stands between the last command and the next."""
        if sign not in ("&&", "||"):
            self._guard = True
        elif self._last is None:
            self._guard = None
        else:
            self._guard = self._last == (sign == "&&")
