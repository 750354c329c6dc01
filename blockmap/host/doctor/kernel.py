"""Checks of the kernel: what devices are made of."""

import os
from collections.abc import Callable
from pathlib import Path

from blockmap.errors import HostError
from blockmap.host import tools
from blockmap.host.attachment_table import read_devices
from blockmap.host.devices import loops, netlink
from blockmap.host.devices.device import USUAL_READ_AHEAD_KIB
from blockmap.host.devices.queue import DEAD_SECONDS
from blockmap.host.doctor.finding import Check, Examined, Finding, fault, ok, skipped, warning
from blockmap.host.warm.warming import is_warming
from blockmap.origin.outage_policy import DEFAULT


def _nbd(subject: Examined) -> Finding:
    if (subject.sys / "module/nbd").is_dir():
        if netlink.is_there():
            return ok("the kernel's nbd is loaded, and answers over netlink")
        return fault(
            "the kernel's nbd is loaded, and does not answer over netlink: devices are made with nbdfuse",
            "dmesg may say why; in a container, use the host's network namespace",
        )
    release = subject.modules / os.uname().release
    if any(_lists(release / name, "/nbd.ko") for name in ("modules.builtin", "modules.dep")):
        return ok("the kernel has nbd, which is loaded when something is attached")
    return warning(
        "this kernel has no nbd: devices are made with nbdfuse, and fail when their server is killed",
        "boot a kernel that has it, as Debian's linux-image-amd64 has",
    )


def _lists(path: Path, module: str) -> bool:
    try:
        return any(module in line.partition(":")[0] for line in path.read_text().splitlines())
    except OSError:
        return False


def _nbd_devices(subject: Examined) -> Finding:
    there = sorted(each.name for each in (subject.sys / "block").glob("nbd*"))
    if not there:
        return skipped("the kernel's nbd is not loaded")
    absent = [name for name in there if not Path("/dev", name).exists()]
    if absent:
        return fault(
            f"/dev has no {absent[0]}, which the kernel has",
            "let udev make it; in a container, pass the host's devices",
        )
    used = sum((subject.sys / "block" / name / "pid").exists() for name in there)
    most = _number(subject.sys / "module/nbd/parameters/nbds_max")
    return ok(f"{used} of {len(there)} in use (nbds_max={most}; more are made when they are needed)")


def _timeouts(subject: Examined) -> Finding:
    waits = DEFAULT.wait_s if subject.status is None else subject.status.get("outage_seconds", DEFAULT.wait_s)
    hung = _number(subject.proc / "sys/kernel/hung_task_timeout_secs")
    said = f"reads wait up to {waits:g} s for a store that is away"
    if waits >= DEAD_SECONDS:
        return fault(
            f"{said}, and the kernel gives up on a device whose server has gone after {DEAD_SECONDS} s",
            f"serve --outage wait={DEAD_SECONDS // 2}",
        )
    if hung and waits >= hung:
        panics = _number(subject.proc / "sys/kernel/hung_task_panic")
        what = "panics" if panics else "reports a hung task"
        return (fault if panics else warning)(
            f"{said}, and Linux {what} after {hung} s",
            f"serve --outage wait={max(hung // 2, 1)}, or sysctl kernel.hung_task_timeout_secs={int(waits * 2)}",
        )
    return ok(f"{said}; Linux reports a hung task after {hung} s" if hung else said)


def _read_ahead(subject: Examined) -> Finding:
    found = read_devices(subject.state)
    if not found:
        return skipped("nothing is attached")
    for folder, device in found:
        name = Path(device.path).name
        own = _number(subject.sys / "block" / name / "queue/read_ahead_kb")
        if own is None or own == USUAL_READ_AHEAD_KIB or (own == 0 and is_warming(folder)):
            continue
        return warning(
            f"{device.path} reads {own} KiB ahead where {USUAL_READ_AHEAD_KIB} are usual",
            f"echo {USUAL_READ_AHEAD_KIB} >/sys/block/{name}/queue/read_ahead_kb",
        )
    return ok(f"as it should be, of {len(found)} devices")


def _fuse(subject: Examined) -> Finding:
    lacking = tools.missing(["nbdfuse", "fusermount3"])
    if lacking:
        return _needed(subject)(
            f"{' and '.join(lacking)} is not installed, which nbdfuse needs", f"apt-get install {' '.join(lacking)}"
        )
    path = Path("/dev/fuse")
    if not path.is_char_device():
        return _needed(subject)("there is no /dev/fuse", "modprobe fuse; start a container with --device /dev/fuse")
    if os.geteuid() != 0:
        return ok("nbdfuse and /dev/fuse are there; whether root may use it is not known")
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return _needed(subject)(
            f"/dev/fuse cannot be opened: {error.strerror}", "modprobe fuse; start a container with --device /dev/fuse"
        )
    return ok("nbdfuse and /dev/fuse work")


def _loop(subject: Examined) -> Finding:
    used = len(list((subject.sys / "block").glob("loop*/loop/backing_file")))
    if not Path("/dev/loop-control").exists():
        return _needed(subject)("there is no /dev/loop-control", "modprobe loop; start a container with --privileged")
    if os.geteuid() != 0:
        return ok(f"loop devices are there, {used} in use; whether root gets another is not known")
    try:
        free = loops.next_free()
    except HostError as error:
        return _needed(subject)(str(error), "losetup --detach those that nobody needs: losetup --list shows them")
    if not Path(free).exists():
        return _needed(subject)(
            f"the next free loop device is {free}, and /dev does not have it",
            f"mknod {free} b 7 {free.removeprefix('/dev/loop')}; start a container with the host's /dev",
        )
    return ok(f"{used} in use, {free} is free")


def _needed(subject: Examined) -> Callable[[str, str], Finding]:
    """Returns how grave it is that nbdfuse lacks something: nothing else makes devices where the kernel has no nbd."""
    return warning if (subject.sys / "module/nbd").is_dir() else fault


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


CHECKS = (
    Check("nbd", _nbd),
    Check("nbd-devices", _nbd_devices),
    Check("timeouts", _timeouts),
    Check("read-ahead", _read_ahead),
    Check("fuse", _fuse),
    Check("loop", _loop),
)
