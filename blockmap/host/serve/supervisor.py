"""`blockmap serve`: owns the listening sockets, and keeps an nbdkit behind them.

The sockets outlive nbdkit, so clients that come while it starts again wait instead of being refused. nbdkit gets them by
socket activation; the control socket is one more inherited descriptor. nbdkit ends with the supervisor, even with one that
is killed, if not at once; the next one sees to that before it serves.
"""

import contextlib
import os
import select
import signal
import socket
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

from blockmap.control.client import Client
from blockmap.errors import HostError
from blockmap.host.serve import limits, nbdkit, revival
from blockmap.host.serve.listening import (
    is_loopback,
    is_owned,
    owned,
    parse_listen,
    parse_place,
    tcp_socket,
    unix_socket,
)
from blockmap.host.serve.notify import notify
from blockmap.host.serve.orphan import end_orphans, note
from blockmap.host.serve.process import FIRST_FD, Process
from blockmap.host.serve.tidy import StartLog, Tidy
from blockmap.local.paths import control_socket

_STOP_SECONDS = 10.0
_READY_SECONDS = 60.0
_ASK_SECONDS = 5.0
_ANSWER_SECONDS = 2.0
_AGAIN_SECONDS = 0.05
_STEADY_SECONDS = 10.0
"""An nbdkit that ran at least this long did not fail at its start."""
_FIRST_DELAY_SECONDS = 0.2
_MAX_DELAY_SECONDS = 5.0
_MAX_FAILED_STARTS = 8

# The NBD protocol: what a server says first, and how a client leaves politely.
_GREETING = b"NBDMAGICIHAVEOPT"
_GREETING_BYTES = 18
_LEAVE = struct.pack(">I8sII", 3, b"IHAVEOPT", 2, 0)  # fixed newstyle without zeroes; NBD_OPT_ABORT, no data


class Supervisor:
    """Serves a store until a signal stops it, or nobody has used it for `idle_seconds`."""

    def __init__(
        self,
        store: str,
        cache: Path,
        cache_bytes: int | None,
        state: Path,
        outages: Sequence[str],
        nbd_socket: Path,
        listen: str | None,
        idle_seconds: float | None,
        say: Callable[[str], None],
        pass_on: Callable[[bytes], None],
        take_over: Callable[[], None],
        metrics: str | None = None,
        learn: bool = True,
        trust: Sequence[str] = (),
        hydrate: bool = True,
        sign: Path | None = None,
        group: int | None = None,
    ) -> None:
        """`pass_on` gets each line that nbdkit writes. `trust` has public keys, of which one must have signed what is opened;
        `sign` is the file of the private key that commits are signed with. Members of `group`, a number, may ask what changes
        nothing.

        `take_over` is called before it serves, when no other server can be at the socket any more.
        """
        self._store, self._cache, self._cache_bytes = store, cache, cache_bytes
        self._state = state
        self._outages = outages
        self._socket = nbd_socket
        self._idle_seconds = idle_seconds
        self._say = say
        self._pass_on = pass_on
        self._take_over = take_over
        self._learn, self._hydrate = learn, hydrate
        self._trust = trust
        self._sign = sign
        self._group = group
        self._stop = False
        self._listen = parse_listen(listen) if listen else None
        self._metrics = parse_place(metrics) if metrics else None
        self._wake, self._woken = -1, -1
        self._lock = -1
        """The lock beside the socket, while it runs."""

    def run(self) -> None:
        """Serves the store; HostError where it cannot start, or nbdkit fails to start again and again."""
        version = nbdkit.version()
        nbdkit.check_python()
        self._warn(version)
        limits.raise_limits()
        with contextlib.ExitStack() as stack:
            self._take_signals(stack)
            self._lock = stack.enter_context(owned(self._socket))
            end_orphans(self._lock, self._cache, _STOP_SECONDS, self._say)
            self._take_over()
            sockets = [stack.enter_context(unix_socket(self._socket, 0o660))]
            if self._listen is not None:
                sockets.append(stack.enter_context(tcp_socket(*self._listen)))
            control = stack.enter_context(self._control_socket())
            stack.enter_context(revival.noted(self._socket))
            self._keep_running(sockets, [control, *self._listen_for_metrics(stack)])

    def _control_socket(self) -> contextlib.AbstractContextManager[socket.socket]:
        mode = 0o600 if self._group is None else 0o660
        return unix_socket(control_socket(self._socket), mode, group=self._group)

    def _listen_for_metrics(self, stack: contextlib.ExitStack) -> list[socket.socket]:
        if self._metrics is None:
            return []
        if isinstance(self._metrics, Path):
            return [stack.enter_context(unix_socket(self._metrics, 0o660, "--metrics"))]
        return [stack.enter_context(tcp_socket(*self._metrics, "--metrics"))]

    def _keep_running(self, sockets: list[socket.socket], own: list[socket.socket]) -> None:
        """Serves NBD on `sockets`; `own` are for control and, if asked for, for metrics."""
        failed_starts = quick_deaths = 0
        served = False
        while not self._stop:
            began = time.monotonic()
            log = StartLog(self._pass_on)
            capacity = limits.capacity(nbdkit.THREADS)
            process = self._start(sockets, own, capacity.connections, log)
            try:
                ready = self._wait_ready(process)
                if ready:
                    log.release()
                    self._say_ready(process, capacity)
                    self._watch(process)
                elif not self._stop and not process.poll():
                    self._say(f"nbdkit does not answer after {_READY_SECONDS:.0f} s; ending it")
            finally:
                process.end(_STOP_SECONDS)
            lived = time.monotonic() - began
            how = _how(process)
            served = served or ready
            failed_starts = 0 if ready else failed_starts + 1
            # Where nobody was served yet, it says that a setting is wrong, which another attempt does not change.
            failed = (not served and (process.status or 0) > 0) or failed_starts >= _MAX_FAILED_STARTS
            log.release(process.error() if failed else None)
            if self._stop:
                return
            if failed:
                raise HostError(process.error() or f"nbdkit does not start: it ended {how}: {process.last_line()}")
            quick_deaths = quick_deaths + 1 if lived < _STEADY_SECONDS else 0
            delay = (
                min(_FIRST_DELAY_SECONDS * 2.0 ** (quick_deaths - 2), _MAX_DELAY_SECONDS) if quick_deaths > 1 else 0.0
            )
            self._say(
                f"nbdkit ended {how} after {lived:.1f} s; starting it again" + (f" in {delay:.1f} s" if delay else "")
            )
            select.select([self._wake], [], [], delay)

    def _start(
        self, sockets: list[socket.socket], own: list[socket.socket], connections: int, log: StartLog
    ) -> Process:
        control_fd = FIRST_FD + len(sockets)
        arguments = nbdkit.command(
            self._store,
            self._cache,
            self._cache_bytes,
            self._state,
            self._outages,
            control_fd,
            self._learn,
            self._trust,
            self._hydrate,
        )
        arguments.append(f"connections={connections}")
        if self._sign is not None:
            arguments.append(f"sign={self._sign}")
        if self._group is not None:
            arguments.append(f"group={self._group}")
        if self._idle_seconds is not None:
            arguments.append(f"idle_exit={self._idle_seconds:g}")
        if (own_log := _log_file()) is not None:
            arguments.append(f"log={own_log}")
        if self._metrics is not None:
            arguments.append(f"metrics_fd={control_fd + 1}")
        environment = {**nbdkit.environment(), "LISTEN_FDS": str(len(sockets))}
        process = Process(arguments, environment, [each.fileno() for each in (*sockets, *own)], Tidy(log))
        note(self._lock, process.pid, os.getpid())
        return process

    def _say_ready(self, process: Process, capacity: limits.Capacity) -> None:
        where = [str(self._socket)]
        if self._listen is not None:
            where.append(f"{self._listen[0]}:{self._listen[1]}")
        self._say(
            f"ready: serving {self._store} on {' and '.join(where)}, nbdkit is process {process.pid}; takes up to "
            f"{capacity.connections:,} connections ({capacity.limit})"
        )
        notify("READY=1", f"STATUS=serving {self._store} on {' and '.join(where)}")

    def _wait_ready(self, process: Process) -> bool:
        """Returns True if nbdkit greets an NBD client. The connection waits in the socket's queue until it does."""
        end = time.monotonic() + _READY_SECONDS
        while not self._stop and not process.poll() and time.monotonic() < end:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client, contextlib.suppress(OSError):
                client.settimeout(_ANSWER_SECONDS)
                client.connect(str(self._socket))
                waiting = [client.fileno(), process.pidfd, self._wake]
                if client.fileno() in select.select(waiting, [], [], max(end - time.monotonic(), 0))[0]:
                    greeting = client.recv(_GREETING_BYTES, socket.MSG_WAITALL)
                    client.sendall(_LEAVE)
                    if greeting.startswith(_GREETING):
                        return True
            select.select([process.pidfd, self._wake], [], [], _AGAIN_SECONDS)
        return False

    def _watch(self, process: Process) -> None:
        """Waits until nbdkit has ended, or should."""
        client = Client(self._socket, _ANSWER_SECONDS)
        pause = None if self._idle_seconds is None else min(_ASK_SECONDS, self._idle_seconds / 4)
        last_used, seen = time.monotonic(), (0, 0)
        while not self._stop and not process.poll():
            select.select([process.pidfd, self._wake], [], [], pause)
            if self._idle_seconds is None or self._stop or process.poll():
                continue
            with contextlib.suppress(HostError):
                status = client.status()
                counts = status["opens"], status["control_requests"]
                if status["exports"] or status["learn"]["running"] or counts != seen:
                    last_used, seen = time.monotonic(), counts
            if time.monotonic() - last_used >= self._idle_seconds:
                self._say(f"nobody has used an export for {self._idle_seconds:g} s; stopping")
                self._stop = True

    def _warn(self, version: tuple[int, int]) -> None:
        if isinstance(self._metrics, tuple) and not is_loopback(self._metrics[0]):
            self._say(
                f"warning: whoever reaches {self._metrics[0]}:{self._metrics[1]} learns which images are read: there is "
                "no authentication"
            )
        if self._listen is None:
            return
        if version < nbdkit.ABORTS_BELOW:
            self._say(
                f"warning: nbdkit {version[0]}.{version[1]} ends for all clients when one hangs up with replies pending "
                "(fixed in 1.34): it is started again at once, but let only clients that you trust reach --listen"
            )
        if not is_loopback(self._listen[0]):
            self._say(
                f"warning: whoever reaches {self._listen[0]}:{self._listen[1]} can read every image, and write to every clone: "
                "there is no authentication"
            )

    def _take_signals(self, stack: contextlib.ExitStack) -> None:
        self._wake, self._woken = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        stack.callback(os.close, self._wake)
        stack.callback(os.close, self._woken)

        def stop(signum: int, frame: FrameType | None) -> None:
            if not self._stop:
                self._say(f"{signal.Signals(signum).name}: stopping")
                notify("STOPPING=1")
            self._stop = True
            with contextlib.suppress(BlockingIOError):
                os.write(self._woken, b"x")

        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
            stack.callback(signal.signal, number, signal.signal(number, stop))


def spawn(store: str, cache: Path, nbd_socket: Path, idle_seconds: float, trust: Sequence[str] = ()) -> None:
    """Starts a server in the background, and waits until it answers; HostError with its cause where it does not."""
    nbd_socket.parent.mkdir(parents=True, exist_ok=True)
    log = nbd_socket.with_name(nbd_socket.name + ".log")
    arguments = [
        sys.executable, "-m", "blockmap.cli.main", "serve", "--store", store, "--cache", str(cache),
        "--socket", str(nbd_socket), "--idle-exit", str(idle_seconds), *(word for key in trust for word in ("--trust", key)),
    ]  # fmt: skip
    with open(os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600), "ab") as out:
        process = subprocess.Popen(
            arguments, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True, cwd="/"
        )
    client = Client(nbd_socket)
    end = time.monotonic() + _READY_SECONDS
    while not client.answers():
        # Another command may have started one at the same moment; then that one is waited for.
        if (process.poll() is not None and not is_owned(nbd_socket)) or time.monotonic() > end:
            last = log.read_text(errors="replace").strip().splitlines()[-1:]
            raise HostError(f"the server did not start: {' '.join(last) or 'no message'} (log: {log})")
        time.sleep(0.05)


def _log_file() -> str | None:
    """Returns the file that this process logs to; None where that is no file."""
    with contextlib.suppress(OSError):
        if stat.S_ISREG(os.fstat(2).st_mode):
            return os.readlink("/proc/self/fd/2")
    return None


def _how(process: Process) -> str:
    status = process.status or 0
    return f"by signal {signal.Signals(-status).name}" if status < 0 else f"with status {status}"
