"""Keeps a folder for each container of this host, which says what it is, and outlives whoever started it.

`run-NAME` is there while a container is, and its `lock` is held by the process that looks after it: the command itself, or the
monitor of a detached one. What such a process left when it was killed is found by the kernel's word on the container's first
process. A detached container that has ended leaves `ended-NAME`, with its log, until it is removed. So NAME belongs to one of them
at a time. Files are written once: one that cannot be parsed is not there yet.
"""

import contextlib
import fcntl
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blockmap.errors import AlreadyExists, HostError, NotFound, UsageError

_RUNNING, _ENDED = "run-", "ended-"
_NAME = re.compile("[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}")
_BOOT = Path("/proc/sys/kernel/random/boot_id")
ABOUT, CONFIG, LOG, READY, RUNC, STARTED, STATUS = (
    "container.json", "config.json", "log", "ready.json", "runc", "started.json", "status.json",
)  # fmt: skip
"""What `run` was told, what runc was told, what the program said, when it was ready, runc's own folder, when the program ran, and
how it ended."""
_LOCK = "lock"
_KEPT = (ABOUT, CONFIG, LOG, READY, STARTED, STATUS, _LOCK)
"""What stays when a container has ended."""


@dataclass(frozen=True, slots=True)
class HostContainer:
    """A container, as its folder and the kernel tell."""

    name: str
    image: str
    """The name as it was asked for."""
    command: list[str]
    ports: list[str]
    """HOST->CONTAINER, as docker ps has it."""
    state: str
    """starting, running or ended."""
    created: float
    """Unix time, as the others."""
    started: float | None
    ended: float | None
    """When it ended; None where it has not, or where nobody was there to see it."""
    status: int | None
    """Its exit status, known where `ended` is."""
    ready_seconds: float | None
    """When it was ready, from its start; None where it is not, or nobody asked."""
    detached: bool
    pid: int | None
    """Its first process, while there is one."""


class ContainerFolder:
    """A container's folder whose lock this process holds."""

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self.lock = lock

    @property
    def name(self) -> str:
        return name_of(self.path)

    def write(self, name: str, content: object) -> None:
        """Writes a file, which is not there yet."""
        (self.path / name).write_text(json.dumps(content))

    def close(self) -> None:
        """Lets go of it."""
        os.close(self.lock)

    def remove(self, keep: bool) -> None:
        """Removes the folder, whose mounts are undone, or makes it that of a container that has ended."""
        if keep:
            for part in self.path.iterdir():
                if part.is_dir():
                    shutil.rmtree(part, ignore_errors=True)
                elif part.name not in _KEPT:
                    part.unlink()
            self.path.rename(self.path.with_name(_ENDED + self.name))
        else:
            shutil.rmtree(self.path, ignore_errors=True)


def make(runs: Path, name: str | None, image: str, about: dict[str, Any]) -> ContainerFolder:
    """Makes a folder with this process as its owner; without a name, the container gets one after its image.

    `about` is what can be read from it as `ABOUT`, besides the name and the moment. AlreadyExists, UsageError, HostError.
    """
    if any(character in str(runs) for character in ",:\\"):
        raise UsageError(f"{runs} cannot be used: overlay mounts have no way to name a path with one of , : \\ in it")
    if name is not None and _NAME.fullmatch(name) is None:
        raise UsageError(f"{name!r} is no name for a container: letters, digits, dots, hyphens and _, at most 63")
    with _guard(runs):  # a folder that is not locked yet would look left over
        chosen = name or _free_name(runs, image)
        if is_taken(runs, chosen):
            raise AlreadyExists(
                f"there is a container {chosen} already: choose another --name, or remove it with `blockmap rm -f {chosen}`"
            )
        path = runs / (_RUNNING + chosen)
        path.mkdir(mode=0o700)
        lock = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        folder = adopt(path, lock)
        folder.write(ABOUT, {"image": image, "created": time.time(), "boot": _BOOT.read_text(), **about})
        return folder


def adopt(path: Path, lock: int) -> ContainerFolder:
    """Takes over a folder with the lock that another process took for this one, and notes which process this is."""
    os.ftruncate(lock, 0)
    os.pwrite(lock, str(os.getpid()).encode(), 0)
    return ContainerFolder(path, lock)


def left(runs: Path) -> Iterator[ContainerFolder]:
    """Locks and yields the folders that nobody looks after any more, except those of detached containers that still run."""
    for path in runs.glob(f"{_RUNNING}*"):
        folder = lock_left(path)
        if folder is not None and (init_of(path) is None or not about(path).get("detached")):
            yield folder
        elif folder is not None:
            folder.close()


def lock_left(path: Path) -> ContainerFolder | None:
    """Locks a folder; returns None where somebody looks after it, or it has just gone."""
    with _guard(path.parent):
        try:
            fd = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(fd), os.stat(path / _LOCK)):
                return ContainerFolder(path, fd)
        except OSError:  # somebody has it, or it has gone meanwhile
            pass
        os.close(fd)
        return None


def owner(path: Path) -> int | None:
    """Returns the process that looks after a container; None where none does."""
    try:
        fd = os.open(path / _LOCK, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return int(os.pread(fd, 20, 0) or 0) or None
    finally:
        os.close(fd)
    return None


def is_taken(runs: Path, name: str) -> bool:
    """Returns True if a container, which may have ended, has a name."""
    return any((runs / (kind + name)).exists() for kind in (_RUNNING, _ENDED))


def find(runs: Path, name: str) -> Path:
    """Returns the folder of a container; NotFound."""
    for kind in (_RUNNING, _ENDED):
        if _NAME.fullmatch(name) and (runs / (kind + name)).is_dir():
            return runs / (kind + name)
    raise NotFound(f"there is no container {name}: see `blockmap ps -a`")


def name_of(path: Path) -> str:
    """Returns the name of the container of a folder."""
    return path.name.partition("-")[2]


def forget(path: Path) -> None:
    """Removes the folder of a container that has ended; FileNotFoundError."""
    ended = path.with_name(_ENDED + name_of(path))
    gone = path.with_name(f".gone-{secrets.token_hex(6)}")
    ended.rename(gone)  # so that its name is free at once, or it is whole
    shutil.rmtree(gone, ignore_errors=True)


def has_ended(path: Path) -> bool:
    """Returns True if a folder is that of a container that has ended and is taken apart."""
    return path.name.startswith(_ENDED)


def read_all(runs: Path) -> list[HostContainer]:
    """Returns all containers, those started last first."""
    found = [read(path) for kind in (_RUNNING, _ENDED) for path in runs.glob(f"{kind}*")]
    return sorted((each for each in found if each is not None), key=lambda each: -each.created)


def read(path: Path) -> HostContainer | None:
    """Returns what a folder says; None where it has just gone."""
    told, command = about(path), config(path).get("process", {}).get("args", [])
    pid, is_owned = init_of(path), owner(path) is not None
    started, ready, status = _parsed(path / STARTED), _parsed(path / READY), _parsed(path / STATUS)
    if not path.exists():  # it has ended, and was renamed or removed, while it was read
        ended = path.with_name(_ENDED + name_of(path))
        return read(ended) if path != ended else None
    if not told:
        return None
    # Whoever looks after it says how it ended; until then it has not.
    is_over = status or has_ended(path) or (pid is None and not is_owned)
    state = "ended" if is_over else "running" if started else "starting"
    return HostContainer(
        name=name_of(path),
        image=told["image"],
        command=command,
        ports=told.get("ports", []),
        state=state,
        created=told["created"],
        started=started.get("time"),
        ended=status.get("time"),
        status=status.get("status"),
        ready_seconds=ready.get("seconds"),
        detached=bool(told.get("detached")),
        pid=None if is_over else pid,
    )


def about(path: Path) -> dict[str, Any]:
    """Returns what a container was told; nothing where its folder is not complete yet, or has gone."""
    return _parsed(path / ABOUT)


def config(path: Path) -> dict[str, Any]:
    """Returns what runc was told; nothing as above."""
    return _parsed(path / CONFIG)


def open_init(path: Path) -> int | None:
    """Returns a descriptor of the first process of a container, for signals and to wait for its end; None where there is none."""
    pid = init_of(path)
    if pid is None:
        return None
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    if init_of(path) == pid:
        return fd
    os.close(fd)
    return None


def init_of(path: Path) -> int | None:
    """Returns the first process of a container; None where there is none, be it after a reboot."""
    for state in (path / RUNC).glob("*/state.json"):
        told = _parsed(state)
        pid, began = told.get("init_process_pid"), told.get("init_process_start")
        if pid and began == _start_ticks(pid) and about(path).get("boot") == _BOOT.read_text():
            return int(pid)
    return None


def _start_ticks(pid: int) -> int | None:
    """Returns when a process started, as proc(5) counts; None where there is none, or one that has ended."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else int(fields[19])
    return None


def _free_name(runs: Path, image: str) -> str:
    stem = re.split("[:@+]", image.rpartition("/")[2])[0]
    stem = re.sub("[^a-zA-Z0-9_.-]", "-", stem).lstrip("_.-")[:48] or "container"
    while is_taken(runs, name := f"{stem}-{secrets.token_hex(2)}"):
        pass
    return name


@contextlib.contextmanager
def _guard(runs: Path) -> Iterator[None]:
    """Holds the lock under which folders come, and are looked for."""
    try:
        runs.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(runs / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise HostError(f"cannot use {runs}: {error.strerror}") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _parsed(path: Path) -> dict[str, Any]:
    try:
        told = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}
