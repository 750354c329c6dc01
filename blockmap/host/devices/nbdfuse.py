"""Devices through nbdfuse and a loop device, for kernels without nbd.

Direct I/O on the loop device is seven times faster than without, and spares a second page cache. nbdfuse has one read under way
on each connection, and gives reads to all connections but one in turn: what a connection's next read asks for waits until the
one before is answered, even if the server has it. There is no reconnection: when the server goes away, reads fail, and the
device has to be made again.
"""

import contextlib
import os
import signal
import subprocess
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import quote

from blockmap.errors import HostError
from blockmap.host import tools
from blockmap.host.devices import loops, mounts
from blockmap.host.devices.device import USUAL_READ_AHEAD_KIB, Device, reads, set_read_ahead, start_ticks

_CONNECTIONS = 5
"""Connections of a device, so that four requests to it can be under way: with one, all reads wait for the first that waits for
the store. Each costs the server nine threads."""
_READY_SECONDS = 30.0
_END_SECONDS = 10.0
_POLL_SECONDS = 0.001
"""Seconds between two looks: nbdfuse needs some 10 ms, which every start waits for."""
_MOUNT = "fuse"
"""The mount point in the device's folder, which is known even where nothing else is on record."""


@dataclass(frozen=True, slots=True)
class _Process:
    """The nbdfuse process behind a device, which is what the device's state holds."""

    pid: int
    """0 where it is not known."""
    started: int
    """When it started, in clock ticks after boot: a later process may have the same pid."""
    mount: str
    """Where nbdfuse shows the export as a file."""


class NbdFuse:
    """Attaches with nbdfuse (libnbd) and a loop device."""

    kind = "nbdfuse"

    def attach(self, server: str, export: str, directory: Path, *, writable: bool = False) -> Device:
        tools.find("fusermount3")
        mountpoint = directory / _MOUNT
        mountpoint.mkdir(parents=True)
        name = quote(export, safe="")
        uri = f"nbd+unix:///{name}?socket={quote(server)}" if "/" in server else f"nbd://{server}/{name}"
        log = directory / "nbdfuse.log"
        mode = ["-C", str(_CONNECTIONS), *(() if writable else ("-r",))]
        with open(log, "wb") as out:
            process = subprocess.Popen(
                [tools.find("nbdfuse"), *mode, str(mountpoint), uri],
                stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True, cwd="/",
            )  # fmt: skip
        behind = _Process(process.pid, start_ticks(process.pid), str(mountpoint))
        try:
            image = _image(behind)
            end = time.monotonic() + _READY_SECONDS
            while not image.exists():
                if process.poll() is not None or time.monotonic() > end:
                    raise HostError(
                        f"nbdfuse could not show {export}: {log.read_text(errors='replace').strip() or 'no message'}"
                    )
                time.sleep(_POLL_SECONDS)
            return Device(self.kind, loops.attach(image, writable=writable), asdict(behind))
        except BaseException:
            _end(behind)
            raise

    def detach(self, device: Device) -> None:
        _end(_Process(**device.state))

    def clear(self, directory: Path) -> None:
        _end(_Process(0, 0, str(directory / _MOUNT)))

    def is_alive(self, device: Device) -> bool:
        behind = _Process(**device.state)
        return _running(behind) and device.path in loops.showing(str(_image(behind))) and reads(device.path)

    def is_open(self, device: Device) -> bool:
        # A loop device may be somebody else's by now.
        return device.path in loops.showing(str(_image(_Process(**device.state)))) and loops.is_mounted(device.path)

    def use_small_sectors(self, device: Device) -> bool:
        loops.set_small_sectors(device.path)
        return True


def _end(behind: _Process) -> None:
    """Takes apart the loop device, the mount and the process, as far as they are there."""
    # By the file behind them, not by the path: an attach that was killed never learnt the path.
    for loop in loops.showing(str(_image(behind))):
        set_read_ahead(loop, USUAL_READ_AHEAD_KIB)  # the next user of this loop device expects the usual
        loops.detach(loop)
    if mounts.source(behind.mount) is not None:
        _unmount(behind.mount)
    end = time.monotonic() + _END_SECONDS
    while _running(behind) and time.monotonic() < end:
        time.sleep(0.01)
    if _running(behind):
        with contextlib.suppress(ProcessLookupError):
            os.kill(behind.pid, signal.SIGKILL)


def _image(behind: _Process) -> Path:
    return Path(behind.mount) / "nbd"


def _running(behind: _Process) -> bool:
    if behind.pid <= 0 or start_ticks(behind.pid) != behind.started:
        return False
    with contextlib.suppress(ChildProcessError):
        os.waitpid(behind.pid, os.WNOHANG)  # a child that has ended would stay otherwise
    with contextlib.suppress(OSError):
        return Path(f"/proc/{behind.pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    return False


def _unmount(path: str) -> None:
    """Unmounts nbdfuse, once the loop device does not hold it open any more."""
    end = time.monotonic() + _END_SECONDS
    while True:
        try:
            tools.run("fusermount3", "-u", path)
            return
        except HostError:
            if time.monotonic() > end:
                tools.run("umount", "-l", path)
                return
            time.sleep(0.02)
