"""Runs an image's program in a container of runc, from the image's OCI configuration.

The container has the host's network, name and /etc/hosts, so that its ports are reached as those of any program: as with
docker run --network host. It has mount, pid, ipc and uts namespaces of its own, and the capabilities that docker gives by
default, but no seccomp filter.
"""

import itertools
import json
import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blockmap.errors import HostError, ImageError, UsageError
from blockmap.host.image_file import read_in_root
from blockmap.host.run import seccomp

_CAPABILITIES = [
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_NET_RAW", "CAP_SETGID", "CAP_SETUID", "CAP_SETFCAP",
    "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
]  # fmt: skip
_DEVICES_CAPABILITY = "CAP_MKNOD"
"""Only where a control group keeps the program from opening what it makes: the host's disks, for one."""
_MAX_ID = (1 << 31) - 1
"""runc takes no more."""
_MAX_PROCESSES = 2048
"""Threads count as well; podman's default. A program that forks without end takes no more from the host."""
_MAX_ACCOUNTS_BYTES = 4 << 20
"""The most that /etc/passwd and /etc/group may have each: some 50,000 accounts."""
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
_MASKED = [
    "/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/sched_debug",
    "/proc/scsi", "/proc/timer_list", "/proc/timer_stats", "/sys/devices/virtual/powercap", "/sys/firmware",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Own:
    """What an image's configuration says of its program."""

    entrypoint: list[str]
    command: list[str]
    environment: list[str]
    user: str
    directory: str


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
    own = _parse(image)
    if entrypoint is not None:
        arguments = [*([entrypoint] if entrypoint else []), *command]
    else:
        arguments = [*own.entrypoint, *(command or own.command)]
    if not arguments:
        raise UsageError("the image names no program to run: give one after --")
    uid, gid, groups, home = user_ids(root, own.user)
    environment = list(own.environment)
    names = {entry.partition("=")[0] for entry in environment}
    environment += [
        entry for entry in (_PATH, f"HOME={home}", f"HOSTNAME={hostname}") if entry.partition("=")[0] not in names
    ]
    if terminal and "TERM" not in names:
        environment.append(f"TERM={os.environ.get('TERM', 'xterm')}")
    capabilities = [*_CAPABILITIES, *([_DEVICES_CAPABILITY] if supervised else [])]
    limits = {"devices": [{"allow": False, "access": "rwm"}], "pids": {"limit": _MAX_PROCESSES}}
    resources = {"resources": limits} if supervised else {}
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
            "cwd": os.path.join("/", own.directory),
            "capabilities": {
                kind: capabilities if uid == 0 or kind == "bounding" else []
                for kind in ("bounding", "effective", "permitted")
            },
            "noNewPrivileges": True,
        },
        "root": {"path": str(root), "readonly": False},
        "hostname": hostname,
        "mounts": [*_MOUNTS, *files],
        "linux": {
            **resources,
            "namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount")],
            "seccomp": seccomp.profile(),
            "maskedPaths": _MASKED,
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
    accounts = [row for row in _rows(root, "/etc/passwd", 6) if _is_id(row[2]) and _is_id(row[3])]
    known = next((row for row in accounts if row[0] == name), None)
    known = known or next((row for row in accounts if row[2] == name), None)
    if known is None and not _is_id(name):
        raise ImageError(f"the image runs as user {shlex.quote(name)}, which its /etc/passwd does not have")
    uid, gid, home = (int(known[2]), int(known[3]), known[5] or "/") if known else (int(name), 0, "/")
    # Name, password, gid, members.
    groups = [row for row in _rows(root, "/etc/group", 4) if _is_id(row[2])]
    if colon:
        found = next((row for row in groups if row[0] == group), None)
        if found is None and not _is_id(group):
            raise ImageError(f"the image runs with group {shlex.quote(group)}, which its /etc/group does not have")
        return uid, int(found[2]) if found else int(group), [], home
    return uid, gid, [int(row[2]) for row in groups if known and known[0] in row[3].split(",")], home


def _parse(image: bytes) -> _Own:
    """Parses an image's configuration; ImageError where it is damaged."""
    try:
        own = json.loads(image).get("config") or {}
        entrypoint, command, environment = lists = [own.get(key) or [] for key in ("Entrypoint", "Cmd", "Env")]
        user, directory = words = [own.get(key) or "" for key in ("User", "WorkingDir")]
    except (ValueError, AttributeError, RecursionError) as error:
        raise ImageError(f"the image's configuration is damaged: {error}") from error
    if not all(isinstance(each, list) for each in lists):
        raise ImageError("the image's configuration is damaged: its Entrypoint, Cmd and Env are lists")
    if not all(isinstance(word, str) and "\0" not in word for word in itertools.chain(words, *lists)):
        raise ImageError(
            "the image's configuration is damaged: its Entrypoint, Cmd, Env, User and WorkingDir are of text"
        )
    return _Own(entrypoint, command, environment, user, directory)


def _is_id(text: str) -> bool:
    """Returns True if a text is the number of a user or group."""
    return text.isascii() and text.isdecimal() and len(text) <= 10 and int(text) <= _MAX_ID


def _rows(root: Path, name: str, fields: int) -> list[list[str]]:
    rows = [line.split(":") for line in _lines(root, name)]
    return [row for row in rows if len(row) >= fields]


def _lines(root: Path, name: str) -> list[str]:
    try:
        text = read_in_root(root, name, _MAX_ACCOUNTS_BYTES) or b""
    except OSError as error:
        raise HostError(
            f"cannot read {name} of the image: {error.strerror}; the server's log says why, and `blockmap verify` whether the "
            "store is damaged"
        ) from error
    return [line for line in text.decode(errors="replace").splitlines() if line and line[0] != "#"]
