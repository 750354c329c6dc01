"""Chooses how this host makes devices, and looks after those of all kinds."""

import os
from contextlib import suppress
from functools import cached_property
from pathlib import Path

from blockmap.errors import HostError
from blockmap.host import tools
from blockmap.host.devices import netlink
from blockmap.host.devices.device import Attacher, Device
from blockmap.host.devices.kernel import KernelNbd
from blockmap.host.devices.nbdfuse import NbdFuse
from blockmap.host.devices.pool import Pool


class HostDevices:
    """Attaches through the kernel's nbd where the kernel has it, else through nbdfuse; takes devices of both apart."""

    def __init__(self, state: Path) -> None:
        """`state` is the folder in which devices are on record."""
        self._kernel = KernelNbd(Pool(state / "pool"))
        self._nbdfuse = NbdFuse()

    @cached_property
    def _chosen(self) -> Attacher:
        return self._kernel if _kernel_has_nbd() else self._nbdfuse

    @property
    def kind(self) -> str:
        return self._chosen.kind

    def attach(self, server: str, export: str, directory: Path, *, writable: bool = False) -> Device:
        return self._chosen.attach(server, export, directory, writable=writable)

    def detach(self, device: Device) -> None:
        self._of(device).detach(device)

    def clear(self, directory: Path) -> None:
        self._kernel.clear(directory)
        self._nbdfuse.clear(directory)

    def is_alive(self, device: Device) -> bool:
        return self._of(device).is_alive(device)

    def is_open(self, device: Device) -> bool:
        return self._of(device).is_open(device)

    def use_small_sectors(self, device: Device) -> bool:
        return self._of(device).use_small_sectors(device)

    def _of(self, device: Device) -> Attacher:
        return self._kernel if device.kind == self._kernel.kind else self._nbdfuse


def _kernel_has_nbd() -> bool:
    """Returns True if the kernel has nbd; loads its module where there is one."""
    if netlink.is_there():
        return True
    if not Path("/lib/modules", os.uname().release).is_dir():
        return False  # a container, or a kernel without modules: modprobe would take 10 ms to say so
    with suppress(HostError):
        tools.run("modprobe", "--quiet", "nbd")
    return netlink.is_there()
