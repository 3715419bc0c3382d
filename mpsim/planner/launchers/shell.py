"""A shell script as the commands it runs: words with assignments, arrays and expansions done.

Read as bash reads it (manual, "Shell Expansions"): quotes, comments, continued lines,
``X=…``, ``A=(…)``, ``+=``, ``$X``, ``${X:-default}``, ``${A[@]}``, ``$((8 * NODES))``. What a file
cannot say, such as ``$1`` or ``$(hostname)``, stays in the words as it is written. A condition that
the file leaves open is taken as met, and :attr:`Script.open` says so.

Neither ``shlex``, which forgets what was quoted and ends words at a ``#``, nor bashlex 0.18, which
reads no arrays and no arithmetic, would do.
"""

from __future__ import annotations

import re

from mpsim.planner.launchers.shell_changes import arithmetic, set_elsewhere
from mpsim.planner.launchers.shell_conditions import Conditions
from mpsim.planner.launchers.shell_script import Command, Script, Variables
from mpsim.planner.launchers.shell_words import DEEPEST, Words

_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)(\+?)=")
_OPERATOR = re.compile(r"\n|;+|\|\|?|&&|&>>?|\d*(?:<<<|<<-?|>>|[<>]&|>\||<>|[<>])|&|[()]")
_BRACKET = re.compile(r"(?!\(\))\([\[\]()+*,\d]+(?=\s|$)")
_HERE = re.compile(r"[ \t]*(['\"]?)(\w+)\1")
_NESTED = re.compile(r"\s--\w")
_DECLARES = {"export", "declare", "local", "readonly", "typeset"}
_SILENT = {"if", "then", "else", "elif", "fi", "while", "until", "do", "done", "esac", "{", "}"}
"""Words before or after a command that are none of its own."""
_TALKS = {"echo", "printf", "#"}


def read_script(text: str) -> Script:
    """The commands of a script.

    Raises:
        ScenarioError: If a quote or an array has no end, or an expansion none.
    """
    script = Script()
    _Reader(text.replace("\r\n", "\n"), script).read()
    return script


class _Reader(Words):
    """Reads a text once, from its beginning; ``at`` is the letter that comes next."""

    def __init__(self, text: str, script: Script, *, depth: int = 0) -> None:
        super().__init__(text, script, depth=depth)
        self.words: list[str] = []
        self.line = self.begun = 1
        self.conditions = Conditions()
        self.skipped = False
        self.here: str | None = None
        self.defines = False
        self.blocks: list[tuple[str, Variables]] = []
        self.before: Variables = {}

    @property
    def runs(self) -> bool | None:
        """Whether what stands here is run, as far as the conditions around it tell."""
        return self.conditions.runs

    def read(self) -> None:
        """Read all commands."""
        while self.at < len(self.text):
            begun = self.at
            self._step()
            self.line += self.text.count("\n", begun, self.at)
        self._end()

    def _step(self) -> None:
        """Read a blank, an operator, an assignment or a word."""
        if self._blank() or (self.words and self._bracket()):
            return
        assignment = _ASSIGNMENT.match(self.text, self.at)
        if operator := _OPERATOR.match(self.text, self.at):
            self._operate(operator[0])
        elif assignment and (not self.words or self.words[0] in _DECLARES):
            self._assign(assignment)
        else:
            self._command_word()

    def _blank(self) -> bool:
        """Pass a blank, a continued line or a comment."""
        begun = self.at
        if self.text.startswith("\\\n", self.at):
            self.at += 2
        elif self.text[self.at] == "#":
            end = self.text.find("\n", self.at)
            self.at = len(self.text) if end < 0 else end
        elif self.text[self.at] != "\n" and self.text[self.at].isspace():
            self.at += 1
        return self.at > begun

    def _bracket(self) -> bool:
        """A bracket within a command, such as ([0]*3+[1]*9): no shell's, but meant as a word."""
        bracket = _BRACKET.match(self.text, self.at)
        if bracket:
            self.words.append(bracket[0])
            self.at = bracket.end()
        return bracket is not None

    def _operate(self, operator: str) -> None:
        """What is between words: the end of a command, or a redirection with its file."""
        if operator == "(" and self._bracketed():
            return
        self.at += len(operator)
        kind = operator.lstrip("0123456789")
        if kind in ("<<", "<<-"):
            word = _HERE.match(self.text, self.at)
            self.here = word[2] if word else None
            self.at = word.end() if word else self.at
        elif kind[0] in "<>" or kind.startswith("&>"):
            self.skipped = True
        else:
            self._end()
            self.conditions.join(kind)
            if kind in "()":
                self._subshell(kind)
        if kind == "\n" and self.here is not None:
            end = re.compile(rf"^\t*{self.here}$", re.MULTILINE).search(self.text, self.at)
            begun, self.here = self.at, None
            self.at = end.end() if end else len(self.text)
            if _NESTED.search(self.text[begun : self.at]):
                self.script.documents.append(self.line)

    def _bracketed(self) -> bool:
        """Pass ``((…))`` or the ``()`` of a function; False where the bracket is none of them."""
        if self.words in ([], ["for"]) and self.text.startswith("((", self.at):
            begun, self.at = self.at, self._closing("(", ")", self.at)
            self._calculate(self.text[begun + 2 : self.at - 2])
            self.conditions.end(["(("])
            self.words = []
            return True
        empty = re.compile(r"\(\s*\)").match(self.text, self.at)
        if empty and self.words:
            self.at, self.words, self.defines = empty.end(), [], True
            return True
        return False

    def _subshell(self, bracket: str) -> None:
        """What a subshell assigns ends with it."""
        if bracket == "(":
            self.blocks.append(("(", dict(self.script.variables)))
        elif self.blocks and self.blocks[-1][0] == "(":
            self.script.variables = self.blocks.pop()[1]

    def _block(self, word: str) -> None:
        """``{`` or ``}``; what a function assigned is not known after it."""
        if word == "{":
            kind, self.defines = "function" if self.defines else "{", False
            self.blocks.append((kind, dict(self.script.variables)))
        elif self.blocks and self.blocks[-1][0] != "(":
            kind, old = self.blocks.pop()
            new = self.script.variables
            for name in new if kind == "function" else ():
                if new[name] is not old.get(name):
                    self.script.forget(name, self.line)

    def _calculate(self, text: str) -> None:
        """An arithmetic command."""
        loop = self.words == ["for"]
        for name, number in arithmetic(self._expanded(text), self._number).items():
            self._change(name, None if loop or number is None else [str(number)])

    def _change(self, name: str, value: list[str] | None) -> None:
        """A variable gets a value, where the command runs; None: one that cannot be known."""
        runs = self.conditions.runs
        if runs is False:
            return
        if value is None or self.conditions.repeats:
            self.script.forget(name, self.line)
            return
        self.script.variables[name] = value
        if runs is None:
            self.script.open.append((name, self.line))

    def _command_word(self) -> None:
        """The next words of a command; a reserved one ends it."""
        words = self._word()
        if self.skipped:
            self.skipped = False
            return
        if not self.words:
            self.begun = self.line
            first = words[0] if words else ""
            self._restore()
            self.conditions.meet(first)
            if first in ("{", "}"):
                self._block(first)
            if first in _SILENT:
                return
        self.words += words

    def _end(self) -> None:
        """A command is complete; commands within its quoted words are read as well."""
        words, self.words = self.words, []
        self.skipped = False
        self.before = {}
        if not words:
            return
        runs = self.conditions.runs
        self.conditions.end(words)
        if runs is not False:
            self._changes(words)
        if runs is False or words[0] in _TALKS or words[0] in _DECLARES:
            return
        for word in words:
            if _NESTED.search(word) and self.depth < DEEPEST:
                _Reader(word, self.script, depth=self.depth + 1).read()
        self.script.commands.append(Command(words, self.begun))

    def _restore(self) -> None:
        """``X=1 command``: what was assigned is the command's alone."""
        for name, value in self.before.items():
            if value:
                self.script.variables[name] = value
            else:
                self.script.variables.pop(name, None)
        self.before = {}

    def _changes(self, words: list[str]) -> None:
        """What a command without ``X=…`` does to variables."""
        if words[0] == "function":
            self.defines = True
            if words[-1] == "{":
                self._block("{")
        elif words[0] in ("source", ".") and len(words) > 1:
            self.script.sourced.append((words[1], self.begun))
        elif words[0] == "unset" and "-f" not in words:
            for name in words[1:]:
                self._change(name, [] if self.conditions.runs else None)
        elif words[0] == "let":
            for word in words[1:]:
                self._calculate(word)
        for name in set_elsewhere(words):
            self._change(name, None)

    def _assign(self, match: re.Match[str]) -> None:
        """``X=…``, ``X+=…`` or an array of them."""
        name, more = match[1], bool(match[2])
        self.at = match.end()
        old = self.script.grown(name, self.script.variables.get(name)) or [] if more else []
        if self.text.startswith("(", self.at):
            value = old + self._array()
        else:
            last = " ".join(self._word(split=False))
            value = [*old[:-1], (old or [""])[-1] + last]
        runs = self.conditions.runs
        self.conditions.end(["true"])
        if runs is False:
            return
        if self.conditions.repeats:
            self.script.forget(name, self.line)
            return
        if not self.words:
            self.before.setdefault(name, self.script.variables.get(name) or [])
        self.script.variables[name] = value
        if not more:
            self.script.used.discard(name)
        if runs is None:
            self.script.open.append((name, self.line))

    def _array(self) -> list[str]:
        """The words of an array, up to its ``)``."""
        words: list[str] = []
        begun = self.at
        self.at += 1
        while self.at < len(self.text):
            letter = self.text[self.at]
            if letter == ")":
                self.at += 1
                return words
            if letter == "\n" or self._blank():
                self.at += letter == "\n"
            elif letter in ";|&<>(":
                self.at += 1
            else:
                words += self._word()
        raise self._endless("(", begun)
