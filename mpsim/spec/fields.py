"""The fields of a scenario as a page for people, made from its JSON Schema."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from mpsim.spec.scenario import Scenario

Schema = Mapping[str, Any]


def fields_page() -> str:
    """Markdown: a table of fields for the scenario and for each of its parts."""
    schema = Scenario.model_json_schema()
    parts = {name: part for name, part in schema["$defs"].items() if part.get("properties")}
    tables = [_table("Scenario", schema)]
    tables += [_table(name, part) for name, part in parts.items()]
    return "\n\n".join(tables) + "\n"


def _table(name: str, part: Schema) -> str:
    """One part: its name, what it is, a row a field."""
    rows = ["| field | takes | default | meaning |", "|---|---|---|---|"]
    required = part.get("required", ())
    for field, its in part["properties"].items():
        default = "required" if field in required else _default(its)
        rows.append(f"| `{field}` | {_takes(its)} | {default} | {_meaning(its)} |")
    return f"### {name}\n\n{_meaning(part)}\n\n" + "\n".join(rows)


def _meaning(its: Schema) -> str:
    """The description on one line, without the marks of reStructuredText."""
    text = " ".join(str(its.get("description", "")).split())
    text = text.replace(":func:", "").replace(":class:", "").replace("``", "`")
    return text.replace("|", "\\|")


def _default(its: Schema) -> str:
    """The default; of a part, that it has its own."""
    value = its.get("default")
    if isinstance(value, dict):
        return "its own"
    return f"`{json.dumps(value)}`" if "default" in its else "none"


def _takes(its: Schema) -> str:
    """Values that a field takes."""
    return ", ".join(dict.fromkeys(_kinds(its))) or "any"


def _kinds(its: Schema) -> Iterator[str]:
    """Each kind of value that a schema allows."""
    for key in ("anyOf", "oneOf", "allOf"):
        for one in its.get(key, ()):
            yield from _kinds(one)
    if "$ref" in its:
        name = its["$ref"].rpartition("/")[2]
        yield f"[{name}](#{name.lower()})"
    elif "enum" in its:
        yield from (f"`{value}`" for value in its["enum"])
    elif "const" in its:
        yield f"`{its['const']}`"
    elif its.get("type") == "array":
        yield f"list of {_takes(its.get('items', {}))}"
    elif its.get("type") == "null":
        yield "null"
    elif "type" in its and not {"anyOf", "oneOf", "allOf"} & set(its):
        is_quantity = its["type"] == "string" and its.get("description", "").startswith("quantity")
        yield its["description"].replace("|", "\\|") if is_quantity else str(its["type"])
