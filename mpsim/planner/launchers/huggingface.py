"""A Hugging Face ``config.json`` as a scenario: the model's dimensions, the rest assumed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mpsim.errors import ScenarioError, did_you_mean
from mpsim.planner.launchers.deepspeed import parse_json
from mpsim.planner.launchers.formats import Given, Launcher, Tree
from mpsim.planner.launchers.huggingface_families import ALIASES, FAMILIES, dimension
from mpsim.planner.launchers.options import Options, flatten
from mpsim.spec.scenario import Scenario

_NEEDED = ("layers", "hidden", "heads", "vocab")
_WITHOUT_EFFECT = (
    *("architectures", "transformers_version", "torch_dtype", "dtype", "use_cache", "auto_map"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "initializer_range", "_name_or_path"),
    *("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "rope_theta"),
    *("hidden_act", "hidden_activation", "activation_function", "model_type", "pretraining_tp"),
)
"""Entries that change neither size nor time."""


def looks_like(tree: Mapping[str, Any]) -> bool:
    """Whether a JSON object is a model's configuration."""
    return "model_type" in tree or ("architectures" in tree and "vocab_size" in tree)


def parse(text: str) -> dict[str, Any]:
    """Entries of a configuration; a text model nested in it (``text_config``) is the one meant."""
    tree = parse_json(text)
    inner = tree.get("text_config")
    if isinstance(inner, dict) and "hidden_size" in inner:
        tree = inner
    return flatten(tree)


def read_model(options: Options) -> Tree:
    """The transformer of a configuration.

    Raises:
        ScenarioError: If the type of model is not known, or a dimension is missing.
    """
    for name in _WITHOUT_EFFECT:
        options.has(name)
    kind = str(options.raw("model_type", ""))
    if kind not in FAMILIES:
        hint = did_you_mean(kind, FAMILIES) or f"; known are {', '.join(FAMILIES)}"
        raise ScenarioError("model_type", f"'{kind}' is not a model that mpsim can read{hint}")
    family = FAMILIES[kind]
    tree: Tree = {name: dimension(options, name) for name in ALIASES}
    missing = [ALIASES[name][0] for name in _NEEDED if tree[name] is None]
    if missing:
        raise ScenarioError(missing[0], f"is missing from the configuration of a '{kind}' model")
    tree |= {"tied_embeddings": options.flag("tie_word_embeddings", default=family.tied)}
    tree |= family.traits | family.more(options)
    if tree.get("position", "learned") != "learned":
        tree["positions"] = None
    _fold(tree)
    name = str(options.raw("_name_or_path", "") or kind)
    return {"name": name} | {key: value for key, value in tree.items() if value is not None}


def _fold(tree: Tree) -> None:
    """Drop what says the default: heads as wide as hidden / heads, as many for keys."""
    if tree["kv_heads"] == tree["heads"]:
        tree["kv_heads"] = None
    if tree["head_dim"] and tree["head_dim"] * tree["heads"] == tree["hidden"]:
        tree["head_dim"] = None
    if tree["ffn"] == 4 * tree["hidden"]:
        tree["ffn"] = None


def read(options: Options, given: Given) -> Tree:
    """The model, on all devices as replicas, one sequence each; all but the model is assumed."""
    model = read_model(options)
    devices = given.devices or 1
    sequence = dimension(options, "positions")
    if sequence is not None:
        options.assume(f"training.sequence = {sequence}: the longest that the model is made for")
    options.assume(f"plan.data = {devices}: a model's configuration has no plan")
    options.assume(f"training.global_batch = {devices}: one sequence on each replica")
    return {
        "model": model,
        "plan": {"data": devices},
        "training": {
            "global_batch": devices,
            "microbatch": 1,
            **({"sequence": sequence} if sequence is not None else {}),
        },
    }


def write(scenario: Scenario) -> Mapping[str, Any]:
    """Refused: a model's configuration launches nothing."""
    raise ScenarioError("--to", "huggingface describes a model and launches nothing")


def render(entries: Mapping[str, Any], comments: Sequence[str]) -> str:
    """Refused, as :func:`write`."""
    raise ScenarioError("--to", "huggingface describes a model and launches nothing")


HUGGINGFACE = Launcher(
    name="huggingface",
    version="transformers 4.57 (October 2025): config.json",
    suffix=".json",
    write=write,
    render=render,
    parse=parse,
    read=read,
)
