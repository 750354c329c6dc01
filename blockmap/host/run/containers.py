"""Does things to containers that run, whoever started them: stops them, signals them, runs programs in them."""

import contextlib
import json
import os
import select
import signal
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from blockmap.errors import HostError, UsageError
from blockmap.host import tools
from blockmap.host.manager.client import Devices
from blockmap.host.run import folders, runc, runner
from blockmap.host.run.container import STOP_SIGNAL, merged, process_config
from blockmap.host.run.runc import Signals

_END_SECONDS = 10.0
_SETTLE_SECONDS = 30.0
"""How long a monitor may take to undo mounts, after the program has ended."""
_POLL_SECONDS = 0.01


@dataclass(frozen=True, slots=True)
class Execution:
    """A program to run in a container."""

    command: list[str]
    environment: tuple[str, ...] = ()
    """NAME=VALUE, besides those of the container."""
    user: str | None = None
    """USER[:GROUP]; the container's by default, as the directory."""
    directory: str | None = None
    terminal: bool = False


def stop(attachments: Devices, path: Path, seconds: float) -> None:
    """Asks a container's program to end, with its image's signal, ends it by force after so many seconds, and returns when nothing
    of it is left; HostError."""
    if folders.has_ended(path):
        return
    wanted = parse_signal(folders.config(path).get("annotations", {}).get(STOP_SIGNAL, "SIGTERM"))
    if not _signal(path, wanted, seconds):
        _signal(path, signal.SIGKILL, _END_SECONDS)
    _await_settled(attachments, path)


def kill(attachments: Devices, path: Path, number: int) -> None:
    """Sends a signal to a container's program; after SIGKILL, returns when nothing of it is left. HostError."""
    ends = number == signal.SIGKILL
    _signal(path, number, _END_SECONDS if ends else 0)
    if ends:
        _await_settled(attachments, path)


def remove(attachments: Devices, path: Path) -> None:
    """Forgets a container that has ended; UsageError where it runs."""
    if not folders.has_ended(path):
        if folders.init_of(path) is not None or folders.owner(path) is not None:
            raise UsageError(f"{folders.name_of(path)} runs: stop it first, or remove it with -f")
        _await_settled(attachments, path)
    with contextlib.suppress(FileNotFoundError):
        folders.forget(path)


def execute(path: Path, wanted: Execution) -> int:
    """Runs a program in a container, with this process's standard streams; returns its status as `runner.run` does.

    UsageError, ImageError, HostError.
    """
    if tools.is_chroot():
        raise HostError("exec does not work below a chroot: runc would run the program outside of the container")
    config, name = folders.config(path), next(runc.containers(path), None)
    if name is None or folders.init_of(path) is None:
        raise UsageError(f"{folders.name_of(path)} does not run: see `blockmap ps -a`")
    own, supervised = config["process"], "resources" in config["linux"]
    environment = merged(own["env"], wanted.environment)
    directory = wanted.directory or own["cwd"]
    process = {**own, "args": wanted.command, "env": environment, "cwd": directory, "terminal": wanted.terminal}
    if wanted.user is not None:
        given = {entry.partition("=")[0] for entry in wanted.environment}
        kept = [entry for entry in environment if not entry.startswith("HOME=") or "HOME" in given]
        process = process_config(
            Path(config["root"]["path"]), wanted.command, kept, wanted.user, directory,
            terminal=wanted.terminal, supervised=supervised,
        )  # fmt: skip
    with (
        tempfile.TemporaryDirectory(prefix="exec-", dir=path, ignore_cleanup_errors=True) as folder,
        Signals() as signals,
    ):
        work = Path(folder)
        (work / "process.json").write_text(json.dumps(process))
        command = [*runc.base(tools.find("runc"), path, supervised=supervised), "--log", str(runc.log_of(work)), "exec"]
        arguments = [*command, *runc.files(work), "--process", str(work / "process.json"), name]
        try:
            return runc.run_to_end(arguments, work, signals, None, terminal=wanted.terminal)
        finally:
            signals.over = True


def parse_signal(text: str) -> int:
    """Returns the number of a signal: KILL, SIGKILL, 9, RTMIN+3; UsageError."""
    word, plus, more = text.upper().removeprefix("SIG").partition("+")
    with contextlib.suppress(ValueError, KeyError):
        number = int(word) if word.isdecimal() else signal.Signals[f"SIG{word}"].value
        number += int(more) if plus else 0
        if 0 < number < signal.NSIG:
            return number
    raise UsageError(f"{text!r} is no signal: a name, as KILL, or a number is expected")


def _signal(path: Path, number: int, seconds: float) -> bool:
    """Sends a signal to a container's first process, and waits for its end; returns True if it has ended.

    Where there is none yet, its owner is told to give up.
    """
    fd = folders.open_init(path)
    if fd is None:
        owner = folders.owner(path)
        with contextlib.suppress(ProcessLookupError):
            if owner is not None and not (path / folders.STARTED).exists():
                os.kill(owner, signal.SIGTERM)
        return True
    try:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(fd, number)
        return bool(select.select([fd], [], [], seconds)[0])
    finally:
        os.close(fd)


def _await_settled(attachments: Devices, path: Path) -> None:
    """Waits until a container's owner has taken everything apart, or does it where the owner was killed; HostError."""
    deadline = time.monotonic() + _SETTLE_SECONDS
    while path.exists():
        folder = folders.lock_left(path)
        if folder is not None:
            runner.settle(attachments, folder)
            return
        if time.monotonic() > deadline:
            raise HostError(
                f"process {folders.owner(path)}, which looks after {folders.name_of(path)}, does not end: see {path}, and end it "
                "with kill -9 if the store is away"
            )
        time.sleep(_POLL_SECONDS)
