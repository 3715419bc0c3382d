"""What a shell script says, once read: its commands and its variables."""

from __future__ import annotations

from dataclasses import dataclass, field

from mpsim.errors import ScenarioError

Variables = dict[str, list[str]]
"""What is assigned, by name; a plain variable is a list of one."""

_LIMIT = 20_000_000
"""Letters that all expansions together may give: far above any launcher's."""


@dataclass(frozen=True)
class Command:
    """A simple command.

    Attributes:
        words: Its words, expanded.
        line: Where it begins, from 1.
    """

    words: list[str]
    line: int


@dataclass
class Script:
    """What a script says.

    Attributes:
        commands: What it runs, in order; commands within quoted words come before theirs.
        variables: What it assigns, as last assigned.
        used: Names that some word refers to.
        open: Names assigned under a condition that the file leaves open, with their lines.
        unknown: Names whose value nobody can tell from a line on, with the line.
        sourced: Files that the script reads, with their lines.
        documents: Lines of here-documents that hold flags.
        letters: Of all values that were asked for.
    """

    commands: list[Command] = field(default_factory=list)
    variables: Variables = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    open: list[tuple[str, int]] = field(default_factory=list)
    unknown: list[tuple[str, int]] = field(default_factory=list)
    sourced: list[tuple[str, int]] = field(default_factory=list)
    documents: list[int] = field(default_factory=list)
    letters: int = 0

    def value(self, name: str) -> list[str] | None:
        """The value of a variable, which counts as used; None where none is assigned."""
        self.used.add(name)
        return self.grown(name, self.variables.get(name))

    def forget(self, name: str, line: int) -> None:
        """From here on the value cannot be known: the name stands for itself."""
        self.variables[name] = [f"${name}"]
        self.used.discard(name)
        self.unknown.append((name, line))

    def grown(self, name: str, value: list[str] | None) -> list[str] | None:
        """The value, its letters counted, so that no text doubles itself without end."""
        self.letters += sum(len(word) + 1 for word in value or ())
        if self.letters > _LIMIT:
            raise ScenarioError(name, "grows without end")
        return value
