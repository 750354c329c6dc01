"""`blockmap run`: attach, a scratch overlay, runc, and everything taken away again.

Each run has a folder, and holds the lock in it while it lives. The next run takes apart what one that was killed left.
"""

import contextlib
import fcntl
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Protocol

from blockmap.control.client import Client
from blockmap.control.messages import Config, Ready, Resolve
from blockmap.errors import BlockmapError, HostError, NotFound, UsageError
from blockmap.host import tools
from blockmap.host.attachments import Attachments
from blockmap.host.devices import mounts
from blockmap.host.run.container import runtime_config

_END_SECONDS = 10.0
_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
_START_SECONDS = 60.0
"""A trace's longest time: what fails later has started."""
_SIGNALLED = 128
"""Statuses above say that a signal ended the program, which is how people end one."""
_RUNC_FAILED = 1
_ABSENT = re.compile("exec: .*(executable file not found|no such file or directory)|exec .*: no such file or directory")
_NO_PROGRAM = re.compile("exec: .*(permission denied|is a directory)|exec .*: (permission denied|exec format error)")
_LAST_WORDS = (signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class Program:
    """Which program of which image is run."""

    name: str
    """The image's name."""
    command: list[str]
    """What replaces the image's Cmd."""
    entrypoint: str | None
    """What replaces the image's Entrypoint and Cmd."""
    terminal: bool
    on_clone: bool = False
    """True if the name is that of a clone, which is the container's root, and keeps what is written."""


class Observer(Protocol):
    """Observes what a start reads."""

    def starts(self, export: str) -> None:
        """Is called when the program is about to start."""

    def ended(self, code: int | None) -> None:
        """It has ended with this status, or could not be run; the image is still mounted. Follows each `starts`."""


def run(
    client: Client,
    attachments: Attachments,
    state: Path,
    program: Program,
    observers: Sequence[Observer] = (),
    *,
    exact: bool = False,
) -> int:
    """Runs an image's program to its end.

    Returns its exit status, 128 + n where signal n ended it, 127 or 126 where it is absent or cannot be executed. A SIGTERM
    is passed on, and ends it by force after 10 s. With `exact`, the image is on a new device that reads nothing ahead, and an
    observer says what there is to learn.
    HostError, ImageError, UsageError.
    """
    tools.need_root("run")
    runc = tools.find("runc")
    supervised = _supervised()
    try:
        found = client.ask(Resolve(program.name))
    except NotFound as error:
        if not program.on_clone:
            raise
        raise NotFound(f"there is no clone {program.name}: see `blockmap clones`") from error
    _check_clone(program, found.writable)
    export = found.export
    config = client.ask(Config(export)).config.encode()
    with _Signals() as signals, contextlib.ExitStack() as stack:
        try:
            work = stack.enter_context(_folder(runc, attachments, state.absolute() / "runs"))
            lower, root = work / "image", work / "root"
            attachments.attach(
                client, export, program.name, lower, exact=exact, writable=program.on_clone, start=not exact
            )
            if program.on_clone:
                root = lower
            else:
                _overlay(lower, work / "scratch", root)
            bundle = runtime_config(
                config, program.command, program.entrypoint, root, os.uname().nodename,
                terminal=program.terminal, supervised=supervised,
            )  # fmt: skip
            (work / "config.json").write_text(json.dumps(bundle))
            code: int | None = None
            for each in (watching := [*observers, *([] if exact else [_FailureTeller(client)])]):
                each.starts(export)
            try:
                code = _run_container(runc, work, supervised, signals)
            finally:
                for each in watching:
                    each.ended(code)
            return code
        finally:
            signals.over = True


def _check_clone(program: Program, is_clone: bool) -> None:
    if is_clone and not program.on_clone:
        raise UsageError(
            f"{program.name} is a clone: add --clone, so that the program runs on it, and what it writes stays"
        )
    if program.on_clone and not is_clone:
        raise UsageError(
            f"{program.name} is no clone: make one with `blockmap clone {program.name} NAME`, or leave out --clone"
        )


class _FailureTeller:
    """Tells the server of a program that fails as soon as it starts, so that nobody learns from that."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def starts(self, export: str) -> None:
        self._export, self._began = export, time.monotonic()

    def ended(self, code: int | None) -> None:
        has_failed = code is None or 0 < code < _SIGNALLED
        if has_failed and time.monotonic() - self._began < _START_SECONDS:
            with contextlib.suppress(BlockmapError):
                self._client.ask(Ready(self._export, failed=True))


class _Signals:
    """Passes signals on to the container; before it there is one, they end the run, and after it they are ignored."""

    def __init__(self) -> None:
        self.over = False
        self.deadline: float | None = None
        """When the program is to be ended by force (seconds, monotonic)."""
        self._process: subprocess.Popen[bytes] | None = None
        self._starting = False
        self._waiting: list[int] = []

    def __enter__(self) -> "_Signals":
        self._old = {number: signal.signal(number, self._on) for number in _FORWARDED}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def start(self, arguments: list[str]) -> subprocess.Popen[bytes]:
        """Starts the process that signals are passed on to from now on."""
        self._starting = True
        # If the program does not use the terminal, a Ctrl-C there must not reach it twice.
        self._process = process = subprocess.Popen(arguments, start_new_session=not os.isatty(0))
        for number in self._waiting:
            self._on(number, None)
        return process

    def _on(self, signum: int, frame: FrameType | None) -> None:
        if self.over:
            return
        if self._process is None:
            if self._starting:
                self._waiting.append(signum)
                return
            self.over = True
            raise KeyboardInterrupt
        if signum in _LAST_WORDS and self.deadline is None:
            self.deadline = time.monotonic() + _END_SECONDS
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signum)


def _run_container(runc: str, work: Path, supervised: bool, signals: _Signals) -> int:
    identity = f"blockmap-{secrets.token_hex(6)}"
    log = work / "runc.log"
    base = [runc, "--root", str(work / "runc"), *([] if supervised else ["--rootless=true"])]
    process = signals.start([*base, "--log", str(log), "run", "--bundle", str(work), identity])
    try:
        while True:
            left = None if signals.deadline is None else max(signals.deadline - time.monotonic(), 0)
            try:
                # In slices, because a signal may set the deadline while this waits.
                code = process.wait(1.0 if left is None else left)
                return 128 - code if code < 0 else _status(code, log)
            except subprocess.TimeoutExpired:
                if left is not None:
                    subprocess.run([*base, "kill", identity, "KILL"], capture_output=True, check=False)
                    signals.deadline = time.monotonic() + _END_SECONDS
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        _end_containers(runc, work)


def _status(code: int, log: Path) -> int:
    """Returns the program's exit status; where runc could not start it, docker's 127 or 126, as runc's log gives the reason."""
    try:
        said = log.read_text(errors="replace")
    except OSError:
        return code
    if code != _RUNC_FAILED or "level=error" not in said:
        return code
    if _ABSENT.search(said):
        return 127
    return 126 if _NO_PROGRAM.search(said) else code


@contextlib.contextmanager
def _folder(runc: str, attachments: Attachments, runs: Path) -> Iterator[Path]:
    """Yields a new folder for one run, and takes it apart with all that is in it."""
    if any(character in str(runs) for character in ",:\\"):
        raise UsageError(f"{runs} cannot be used: overlay mounts have no way to name a path with one of , : \\ in it")
    try:
        runs.mkdir(mode=0o700, parents=True, exist_ok=True)
        guard = os.open(runs / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise HostError(f"cannot use {runs}: {error.strerror}") from error
    try:
        fcntl.flock(guard, fcntl.LOCK_EX)  # a folder that is not locked yet would look left over
        left = {path: fd for path in runs.glob("run-*") if (fd := _lock_left(path)) is not None}
        work = Path(tempfile.mkdtemp(dir=runs, prefix="run-"))
        own = os.open(work / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(own, fcntl.LOCK_EX)
    finally:
        os.close(guard)
    try:
        for path, fd in left.items():
            _end_containers(runc, path)
            _take_apart(attachments, path)
            os.close(fd)
        for name in ("image", "scratch", "root"):
            (work / name).mkdir()
        yield work
    finally:
        _take_apart(attachments, work)
        os.close(own)


def _lock_left(left: Path) -> int | None:
    """Locks the folder of a run that was killed; returns None where the run lives, or has just ended."""
    try:
        fd = os.open(left / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return fd


def _end_containers(runc: str, work: Path) -> None:
    for container in (work / "runc").glob("*"):
        subprocess.run(
            [runc, "--root", str(work / "runc"), "delete", "--force", container.name], capture_output=True, check=False
        )


def _take_apart(attachments: Attachments, work: Path) -> None:
    """Undoes a run's mounts, as far as there are any, and removes its folder."""
    mounts.unmount(work / "root")
    if mounts.source(work / "image") is not None:
        with contextlib.suppress(BlockmapError):
            attachments.detach(work / "image")
    mounts.unmount(work / "scratch")
    if mounts.source(work / "image") is None:
        shutil.rmtree(work, ignore_errors=True)


def _overlay(lower: Path, scratch: Path, root: Path) -> None:
    """Mounts the image with a scratch layer above it: beside the state, else in memory where that file system cannot."""
    try:
        _mount_overlay(lower, scratch, root)
    except HostError:
        shutil.rmtree(scratch)
        scratch.mkdir()
        mounts.mount("blockmap", scratch, "tmpfs", mounts.UNTRUSTED, "mode=700")
        _mount_overlay(lower, scratch, root)


def _mount_overlay(lower: Path, scratch: Path, root: Path) -> None:
    upper = scratch / "upper"
    upper.mkdir()
    (scratch / "work").mkdir()
    own = lower.stat()
    os.chown(upper, own.st_uid, own.st_gid)
    upper.chmod(own.st_mode & 0o7777)
    options = f"lowerdir={lower},upperdir={upper},workdir={scratch}/work"
    mounts.mount("overlay", root, "overlay", mounts.UNTRUSTED, options)


def _supervised() -> bool:
    """Returns True if containers can have control groups of their own; HostError where there are none at all."""
    found = mounts.cgroups()
    if not found:
        raise HostError(
            "runc needs control groups, and none are mounted: mount -t cgroup2 none /sys/fs/cgroup, or use "
            "`blockmap attach` and chroot"
        )
    return not any(os.statvfs(each).f_flag & os.ST_RDONLY for each in found)


def is_terminal() -> bool:
    """Returns True if standard input and output are a terminal."""
    return os.isatty(0) and os.isatty(1)
