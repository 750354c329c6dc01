"""Servers and mounts that are there while a block runs, and are taken apart by their handles however it ends."""

import contextlib
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType

from blockmap.errors import HostError
from blockmap.host import tools

_READY_SECONDS = 60.0
_END_SECONDS = 10.0
_POLL_SECONDS = 0.002
_ACCEPTING = 0x10000
"""The flag of a listening socket in proc_net_unix(5)."""
_ENDING = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def running(
    command: list[str],
    log: Path,
    environment: Mapping[str, str] | None = None,
    end: signal.Signals = signal.SIGTERM,
) -> Iterator[subprocess.Popen[bytes]]:
    """Runs a process whose output goes to `log`, in a session of its own: a Ctrl-C at the terminal is for the benchmark."""
    with open(log, "ab") as out:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True, cwd="/", env=environment
        )
    try:
        yield process
    finally:
        process.send_signal(end)
        try:
            process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_ready(process: subprocess.Popen[bytes], log: Path, ready: Callable[[], bool]) -> None:
    """Waits until `ready` holds; HostError with what the process said where it ends before, or takes a minute."""
    end = time.monotonic() + _READY_SECONDS
    while not ready():
        if process.poll() is not None or time.monotonic() > end:
            said = log.read_text(errors="replace").strip().splitlines()[-3:]
            raise HostError(f"{_name(process)} did not start: {' / '.join(said) or 'it said nothing'}")
        time.sleep(_POLL_SECONDS)


@contextlib.contextmanager
def mounted(where: Path, *arguments: str) -> Iterator[Path]:
    """Mounts at a directory, which is made."""
    where.mkdir(parents=True, exist_ok=True)
    tools.run("mount", *arguments, str(where))
    try:
        yield where
    finally:
        _unmount(where)


@contextlib.contextmanager
def calm() -> Iterator[contextlib.ExitStack]:
    """Yields an exit stack for cleaning up. Signals that would end this process wait until that is done."""
    came = False

    def note(signum: int, frame: FrameType | None) -> None:
        nonlocal came
        came = True

    old = {}
    try:
        with contextlib.ExitStack() as stack:
            try:
                yield stack
            finally:
                for number in _ENDING:
                    old[number] = signal.signal(number, note)
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
    if came:
        raise KeyboardInterrupt


def answers(port: int) -> bool:
    """Returns True if a process listens at a port of this host."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except OSError:
        return False
    return True


def listens(path: Path) -> bool:
    """Returns True if a process listens at a Unix socket, which exists a moment earlier; asks the kernel, not the process."""
    lines = Path("/proc/net/unix").read_text().splitlines()[1:]
    fields = (line.split(maxsplit=7) for line in lines)
    return any(each[-1] == str(path) and int(each[3], 16) & _ACCEPTING for each in fields)


def free_ports(count: int) -> list[int]:
    """Ports of loopback where nobody listened a moment ago, each another: all are held until the last is found."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def _unmount(where: Path) -> None:
    """Unmounts; a program that was killed may use its files for a moment longer."""
    end = time.monotonic() + _END_SECONDS
    while True:
        try:
            tools.run("umount", str(where))
            return
        except HostError:
            if time.monotonic() > end:
                tools.run("umount", "-l", str(where))
                return
            time.sleep(0.02)


def _name(process: subprocess.Popen[bytes]) -> str:
    assert isinstance(process.args, list)
    return Path(str(process.args[0])).name
