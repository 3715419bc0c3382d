"""YAML text → plain values, guarded against duplicate keys, alias bombs and endless nesting."""

from __future__ import annotations

from typing import Any

import yaml

from mpsim.errors import ScenarioError

_LIMIT = 200_000
"""Values a file may hold with its aliases written out: far above any scenario, far below harm."""

_DEEPEST = 60
"""Levels of nesting; a scenario has fewer than ten."""

_Loader: type = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def parse_yaml(text: str, *, where: str) -> Any:  # noqa: ANN401  (whatever the YAML holds)
    """The value of a YAML text.

    Args:
        text: The YAML.
        where: What messages call it.

    Raises:
        ScenarioError: If it is not YAML, repeats a key, or grows beyond bounds through aliases.
    """
    _check_depth(text, where)
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _check(node, where)
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        raise ScenarioError(where, _explain(error)) from None
    except RecursionError:
        raise ScenarioError(where, "is nested too deeply to be a scenario") from None
    except (ValueError, KeyError, AttributeError) as error:  # dates as 2026-13-45, odd tags
        raise ScenarioError(where, f"has a value that YAML cannot read: {error}") from None
    finally:
        loader.dispose()


def _check_depth(text: str, where: str) -> None:
    """Refuse endless nesting from the flat events, before anything recurses into it."""
    depth = 0
    try:
        for event in yaml.parse(text, Loader=_Loader):
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > _DEEPEST:
                raise ScenarioError(where, "is nested too deeply to be a scenario")
    except yaml.YAMLError as error:
        raise ScenarioError(where, _explain(error)) from None


def _explain(error: yaml.YAMLError) -> str:
    """What is wrong with the YAML, and in which line."""
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error).split("\n")[0]
    place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark is not None else ""
    return f"is not YAML: {place}{problem}"


def _check(root: yaml.Node, where: str) -> None:
    """Refuse repeated keys, aliases to themselves, and more values than the limit."""
    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()

    def size(node: yaml.Node) -> int:
        key = id(node)
        if key in sizes:
            return sizes[key]
        if key in open_nodes:
            raise ScenarioError(where, f"line {node.start_mark.line + 1}: an alias holds itself")
        open_nodes.add(key)
        total = 1
        if isinstance(node, yaml.MappingNode):
            _check_keys(node, where)
            total += sum(size(k) + size(v) for k, v in node.value)
        elif isinstance(node, yaml.SequenceNode):
            total += sum(size(item) for item in node.value)
        open_nodes.discard(key)
        sizes[key] = total
        if total > _LIMIT:
            raise ScenarioError(
                where, f"holds more than {_LIMIT} values once its aliases are written out"
            )
        return total

    size(root)


def _check_keys(node: yaml.MappingNode, where: str) -> None:
    """Refuse a key that stands twice in one mapping, of which YAML would keep the last."""
    seen: dict[str, int] = {}
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode) or key.value == "<<":
            continue
        line = key.start_mark.line + 1
        if key.value in seen:
            raise ScenarioError(
                where, f"line {line}: '{key.value}' stands already in line {seen[key.value]}"
            )
        seen[key.value] = line
