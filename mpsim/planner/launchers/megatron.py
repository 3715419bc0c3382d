"""Megatron-LM: a scenario as its arguments, and arguments as a scenario."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mpsim.planner.launchers.formats import Given, Launcher, Tree
from mpsim.planner.launchers.megatron_model import needed, read_model, write_model
from mpsim.planner.launchers.megatron_plan import (
    read_plan,
    read_training,
    write_plan,
    write_training,
)
from mpsim.planner.launchers.megatron_text import parse, render
from mpsim.planner.launchers.options import Options
from mpsim.spec.scenario import Scenario


def write(scenario: Scenario) -> Mapping[str, Any]:
    """Flags that realise a scenario, torchrun's first."""
    return {
        **write_plan(scenario),
        **write_model(scenario),
        **write_training(scenario.training),
    }


def read(options: Options, given: Given) -> Tree:
    """Model, plan and training of flags; the model is theirs, whatever else is given."""
    layers = needed(options, "--num-layers")
    plan = read_plan(options, given, layers=layers)
    return {
        "model": read_model(options, given, tensor=plan["tensor"]),
        "plan": plan,
        "training": read_training(options, data=plan["data"]),
    }


MEGATRON = Launcher(
    name="megatron",
    version="Megatron-LM, megatron/training/arguments.py of core 0.15 (autumn 2025)",
    suffix=".sh",
    write=write,
    render=render,
    parse=parse,
    read=read,
)
