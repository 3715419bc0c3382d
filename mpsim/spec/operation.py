"""How a run is operated: failures, checkpoints, energy; and the clusters that it could run on."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from mpsim.spec.quantities import Bandwidth, Declaration, Seconds, SecondsOrZero, UsdPerJoule


class Operation(Declaration):
    """What happens to a run that lasts for weeks."""

    device_mtbf: Seconds | None = 50676 * 3600.0
    """Mean time between failures that stop the run, of one device with its share of the rest; null:
    nothing fails. Default: 419 unexpected interruptions in 54 days on 16,384 H100 (Llama Team,
    arXiv:2407.21783, section 3.3.4)."""
    restart: SecondsOrZero = 600.0
    """From a failure to the first step after it: detection, replacement, start, loading. Default:
    10 minutes, an assumption to be replaced by one's own."""
    checkpoint_bandwidth: Bandwidth = 122e6
    """Rate at which one device writes its share of a checkpoint. Default: 2 TB/s of storage for
    16,384 devices (arXiv:2407.21783, section 3.3.1)."""
    checkpoint_interval: Seconds | None = None
    """Work between two checkpoints; null: the Young-Daly optimum."""
    pue: Annotated[float, Field(ge=1, le=10)] = 1.56
    """Power of the site over that of its machines. Default: world average of 2024 (Uptime
    Institute, Global Data Center Survey 2024)."""
    host_share: Annotated[float, Field(ge=0, le=10)] = 0.82
    """Power of hosts and network over that of the devices' boards. Default: DGX H100, 10.2 kW for
    8 devices of 700 W (NVIDIA DGX H100 data sheet, 2023)."""
    energy_price: UsdPerJoule = 0.08 / 3.6e6
    """Price of energy. Default: 8 US cents a kWh, an assumption, about what US industry paid in
    2024 (EIA, Electric Power Monthly, table 5.6.B)."""


def _entries(value: Any) -> Any:  # noqa: ANN401  (whatever stands in the YAML)
    """A list of zoo names and mappings."""
    if not isinstance(value, list) or any(not isinstance(one, str | dict) for one in value):
        raise ValueError("is a list of clusters: names of the zoo, or mappings as for 'cluster'")
    return value


Candidates = Annotated[list[Any], BeforeValidator(_entries)]
"""Clusters as a scenario writes them; ``nodes`` may be a list or a range such as 8..64."""
