"""What a launcher is to mpsim: one way to write a scenario, and one to read it back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mpsim.errors import ScenarioError
from mpsim.planner.launchers.options import Options
from mpsim.spec.scenario import Scenario

Tree = dict[str, Any]
"""Part of a scenario as YAML gives it."""


@dataclass(frozen=True)
class Given:
    """What the user says beside the file.

    Attributes:
        devices: Devices of the cluster; None where none is named.
        model: Name or fields of the model; None where none is named.
        fields: Values by dotted path that win over the file's.
    """

    devices: int | None = None
    model: str | Tree | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Launcher:
    """A launcher's format.

    Attributes:
        name: What ``--to`` and ``--from`` call it.
        version: Which version of the launcher the names are those of.
        suffix: Of its files.
        write: Entries of a scenario, by name.
        render: Text of entries, with comment lines before them where the format has comments.
        parse: Entries of a text; raises :class:`ScenarioError` where it is not of the format.
        read: Model, plan and training of entries.
        silent: Fields that the format has no word for, so that importing needs them from elsewhere.
    """

    name: str
    version: str
    suffix: str
    write: Callable[[Scenario], Mapping[str, Any]]
    render: Callable[[Mapping[str, Any], Sequence[str]], str]
    parse: Callable[[str], dict[str, Any]]
    read: Callable[[Options, Given], Tree]
    silent: Callable[[Scenario], Sequence[str]] = lambda scenario: ()


def present(entries: Mapping[str, Any]) -> dict[str, Any]:
    """The entries that say something: not null, not false."""
    return {
        name: value for name, value in entries.items() if value is not None and value is not False
    }


def data_degree(options: Options, given: Given, *, others: Mapping[str, int]) -> int:
    """Data-parallel degree that the cluster's devices leave, with the other degrees by name.

    Where no devices are known, or fewer than one replica takes, one replica is assumed.

    Raises:
        ScenarioError: If the other degrees do not divide the devices.
    """
    product = 1
    for degree in others.values():
        product *= degree
    if given.devices is None:
        options.assume("plan.data = 1: the file does not say how many devices there are")
        return 1
    if product > given.devices and product % given.devices == 0:
        options.assume(f"plan.data = 1: one replica takes {product} devices")
        return 1
    if given.devices % product:
        names = " x ".join(f"{name} ({degree})" for name, degree in others.items())
        raise ScenarioError(
            "plan", f"{names} = {product} does not divide the {given.devices} devices"
        )
    return given.devices // product
