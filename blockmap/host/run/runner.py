"""Runs an image's program in a container: attach, a scratch overlay, runc, and everything taken away again.

Each run has a folder, and holds the lock in it while it lives. The next run takes apart what one that was killed left.
"""

import contextlib
import os
import secrets
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from blockmap.control.client import Client
from blockmap.control.messages import Config, Ready, Resolve
from blockmap.errors import BlockmapError, HostError, NotFound, UsageError
from blockmap.host import tools
from blockmap.host.devices import mounts
from blockmap.host.manager.client import Devices
from blockmap.host.run import folders, network, runc
from blockmap.host.run.container import runtime_config
from blockmap.host.run.control_groups import supervised
from blockmap.host.run.folders import ContainerFolder
from blockmap.host.run.options import RunOptions
from blockmap.host.run.runc import Signals, Streams

_START_SECONDS = 60.0
"""A trace's longest time: what fails later has started."""
_SIGNALLED = 128
"""Statuses above say that a signal ended the program, which is how people end one."""


@dataclass(frozen=True, slots=True)
class Program:
    """Which program of which image is run."""

    name: str
    """The image's name."""
    command: list[str]
    """What replaces the image's Cmd."""
    options: RunOptions = field(default_factory=RunOptions)
    terminal: bool = False
    on_clone: bool = False
    """True if the name is that of a clone, which is the container's root, and keeps what is written."""


@dataclass(frozen=True, slots=True)
class Detached:
    """A run without anybody who waits: what it is given in place of this process's own."""

    folder: ContainerFolder
    streams: Streams
    on_running: Callable[[int], None]
    """Is told the program's process once there is one."""
    keep: bool
    """True if the folder stays, with the log, when the program has ended."""


class Observer(Protocol):
    """Observes what a start reads."""

    def starts(self, export: str) -> None:
        """Is called when the program is about to start."""

    def ended(self, code: int | None) -> None:
        """It has ended with this status, or could not be run; the image is still mounted. Follows each `starts`."""


def run(
    client: Client,
    attachments: Devices,
    state: Path,
    program: Program,
    observers: Sequence[Observer] = (),
    *,
    exact: bool = False,
    name: str | None = None,
    detached: Detached | None = None,
) -> int:
    """Runs an image's program to its end, in a container of this name, or of one after the image's.

    Returns its exit status, 128 + n where signal n ended it, 127 or 126 where it is absent or cannot be executed. A SIGTERM
    is passed on, and ends it by force after 10 s. With `exact`, the image is on a new device that reads nothing ahead, and an
    observer says what there is to learn.
    HostError, ImageError, UsageError.
    """
    tools.need_root("run")
    with Signals() as signals, contextlib.ExitStack() as stack:
        try:
            folder = detached.folder if detached else _folder(attachments, state, program, name)
            stack.callback(_leave, attachments, folder, keep=detached is not None and detached.keep)
            work, program_of_runc, groups = folder.path, tools.find("runc"), supervised(program.options)
            export = _export(client, program)
            config = client.ask(Config(export)).config.encode()
            for part in ("image", "scratch", "root"):
                (work / part).mkdir()
            lower, root = work / "image", work / "root"
            attachments.attach(
                client, export, program.name, lower, exact=exact, writable=program.on_clone, start=not exact
            )
            if program.on_clone:
                root = lower
            else:
                _overlay(lower, work / "scratch", root)
            around = network.connect(program.options, folder.name, work, root, supervised=groups)
            bundle = runtime_config(config, program.command, program.options, around, terminal=program.terminal)
            folder.write(folders.CONFIG, bundle)
            code: int | None = None
            for each in (watching := [*observers, *([] if exact else [_FailureTeller(client)])]):
                each.starts(export)
            try:
                code = _run_container(program_of_runc, folder, groups, signals, program.terminal, detached)
            finally:
                if code is not None:
                    folder.write(folders.STATUS, {"status": code, "time": time.time()})
                for each in watching:
                    each.ended(code)
            return code
        finally:
            signals.over = True


def take_apart(attachments: Devices, folder: ContainerFolder, *, keep: bool) -> None:
    """Ends what runs in a container's folder, undoes its mounts, as far as there are any, and removes it, or what of it does not
    stay."""
    work = folder.path
    runc.end_containers(work)
    network.disconnect(work)
    mounts.unmount(work / "root")
    if mounts.source(work / "image") is not None:
        with contextlib.suppress(BlockmapError):
            attachments.detach(work / "image")
    mounts.unmount(work / "scratch")
    if mounts.source(work / "image") is None:
        folder.remove(keep)


def settle_left(attachments: Devices, state: Path) -> None:
    """Takes apart what killed processes left of containers that nobody can have any use for."""
    for each in list(folders.left(runs_of(state))):
        settle(attachments, each)


def settle(attachments: Devices, folder: ContainerFolder) -> None:
    """Takes apart what a process left that was killed, and lets go of it."""
    about = folders.about(folder.path)
    take_apart(attachments, folder, keep=bool(about.get("detached") and about.get("keep")))
    folder.close()


def _export(client: Client, program: Program) -> str:
    """Returns the export of a program's image or clone; NotFound, UsageError."""
    try:
        found = client.ask(Resolve(program.name))
    except NotFound as error:
        if not program.on_clone:
            raise
        raise NotFound(f"there is no clone {program.name}: see `blockmap clones`") from error
    if found.writable and not program.on_clone:
        raise UsageError(
            f"{program.name} is a clone: add --clone, so that the program runs on it, and what it writes stays"
        )
    if program.on_clone and not found.writable:
        raise UsageError(
            f"{program.name} is no clone: make one with `blockmap clone {program.name} NAME`, or leave out --clone"
        )
    return found.export


def _folder(attachments: Devices, state: Path, program: Program, name: str | None) -> ContainerFolder:
    """Makes the folder of a run that somebody waits for, and takes apart what others left."""
    folder = folders.make(runs_of(state), name, program.name, {"ports": [str(port) for port in program.options.ports]})
    settle_left(attachments, state)
    return folder


def runs_of(state: Path) -> Path:
    """Returns the directory of the containers' folders."""
    return state.absolute() / "runs"


def _leave(attachments: Devices, folder: ContainerFolder, *, keep: bool) -> None:
    # Nobody looks for what was never there.
    has_run = (folder.path / folders.STATUS).exists() and runc.failure(folder.path) is None
    take_apart(attachments, folder, keep=keep and has_run)
    folder.close()


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


def _run_container(
    program: str, folder: ContainerFolder, groups: bool, signals: Signals, terminal: bool, detached: Detached | None
) -> int:
    work = folder.path
    command = [*runc.base(program, work, supervised=groups), "--log", str(runc.log_of(work)), "run", *runc.files(work)]

    def on_running(pid: int) -> None:
        folder.write(folders.STARTED, {"time": time.time()})
        if detached is not None:
            detached.on_running(pid)

    return runc.run_to_end(
        [*command, "--bundle", str(work), f"blockmap-{secrets.token_hex(6)}"],
        work, signals, detached.streams if detached else None, on_running, terminal=terminal,
    )  # fmt: skip


def make_sources(options: RunOptions) -> list[str]:
    """Makes the directories of the host that a container is to have and that are absent, as docker does, and returns them;
    HostError."""
    absent = [each.source for each in options.volumes if not os.path.lexists(each.source)]
    for source in absent:
        try:
            os.makedirs(source, exist_ok=True)
        except OSError as error:
            raise HostError(f"cannot make {source}: {error.strerror}") from error
    return absent


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


def is_terminal() -> bool:
    """Returns True if standard input and output are a terminal."""
    return os.isatty(0) and os.isatty(1)
