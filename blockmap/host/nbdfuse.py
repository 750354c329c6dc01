"""Devices through nbdfuse and a loop device, for kernels without nbd.

Direct I/O on the loop device is seven times faster than without, and spares a second page cache. There is no
reconnection: when the server goes away, reads fail, and the device has to be made again.
"""

import contextlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from urllib.parse import quote

from blockmap.errors import HostError
from blockmap.host import tools
from blockmap.host.device import Device, start_ticks

_READY_SECONDS = 30.0
_END_SECONDS = 10.0


class NbdFuse:
    """Attaches with nbdfuse (libnbd) and losetup."""

    kind = "nbdfuse"

    def attach(self, nbd_socket: Path, export: str, directory: Path) -> Device:
        tools.find("fusermount3")
        losetup = tools.find("losetup")
        mountpoint = directory / "fuse"
        mountpoint.mkdir(parents=True)
        uri = f"nbd+unix:///{quote(export, safe='')}?socket={quote(str(nbd_socket.absolute()))}"
        log = directory / "nbdfuse.log"
        with open(log, "wb") as out:
            process = subprocess.Popen(
                [tools.find("nbdfuse"), "-r", str(mountpoint), uri],
                stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True, cwd="/",
            )  # fmt: skip
        device = Device(self.kind, "", process.pid, start_ticks(process.pid), str(mountpoint))
        try:
            image = mountpoint / "nbd"
            end = time.monotonic() + _READY_SECONDS
            while not image.exists():
                if process.poll() is not None or time.monotonic() > end:
                    raise HostError(
                        f"nbdfuse could not show {export}: {log.read_text(errors='replace').strip() or 'no message'}"
                    )
                time.sleep(0.01)
            done = subprocess.run(
                [losetup, "-f", "--show", "-r", "--direct-io=on", str(image)],
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                raise HostError(f"no loop device could be made: {done.stderr.strip()}")
            return Device(self.kind, done.stdout.strip(), device.pid, device.started, device.mount)
        except BaseException:
            self.detach(device)
            raise

    def detach(self, device: Device) -> None:
        if device.path and _backing(device.path) == f"{device.mount}/nbd":
            tools.run("losetup", "-d", device.path)
        if os.path.ismount(device.mount) or _dead_mount(device.mount):
            _unmount(device.mount)
        end = time.monotonic() + _END_SECONDS
        while self._running(device) and time.monotonic() < end:
            time.sleep(0.01)
        if self._running(device):
            with contextlib.suppress(ProcessLookupError):
                os.kill(device.pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(device.pid, os.WNOHANG)

    def alive(self, device: Device) -> bool:
        return self._running(device) and _backing(device.path) == f"{device.mount}/nbd"

    @staticmethod
    def _running(device: Device) -> bool:
        if device.pid <= 0 or start_ticks(device.pid) != device.started:
            return False
        with contextlib.suppress(OSError):
            return Path(f"/proc/{device.pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
        return False


def _backing(device: str) -> str:
    """The file behind a loop device; empty where there is none."""
    with contextlib.suppress(HostError):
        listed = json.loads(tools.run("losetup", "--json", "--list", "-O", "NAME,BACK-FILE", device) or "{}")
        for entry in listed.get("loopdevices", []):
            return str(entry["back-file"])
    return ""


def _dead_mount(path: str) -> bool:
    """Whether a mount is there whose process is gone: looking at it fails."""
    try:
        os.stat(path)
    except OSError as error:
        return not isinstance(error, FileNotFoundError)
    return False


def _unmount(path: str) -> None:
    """Unmounts nbdfuse, once the loop device has let go of it."""
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
