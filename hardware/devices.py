"""What there is to measure on, and which workers to start on it."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mpsim.errors import CalibrationError, ScenarioError

_DEVICE = re.compile(r"cpu|cuda(?::(\d+))?")
_OPTION = "--devices"
_NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four"}


@dataclass(frozen=True)
class Machine:
    """Devices of this machine, as far as torch and the system tell."""

    gpus: tuple[str, ...]  # names by CUDA index
    cores: tuple[int, ...]  # CPU cores that this process may use
    peer_access: bool = False  # whether GPU 0 reads the memory of GPU 1 (NVLink or PCIe peer)
    cpu: str = "CPU"


@dataclass(frozen=True)
class Worker:
    """A process to be started: its rank, its device, the cores it is pinned to."""

    rank: int
    device: str  # cpu, cuda:0, ...
    cores: tuple[int, ...] = ()


@dataclass(frozen=True)
class Placement:
    """Workers that a run is made with, and what joins them."""

    workers: tuple[Worker, ...]
    backend: str  # nccl, or gloo
    link: str  # peer, host, memory, loopback
    warning: str = ""  # what a user who expected two GPUs must know; empty: nothing

    @property
    def devices(self) -> tuple[str, ...]:
        """Device of each worker."""
        return tuple(worker.device for worker in self.workers)

    @property
    def describes(self) -> str:
        """The placement in one line."""
        names = {
            "peer": "NVLink or PCIe peer access",
            "host": "PCIe through host memory",
            "memory": "memory of one GPU through host memory",
            "loopback": "loopback",
        }
        return f"{' + '.join(self.devices)}, {self.backend} over {names[self.link]}"


def find_devices() -> Machine:
    """The GPUs and cores of this machine."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if hasattr(os, "sched_getaffinity"):
        cores = tuple(sorted(os.sched_getaffinity(0)))
    else:
        cores = tuple(range(os.cpu_count() or 1))
    return Machine(
        gpus=tuple(torch.cuda.get_device_name(index) for index in range(count)),
        cores=cores,
        peer_access=count > 1 and torch.cuda.can_device_access_peer(0, 1),
        cpu=_cpu_name(),
    )


def _cpu_name() -> str:
    """The processor as the system names it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123  (not on every system)
            names = [line.partition(":")[2].strip() for line in file if "model name" in line]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def parse_devices(text: str, machine: Machine, *, count: int | None = None) -> tuple[str, ...]:
    """The devices of a list such as ``cuda:0,cuda:1`` or ``cuda:0,cpu``.

    Args:
        text: The list.
        machine: What there is.
        count: How many there must be; None: two or more.

    Raises:
        ScenarioError: If a name is not a device, or the machine does not have it, or there are too
            few or too many.
    """
    devices = []
    for name in (part.strip() for part in text.split(",")):
        match = _DEVICE.fullmatch(name)
        if match is None:
            raise ScenarioError(
                _OPTION, f"'{name}' is not a device; write cpu or cuda:N, as in cuda:0,cuda:1"
            )
        index = int(match.group(1) or 0)
        if name != "cpu" and index >= len(machine.gpus):
            has = f"{len(machine.gpus)} GPUs" if machine.gpus else "no GPU that torch can use"
            raise ScenarioError(_OPTION, f"{name} is not there; this machine has {has}")
        devices.append("cpu" if name == "cpu" else f"cuda:{index}")
    one = devices[0]
    if len(devices) == 1 and count in (None, 2):
        mixed = "" if one == "cpu" else f"{one},cpu, or "
        raise ScenarioError(
            _OPTION,
            f"'{one}' is one device, but two workers are needed; write {mixed}{one},{one} for two "
            "processes on it",
        )
    if count is not None and len(devices) != count:
        wanted, given = (_NUMBERS.get(number, str(number)) for number in (count, len(devices)))
        raise ScenarioError(_OPTION, f"{wanted}, not {given}: {','.join(devices)}")
    return tuple(devices)


def choose_devices(machine: Machine) -> tuple[str, ...]:
    """Two devices for two workers: two GPUs, else one GPU and the CPU, else the CPU twice."""
    if len(machine.gpus) >= 2:
        return ("cuda:0", "cuda:1")
    return ("cuda:0", "cpu") if machine.gpus else ("cpu", "cpu")


def place(devices: Sequence[str], machine: Machine) -> Placement:
    """Workers on these devices, with their backend and the cores they are pinned to.

    NCCL needs a GPU of its own for each worker; all else goes over gloo, tensors of a GPU staged
    through host memory.

    Raises:
        CalibrationError: If there is no device.
    """
    if not devices:
        raise CalibrationError("no device to place a worker on")
    gpus = [device for device in devices if device != "cpu"]
    alone = len(gpus) == len(devices) == len(set(gpus))
    shares = _deal_cores(machine.cores, len(devices))
    workers = tuple(
        Worker(rank, device, cores)
        for rank, (device, cores) in enumerate(zip(devices, shares, strict=True))
    )
    if alone and len(gpus) > 1:
        link = "peer" if machine.peer_access else "host"
        return Placement(workers, "nccl", link)
    if not gpus:
        short = len(machine.cores) < len(devices)
        warning = f"no GPU in use: {len(devices)} CPU processes stand in for the devices"
        if short:
            warning += f", sharing {len(machine.cores)} core(s): times will not be those of devices"
        return Placement(workers, "gloo", "loopback", warning)
    if len(set(devices)) == 1:
        warning = f"{len(devices)} processes share {gpus[0]}: compute does not run side by side"
        return Placement(workers, "gloo", "memory", warning)
    return Placement(workers, "gloo", "host", f"the devices differ: {', '.join(devices)}")


def _deal_cores(cores: Sequence[int], shares: int) -> list[tuple[int, ...]]:
    """Cores dealt to workers in equal disjoint runs; shared in turn where there are too few."""
    if len(cores) < shares:
        return [(cores[rank % len(cores)],) for rank in range(shares)]
    size = len(cores) // shares
    return [tuple(cores[rank * size : (rank + 1) * size]) for rank in range(shares)]
