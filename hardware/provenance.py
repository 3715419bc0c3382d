"""What ``machine.yaml`` says: on what, with what and when something was measured."""

from __future__ import annotations

import datetime
import platform
from pathlib import Path
from typing import Any

import torch

from .devices import Placement, find_devices


def describe_machine(placement: Placement) -> dict[str, Any]:
    """The machine and its software, before anything is measured."""
    found = find_devices()
    names = [
        found.cpu if device == "cpu" else torch.cuda.get_device_name(device)
        for device in placement.devices
    ]
    return {
        "device": " + ".join(dict.fromkeys(names)),
        "devices": names,
        "count": len(names),
        "workers": list(placement.devices),
        "backend": placement.backend,
        "link": placement.link,
        "cores": len(found.cores),
        "torch": str(torch.__version__),
        "cuda": torch.version.cuda,
        "driver": _driver(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "date": datetime.datetime.now(tz=datetime.UTC).isoformat(timespec="seconds"),
    }


def _driver() -> str | None:
    """Version of the NVIDIA driver; None where there is none."""
    path = Path("/proc/driver/nvidia/version")
    return path.read_text(encoding="utf-8").splitlines()[0] if path.exists() else None
