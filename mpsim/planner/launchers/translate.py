"""Scenario → a launcher's file and back, with everything that is lost on the way named.

What a file does not express is found by reading it back: fields that do not return are lost. No
list of them is kept by hand, so none can be forgotten.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import yaml

from mpsim.errors import ScenarioError, did_you_mean
from mpsim.planner.launchers import deepspeed, huggingface, megatron_text, torchtitan_text
from mpsim.planner.launchers.deepspeed import DEEPSPEED
from mpsim.planner.launchers.fields import Lost, fields_of, lost_between, training_fields
from mpsim.planner.launchers.formats import Given, Launcher, Tree
from mpsim.planner.launchers.huggingface import HUGGINGFACE
from mpsim.planner.launchers.megatron import MEGATRON
from mpsim.planner.launchers.options import Options
from mpsim.planner.launchers.torch_pipelining import CSV_NAME, pipelining_files
from mpsim.planner.launchers.torchtitan import TORCHTITAN
from mpsim.spec.plan import TrainingSpec
from mpsim.spec.reader import build
from mpsim.spec.scenario import Disturbance, Scenario
from mpsim.spec.zoo import load_entry

LAUNCHERS = {launcher.name: launcher for launcher in (MEGATRON, TORCHTITAN, DEEPSPEED, HUGGINGFACE)}
"""Formats that can be read; all but Hugging Face's can be written."""

TARGETS = ("megatron", "torchtitan", "deepspeed", "torch-pipelining")
"""What a scenario can be exported to."""

_FILE = "file"
"""What complaints call a text whose file is not named."""

DEFAULT_CLUSTER = "dgx-a100-80gb"
"""Cluster of an imported scenario where none is named; said to the user as assumed."""


@dataclass(frozen=True)
class Exported:
    """Files that realise a scenario.

    Attributes:
        files: Text by suffix (``.sh``, ``.toml``, ``.json``; ``.csv`` and ``.py``).
        lost: What they do not express.
    """

    files: Mapping[str, str]
    lost: tuple[Lost, ...]


@dataclass(frozen=True)
class Imported:
    """A scenario read from a launcher's file.

    Attributes:
        launcher: Whose file it is.
        scenario: The scenario.
        tree: The same as YAML has it, names of the zoo kept.
        assumed: What the file does not say and was made up, or was read as something near.
        unread: Entries of the file that say nothing to mpsim.
    """

    launcher: str
    scenario: Scenario
    tree: Tree
    assumed: tuple[str, ...]
    unread: tuple[str, ...]

    def to_yaml(self) -> str:
        """The scenario as YAML, with what was assumed and what was not read in comments."""
        notes = [f"read from {LAUNCHERS[self.launcher].version}"]
        notes += [f"assumed: {text}" for text in self.assumed]
        notes += [f"not read: {', '.join(self.unread)}"] if self.unread else []
        body = yaml.safe_dump(self.tree, sort_keys=False, allow_unicode=True)
        return "".join(f"# {line}\n" for note in notes for line in note.splitlines()) + body


def export_scenario(scenario: Scenario, target: str, *, csv_name: str | None = None) -> Exported:
    """The files of a launcher that realise a scenario, and what they do not express.

    Args:
        scenario: What is to be run.
        target: One of ``TARGETS``.
        csv_name: What torch-pipelining's script calls the schedule beside it; None: its default.

    Raises:
        ScenarioError: If the target is not known, or cannot train such a model at all.
    """
    if target not in TARGETS:
        hint = did_you_mean(target, TARGETS)
        raise ScenarioError("--to", f"'{target}' is not one of {', '.join(TARGETS)}{hint}")
    if target == "torch-pipelining":
        files, lost = pipelining_files(scenario, csv_name=csv_name or CSV_NAME)
        lost = [*lost, *_beside_the_plan(scenario)]
        comments = "".join(f"# {line}\n" for line in _header(scenario, "", lost))
        return Exported({**files, ".py": comments + files[".py"]}, tuple(lost))
    launcher = LAUNCHERS[target]
    entries = launcher.write(scenario)
    lost = _lost(scenario, launcher, entries)
    text = launcher.render(entries, _header(scenario, launcher.version, lost))
    return Exported({launcher.suffix: text}, tuple(lost))


def _header(scenario: Scenario, version: str, lost: list[Lost]) -> list[str]:
    """The comment lines of a file: what it is, and what it does not express."""
    lines = [f"{scenario.name}, by mpsim{' for ' + version if version else ''}"]
    lines += [f"not expressed: {item}" for item in lost]
    return [_one_line(line) for line in lines]


def _one_line(text: str) -> str:
    """The text without what would end a comment or break its file."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _lost(scenario: Scenario, launcher: Launcher, entries: Mapping[str, Any]) -> list[Lost]:
    """The fields that do not return when the entries are read back."""
    silent = launcher.silent(scenario)
    dump = scenario.model_dump(mode="json")
    given = Given(scenario.cluster.devices, dump["model"] if "model" in silent else None)
    # what a text holds, not what was written: false and null entries are not in it
    options = Options(launcher.parse(launcher.render(entries, [])))
    tree = launcher.read(options, given)
    if "training.sequence" in silent:
        tree["training"]["sequence"] = scenario.training.sequence
    tree["cluster"] = _fitted(dump["cluster"], _devices(tree), assumed=[])
    returned = build(tree)
    lost = lost_between(fields_of(scenario), fields_of(returned))
    values = {"model": scenario.model.name, "training.sequence": scenario.training.sequence}
    lost += [Lost(path, values[path], None) for path in silent]
    return [*lost, *_beside_the_plan(scenario)]


def _beside_the_plan(scenario: Scenario) -> list[Lost]:
    """The cluster, which a launcher finds rather than makes, and what only predictions need."""
    lost = [Lost("cluster", scenario.cluster.name, None)]
    if scenario.disturbance != Disturbance():
        lost.append(Lost("disturbance", scenario.disturbance.model_dump(), None))
    if scenario.seed:
        lost.append(Lost("seed", scenario.seed, None))
    if scenario.variants:
        lost.append(Lost("variants", ", ".join(scenario.variants), None))
    return lost


def guess_launcher(text: str) -> str:
    """Whose file a text is.

    Raises:
        ScenarioError: If it looks like none that can be read.
    """
    if text.lstrip().startswith(("{", "[")) and not torchtitan_text.looks_like(text):
        tree = deepspeed.parse_json(text)
        if huggingface.looks_like(tree):
            return "huggingface"
        if deepspeed.looks_like(tree):
            return "deepspeed"
    elif torchtitan_text.looks_like(text):
        return "torchtitan"
    elif megatron_text.looks_like(text):
        return "megatron"
    raise ScenarioError(
        _FILE,
        "is none of Megatron-LM arguments, a torchtitan TOML, a DeepSpeed JSON and a Hugging Face "
        "config.json; if it is one, say which with --from",
    )


def import_text(
    text: str,
    *,
    source: str | None = None,
    name: str | None = None,
    cluster: str | Tree | None = None,
    model: str | Tree | None = None,
    fields: Mapping[str, Any] | None = None,
) -> Imported:
    """The scenario of a launcher's file.

    Args:
        text: What the file holds.
        source: One of ``LAUNCHERS``; None: guessed from the text.
        name: Of the file, for complaints about its text; None: they name no file.
        cluster: Name of the zoo, or fields; its nodes are made as many as the plan needs.
        model: Name of the zoo, or fields, for formats that do not describe the model.
        fields: Values by dotted path that win over the file's.

    Raises:
        ScenarioError: If the text is not of the format, or what it says cannot be meant.
    """
    with said_of(name):
        source = source or guess_launcher(text)
    if source not in LAUNCHERS:
        hint = did_you_mean(source, LAUNCHERS)
        raise ScenarioError("--from", f"'{source}' is not one of {', '.join(LAUNCHERS)}{hint}")
    launcher = LAUNCHERS[source]
    with said_of(name):
        options = Options(launcher.parse(text))
    nodes = (fields or {}).get("cluster.nodes")
    if isinstance(nodes, int) and cluster is not None:
        cluster = ({"base": cluster} if isinstance(cluster, str) else cluster) | {"nodes": nodes}
    devices = _cluster_devices(cluster) if cluster is not None else None
    with said_of(name):
        read = launcher.read(options, Given(devices, model, fields or {}))
    tree: Tree = {"name": f"from {source}", **read}
    if "sequence" not in tree["training"] and "training.sequence" not in (fields or {}):
        tree["training"]["sequence"] = _sequence(tree["model"], options.assumed)
    if cluster is None:
        options.assume(f"cluster = {DEFAULT_CLUSTER}: the file names none (see --cluster)")
    chosen = {"base": DEFAULT_CLUSTER} if cluster is None else cluster
    tree["cluster"] = _fitted(chosen, _devices(tree), assumed=options.assumed)
    tree = _compact(build(tree, fields or {}), tree, changed=fields or {})
    return Imported(source, build(tree), tree, tuple(options.assumed), tuple(options.unread))


@contextmanager
def said_of(name: str | None) -> Iterator[None]:
    """Let complaints about a text begin with the name of its file."""
    try:
        yield
    except ScenarioError as error:
        if name is None:
            raise
        where = name if error.where in ("", _FILE) else f"{name}: {error.where}"
        raise ScenarioError(where, error.what) from None


def _sequence(model: Any, assumed: list[str]) -> int:  # noqa: ANN401  (a name or fields)
    """Tokens of a sample where the file has no word for them: the model's positions, or 2048."""
    name = model if isinstance(model, str) else model.get("base")
    tree = (load_entry("models", name) if name else {}) | ({} if isinstance(model, str) else model)
    sequence = int(tree.get("positions") or 2048)
    assumed.append(f"training.sequence = {sequence}: the file has no word for it")
    return sequence


def _devices(tree: Tree) -> int:
    """Devices that the plan of a tree needs."""
    plan = tree["plan"]
    return math.prod(int(plan.get(axis, 1)) for axis in ("tensor", "pipeline", "data", "context"))


def _cluster_tree(cluster: str | Tree) -> Tree:
    """Fields of a cluster by name or with a base."""
    name = cluster if isinstance(cluster, str) else cluster.get("base")
    entry = load_entry("clusters", name) if name else {}
    return entry | ({} if isinstance(cluster, str) else cluster)


def _per_node(cluster: str | Tree) -> int:
    node = _cluster_tree(cluster).get("node")
    return int(node.get("devices", 8)) if isinstance(node, dict) else 8


def _cluster_devices(cluster: str | Tree) -> int:
    """Devices of a cluster by name, or with a base, or by its fields."""
    return int(_cluster_tree(cluster).get("nodes", 1)) * _per_node(cluster)


def _fitted(cluster: str | Tree, devices: int, *, assumed: list[str]) -> str | Tree:
    """The cluster with as many nodes as the devices need; nodes that would not fill are cut."""
    if _cluster_devices(cluster) == devices:
        return cluster
    each = math.gcd(_per_node(cluster), devices)
    nodes = devices // each
    assumed.append(f"cluster: {nodes} nodes of {each} devices, as many as the plan needs")
    tree: Tree = {"base": cluster} if isinstance(cluster, str) else dict(cluster)
    if each != _per_node(cluster):
        tree["node"] = {**(tree.get("node") or {}), "devices": each}
    return tree | {"nodes": nodes}


def _short(training: Tree) -> Tree:
    """The fields of the training without those that say what their default would mean."""
    meant = training_fields(TrainingSpec.model_validate(training))
    for key in ("master_weights", "gradient_type", "parameter_type"):
        rest = {name: value for name, value in training.items() if name != key}
        if training_fields(TrainingSpec.model_validate(rest)) == meant:
            training = rest
    return training


def _compact(scenario: Scenario, tree: Tree, *, changed: Mapping[str, Any]) -> Tree:
    """The scenario's fields that are not defaults, with the names of the zoo that were given.

    A part in which a field was ``changed`` is written out.
    """
    dump = scenario.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    for part in ("model", "cluster"):
        written = tree[part]
        touched = any(path.split(".")[0] == part for path in changed if path != "cluster.nodes")
        if not touched and (isinstance(written, str) or "base" in written):
            dump[part] = written
    dump["training"] = _short(dump["training"])
    return dump
