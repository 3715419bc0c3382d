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

from mpsim.errors import ScenarioError
from mpsim.planner.launchers.shell_arithmetic import evaluate
from mpsim.planner.launchers.shell_changes import arithmetic, set_elsewhere
from mpsim.planner.launchers.shell_conditions import Conditions
from mpsim.planner.launchers.shell_script import Command, Script, Variables

_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)(\+?)=")
_OPERATOR = re.compile(r"\n|;+|\|\|?|&&|&>>?|\d*(?:<<<|<<-?|>>|[<>]&|>\||<>|[<>])|&|[()]")
_NAME = re.compile(r"[A-Za-z_]\w*|[0-9@*#?$!-]")
_BRACED = re.compile(r"(\w+|[@*])(\[[@*]\])?(?:(:?[-=+?])(.*))?", re.DOTALL)
_BRACKET = re.compile(r"(?!\(\))\([\[\]()+*,\d]+(?=\s|$)")
_HERE = re.compile(r"[ \t]*(['\"]?)(\w+)\1")
_NESTED = re.compile(r"\s--\w")
_DECLARES = {"export", "declare", "local", "readonly", "typeset"}
_SILENT = {"if", "then", "else", "elif", "fi", "while", "until", "do", "done", "esac", "{", "}"}
"""Words before or after a command that are none of its own."""
_TALKS = {"echo", "printf", "#"}
_PLAIN = re.compile(r"[^\s;|&<>()'\"\\$`]+")
_PLAIN_QUOTED = re.compile(r"[^\"\\$`]+")
_PLAIN_DEFAULT = re.compile(r"[^'\"\\$`]+")
"""Letters that mean themselves: in a word, in quotes, in the default of an expansion."""
_DEEPEST = 20
"""Expansions within each other."""


def read_script(text: str) -> Script:
    """The commands of a script.

    Raises:
        ScenarioError: If a quote or an array has no end, or an expansion none.
    """
    script = Script()
    _Reader(text.replace("\r\n", "\n"), script).read()
    return script


class _Fields:
    """The words that one word of the text becomes; unquoted blanks of a value part them."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.open: str | None = None

    def add(self, text: str) -> None:
        self.open = (self.open or "") + text

    def add_all(self, values: list[str], *, quoted: bool) -> None:
        """Values: the first goes on the word begun, the last stays open."""
        for index, value in enumerate(values):
            if index:
                self.end()
            if quoted:
                self.add(value)
            else:
                self._add_parted(value)

    def _add_parted(self, value: str) -> None:
        """A value outside of quotes: its blanks end words."""
        if value[:1].isspace():
            self.end()
        self.add_all(value.split(), quoted=True)
        if value[-1:].isspace():
            self.end()

    def end(self) -> None:
        if self.open is not None:
            self.done.append(self.open)
        self.open = None

    def words(self) -> list[str]:
        self.end()
        return self.done


class _Reader:
    """Reads a text once, from its beginning; ``at`` is the letter that comes next."""

    def __init__(self, text: str, script: Script, *, depth: int = 0) -> None:
        self.text, self.script, self.depth = text, script, depth
        self.at = 0
        self.words: list[str] = []
        self.line = self.begun = 1
        self.conditions = Conditions()
        self.skipped = False
        self.here: str | None = None
        self.defines = False
        self.blocks: list[tuple[str, Variables]] = []
        self.before: Variables = {}

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
            if _NESTED.search(word) and self.depth < _DEEPEST:
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

    def _word(self, *, split: bool = True) -> list[str]:
        """The word that begins here as the words it becomes; a single one unless ``split``."""
        fields = _Fields()
        while self.at < len(self.text):
            letter = self.text[self.at]
            if letter.isspace() or letter in ";|&<>()":
                break
            if letter == "'":
                fields.add(self._until("'")[1:-1])
            elif letter == '"':
                self._quoted(fields)
            elif letter == "\\":
                following = self.text[self.at + 1 : self.at + 2]
                if following != "\n":
                    fields.add(following)
                self.at += 2
            else:
                self._plain(fields, _PLAIN, quoted=not split)
        return fields.words()

    def _until(self, mark: str) -> str:
        """The text from the mark that is next to the following one, both included."""
        begun = self.at
        end = self.text.find(mark, begun + 1)
        if end < 0:
            raise self._endless(mark, begun)
        self.at = end + 1
        return self.text[begun : self.at]

    def _endless(self, mark: str, at: int) -> ScenarioError:
        line = self.text.count("\n", 0, at) + 1
        return ScenarioError(f"line {line}", f"the {mark} that stands there is not closed")

    def _quoted(self, fields: _Fields) -> None:
        """What is in double quotes: expanded, not parted."""
        begun = self.at
        self.at += 1
        fields.add("")
        while self.at < len(self.text):
            letter, following = self.text[self.at], self.text[self.at + 1 : self.at + 2]
            if letter == '"':
                self.at += 1
                return
            if letter == "\\" and following and following in '"\\$`\n':
                fields.add(following.replace("\n", ""))
                self.at += 2
            else:
                self._plain(fields, _PLAIN_QUOTED, quoted=True)
        raise self._endless('"', begun)

    def _plain(self, fields: _Fields, letters: re.Pattern[str], *, quoted: bool) -> None:
        """Letters that mean themselves, or an expansion."""
        if plain := letters.match(self.text, self.at):
            fields.add(plain[0])
            self.at = plain.end()
        elif self.text[self.at] == "`":
            fields.add(self._until("`"))
        elif self.text[self.at] == "$":
            self._dollar(fields, quoted=quoted)
        else:
            fields.add(self.text[self.at])
            self.at += 1

    def _dollar(self, fields: _Fields, *, quoted: bool) -> None:
        """An expansion; what cannot be known stays as it is written."""
        begun = self.at
        following = self.text[self.at + 1 : self.at + 3]
        if following == "((":
            self.at = self._closing("(", ")", self.at + 1)
            inner = self._expanded(self.text[begun + 3 : self.at - 2])
            result = evaluate(inner, self._number)
            fields.add(self.text[begun : self.at] if result is None else str(result))
        elif following[:1] == "(":
            self.at = self._closing("(", ")", self.at + 1)
            fields.add(self.text[begun : self.at])
        elif following[:1] == "{":
            self.at = self._closing("{", "}", self.at + 1)
            self._value(fields, begun, self.text[begun + 2 : self.at - 1], quoted=quoted)
        elif name := _NAME.match(self.text, self.at + 1):
            self.at = name.end()
            self._value(fields, begun, name[0], quoted=quoted)
        else:
            fields.add("$")
            self.at += 1

    def _value(self, fields: _Fields, begun: int, inner: str, *, quoted: bool) -> None:
        """The value of ``${inner}``."""
        parts = _BRACED.fullmatch(inner)
        values = self.script.value(parts[1]) if parts else None
        if parts and parts[3]:
            values = self._chosen(parts[1], values, parts[3], word=parts[4])
        if not parts or values is None:
            fields.add(self.text[begun : self.at])
        elif not parts[2]:
            fields.add_all((values or [""])[:1], quoted=quoted)
        elif quoted and parts[2] == "[*]":
            fields.add(" ".join(values))
        else:
            fields.add_all(values, quoted=quoted)

    def _chosen(
        self, name: str, values: list[str] | None, operator: str, *, word: str
    ) -> list[str] | None:
        """``:-`` and its kin: the value, or the word in its stead; None where neither is known."""
        here = bool(values) and (bool("".join(values or [])) or operator[0] != ":")
        if operator[-1] == "+":
            return [self._expanded(word)] if here else [""]
        if here or operator[-1] == "?":
            return values
        if operator[-1] == "=" and self.conditions.runs is not False:
            self.script.variables[name] = [self._expanded(word)]
        return [self._expanded(word)]

    def _expanded(self, text: str) -> str:
        """A text with its own expansions done."""
        if self.depth >= _DEEPEST:
            return text
        inner = _Reader(text, self.script, depth=self.depth + 1)
        fields = _Fields()
        while inner.at < len(text):
            if text[inner.at] in "'\"":
                inner.at += 1
            else:
                inner._plain(fields, _PLAIN_DEFAULT, quoted=True)
        return " ".join(fields.words())

    def _number(self, name: str) -> str:
        return (self.script.value(name) or [""])[0]

    def _closing(self, opening: str, closing: str, start: int) -> int:
        """The place after the bracket that closes the one at ``start``."""
        level = 0
        for match in re.compile(rf"\\.|[{re.escape(opening + closing)}]").finditer(
            self.text, start
        ):
            level += (match[0] == opening) - (match[0] == closing)
            if not level:
                return match.end()
        raise self._endless(opening, start)
