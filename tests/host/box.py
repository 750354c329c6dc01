"""A host that runs containers, shared by the tests of a module: each test leaves none behind."""

import contextlib
import os
import pty
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

from blockmap.host.run import folders
from blockmap.host.run.folders import HostContainer
from tests.host.conftest import BLOCKMAP, GROUP, PASSWD, Host
from tests.image.layouts import archive, directory, file, layout, symlink
from tests.waiting import until

WAITS = "trap 'exit 0' TERM; while :; do sleep 0.05; done"
"""Runs until it is told to end: as the first process, a program without a handler is not ended by SIGTERM."""


@contextlib.contextmanager
def serving_box(store: Path, where: Path) -> Iterator[Host]:
    """A host with a server, app:1 and app:2, and svc:1, which has a StopSignal and a user."""
    host = Host(where)
    shutil.copytree(store, host.store)
    busybox = Path(shutil.which("busybox") or "/bin/busybox").read_bytes()
    tools = [symlink(f"bin/{name}", "busybox") for name in ("sh", "id", "sleep")]
    own = [file("bin/busybox", busybox, mode=0o755), *tools, file("etc/passwd", PASSWD), file("etc/group", GROUP)]
    folders = [directory(name) for name in ("bin", "etc", "proc", "dev", "sys")]
    config = {"Cmd": ["sleep", "1000"], "Env": ["PATH=/bin"], "User": "app", "StopSignal": "SIGUSR1"}
    svc = where / "svc"
    layout(svc, [archive([*folders, *own])], config={"config": config})
    try:
        host.serve()
        host.do("import", "--quiet", f"oci:{svc}:1", "svc:1")
        yield host
    finally:
        host.end()


def listed(host: Host, name: str) -> HostContainer | None:
    """What `ps -a` says of a container."""
    return next((each for each in folders.read_all(host.state / "runs") if each.name == name), None)


def state(host: Host, name: str) -> str | None:
    """Whether a container is starting, running or has ended; None where there is none."""
    found = listed(host, name)
    return None if found is None else found.state


def monitor(host: Host, name: str) -> int:
    """The process that looks after a detached container."""
    return int((host.state / "runs" / f"run-{name}" / "lock").read_text())


def children(pid: int) -> list[int]:
    """The processes that a process began."""
    return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def is_gone(pid: int) -> bool:
    """True if a process has ended, be it that nobody has waited for it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


class Terminal:
    """A command on a terminal of its own, at which a person could sit; its output goes to a file if one is given."""

    def __init__(self, host: Host, *arguments: object, output: Path | None = None) -> None:
        self.pid, self._fd = pty.fork()
        if self.pid == 0:
            with contextlib.suppress(BaseException):
                if output is not None:
                    os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT), 1)
                command = [*BLOCKMAP, *map(str, arguments)]
                os.execve(command[0], command, host.environment)
            os._exit(99)
        self.said = b""

    def wait_for(self, text: bytes) -> None:
        """Reads until it has said something."""

        def read() -> bool:
            with contextlib.suppress(OSError):  # the end of a terminal is an error
                self.said += os.read(self._fd, 4096)
            return text in self.said

        until(read, lambda: self.said.decode(errors="replace"))

    def shares_keys_with(self, pid: int) -> bool:
        """True if the terminal's keys send a signal to a process as well."""
        return os.getpgid(pid) == os.tcgetpgrp(self._fd)

    def type(self, keys: bytes) -> None:
        os.write(self._fd, keys)

    def resize(self, rows: int, columns: int) -> None:
        subprocess.run(["stty", "rows", str(rows), "cols", str(columns)], stdin=self._fd, check=True)

    def end(self) -> int:
        """Reads to the end; the command's status."""
        with contextlib.suppress(OSError):
            while piece := os.read(self._fd, 4096):
                self.said += piece
        os.close(self._fd)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def kill_hard(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    until(lambda: is_gone(pid))
