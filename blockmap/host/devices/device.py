"""Describes a block device that shows an export: its record, and the protocol of each kind."""

import contextlib
import mmap
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

USUAL_READ_AHEAD_KIB = 128
"""The kernel reads so far ahead where nobody has changed it."""
_PROBE_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Device:
    """A device that is attached. It holds all that detaching needs, so that any later process can do it."""

    kind: str
    """Names the attacher that made it."""
    path: str
    """Leads to the block device."""
    state: Mapping[str, Any]
    """What the attacher needs to find the device again, as JSON values; nobody else reads it."""


class Attacher(Protocol):
    """One way to make a device of an export."""

    @property
    def kind(self) -> str:
        """Returns the name of the way, which its devices have."""

    def attach(self, server: str, export: str, directory: Path, *, writable: bool = False) -> Device:
        """Makes a device, read-only unless `writable`, with its files in `directory`. Raises HostError, and leaves nothing then.

        `server` is the path of an NBD socket, or HOST:PORT.
        """

    def detach(self, device: Device) -> None:
        """Takes a device apart; parts that have gone already are no error."""

    def clear(self, directory: Path) -> None:
        """Takes apart what a killed `attach` left of a device in its `directory`."""

    def is_alive(self, device: Device) -> bool:
        """Returns True if reads of the device can still be answered; waits as long as such a read does."""

    def is_open(self, device: Device) -> bool:
        """Returns True if a file system on a device is in use, mounted or not: files of one may be open that was unmounted."""

    def use_small_sectors(self, device: Device) -> bool:
        """Changes a device so that file systems with blocks below 4096 bytes can be mounted from it.

        Returns False where this kind has nothing to change. HostError.
        """


def start_ticks(pid: int) -> int:
    """Returns when a process started, in clock ticks after boot; 0 where there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    return int(text.rpartition(")")[2].split()[19])


def is_up(path: str) -> bool:
    """Returns True if a block device shows something."""
    try:
        return int(Path("/sys/block", Path(path).name, "size").read_text()) > 0
    except OSError:
        return False


def set_read_ahead(path: str, kib: int) -> None:
    """Sets how far the kernel reads ahead on a block device, and in the files that are mounted from it; best effort."""
    with contextlib.suppress(OSError):
        Path("/sys/block", Path(path).name, "queue/read_ahead_kb").write_text(str(kib))


def reads(path: str) -> bool:
    """Returns True if the server behind a device answers a read past the page cache, which outlives it."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
        try:
            with mmap.mmap(-1, _PROBE_BYTES) as page:
                return os.preadv(fd, [page], 0) == _PROBE_BYTES
        finally:
            os.close(fd)
    except OSError:
        return False
