"""Configures the container of an image's program for runc, from the image's OCI configuration and what `run` is told.

The container has mount, pid, ipc and uts namespaces of its own, and the capabilities and the filter of system calls that docker
gives by default. Its network is the host's, unless it is given another.
"""

import itertools
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blockmap.errors import ImageError, UsageError
from blockmap.host.run import seccomp
from blockmap.host.run.accounts import user_ids
from blockmap.host.run.options import RunOptions

_CAPABILITIES = [
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_NET_RAW", "CAP_SETGID", "CAP_SETUID", "CAP_SETFCAP",
    "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
]  # fmt: skip
_DEVICES_CAPABILITY = "CAP_MKNOD"
"""Only where a control group keeps the program from opening what it makes: the host's disks, for one."""
_MAX_PROCESSES = 2048
"""Threads count as well; podman's default. A program that forks without end takes no more from the host."""
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
STOP_SIGNAL = "org.opencontainers.image.stopSignal"
"""The annotation that has the signal by which the image's program is asked to end, as the image specification calls it."""
_CPU_PERIOD_US = 100_000
_MIN_QUOTA_US = 1000
"""The kernel takes no less."""


@dataclass(frozen=True, slots=True)
class _Own:
    """What an image's configuration says of its program."""

    entrypoint: list[str]
    command: list[str]
    environment: list[str]
    user: str
    directory: str
    stop_signal: str


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a container is put into."""

    root: Path
    """Its root file system."""
    hostname: str
    network: dict[str, str] | None = None
    """The namespace of its network, as the configuration has it; None for the host's."""
    files: tuple[tuple[str, str], ...] = (("/etc/hosts", "/etc/hosts"), ("/etc/resolv.conf", "/etc/resolv.conf"))
    """Files of the container, and what is there, which a program cannot write."""
    supervised: bool = True
    """True if the container gets control groups."""


def runtime_config(
    image: bytes, command: list[str], options: RunOptions, around: Surroundings, *, terminal: bool
) -> dict[str, Any]:
    """Returns the config.json of an OCI bundle; ImageError, UsageError.

    `command` takes the place of the image's Cmd, the entrypoint of the options that of its Entrypoint and Cmd (an empty one
    takes it away), as with docker.
    """
    own = _parse(image)
    entrypoint = options.entrypoint
    if entrypoint is not None:
        arguments = [*([entrypoint] if entrypoint else []), *command]
    else:
        arguments = [*own.entrypoint, *(command or own.command)]
    if not arguments:
        raise UsageError("the image names no program to run: give one after --")
    environment = completed(merged(own.environment, options.environment), [f"HOSTNAME={around.hostname}"])
    network = [] if around.network is None else [around.network]
    namespaces = [*({"type": kind} for kind in ("pid", "ipc", "uts", "mount")), *network]
    resources = {"resources": _limits(options)} if around.supervised else {}
    files = [
        {"destination": inner, "type": "none", "source": outer, "options": ["rbind", "ro"]}
        for inner, outer in around.files
        if os.path.exists(outer)
    ]
    volumes = [
        {
            "destination": each.target,
            "type": "none",
            "source": each.source,
            # Below what is mounted read-only, nothing that is mounted there can be written either. No device of the host is one.
            "options": ["rbind", "rprivate", "nodev", *(["ro", "rro"] if each.read_only else [])],
        }
        for each in options.volumes
    ]
    return {
        "ociVersion": "1.0.2",
        "process": process_config(
            around.root,
            arguments,
            environment,
            options.user if options.user is not None else own.user,
            options.directory or os.path.join("/", own.directory),
            terminal=terminal,
            supervised=around.supervised,
        ),
        "root": {"path": str(around.root), "readonly": options.read_only},
        "hostname": around.hostname,
        "mounts": [*_MOUNTS, *files, *volumes],
        "annotations": {STOP_SIGNAL: own.stop_signal},
        "linux": {
            **resources,
            "namespaces": namespaces,
            "seccomp": seccomp.profile(),
            "maskedPaths": _MASKED,
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    }


def process_config(
    root: Path,
    arguments: list[str],
    environment: list[str],
    user: str,
    directory: str,
    *,
    terminal: bool,
    supervised: bool,
) -> dict[str, Any]:
    """Returns the process of a configuration: who is not root has no capabilities; ImageError, HostError.

    PATH, HOME and, with a terminal, TERM are added where the environment has none.
    """
    uid, gid, groups, home = user_ids(root, user)
    capabilities = [*_CAPABILITIES, *([_DEVICES_CAPABILITY] if supervised else [])]
    default = [_PATH, f"HOME={home}", *([f"TERM={os.environ.get('TERM', 'xterm')}"] if terminal else [])]
    return {
        "terminal": terminal,
        "user": {"uid": uid, "gid": gid, "additionalGids": groups},
        "args": arguments,
        "env": completed(environment, default),
        "cwd": directory,
        "capabilities": {
            kind: capabilities if uid == 0 or kind == "bounding" else []
            for kind in ("bounding", "effective", "permitted")
        },
        "noNewPrivileges": True,
    }


def merged(environment: Iterable[str], changes: Iterable[str]) -> list[str]:
    """Returns NAME=VALUE of an environment, with changes in the place of what they change."""
    return list({entry.partition("=")[0]: entry for entry in (*environment, *changes)}.values())


def completed(environment: list[str], defaults: Iterable[str]) -> list[str]:
    """Returns NAME=VALUE of an environment, and of defaults whose names it does not have."""
    names = {entry.partition("=")[0] for entry in environment}
    return [*environment, *(entry for entry in defaults if entry.partition("=")[0] not in names)]


def _limits(options: RunOptions) -> dict[str, Any]:
    """Returns `linux.resources`."""
    limits: dict[str, Any] = {
        "devices": [{"allow": False, "access": "rwm"}],
        "pids": {"limit": options.pids or _MAX_PROCESSES},
    }
    if options.memory is not None:
        limits["memory"] = {"limit": options.memory}
    if options.cpus is not None:
        limits["cpu"] = {"period": _CPU_PERIOD_US, "quota": max(round(options.cpus * _CPU_PERIOD_US), _MIN_QUOTA_US)}
    return limits


def _parse(image: bytes) -> _Own:
    """Parses an image's configuration; ImageError where it is damaged."""
    try:
        own = json.loads(image).get("config") or {}
        entrypoint, command, environment = lists = [own.get(key) or [] for key in ("Entrypoint", "Cmd", "Env")]
        user, directory, signal = words = [own.get(key) or "" for key in ("User", "WorkingDir", "StopSignal")]
    except (ValueError, AttributeError, RecursionError) as error:
        raise ImageError(f"the image's configuration is damaged: {error}") from error
    if not all(isinstance(each, list) for each in lists):
        raise ImageError("the image's configuration is damaged: its Entrypoint, Cmd and Env are lists")
    if not all(isinstance(word, str) and "\0" not in word for word in itertools.chain(words, *lists)):
        raise ImageError(
            "the image's configuration is damaged: its Entrypoint, Cmd, Env, User, WorkingDir and StopSignal are of text"
        )
    return _Own(entrypoint, command, environment, user, directory, signal or "SIGTERM")
