"""Runs a child process that gets descriptors by number, and whose output passes through this process."""

import contextlib
import fcntl
import os
import select
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence

FIRST_FD = 3
"""Where inherited sockets begin, by the protocol of socket activation (sd_listen_fds(3))."""
_LINES_KEPT = 40


class Process:
    """A program with `descriptors` at 3, 4, ...; each line that it writes goes to `pass_on`."""

    def __init__(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        descriptors: Sequence[int],
        pass_on: Callable[[bytes], None],
    ) -> None:
        self.status: int | None = None
        """The exit status, or minus the signal, as with subprocess; None while the process runs."""
        # LISTEN_PID has to be the program's own pid, which a shell knows between fork and exec.
        shell = ["/bin/sh", "-c", 'LISTEN_PID=$$ exec "$@"', "sh", *arguments]
        reading, writing = os.pipe()
        # Copies above all targets: dup2 then never overwrites one that is still to be copied.
        free = FIRST_FD + len(descriptors)
        copies = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, free) for fd in (*descriptors, writing)]
        os.close(writing)
        targets = [*range(FIRST_FD, free), 2]
        actions: list[tuple[int, int, str, int, int] | tuple[int, int, int]] = [
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
            *((os.POSIX_SPAWN_DUP2, copy, target) for copy, target in zip(copies, targets, strict=True)),
        ]
        try:
            self.pid = os.posix_spawn(
                shell[0],
                shell,
                dict(environment),
                file_actions=actions,
                setsid=True,  # keys such as Ctrl-C signal the parent alone, which decides what to do
                setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],
            )
        except BaseException:
            os.close(reading)
            raise
        finally:
            for fd in copies:
                os.close(fd)
        self.pidfd = os.pidfd_open(self.pid)
        self._lines: deque[str] = deque(maxlen=_LINES_KEPT)
        self._pump = threading.Thread(target=self._read, args=(reading, pass_on), name="log", daemon=True)
        self._pump.start()

    def poll(self) -> bool:
        """Returns True if the process has ended."""
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
        return self.status is not None

    def wait(self, seconds: float) -> bool:
        """Waits for the process to end; returns True if it did in time."""
        end = time.monotonic() + seconds
        while not self.poll() and (left := end - time.monotonic()) > 0:
            select.select([self.pidfd], [], [], left)
        return self.poll()

    def end(self, seconds: float) -> None:
        """Asks the process to end, kills it after a number of seconds, and releases what it used."""
        if not self.poll():
            os.kill(self.pid, signal.SIGTERM)
            if not self.wait(seconds):
                os.kill(self.pid, signal.SIGKILL)
                self.wait(seconds)
        os.close(self.pidfd)
        self._pump.join(1)

    def error(self) -> str | None:
        """Returns the last error that the plugin logged."""
        found = (line.removeprefix("ERROR ") for line in reversed(self._lines) if line.startswith("ERROR "))
        return next(found, None)

    def last_line(self) -> str:
        """Returns what it said last."""
        return next((line.strip() for line in reversed(self._lines) if line.strip()), "it said nothing")

    def _read(self, fd: int, pass_on: Callable[[bytes], None]) -> None:
        with open(fd, "rb") as messages:
            for line in messages:
                self._lines.append(line.decode(errors="replace").rstrip("\n"))
                with contextlib.suppress(OSError):
                    pass_on(line)
