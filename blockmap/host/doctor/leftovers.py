"""Checks for what should have gone: devices whose server has died, and what killed processes left."""

import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

from blockmap.host import background
from blockmap.host.attachment_table import Attached, read_attached, read_devices
from blockmap.host.devices import mounts
from blockmap.host.devices.device import Device
from blockmap.host.devices.kinds import HostDevices
from blockmap.host.doctor.finding import Check, Examined, Finding, fault, ok, skipped, warning
from blockmap.host.manager.place import answers
from blockmap.host.serve import nbdkit
from blockmap.host.serve.listening import is_owned
from blockmap.local.scratch import left_over
from blockmap.store.concurrent import spawn

_READ_SECONDS = 5.0
"""How long a read of a device may take, before it counts as one that does not answer."""
_GOES = "it goes with the next attach, detach, or start of a server"


def _attached(subject: Examined) -> Finding:
    devices = {device.path: device for _, device in read_devices(subject.state)}
    shown = _in_use(subject.state) if devices else []
    if not shown:
        return skipped("nothing is attached")
    if os.geteuid() != 0:
        return skipped("whether devices answer is for root to see")
    # Where the server has gone, nothing is read: nbdfuse would end with that.
    all_devices = HostDevices(subject.state)
    dead = [each for each in shown if not (_is_served(each.socket) and _is_alive(all_devices, devices[each.device]))]
    if dead:
        names = ", ".join(f"{each.directory} ({each.name})" for each in dead)
        return fault(
            f"{names} cannot be read: its server, {dead[0].socket}, has gone or does not answer",
            f"start it with `blockmap serve`; what nbdfuse shows is lost: blockmap detach {dead[0].directory}, and attach it again",
        )
    return ok(f"{len(shown)} can be read")


def _manager(subject: Examined) -> Finding:
    """Asks whether the process runs that looks after devices."""
    if not read_devices(subject.state):
        return skipped("nothing is attached")
    if not answers(subject.state):
        return warning(
            "`blockmap devices` does not run: a server that is killed is not started again for its devices",
            "the next attach or detach starts it; at boot, systemctl enable --now blockmap-devices",
        )
    return ok("`blockmap devices` looks after what is attached")


def _in_use(state: Path) -> list[Attached]:
    """Returns what is mounted, and devices that were attached as such."""
    there = mounts.sources()
    return [each for each in read_attached(state) if each.device in (each.directory, there.get(each.directory))]


def _is_served(server: str) -> bool:
    """Returns True if a server of this host runs at its socket; whether another host's does, its devices say."""
    return "/" not in server or is_owned(Path(server))


def _is_alive(all_devices: HostDevices, device: Device) -> bool:
    look = spawn(lambda: all_devices.is_alive(device))
    try:
        return look.result(_READ_SECONDS)
    except TimeoutError:
        return False


def _devices(subject: Examined) -> Finding:
    made = {folder: device.path for folder, device in read_devices(subject.state)}
    in_use = {each.device for each in _in_use(subject.state)} if made else set()
    folders = {*made, *_folders(subject.state / "devices")}
    left = sorted(
        str(folder)
        for folder in folders
        if made.get(folder) not in in_use and not background.is_running(folder / "lock")
    )
    if left:
        return warning(f"{len(left)} devices that nobody uses any more: {', '.join(left)}", _GOES)
    return ok("none is left over")


def _runs(subject: Examined) -> Finding:
    left = [str(each) for each in _folders(subject.state / "runs", "run-*") if not background.is_running(each / "lock")]
    if left:
        return warning(f"runs that were killed left {', '.join(left)}", "the next `blockmap run` takes it apart")
    return ok("none is left over")


def _processes(subject: Examined) -> Finding:
    """Looks for nbdfuse whose server has gone, and for nbdkit that has outlived its supervisor."""
    script = str(nbdkit.plugin_script())
    left = []
    for pid, words in _running():
        program = os.path.basename(words[0])
        if program == "nbdfuse" and "socket=" in words[-1]:
            socket = Path(unquote(words[-1].partition("socket=")[2]))
            if not is_owned(socket):
                left.append(f"nbdfuse, process {pid}, of {socket}")
        elif program == "nbdkit" and script in words and not _has_supervisor(pid):
            left.append(f"nbdkit, process {pid}")
    if left:
        return warning(f"processes whose server has gone: {', '.join(left)}", f"{_GOES}; or kill them")
    return ok("none is left over")


def _temporary(subject: Examined) -> Finding:
    left = left_over()
    if left:
        return warning(
            f"killed commands left {', '.join(map(str, left))}",
            f"rm -r {' '.join(map(str, left))}, or import once more",
        )
    return ok("none is left over")


def _folders(parent: Path, pattern: str = "*") -> list[Path]:
    try:
        return sorted(parent.glob(pattern))
    except PermissionError:
        return []


def _running() -> Iterator[tuple[int, list[str]]]:
    """Yields pid and arguments of this user's processes, of all for root."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = os.fsdecode((entry / "cmdline").read_bytes()).rstrip("\0").split("\0")
            owner = entry.stat().st_uid
        except OSError:
            continue  # ended meanwhile
        if words[0] and os.geteuid() in (0, owner):
            yield int(entry.name), words


def _has_supervisor(pid: int) -> bool:
    try:
        parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        return b"serve" in Path(f"/proc/{parent}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return True  # it has ended meanwhile


CHECKS = (
    Check("attached", _attached),
    Check("manager", _manager),
    Check("devices", _devices),
    Check("runs", _runs),
    Check("processes", _processes),
    Check("temporary", _temporary),
)
