"""Runs an image's program in a container of runc, from the image's OCI configuration.

The container sees the host's network, as a program that was started by hand would; it has mount, pid, ipc and uts
namespaces of its own, and the capabilities that docker gives by default.
"""

import json
import os
import shlex
from pathlib import Path
from typing import Any

from blockmap.errors import ImageError, UsageError

_CAPABILITIES = [
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID", "CAP_SETUID",
    "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
]  # fmt: skip
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
    {"destination": "/sys", "type": "none", "source": "/sys", "options": ["rbind", "nosuid", "noexec", "nodev", "ro"]},
]


def runtime_config(image: bytes, command: list[str], root: Path, hostname: str, terminal: bool) -> dict[str, Any]:
    """The config.json of an OCI bundle whose root file system is `root`; UsageError where there is nothing to run."""
    try:
        own: dict[str, Any] = json.loads(image).get("config") or {}
    except (ValueError, AttributeError) as error:
        raise ImageError(f"the image's configuration is damaged: {error}") from error
    if command:
        arguments = (
            [*(own.get("Entrypoint") or []), *command] if not own.get("Cmd") and own.get("Entrypoint") else command
        )
    else:
        arguments = [*(own.get("Entrypoint") or []), *(own.get("Cmd") or [])]
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
    files = [
        {"destination": name, "type": "none", "source": name, "options": ["rbind", "ro"]}
        for name in ("/etc/resolv.conf", "/etc/hosts")
        if os.path.exists(name) and _inside(root, name).is_file()
    ]
    return {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": terminal,
            "user": {"uid": uid, "gid": gid, "additionalGids": groups},
            "args": arguments,
            "env": environment,
            "cwd": own.get("WorkingDir") or "/",
            "capabilities": {
                kind: _CAPABILITIES if uid == 0 or kind == "bounding" else []
                for kind in ("bounding", "effective", "permitted")
            },
            "noNewPrivileges": False,
        },
        "root": {"path": str(root), "readonly": False},
        "hostname": hostname,
        "mounts": [*_MOUNTS, *files],
        "linux": {
            "namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount")],
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    }


def user_ids(root: Path, user: str) -> tuple[int, int, list[int], str]:
    """uid, gid, further groups and home of USER[:GROUP], by the image's own files; ImageError where it is unknown."""
    name, colon, group = user.partition(":")
    uid, gid, home = 0, 0, "/root"
    passwd = [line.split(":") for line in _lines(root, "/etc/passwd")]
    known = next((row for row in passwd if len(row) > 5 and name in (row[0], row[2])), None) if name else None
    if known is not None:
        uid, gid, home = int(known[2]), int(known[3]), known[5] or "/"
    elif name.isdigit():
        uid, home = int(name), "/"
    elif name:
        raise ImageError(f"the image runs as user {shlex.quote(name)}, which its /etc/passwd does not have")
    rows = [line.split(":") for line in _lines(root, "/etc/group")]
    if colon:
        found = next((row for row in rows if len(row) > 2 and group in (row[0], row[2])), None)
        if found is None and not group.isdigit():
            raise ImageError(f"the image runs with group {shlex.quote(group)}, which its /etc/group does not have")
        return uid, int(found[2]) if found else int(group), [], home
    member = known[0] if known else ""
    groups = [int(row[2]) for row in rows if len(row) > 3 and member and member in row[3].split(",")]
    return uid, gid, groups, home


def _lines(root: Path, name: str) -> list[str]:
    try:
        return [
            line for line in _inside(root, name).read_text(errors="replace").splitlines() if line and line[0] != "#"
        ]
    except OSError:
        return []


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
