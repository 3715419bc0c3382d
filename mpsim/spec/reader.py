"""YAML text → Scenario: names of the zoo, ``base:``, overrides, and every complaint at once.

Precedence, weakest first: zoo entries and ``base:``, the file, the variant, ``--set``.
"""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from mpsim.errors import ScenarioError, ScenarioErrors, did_you_mean
from mpsim.spec.model import LAYERS
from mpsim.spec.scenario import Scenario
from mpsim.spec.yaml_text import parse_yaml
from mpsim.spec.zoo import load_entry

Tree = dict[str, Any]

_ZOO_FIELDS = {
    "model": "models",
    "cluster": "clusters",
    "cluster.device": "devices",
    "cluster.node.link": "links",
    "cluster.node.host_link": "links",
    "cluster.network": "links",
}
"""Fields that may be the name of a zoo entry, or build on one with ``base:``; parents first."""

_UNION_TAGS = {"transformer", "network", "torch"}

_LAYER_FIELDS = {name for layer in LAYERS for name in layer.model_fields}
"""Fields of the layers of a network."""


def scenario_folder() -> Path:
    """Where the scenarios that come with mpsim are.

    Installed they are the package ``mpsim.scenarios``; run from a checkout that is not installed,
    the folder beside ``mpsim``.
    """
    try:
        return Path(str(files("mpsim.scenarios")))
    except ModuleNotFoundError:
        return Path(__file__).resolve().parents[2] / "scenarios"


def shipped_scenarios() -> list[str]:
    """File names of the scenarios that come with mpsim."""
    return sorted(path.name for path in scenario_folder().glob("*.yaml"))


def find(path: str | Path) -> Path:
    """The file of a path, or of a bare name among the scenarios that come with mpsim.

    Raises:
        ScenarioError: If there is no such file.
    """
    if not isinstance(path, str | Path):
        raise ScenarioError(
            "", f"a scenario file is named by a text or a path, not by {path!r:.60}"
        )
    given = Path(path)
    if given.is_dir():
        raise ScenarioError(str(path), "is a folder; give a scenario file in it")
    if given.exists():
        return given
    if given.name == str(path):
        for name in (given.name, given.name + ".yaml"):
            shipped = scenario_folder() / name
            if shipped.is_file():
                return shipped
    hint = did_you_mean(given.name, shipped_scenarios())
    raise ScenarioError(str(path), f"no such file{hint}")


def load(path: str | Path, overrides: Mapping[str, Any] | Sequence[str] = ()) -> Scenario:
    """The scenario of a file.

    Args:
        path: A YAML file, or the bare name of a scenario that comes with mpsim.
        overrides: Values by dotted path, or texts ``plan.pipeline=4``; they win over the file.

    Raises:
        ScenarioError: If the file or what it says cannot be meant; all complaints at once.
    """
    return build(read_tree(find(path)), parse_overrides(overrides))


def load_variants(
    path: str | Path, overrides: Mapping[str, Any] | Sequence[str] = ()
) -> list[Scenario]:
    """The scenario of a file and each of its variants, in the order of the file."""
    tree, changes = read_tree(find(path)), parse_overrides(overrides)
    scenarios = [build(tree, changes)]
    for name, variant in scenarios[0].variants.items():
        fields = {**_flatten(variant), **changes, "variant": name}
        try:
            scenarios.append(build(tree, fields))
        except ScenarioError as error:
            raise ScenarioError(f"variants.{name}", str(error)) from None
    return scenarios


def shadowed(scenario: Scenario, overrides: Mapping[str, Any] | Sequence[str]) -> list[str]:
    """What overrides take from variants, as text: the fields that both set."""
    changes = parse_overrides(overrides)
    return [
        f"--set {path} also replaces what variant '{name}' sets"
        for name, variant in scenario.variants.items()
        for path in changes
        if path in _flatten(variant)
    ]


def parse_overrides(overrides: Mapping[str, Any] | Sequence[str]) -> Tree:
    """Values by dotted path, from texts such as ``plan.pipeline=4``.

    >>> parse_overrides(["plan.pipeline=4", "cluster.network.bandwidth=50 GB/s"])
    {'plan.pipeline': 4, 'cluster.network.bandwidth': '50 GB/s'}
    """
    if isinstance(overrides, Mapping):
        return dict(overrides)
    found: Tree = {}
    for text in overrides:
        path, equals, value = text.partition("=")
        if not equals or not path.strip():
            raise ScenarioError(f"--set {text}", "write it as path=value, as in plan.pipeline=4")
        found[path.strip()] = parse_yaml(value, where=f"--set {path}")
    return found


def read_tree(path: Path) -> Tree:
    """The mapping of a file, its top-level ``base:`` file merged beneath it."""
    tree = parse_yaml(_text(path), where=path.name)
    if not isinstance(tree, dict):
        raise ScenarioError(path.name, "a scenario is a mapping with model, cluster and training")
    _place_schedule(tree, path.parent)
    base = tree.pop("base", None)
    if base is None:
        return tree
    beside = path.parent / str(base)
    if beside.resolve() == path.resolve():
        raise ScenarioError(f"{path.name}: base", "a scenario cannot build on itself")
    below = read_tree(beside if beside.exists() else find(str(base)))
    merged: Tree = merge({k: v for k, v in below.items() if k != "variants"}, tree)
    return merged


def _place_schedule(tree: Tree, folder: Path) -> None:
    """A schedule that is a CSV file is meant beside the scenario's file, as ``base:`` is."""
    plan = tree.get("plan")
    if not isinstance(plan, dict):
        return
    name = plan.get("schedule")
    if isinstance(name, str) and name.endswith(".csv") and (folder / name).is_file():
        tree["plan"] = {**plan, "schedule": str(folder / name)}


def build(tree: Tree, overrides: Mapping[str, Any] = types.MappingProxyType({})) -> Scenario:
    """The scenario of a mapping as YAML gives it.

    Raises:
        ScenarioErrors: With one entry for each complaint.
    """
    tree = declared(tree, overrides)
    try:
        return Scenario.model_validate(tree)
    except ValidationError as error:
        raise ScenarioErrors(_complaints(error)) from None


def declared(tree: Tree, overrides: Mapping[str, Any] = types.MappingProxyType({})) -> Tree:
    """The mapping with zoo names written out and overrides laid over it; nothing is checked."""
    tree = _expand(tree)
    for given, value in overrides.items():
        path = given.removesuffix(".base")
        if path not in _ZOO_FIELDS:  # another entry's name takes the place of the whole entry
            path = given
        tree = _expand(_replace(tree, path.split("."), value, path))
    return tree


def merge(below: Any, above: Any) -> Any:  # noqa: ANN401  (YAML values)
    """Mappings merged key by key; anything else: the upper one."""
    if isinstance(above, dict) and isinstance(below, str):
        below = {"base": below}
    if not (isinstance(above, dict) and isinstance(below, dict)):
        return above
    if "base" in above:  # another entry to build on: nothing of the lower one is meant
        return above
    return {**below, **{key: merge(below.get(key), value) for key, value in above.items()}}


def _text(path: Path) -> str:
    """The text of a file, with its size checked before it is read."""
    limit = 2 * 2**20
    try:
        if path.stat().st_size > limit:
            size = path.stat().st_size / 2**20
            raise ScenarioError(path.name, f"{size:.0f} MiB is no scenario; at most 2 MiB are read")
        with path.open("rb") as file:  # devices and pipes have no size: read no more than that
            data = file.read(limit + 1)
        if len(data) > limit:
            raise ScenarioError(path.name, "is no scenario; at most 2 MiB are read")
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except OSError as error:
        raise ScenarioError(str(path), f"cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ScenarioError(path.name, "is not text (UTF-8)") from None


def _expand(tree: Tree) -> Tree:
    """The mapping with zoo names replaced by their entries, outermost first."""
    for path, kind in _ZOO_FIELDS.items():
        *parents, last = path.split(".")
        node: Any = tree
        for key in parents:
            node = node.get(key) if isinstance(node, dict) else None
        if not isinstance(node, dict):
            continue
        value = node.get(last)
        if isinstance(value, str) or (isinstance(value, dict) and "base" in value):
            tree = _replace(tree, [*parents, last], _entry(kind, value, path), path)
    return tree


def _entry(kind: str, value: str | Tree, path: str) -> Tree:
    """A zoo entry by name, with the fields given beside ``base:`` laid over it."""
    name = value if isinstance(value, str) else value["base"]
    rest = {} if isinstance(value, str) else {k: v for k, v in value.items() if k != "base"}
    try:
        entry = load_entry(kind, str(name))
    except ScenarioError as error:
        raise ScenarioError(path, error.what) from None
    named = {"name": str(name)} | entry if kind != "prices" else entry
    merged: Tree = merge(named, rest)
    return merged


def _replace(tree: Any, path: Sequence[str], value: Any, whole: str) -> Any:  # noqa: ANN401
    """A copy of the tree with the value at a path."""
    head, *rest = path
    if isinstance(tree, list):
        if not head.isdigit() or int(head) >= len(tree):
            raise ScenarioError(whole, f"'{head}' is not an index into the {len(tree)} entries")
        new = list(tree)
        new[int(head)] = _replace(tree[int(head)], rest, value, whole) if rest else value
        return new
    if isinstance(tree, str):
        tree = {"base": tree}
    if tree is None:
        tree = {}
    if not isinstance(tree, dict):
        raise ScenarioError(whole, f"'{head}' is below a plain value")
    inner = _replace(tree.get(head), rest, value, whole) if rest else value
    return {**tree, head: inner}


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Tree:
    """Dotted paths of a nested mapping; an entry with ``base:`` is replaced as a whole."""
    flat: Tree = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value and "base" not in value:
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _complaints(error: ValidationError) -> list[ScenarioError]:
    """One error for each complaint of pydantic, in mpsim's words."""
    found = []
    for item in error.errors(include_url=False):
        place = _place(item["loc"])
        what = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            what = "unknown field" + _near_field(place, item["loc"])
        elif item["type"] == "missing":
            what = "is missing"
        elif item["type"] == "union_tag_invalid":
            known = [tag.strip(" '") for tag in item["ctx"]["expected_tags"].split(",")]
            tag = item["ctx"]["tag"]
            place = [part for part in place if part != tag]
            place.append(item["ctx"]["discriminator"].strip("'"))
            what = f"no '{tag}'" + (did_you_mean(tag, known) or f"; known: {', '.join(known)}")
        elif item["type"] in ("value_error",) and not place:
            found += [_split(line) for line in what.split("\n")]
            continue
        else:
            what = _plain(what, item.get("input"), item["type"])
        found.append(ScenarioError(".".join(place), what))
    return found


def _place(location: Sequence[str | int]) -> list[str]:
    """Dotted path of a complaint: pydantic's, without the tag of the model's kind."""
    place = [str(part) for part in location if part != "[key]"]  # pydantic's mark of a bad key
    if place[:1] == ["model"] and place[1:2] and place[1] in _UNION_TAGS:
        del place[1]
    if place[:2] == ["model", "network"] and place[3:4] and place[3] not in _LAYER_FIELDS:
        del place[3]  # the tag of the layer's type
    return place


def _near_field(place: Sequence[str], location: Sequence[str | int]) -> str:
    """A near miss among the fields that stand there, or a part of the scenario that has it."""
    hint = did_you_mean(place[-1], _fields_at(location[:-1]))
    if hint or len(place) > 1:
        return hint
    for part in ("plan", "training", "cluster", "model"):
        if place[0] in _fields_at((part,)):
            return f"; did you mean '{part}.{place[0]}'?"
    return ""


def _split(line: str) -> ScenarioError:
    """An error from a line ``where: what`` of a check across models."""
    where, _, what = line.partition(": ")
    return ScenarioError(where, what)


def _plain(message: str, value: Any, kind: str) -> str:  # noqa: ANN401
    """Pydantic's message with the value that it is about."""
    if kind == "value_error" or isinstance(value, dict | list):
        return message
    if value == "auto":
        return "is left open ('auto'): `mpsim plan` searches it"
    text = f"'{value}'" if isinstance(value, str) else f"{value}"
    return f"{message[0].lower()}{message[1:]}, not {text}"


def _fields_at(location: Sequence[str | int]) -> list[str]:
    """Names of the fields that stand at a place of a scenario."""
    model: Any = Scenario
    for part in location:
        if isinstance(part, int) or not (isinstance(model, type) and issubclass(model, BaseModel)):
            continue
        if part in model.model_fields:
            options = _models(model.model_fields[part].annotation)
            model = options[0] if len(options) == 1 else options
        continue
    if isinstance(model, list):
        tag = next((str(part) for part in reversed(location) if part in _UNION_TAGS), "")
        chosen = [option for option in model if option.__name__.lower().startswith(tag)]
        model = chosen[0] if chosen else Scenario
    if isinstance(model, type) and issubclass(model, BaseModel):
        return list(model.model_fields)
    return []


def _models(annotation: Any) -> list[type[BaseModel]]:  # noqa: ANN401
    """The declarations inside an annotation."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _models(get_args(annotation)[0])
    if origin in (Union, types.UnionType, list):
        return [model for arg in get_args(annotation) for model in _models(arg)]
    return (
        [annotation] if isinstance(annotation, type) and issubclass(annotation, BaseModel) else []
    )


def to_yaml(scenario: Scenario) -> str:
    """The scenario as YAML that :func:`load` reads back to an equal one."""
    tree = scenario.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


def changed(scenario: Scenario, fields: Mapping[str, Any]) -> Scenario:
    """The scenario with some fields replaced, by dotted path; all checks are made again.

    Raises:
        ScenarioError: If the changed scenario cannot be meant.
    """
    return build(scenario.model_dump(mode="json", exclude={"variants"}), fields)
