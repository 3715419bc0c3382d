"""One word of a shell script as the words it becomes: quotes and expansions done."""

from __future__ import annotations

import re

from mpsim.errors import ScenarioError
from mpsim.planner.launchers.shell_arithmetic import evaluate
from mpsim.planner.launchers.shell_script import Script

_NAME = re.compile(r"[A-Za-z_]\w*|[0-9@*#?$!-]")
_BRACED = re.compile(r"(\w+|[@*])(\[[@*]\])?(?:(:?[-=+?])(.*))?", re.DOTALL)
_PLAIN = re.compile(r"[^\s;|&<>()'\"\\$`]+")
_PLAIN_QUOTED = re.compile(r"[^\"\\$`]+")
_PLAIN_DEFAULT = re.compile(r"[^'\"\\$`]+")
"""Letters that mean themselves: in a word, in quotes, in the default of an expansion."""
DEEPEST = 20
"""Expansions within each other."""


class Fields:
    """The words that one word of the text becomes; unquoted blanks of a value part them."""

    def __init__(self) -> None:
        """Begin without a word."""
        self.done: list[str] = []
        self.open: str | None = None

    def add(self, text: str) -> None:
        """Letters of the word begun."""
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
        """End the word begun, if one is."""
        if self.open is not None:
            self.done.append(self.open)
        self.open = None

    def words(self) -> list[str]:
        """All words, the open one ended."""
        self.end()
        return self.done


class Words:
    """Reads a text once, from its beginning; ``at`` is the letter that comes next."""

    def __init__(self, text: str, script: Script, *, depth: int = 0) -> None:
        """Begin at the first letter; ``depth`` counts expansions within each other."""
        self.text, self.script, self.depth = text, script, depth
        self.at = 0

    @property
    def runs(self) -> bool | None:
        """Whether what stands here is run; None where nobody can tell."""
        return True

    def _word(self, *, split: bool = True) -> list[str]:
        """The word that begins here as the words it becomes; a single one unless ``split``."""
        fields = Fields()
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

    def _quoted(self, fields: Fields) -> None:
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

    def _plain(self, fields: Fields, letters: re.Pattern[str], *, quoted: bool) -> None:
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

    def _dollar(self, fields: Fields, *, quoted: bool) -> None:
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

    def _value(self, fields: Fields, begun: int, inner: str, *, quoted: bool) -> None:
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
        if operator[-1] == "=" and self.runs is not False:
            self.script.variables[name] = [self._expanded(word)]
        return [self._expanded(word)]

    def _expanded(self, text: str) -> str:
        """A text with its own expansions done."""
        if self.depth >= DEEPEST:
            return text
        inner = Words(text, self.script, depth=self.depth + 1)
        fields = Fields()
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
