"""Runs an image's program in a container of runc, from the image's OCI configuration.

The container has the host's network, name and /etc/hosts, so that its ports are reached as those of any program: as with
docker run --network host. It has mount, pid, ipc and uts namespaces of its own, and the capabilities that docker gives by
default, but no seccomp filter.
"""

import errno
import json
import os
import shlex
from pathlib import Path
from typing import Any

from blockmap.errors import HostError, ImageError, UsageError

_CAPABILITIES = [
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_NET_RAW", "CAP_SETGID", "CAP_SETUID", "CAP_SETFCAP",
    "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
]  # fmt: skip
_DEVICES_CAPABILITY = "CAP_MKNOD"
"""Only where a control group keeps the program from opening what it makes: the host's disks, for one."""
_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG)
"""What an image without the file gives; what else fails is the reading."""
_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_MOUNTS: list[dict[str, Any]] = [
    {"destination": "/proc", "type": "proc", "source": "proc"},
    {
        "destination": "/dev",
        "type": "tmpfs",
        "source": "tmpfs",
        "options": ["nosuid", "strictatime", "mode=755", "size=65536k"],
    },
    {
        "destination": "/dev/pts",
        "type": "devpts",
        "source": "devpts",
        "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"],
    },
    {
        "destination": "/dev/shm",
        "type": "tmpfs",
        "source": "shm",
        "options": ["nosuid", "noexec", "nodev", "mode=1777"],
    },
    {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]},
    # One of its own: below the host's, control groups are mounted, and they could be written.
    {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
]


def runtime_config(
    image: bytes,
    command: list[str],
    entrypoint: str | None,
    root: Path,
    hostname: str,
    *,
    terminal: bool,
    supervised: bool,
) -> dict[str, Any]:
    """Returns the config.json of an OCI bundle whose root file system is `root`; ImageError, UsageError.

    `command` takes the place of the image's Cmd, `entrypoint` that of its Entrypoint and Cmd (an empty one takes it away),
    as with docker. With `supervised`, the container gets control groups.
    """
    try:
        own: dict[str, Any] = json.loads(image).get("config") or {}
    except (ValueError, AttributeError) as error:
        raise ImageError(f"the image's configuration is damaged: {error}") from error
    if entrypoint is not None:
        arguments = [*([entrypoint] if entrypoint else []), *command]
    else:
        arguments = [*(own.get("Entrypoint") or []), *(command or own.get("Cmd") or [])]
    if not arguments:
        raise UsageError("the image names no program to run: give one after --")
    uid, gid, groups, home = user_ids(root, own.get("User") or "")
    environment = list(own.get("Env") or [])
    names = {entry.partition("=")[0] for entry in environment}
    environment += [
        entry for entry in (_PATH, f"HOME={home}", f"HOSTNAME={hostname}") if entry.partition("=")[0] not in names
    ]
    if terminal and "TERM" not in names:
        environment.append(f"TERM={os.environ.get('TERM', 'xterm')}")
    capabilities = [*_CAPABILITIES, *([_DEVICES_CAPABILITY] if supervised else [])]
    resources = {"resources": {"devices": [{"allow": False, "access": "rwm"}]}} if supervised else {}
    files = [
        {"destination": name, "type": "none", "source": name, "options": ["rbind", "ro"]}
        for name in ("/etc/resolv.conf", "/etc/hosts")
        if os.path.exists(name)
    ]
    return {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": terminal,
            "user": {"uid": uid, "gid": gid, "additionalGids": groups},
            "args": arguments,
            "env": environment,
            "cwd": os.path.join("/", own.get("WorkingDir") or ""),
            "capabilities": {
                kind: capabilities if uid == 0 or kind == "bounding" else []
                for kind in ("bounding", "effective", "permitted")
            },
            "noNewPrivileges": False,
        },
        "root": {"path": str(root), "readonly": False},
        "hostname": hostname,
        "mounts": [*_MOUNTS, *files],
        "linux": {
            **resources,
            "namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount")],
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    }


def user_ids(root: Path, user: str) -> tuple[int, int, list[int], str]:
    """Returns uid, gid, further groups and home of USER[:GROUP], by the image's own files.

    ImageError where it is unknown, HostError where a file cannot be read.
    """
    name, colon, group = user.partition(":")
    name = name or "0"
    # Name, password, uid, gid, comment, home, shell. A name may look like a number: passwd(5) names go first.
    accounts = [row for row in _rows(root, "/etc/passwd", 6) if row[2].isdecimal() and row[3].isdecimal()]
    known = next((row for row in accounts if row[0] == name), None)
    known = known or next((row for row in accounts if row[2] == name), None)
    if known is None and not name.isdecimal():
        raise ImageError(f"the image runs as user {shlex.quote(name)}, which its /etc/passwd does not have")
    uid, gid, home = (int(known[2]), int(known[3]), known[5] or "/") if known else (int(name), 0, "/")
    # Name, password, gid, members.
    groups = [row for row in _rows(root, "/etc/group", 4) if row[2].isdecimal()]
    if colon:
        found = next((row for row in groups if row[0] == group), None)
        if found is None and not group.isdecimal():
            raise ImageError(f"the image runs with group {shlex.quote(group)}, which its /etc/group does not have")
        return uid, int(found[2]) if found else int(group), [], home
    return uid, gid, [int(row[2]) for row in groups if known and known[0] in row[3].split(",")], home


def _rows(root: Path, name: str, fields: int) -> list[list[str]]:
    rows = [line.split(":") for line in _lines(root, name)]
    return [row for row in rows if len(row) >= fields]


def _lines(root: Path, name: str) -> list[str]:
    try:
        return [
            line for line in _inside(root, name).read_text(errors="replace").splitlines() if line and line[0] != "#"
        ]
    except OSError as error:
        if error.errno in _ABSENT:
            return []
        raise HostError(
            f"cannot read {name} of the image: {error.strerror}; the server's log says why, and `blockmap verify` whether the "
            "store is damaged"
        ) from error


def _inside(root: Path, name: str) -> Path:
    """A file of the image; symlinks are followed inside the root only."""
    at = root
    todo = [part for part in name.split("/") if part][::-1]
    for _ in range(64):
        if not todo:
            break
        part = todo.pop()
        if part == "..":
            at = at.parent if at != root else root
            continue
        below = at / part
        if below.is_symlink():
            target = os.readlink(below)
            at = root if target.startswith("/") else at
            todo.extend(piece for piece in target.split("/")[::-1] if piece not in ("", "."))
            continue
        at = below
    return at
