"""Megatron-LM arguments as text: shell words, or a YAML of them, ↔ entries by flag."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from mpsim.errors import ScenarioError
from mpsim.planner.launchers.formats import present
from mpsim.planner.launchers.shell import read_script
from mpsim.planner.launchers.shell_script import Script
from mpsim.spec.yaml_text import parse_yaml

_NEGATED = {
    "--add-bias-linear": "--disable-bias-linear",
    "--overlap-p2p-comm": "--no-overlap-p2p-communication",
    "--bias-gelu-fusion": "--no-bias-gelu-fusion",
    "--bias-swiglu-fusion": "--no-bias-swiglu-fusion",
    "--bias-dropout-fusion": "--no-bias-dropout-fusion",
    "--masked-softmax-fusion": "--no-masked-softmax-fusion",
    "--apply-rope-fusion": "--no-rope-fusion",
}
"""Names that a YAML has for what flags switch off."""

_MARK = (
    "--tensor-model-parallel-size",
    "--num-layers",
    "--micro-batch-size",
    "--num-attention-heads",
)
UNUSED = ": no command uses it"
"""How an entry ends that names flags of a script which nothing is started with."""
_FLAG = re.compile(r"(?:^|[\s(]|=['\"])--\w")
_ENDS = re.compile(r"-[A-Za-z]|\$\{?[@*]|\\$")
"""Words that end a flag's values: a short option, the script's own arguments, a stray backslash."""
_UNKNOWN = re.compile(r"\$(\w+|\{.*\}|\(.*\))", re.DOTALL)
"""A word that stands for something the file does not say."""
_LIMIT = 100_000
"""Entries that a pattern may have once written out: far above any model's layers."""


def looks_like(text: str) -> bool:
    """Whether a text holds Megatron-LM flags, or a YAML of their names."""
    names = [mark[2:].replace("-", "_") for mark in _MARK]
    return any(mark in text for mark in _MARK) or any(
        re.search(rf"^\s*{name}:", text, re.MULTILINE) for name in names
    )


def render(entries: Mapping[str, Any], comments: Sequence[str]) -> str:
    """A torchrun command with one flag a line, comments above it."""
    shown = present(entries)
    torchrun = [f"{name} {shown.pop(name)}" for name in ("--nnodes", "--nproc-per-node")]
    lines = [f"torchrun {' '.join(torchrun)} pretrain_gpt.py"]
    lines += [f"    {name}{_words(value)}" for name, value in shown.items()]
    lines += ['    "$@"']
    return "\n".join([*(f"# {line}" for line in comments), " \\\n".join(lines)]) + "\n"


def _words(value: Any) -> str:  # noqa: ANN401  (a flag's value)
    """The words after a flag, quoted for a shell."""
    if value is True:
        return ""
    values = value if isinstance(value, list) else [value]
    return " " + " ".join(shlex.quote(str(item)) for item in values)


def parse(text: str) -> dict[str, Any]:
    """Entries by flag of a shell text or a YAML of arguments; a flag without a word is true.

    Entries that are no flags name what of a script was not read.

    Raises:
        ScenarioError: If the text is neither.
    """
    if _FLAG.search(text):
        return _parse_script(read_script(text))
    tree = parse_yaml(text, where="arguments")
    if not isinstance(tree, dict):
        raise ScenarioError(
            "arguments", "expected flags such as --num-layers 32, or a YAML of them"
        )
    return _parse_tree(tree)


def _parse_script(script: Script) -> dict[str, Any]:
    """Flags of the command that starts a training, or of all where none does."""
    launches = [
        command
        for command in script.commands
        if any(_is_program(word) for word in command.words)
        and any(_flag_name(word) in _MARK for word in command.words)
    ]
    loose = [
        name
        for name, words in script.variables.items()
        if name not in script.used and any(_FLAG.search(word) for word in words)
    ]
    words = [word for command in launches[:1] or script.commands for word in [*command.words, ";"]]
    found = _entries(words)
    documents = {f"the here-document of line {line}{UNUSED}": True for line in script.documents}
    if not launches and not any(name in found for name in _MARK):
        # arrays of a script without its command: a file that another one reads
        parts = [" ".join(script.variables[name]) for name in loose]
        return _entries([word for part in parts for word in part.split()]) | documents
    found |= {f"{name}{UNUSED}": True for name in loose}
    found |= documents
    others = [command for command in launches[1:] if command.words != launches[0].words]
    found |= {f"line {command.line}: another training": True for command in others}
    for name, line in script.open:
        if name in script.used:
            found[f"the condition of {name} (line {line}), taken as met"] = True
    for name, line in script.unknown:
        if name in script.used:
            found[f"{name} (line {line}): set where its value cannot be followed"] = True
    found |= {f"{file} (line {line}): read by the script": True for file, line in script.sourced}
    return found


def _is_program(word: str) -> bool:
    """Whether a word names what torchrun or python starts."""
    return word.endswith(".py") or word == "-m"


def _flag_name(word: str) -> str | None:
    """The flag of a word, its underscores as Megatron's hyphens; None where it is none."""
    if not word.startswith("--") or len(word) == 2:
        return None
    return word.partition("=")[0].replace("_", "-")


def _entries(words: Sequence[str]) -> dict[str, Any]:
    """Flags with the words that follow them; a program, a short option or ``;`` ends them."""
    found: dict[str, list[str]] = {}
    current: list[str] | None = None
    unknown: list[str] = []
    for word in words:
        if name := _flag_name(word):
            _, equals, value = word.partition("=")
            current = found[name] = [value] if equals else []
        elif _is_program(word) or word == ";" or _ENDS.match(word):
            current = None
        elif current is not None and current and _UNKNOWN.fullmatch(word):
            unknown.append(word)  # after a flag's value: more flags, were it known
        elif current is not None:
            current.append(word)
    entries = {name: _value(values) for name, values in found.items()}
    return entries | {f"{word}: the file does not set it": True for word in unknown}


def _value(values: list[str]) -> Any:  # noqa: ANN401  (true, a word or words)
    """True for no word, the word itself for one."""
    if not values:
        return True
    return values[0] if len(values) == 1 else values


def _parse_tree(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Entries of a YAML whose keys are arguments' names, at any depth."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            found |= _parse_tree(value)
            continue
        name = "--" + str(key).removeprefix("--").replace("_", "-")
        if name in _NEGATED and isinstance(value, bool):
            name, value = _NEGATED[name], not value
        if value is not None and value is not False:
            found[name] = value
    return found


def expand_pattern(text: str, *, where: str) -> list[int]:
    """The list of a pattern such as ``([0]*3+[1]*58)``.

    >>> expand_pattern("([0]+[1]*3)*2", where="--moe-layer-freq")
    [0, 1, 1, 1, 0, 1, 1, 1]
    """
    tokens = re.findall(r"\d+|[\[\]()+*,]", re.sub(r"\s", "", text))
    if "".join(tokens) != re.sub(r"\s", "", text):
        raise ScenarioError(where, f"'{text}' is not a pattern such as ([0]*3+[1]*58)")
    try:
        value, rest = _sum(tokens)
    except (IndexError, ValueError):
        value, rest = [], ["?"]
    if rest or not value:
        raise ScenarioError(where, f"'{text}' is not a pattern such as ([0]*3+[1]*58)")
    return value


def _sum(tokens: list[str]) -> tuple[list[int], list[str]]:
    """A sum of products of lists, and the tokens after it."""
    value, tokens = _product(tokens)
    while tokens and tokens[0] == "+":
        more, tokens = _product(tokens[1:])
        value = value + more
    return value, tokens


def _product(tokens: list[str]) -> tuple[list[int], list[str]]:
    """A list, repeated, and the tokens after it."""
    if tokens[0] == "(":
        value, tokens = _sum(tokens[1:])
        closing = ")"
    else:
        end = tokens.index("]")
        if tokens[0] != "[":
            raise ValueError
        value, tokens = [int(token) for token in tokens[1:end] if token != ","], tokens[end:]
        closing = "]"
    if tokens[0] != closing:
        raise ValueError
    tokens = tokens[1:]
    while tokens and tokens[0] == "*":
        times = int(tokens[1])
        if times * len(value) > _LIMIT:
            raise ValueError
        value, tokens = value * times, tokens[2:]
    return value, tokens


def layout_text(counts: Sequence[int], *, mtp: int) -> str:
    """Megatron's pipeline layout of layers per stage: E embedding, t layer, m extra, L loss.

    >>> layout_text([3, 4, 3], mtp=1)
    'Et*3|t*4|t*3mL'
    """
    stages = [f"t*{count}" if count else "" for count in counts]
    stages[0] = "E" + stages[0]
    stages[-1] += "m" * mtp + "L"
    return "|".join(stages)


def layout_counts(text: str, *, where: str) -> list[int]:
    """Layers of each stage of a pipeline layout.

    >>> layout_counts("E|(tt|)*3,tmL", where="--pipeline-model-parallel-layout")
    [0, 2, 2, 2, 1]
    """
    flat = re.sub(r"[\s,]", "", text)
    for pattern in (r"\(([^()]*)\)\*(\d+)", r"([EtmL|])\*(\d+)"):
        while match := re.search(pattern, flat):
            if int(match[2]) * max(1, len(match[1])) + len(flat) > _LIMIT:
                raise ScenarioError(where, f"'{text}' is too long to be a layout")
            flat = flat[: match.start()] + match[1] * int(match[2]) + flat[match.end() :]
    if re.search(r"[^EtmL|]", flat) or not flat:
        raise ScenarioError(where, f"'{text}' is not a layout such as Et*3|t*4|t*3L")
    return [stage.count("t") for stage in flat.split("|")]
