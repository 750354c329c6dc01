"""What all of the kernel's nbd devices have in common: settings of their queues, how they come up, and how they go."""

import time
from contextlib import suppress
from pathlib import Path

from blockmap.errors import HostError
from blockmap.host.devices import netlink
from blockmap.host.devices.device import USUAL_READ_AHEAD_KIB, reads, set_read_ahead
from blockmap.host.devices.netlink import Netlink

BLOCK_BYTES = 4096
"""Logical blocks of a device: with smaller ones, the page cache would be asked for less than a block of the image."""
DEAD_SECONDS = 600
"""Requests wait so long for a server that has gone, then fail: longer than an upgrade or a reboot of the server's host."""
_UP_SECONDS = 10.0
_DOWN_SECONDS = 5.0
_POLL_SECONDS = 0.001
_QUEUE = {"max_sectors_kb": "256", "nr_requests": "64", "io_timeout": "2000"}
"""Settings of a device's queue. io_timeout, in milliseconds, is when the kernel looks whether a request was sent on a
connection that has died since, and sends it again: 30 s would be the usual."""
_USUAL_IO_TIMEOUT = "30000"


def set_queue(index: int) -> None:
    """Sets a device's queue for reads that may take long; best effort."""
    for name, value in _QUEUE.items():
        _set(index, name, value)


def wait_up(path: str, size: int) -> None:
    """Waits until a new device has its size, and answers a read; HostError.

    From Linux 6.9 on a device has no size at first, and its first reads may fail.
    """
    capacity = Path("/sys/block", Path(path).name, "size")
    end = time.monotonic() + _UP_SECONDS
    while int(capacity.read_text()) * 512 != size or not (size == 0 or reads(path)):
        if time.monotonic() > end:
            raise HostError(f"{path} does not come up: dmesg may say why")
        time.sleep(_POLL_SECONDS)


def disconnect(index: int, identifier: str) -> None:
    """Disconnects a device, unless its number is somebody else's by now, and waits until that is done; HostError."""
    if netlink.backend(index) != identifier:
        return
    set_read_ahead(f"/dev/nbd{index}", USUAL_READ_AHEAD_KIB)  # the next user of this number expects the usual
    _set(index, "io_timeout", _USUAL_IO_TIMEOUT)
    try:
        with Netlink() as kernel:
            kernel.disconnect(index)
            # Whoever has it open, as udev for a moment, still holds it.
            end = time.monotonic() + _DOWN_SECONDS
            while index in kernel.connected() and netlink.backend(index) == identifier and time.monotonic() < end:
                time.sleep(_POLL_SECONDS)
    except OSError as error:
        raise HostError(f"/dev/nbd{index} cannot be disconnected: {error.strerror}") from error


def _set(index: int, name: str, value: str) -> None:
    with suppress(OSError):
        Path(f"/sys/block/nbd{index}/queue", name).write_text(value)
