"""Devices of the kernel's nbd that are connected ahead: CONNECT freezes queues, and takes 19 ms in an emulated guest in which
RECONFIGURE takes 1 ms.

A device of the pool has no size, so that nobody reads it, and one dead connection, so that no process and no server stands behind
it: an attach gives it size and connection by RECONFIGURE. It is used once. Whose it is follows from where its file lies: in the
pool's folder, or, moved by one rename, in that of the device that it has become.
"""

import json
import os
import socket
import tempfile
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from blockmap.errors import HostError
from blockmap.host.devices import netlink
from blockmap.host.devices.netlink import Netlink
from blockmap.host.devices.queue import BLOCK_BYTES, DEAD_SECONDS, disconnect, set_queue

_READY = ".ready"
_TAKEN = "pooled"
"""The file in the folder of the device that it has become."""


@dataclass(frozen=True, slots=True)
class PooledDevice:
    """A device that is connected, and shows nothing yet."""

    index: int
    identifier: str
    flags: int
    """The transmission flags, which cannot change any more."""


class Pool:
    """The devices of one state folder that are connected ahead."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.absolute()

    def take(self, flags: int, directory: Path) -> PooledDevice | None:
        """Takes a device with these flags out of the pool, for the device whose folder is `directory`; None where there is none."""
        for file in self._ready():
            device = _read(file)
            if device is None or device.flags != flags:
                continue
            try:
                file.rename(directory / _TAKEN)
            except FileNotFoundError:
                continue  # another was faster
            if netlink.backend(device.index) == device.identifier:
                return device
            (directory / _TAKEN).unlink()  # as after a reboot
        return None

    def fill(self, wanted: Mapping[int, int]) -> None:
        """Connects devices until there are as many of each flags as wanted; takes apart what a killed `fill` left. HostError.

        For one caller at a time.
        """
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        present: Counter[int] = Counter()
        for file in self._folder.iterdir():
            device = _read(file)
            if file.suffix == _READY and device is not None and netlink.backend(device.index) == device.identifier:
                present[device.flags] += 1
                continue
            for index, identifier in netlink.backends().items():
                if identifier == _identifier(file.with_suffix("")):
                    disconnect(index, identifier)
            file.unlink(missing_ok=True)
        for flags, count in wanted.items():
            for _ in range(count - present[flags]):
                self._add(flags)

    def drain(self) -> None:
        """Takes all devices of the pool apart; HostError."""
        for file in self._ready():
            device = _read(file)
            file.unlink(missing_ok=True)
            if device is not None:
                disconnect(device.index, device.identifier)

    def _add(self, flags: int) -> None:
        fd, name = tempfile.mkstemp(dir=self._folder)
        os.close(fd)
        identifier = _identifier(Path(name))
        ours, theirs = socket.socketpair()
        try:
            with ours, theirs, Netlink() as kernel:
                index = kernel.connect(
                    [theirs],
                    size=0,
                    block_size=BLOCK_BYTES,
                    flags=flags,
                    dead_seconds=DEAD_SECONDS,
                    identifier=identifier,
                )
        except OSError as error:
            raise HostError(f"the kernel makes no nbd device: {error.strerror}") from error
        set_queue(index)
        Path(name).write_text(json.dumps(asdict(PooledDevice(index, identifier, flags))))
        os.rename(name, name + _READY)

    def _ready(self) -> list[Path]:
        return sorted(self._folder.glob(f"*{_READY}"))


def taken(directory: Path) -> PooledDevice | None:
    """Returns the device that was taken for the device whose folder is `directory`."""
    return _read(directory / _TAKEN)


def _identifier(file: Path) -> str:
    return f"pool {file}"


def _read(file: Path) -> PooledDevice | None:
    with suppress(OSError, ValueError, TypeError):
        return PooledDevice(**json.loads(file.read_text()))
    return None
