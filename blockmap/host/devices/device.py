"""Block devices on this host that show an export."""

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

USUAL_READ_AHEAD_KIB = 128
"""The kernel's own."""


@dataclass(frozen=True, slots=True)
class Device:
    """A device that is attached; what it takes to detach it is in it, so it survives this process."""

    kind: str
    path: str
    """Of the block device."""
    pid: int
    """Of the process behind it; 0 where the kernel alone is."""
    started: int
    """When that process started, in clock ticks after boot: tells it from a later one with its pid."""
    mount: str
    """Where the process has its own mount, if it needs one."""


class Attacher(Protocol):
    """One way to make a device of an export."""

    def attach(self, nbd_socket: Path, export: str, directory: Path) -> Device:
        """Makes a read-only device; `directory` is for what it needs. HostError, and nothing is left then."""

    def detach(self, device: Device) -> None:
        """Takes a device apart; what is gone already is fine."""

    def alive(self, device: Device) -> bool:
        """Whether reads of the device can still be answered."""


def start_ticks(pid: int) -> int:
    """When a process started, in clock ticks after boot; 0 where there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    return int(text.rpartition(")")[2].split()[19])


def set_read_ahead(path: str, kib: int) -> None:
    """How far the kernel reads ahead on a block device, and in the files of what is mounted from it; best effort."""
    with contextlib.suppress(OSError):
        Path("/sys/block", Path(path).name, "queue/read_ahead_kb").write_text(str(kib))
