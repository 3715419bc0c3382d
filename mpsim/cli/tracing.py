"""Torch modules in scenarios: traced with torch, which is loaded only then."""

from __future__ import annotations

from pathlib import Path

from mpsim.spec.model import TorchModule
from mpsim.spec.scenario import Scenario


def traced(scenario: Scenario, file: str) -> Scenario:
    """The scenario with its torch module, if it has one, replaced by the network traced from it.

    The module's package is looked for beside the scenario's file first.

    Raises:
        CalibrationError: If torch is not installed.
        ScenarioError: If the module cannot be built or run on the meta device.
    """
    if not isinstance(scenario.model, TorchModule):
        return scenario
    from mpsim.hardware.tracing import trace

    path = Path(file)
    folder = path.parent if path.exists() else Path.cwd()
    return scenario.model_copy(update={"model": trace(scenario.model, folder=folder)})
