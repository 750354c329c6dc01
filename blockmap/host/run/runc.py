"""Has runc run a program, passes signals on to it, and says how it ended."""

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from blockmap.host import tools
from blockmap.host.run.folders import RUNC

_END_SECONDS = 10.0
_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
_LAST_WORDS = (signal.SIGTERM, signal.SIGHUP)
_FAILED = (1, 255)
"""The statuses of runc run and runc exec where they could not do it."""
_ABSENT = re.compile("exec: .*(executable file not found|no such file or directory)|exec .*: no such file or directory")
_NO_PROGRAM = re.compile("exec: .*(permission denied|is a directory)|exec .*: (permission denied|exec format error)")
_BEFORE_PROGRAM = "runc:["
"""How a process is called that is about to become the container's program."""
_START_POLL_SECONDS = 0.005


@dataclass(frozen=True, slots=True)
class Streams:
    """The standard streams of a program, where they are not this process's own."""

    input: int
    output: int
    error: int


class Signals:
    """Passes signals on to a program; before it there is one, they end the run, and after it they are ignored."""

    def __init__(self) -> None:
        self.over = False
        self.deadline: float | None = None
        """When the program is to be ended by force (seconds, monotonic)."""
        self._process: subprocess.Popen[bytes] | None = None
        self._starting = False
        self._waiting: list[int] = []

    def __enter__(self) -> "Signals":
        self._old = {number: signal.signal(number, self._on) for number in _FORWARDED}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def start(self, arguments: list[str], streams: Streams | None, *, terminal: bool) -> subprocess.Popen[bytes]:
        """Starts the process that signals are passed on to from now on."""
        self._starting = True
        own = (None, None, None) if streams is None else (streams.input, streams.output, streams.error)
        # If the program does not use this terminal, a Ctrl-C there must not reach it twice.
        new_session = not terminal or streams is not None
        self._process = process = subprocess.Popen(
            arguments, stdin=own[0], stdout=own[1], stderr=own[2], start_new_session=new_session
        )
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


def base(runc: str, work: Path, *, supervised: bool) -> list[str]:
    """Returns how runc is called for the container of a folder."""
    return [runc, "--root", str(work / RUNC), *([] if supervised else ["--rootless=true"])]


def run_to_end(
    arguments: list[str],
    work: Path,
    signals: Signals,
    streams: Streams | None,
    on_running: Callable[[int], None] | None = None,
    *,
    terminal: bool,
) -> int:
    """Runs `runc run` or `runc exec`, whose log is `work`'s, and which writes its pid file there; returns the program's status.

    That is 128 + n where signal n ended it, 127 or 126 where it is absent or cannot be executed. `on_running` is told the
    program's process once there is one.
    """
    process = signals.start(arguments, streams, terminal=terminal)
    try:
        while True:
            left = None if signals.deadline is None else max(signals.deadline - time.monotonic(), 0)
            if on_running is not None and (pid := _running(work)) is not None:
                on_running(pid)
                on_running = None
            # In slices, because a signal may set the deadline while this waits.
            slice_seconds = 1.0 if on_running is None else _START_POLL_SECONDS
            try:
                code = process.wait(slice_seconds if left is None else min(left, slice_seconds))
                return 128 - code if code < 0 else _status(code, log_of(work))
            except subprocess.TimeoutExpired:
                if left == 0:
                    with contextlib.suppress(
                        OSError, ValueError
                    ):  # it is this process's child's child, which waits for it
                        os.kill(int(_pid_file(work).read_text()), signal.SIGKILL)
                    signals.deadline = time.monotonic() + _END_SECONDS
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def files(work: Path) -> list[str]:
    """Returns the options that have runc write to a folder what `run_to_end` reads there."""
    return ["--pid-file", str(_pid_file(work))]


def log_of(work: Path) -> Path:
    """Returns runc's log."""
    return work / "runc.log"


def failure(work: Path) -> str | None:
    """Returns why runc could not run the program, as it says; None where it could."""
    try:
        lines = log_of(work).read_text(errors="replace").splitlines()
    except OSError:
        return None
    found = (re.search(r'level=error msg="(.*)"$', line) for line in lines)
    said = next((match[1] for match in found if match), None)
    return None if said is None else said.replace('\\"', '"').rpartition("unable to start container process: ")[2]


def end_containers(work: Path) -> None:
    """Ends and forgets what runs in a folder; HostError where runc is gone."""
    for container in containers(work):
        command = [*base(tools.find("runc"), work, supervised=True), "delete", "--force", container]
        subprocess.run(command, capture_output=True, check=False)


def containers(work: Path) -> Iterator[str]:
    """Yields runc's names for what it runs in a folder: one, or none."""
    return (path.name for path in (work / RUNC).glob("*"))


def _pid_file(work: Path) -> Path:
    return work / "pid"


def _running(work: Path) -> int | None:
    """Returns the program's process, once it is one."""
    try:
        pid = int(_pid_file(work).read_text())
        name = Path(f"/proc/{pid}/comm").read_text()
    except (OSError, ValueError):
        return None
    return None if name.startswith(_BEFORE_PROGRAM) else pid


def _status(code: int, log: Path) -> int:
    """Returns the program's exit status; where runc could not start it, docker's 127 or 126, as runc's log gives the reason."""
    try:
        said = log.read_text(errors="replace")
    except OSError:
        return code
    if code not in _FAILED or "level=error" not in said:
        return code
    if _ABSENT.search(said):
        return 127
    return 126 if _NO_PROGRAM.search(said) else code
