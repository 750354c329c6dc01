"""The process that attaches devices: accepts clients, and has each served by a child of its own.

It has no threads, so that it can fork. What a client has it do is done by its child, also when this process is killed meanwhile;
and devices outlive both. All that it knows is on record (host.attachment_table).
"""

import contextlib
import gc
import logging
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import NoReturn

from blockmap.errors import HostError
from blockmap.host import background
from blockmap.host.attachment_table import has_devices
from blockmap.host.manager.loaded_code import LoadedCode
from blockmap.host.manager.place import LOCK, SOCKETS, reached, socket_name
from blockmap.host.manager.watch import watch
from blockmap.host.manager.work import serve, tidy
from blockmap.host.serve.listening import unix_socket
from blockmap.local.paths import own

_TAKE_OVER_SECONDS = 10.0
_POLL_SECONDS = 0.002
_STEADY_SECONDS = 1.0
"""The least time between two starts of the process that watches."""
_TIDY_SECONDS = 60.0
"""After so long without a request, devices that nobody uses are taken apart: something may have had one when it was detached."""
_LOOK_SECONDS = 5.0
"""Between two looks at the record, for whether a device is left."""

_log = logging.getLogger(__name__)


class DeviceManager:
    """Attaches devices until a signal ends it, or none has been there for `idle_seconds`."""

    def __init__(self, state: Path, idle_seconds: float | None, say: Callable[[str], None]) -> None:
        self._state = state.absolute()
        self._idle_seconds = idle_seconds
        self._say = say
        self._stop = False
        self._children: set[int] = set()
        self._wake, self._woken, self._lock = -1, -1, -1
        self._watcher, self._changed, self._watched = 0, -1, 0.0
        """The process that watches, the pipe that tells it of changes, and when it was started."""

    def run(self) -> None:
        """Serves; returns at once where a process of this installation does already, and this one was started on demand.

        Takes the place of one of another installation, whose children end what they are at. HostError.
        """
        os.chdir("/")
        own(self._state).mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            if not stack.enter_context(self._only_one()):
                return
            folder = stack.enter_context(reached(self._state))
            for left in folder.glob(SOCKETS):
                left.unlink(missing_ok=True)
            self._take_signals(stack)
            listening = stack.enter_context(unix_socket(folder / socket_name(), 0o600, "BLOCKMAP_STATE"))
            listening.setblocking(False)
            self._watch(listening)
            try:
                self._serve(listening)
            finally:
                os.close(self._changed)
                os.waitpid(self._watcher, 0)  # whoever comes next finds nobody else at work

    def _serve(self, listening: socket.socket) -> None:
        code = LoadedCode()
        gc.collect()
        gc.freeze()  # what children only read, they share
        period = self._idle_seconds or _TIDY_SECONDS
        pause = min(_LOOK_SECONDS, period / 4)
        used = time.monotonic()
        while not self._stop:
            waits = bool(select.select([listening.fileno(), self._wake], [], [], pause)[0])
            self._reap(listening)
            if waits and code.has_changed():
                self._say("its code has changed: ending, so that the next is of the new release")
                return
            self._accept(listening)
            if not (self._children or waits):
                if time.monotonic() - used < period:
                    continue
                if has_devices(self._state):
                    self._start_child(listening, lambda: tidy(self._state, self._say))
                elif self._idle_seconds is not None:
                    self._say(f"nothing has been attached for {self._idle_seconds:g} s; ending")
                    return
            used = time.monotonic()

    def _accept(self, listening: socket.socket) -> None:
        try:
            client, _ = listening.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        with client:
            self._start_child(listening, lambda: serve(self._state, client))

    def _start_child(self, listening: socket.socket, work: Callable[[], None]) -> None:
        child = os.fork()
        if child == 0:
            self._be_child(listening, work)
        self._children.add(child)

    def _be_child(self, listening: socket.socket, work: Callable[[], None]) -> NoReturn:
        """Does the work of a child of this process; does not return."""
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
                signal.signal(number, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: who asked for this is not there
            for each in (listening.detach(), self._wake, self._woken, self._lock, self._changed):
                os.close(each)
            work()
            code = 0
        except KeyboardInterrupt:
            pass  # the client hung up, and what it wanted is undone
        except (HostError, OSError) as error:
            self._say(str(error))
        except Exception:
            _log.exception("a child of what attaches devices failed")
        finally:
            os._exit(code)

    def _reap(self, listening: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake, 4096)
        for child in list(self._children):
            if os.waitpid(child, os.WNOHANG)[0]:
                self._children.remove(child)
                with contextlib.suppress(OSError):
                    os.write(self._changed, b"x")
        if os.waitpid(self._watcher, os.WNOHANG)[0]:
            self._say("the process that watches has ended")
            time.sleep(max(self._watched + _STEADY_SECONDS - time.monotonic(), 0))  # it may fail as soon as it begins
            os.close(self._changed)
            self._watch(listening)

    def _watch(self, listening: socket.socket) -> None:
        """Starts the process that watches what devices need; it ends with this one."""
        asked, self._changed = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._watched = time.monotonic()
        self._watcher = os.fork()
        if self._watcher == 0:
            self._be_child(listening, lambda: watch(self._state, asked, self._say))
        os.close(asked)

    def _take_signals(self, stack: contextlib.ExitStack) -> None:
        self._wake, self._woken = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        stack.callback(os.close, self._wake)
        stack.callback(os.close, self._woken)
        stack.callback(signal.set_wakeup_fd, signal.set_wakeup_fd(self._woken, warn_on_full_buffer=False))

        def stop(signum: int, frame: FrameType | None) -> None:
            self._stop = True

        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            stack.callback(signal.signal, number, signal.signal(number, stop))
        stack.callback(signal.signal, signal.SIGCHLD, signal.signal(signal.SIGCHLD, lambda signum, frame: None))

    @contextlib.contextmanager
    def _only_one(self) -> Iterator[bool]:
        """Holds the lock of the one process that serves; yields False where another does that will do as well."""
        self._lock = fd = os.open(self._state / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            end = time.monotonic() + _TAKE_OVER_SECONDS
            while not background.take(fd):
                pid, _, name = os.pread(fd, 200, 0).decode().partition(" ")
                if name == socket_name() and self._idle_seconds is not None:
                    yield False
                    return
                if time.monotonic() > end:
                    raise HostError(f"process {pid}, which attaches devices, does not end: end it by hand")
                if pid:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(pid), signal.SIGTERM)
                time.sleep(_POLL_SECONDS)
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{os.getpid()} {socket_name()}".encode(), 0)
            yield True
        finally:
            os.close(fd)
