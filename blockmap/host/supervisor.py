"""`blockmap serve`: owns the listening sockets, and keeps an nbdkit behind them.

The sockets outlive nbdkit, so clients that come while it starts again wait instead of being refused. nbdkit gets them by
socket activation (sd_listen_fds(3)); the control socket is one more inherited descriptor.
"""

import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from blockmap.errors import HostError, UsageError
from blockmap.host import nbdkit
from blockmap.host.control import Client
from blockmap.host.paths import control_socket

_FIRST_FD = 3  # by the protocol of socket activation
_STOP_SECONDS = 10.0
_READY_SECONDS = 60.0
_QUICK_SECONDS = 5.0
_QUICK_DEATHS = 5
_POLL_SECONDS = 0.2
_ASK_SECONDS = 5.0


class Supervisor:
    """Serves a store until it is told to stop, or nobody has used it for `idle_seconds`."""

    def __init__(
        self,
        store: str,
        cache: Path,
        cache_bytes: int | None,
        nbd_socket: Path,
        listen: str | None,
        idle_seconds: float | None,
        say: Callable[[str], None],
    ) -> None:
        self._store, self._cache, self._cache_bytes = store, cache, cache_bytes
        self._socket = nbd_socket
        self._idle_seconds = idle_seconds
        self._say = say
        self._stop = False
        self._listen = _parse_listen(listen) if listen else None

    def run(self) -> None:
        """Serves; HostError where it cannot start, or nbdkit dies again and again."""
        version = nbdkit.version()
        nbdkit.check_python()
        self._warn(version)
        self._take_signals()
        with contextlib.ExitStack() as stack:
            stack.enter_context(_owned(self._socket))
            sockets = [stack.enter_context(_unix_socket(self._socket, 0o660))]
            if self._listen is not None:
                sockets.append(stack.enter_context(_tcp_socket(*self._listen)))
            control = stack.enter_context(_unix_socket(control_socket(self._socket), 0o600))
            self._keep_running(sockets, control)

    def _keep_running(self, sockets: list[socket.socket], control: socket.socket) -> None:
        quick = 0
        while not self._stop:
            began = time.monotonic()
            process = self._start(sockets, control)
            try:
                if self._wait_ready(process):
                    where = [str(self._socket)]
                    if self._listen is not None:
                        where.append(f"{self._listen[0]}:{self._listen[1]}")
                    self._say(f"ready: serving {self._store} on {' and '.join(where)}, nbdkit is process {process.pid}")
                self._watch(process)
            finally:
                _end(process)
            if self._stop:
                return
            lived = time.monotonic() - began
            quick = quick + 1 if lived < _QUICK_SECONDS else 0
            code = process.returncode
            how = f"by signal {signal.Signals(-code).name}" if code < 0 else f"with status {code}"
            if quick >= _QUICK_DEATHS or (quick and code > 0):
                raise HostError(
                    f"nbdkit ended {how} after {lived:.1f} s, {quick} times in a row: see its messages above"
                )
            self._say(f"nbdkit ended {how} after {lived:.0f} s; starting it again")

    def _start(self, sockets: list[socket.socket], control: socket.socket) -> subprocess.Popen[bytes]:
        control_fd = _FIRST_FD + len(sockets)
        arguments = nbdkit.command(self._store, self._cache, self._cache_bytes, control_fd)
        # LISTEN_PID has to be nbdkit's own pid, which only a shell between fork and exec can know here.
        shell = ["/bin/sh", "-c", 'LISTEN_PID=$$ exec "$@"', "sh", *arguments]
        fds = [each.fileno() for each in (*sockets, control)]

        def arrange() -> None:
            high = [fcntl.fcntl(fd, fcntl.F_DUPFD, _FIRST_FD + len(fds) + 64) for fd in fds]
            for number, fd in enumerate(high):
                os.dup2(fd, _FIRST_FD + number)
                os.set_inheritable(_FIRST_FD + number, True)
                os.close(fd)
            os.closerange(_FIRST_FD + len(fds), 4096)

        environment = {**nbdkit.environment(), "LISTEN_FDS": str(len(sockets))}
        return subprocess.Popen(
            shell,
            env=environment,
            preexec_fn=arrange,
            close_fds=False,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _wait_ready(self, process: subprocess.Popen[bytes]) -> bool:
        client = Client(self._socket)
        end = time.monotonic() + _READY_SECONDS
        while not self._stop and process.poll() is None and time.monotonic() < end:
            with contextlib.suppress(HostError):
                client.request("status")
                return True
            time.sleep(_POLL_SECONDS / 4)
        return False

    def _watch(self, process: subprocess.Popen[bytes]) -> None:
        """Returns when nbdkit has ended, or should."""
        client = Client(self._socket)
        last_used = last_asked = time.monotonic()
        while not self._stop and process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_POLL_SECONDS)
            now = time.monotonic()
            if self._idle_seconds is None or now - last_asked < min(_ASK_SECONDS, self._idle_seconds / 4):
                continue
            last_asked = now
            with contextlib.suppress(HostError):
                if client.request("status")["exports"]:
                    last_used = now
            if now - last_used >= self._idle_seconds:
                self._say(f"nobody has used an export for {self._idle_seconds:.0f} s; stopping")
                self._stop = True

    def _warn(self, version: tuple[int, int]) -> None:
        if self._listen is None:
            return
        if version < nbdkit.ABORTS_BELOW:
            self._say(
                f"warning: nbdkit {version[0]}.{version[1]} ends for all clients when one hangs up with replies pending "
                "(fixed in 1.34): it is started again at once, but let only clients that you trust reach --listen"
            )
        if not self._listen[0].startswith("127.") and self._listen[0] not in ("localhost", "::1"):
            self._say(
                f"warning: whoever reaches {self._listen[0]}:{self._listen[1]} can read every image: NBD has no passwords"
            )

    def _take_signals(self) -> None:
        def stop(signum: int, frame: FrameType | None) -> None:
            self._stop = True

        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, stop)


def spawn(store: str, cache: Path, nbd_socket: Path, idle_seconds: float) -> None:
    """Starts a server in the background, and waits until it answers; HostError with its log where it does not."""
    nbd_socket.parent.mkdir(parents=True, exist_ok=True)
    log = nbd_socket.with_name(nbd_socket.name + ".log")
    arguments = [
        sys.executable, "-m", "blockmap.cli.main", "serve", "--store", store, "--cache", str(cache),
        "--socket", str(nbd_socket), "--idle-exit", str(idle_seconds),
    ]  # fmt: skip
    with open(log, "ab") as out:
        process = subprocess.Popen(
            arguments, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True, cwd="/"
        )
    client = Client(nbd_socket)
    end = time.monotonic() + _READY_SECONDS
    while not client.answers():
        if process.poll() is not None or time.monotonic() > end:
            last = log.read_text(errors="replace").strip().splitlines()[-1:]
            raise HostError(f"the server did not start: {' '.join(last) or 'no message'} (log: {log})")
        time.sleep(0.05)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends nbdkit: it finishes the requests under way, for some seconds at most."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def _owned(nbd_socket: Path) -> Iterator[None]:
    """Holds the lock beside the socket; HostError where another server has it."""
    try:
        nbd_socket.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(nbd_socket.with_name(nbd_socket.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise HostError(f"cannot make {nbd_socket}: {error.strerror}; name another with --socket") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise HostError(f"another server is at {nbd_socket}: use it, or name another socket with --socket") from None
    try:
        yield
    finally:
        os.close(fd)


@contextlib.contextmanager
def _unix_socket(path: Path, mode: int) -> Iterator[socket.socket]:
    """Listens at a path; what a server that was killed left there is replaced."""
    if path.exists() and not path.is_socket():
        raise HostError(f"{path} is there and is not a socket: remove it, or name another with --socket")
    path.unlink(missing_ok=True)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        old = os.umask(0o777 & ~mode)
        try:
            listening.bind(str(path))
        except OSError as error:
            raise HostError(
                f"cannot listen at {path}: {error.strerror or error}; name another with --socket"
            ) from error
        finally:
            os.umask(old)
        listening.listen(128)
        yield listening
    finally:
        listening.close()
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def _tcp_socket(host: str, port: int) -> Iterator[socket.socket]:
    try:
        listening = socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=128
        )
    except OSError as error:
        raise HostError(f"cannot listen on {host}:{port}: {error.strerror or error}") from error
    with listening:
        yield listening


def _parse_listen(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdigit() or not 0 < int(port) < 65536:
        raise UsageError(f"{text!r} is not HOST:PORT, for example 127.0.0.1:10809")
    return host.strip("[]") or "127.0.0.1", int(port)
