"""A profile with the data sheet and the node link that it is to be applied to, by name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpsim.cost.collectives import suits
from mpsim.cost.derived import profile_of
from mpsim.cost.tables import device_of, link_of
from mpsim.errors import ScenarioError, did_you_mean
from mpsim.spec.cluster import DeviceSpec, LinkSpec
from mpsim.spec.profile import Profile, load_profile, shipped_profiles
from mpsim.spec.zoo import load_entry, names

_BOARD_LINK = "pcie4"
"""Link of a device that no cluster of the zoo has: boards are sold without one of their own."""


@dataclass(frozen=True)
class Silicon:
    """A device, what times its kernels, and the link between devices of a node."""

    profile: Profile
    device: DeviceSpec
    link: LinkSpec | None


def silicon(name: str) -> Silicon:
    """What a name speaks of: a profile (shipped, or a file), or a device of the zoo.

    A device may be named as data files name it: ``h200_sxm`` is ``h200-sxm-141gb``.

    Raises:
        ScenarioError: If the name is neither.
    """
    if name in shipped_profiles() or Path(name).suffix in (".yaml", ".yml"):
        profile = load_profile(name)
        link = link_of(profile.link) if profile.link else None
        return Silicon(profile, device_of(profile), link)
    device = device_named(name)
    if device is None:
        hint = did_you_mean(name, [*shipped_profiles(), *names("devices")])
        known = hint or "; see `mpsim zoo profiles` and `mpsim zoo devices`"
        raise ScenarioError(f"profile '{name}'", f"no such profile or device{known}")
    profile, link = profile_of(device), node_link(device.name) or _link(_BOARD_LINK)
    fit = profile.link
    if link.profile:  # the link was measured itself, with another device
        fit = load_profile(link.profile).link
    elif fit is not None and not suits(fit, link):  # factors of NVLink say nothing of PCIe
        fit = None
    return Silicon(profile.model_copy(update={"link": fit}), device, link)


def device_named(name: str) -> DeviceSpec | None:
    """The device of the zoo that a name speaks of; None if there is none.

    Its own name, that of the profile fitted on it, or the beginning of its name with underscores
    for hyphens.
    """
    known = names("devices")
    plain = name.replace("_", "-").lower()
    if name in shipped_profiles():
        plain = load_profile(name).device
    found = [entry for entry in known if entry == plain] or [
        entry for entry in known if entry.startswith(plain + "-")
    ]
    if not found:
        return None
    return DeviceSpec.model_validate({"name": found[0], **load_entry("devices", found[0])})


def node_link(device: str) -> LinkSpec | None:
    """The link inside the nodes in which a device of the zoo is sold; None if no cluster has it."""
    for link in _links(device):
        return link
    return None


def _links(device: str) -> Iterator[LinkSpec]:
    """Links of the clusters of the zoo with a device, in their order."""
    for name in names("clusters"):
        cluster: dict[str, Any] = load_entry("clusters", name)
        if cluster.get("device") != device:
            continue
        given = cluster["node"]["link"]
        base = given if isinstance(given, str) else given["base"]
        over = {} if isinstance(given, str) else {k: v for k, v in given.items() if k != "base"}
        yield _link(base, **over)


def _link(name: str, **over: object) -> LinkSpec:
    """A link of the zoo, with some fields otherwise."""
    return LinkSpec.model_validate({"name": name, **load_entry("links", name), **over})
