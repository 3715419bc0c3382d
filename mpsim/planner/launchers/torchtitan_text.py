"""A torchtitan job configuration as TOML ↔ entries by dotted name."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any

from mpsim.errors import ScenarioError
from mpsim.planner.launchers.options import flatten, nest

_SECTIONS = ("parallelism", "training", "activation_checkpoint", "model", "job")


def looks_like(text: str) -> bool:
    """Whether a text has a section of torchtitan's job configuration."""
    names = "|".join(_SECTIONS)
    return re.search(rf"^\s*\[({names})\]", text, re.MULTILINE) is not None


def parse(text: str) -> dict[str, Any]:
    """Entries such as ``training.seq_len`` of a TOML text.

    Raises:
        ScenarioError: If the text is not TOML.
    """
    try:
        return flatten(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise ScenarioError("job configuration", f"is not TOML: {error}") from None
    except RecursionError:
        raise ScenarioError("job configuration", "is nested too deeply") from None


def render(entries: Mapping[str, Any], comments: Sequence[str]) -> str:
    """TOML with a section for each first word, comments above it."""
    lines = [f"# {line}" for line in comments]
    for section, values in nest({k: v for k, v in entries.items() if v is not None}).items():
        lines += ["", f"[{section}]"]
        lines += [f"{name} = {_value(value)}" for name, value in values.items()]
    return "\n".join(lines).lstrip("\n") + "\n"


def _value(value: Any) -> str:  # noqa: ANN401  (a TOML value)
    """A value as TOML: a JSON one, but for infinity."""
    if isinstance(value, list) and value and isinstance(value[0], list):
        return "[\n" + "".join(f"    {_value(item)},\n" for item in value) + "]"
    if isinstance(value, float) and value == float("inf"):
        return "inf"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
