"""Has captures of clones published, by `blockmap.commit.publisher` in a process of its own: not under this one's lock."""

import contextlib
import logging
import socket
import subprocess
import sys
import threading
from concurrent.futures import Future
from multiprocessing.connection import Connection
from pathlib import Path

from blockmap.commit.task import PublishedCapture, PublishFailure, PublishTask
from blockmap.errors import HostError, NameMoved
from nbdplugin.background import guarded

_log = logging.getLogger("blockmap")


class PublisherProcess:
    """Publishes one capture at a time; ends its process when it is closed.

    The process stays, since it takes half a second to begin, and is there before something is captured.
    """

    def __init__(self, store: str, state: Path, sign: Path | None) -> None:
        """`sign` is the file of the private key that versions and entries are signed with."""
        self._sign = [] if sign is None else [str(sign)]
        self._store = store
        self._state = state
        self._lock = threading.Lock()  # guards what follows
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._closed = False

    def prepare(self) -> None:
        """Starts the process, unless it runs; never raises."""
        try:
            self._ready()
        except (OSError, HostError) as error:  # the first capture says why
            _log.info("nothing can be published yet: %s", error)

    def publish(self, task: PublishTask) -> PublishedCapture:
        """Returns what a capture has become; NameMoved, HostError with the reason where it is to be tried again."""
        try:
            connection = self._ready()
            connection.send(task)
            answer, stays = connection.recv()
        except (OSError, EOFError) as error:
            raise HostError(f"the process that publishes has ended: {self._drop() or error}") from error
        if not stays:
            self._drop()
            self.prepare()
        if isinstance(answer, PublishFailure):
            raise NameMoved(answer.why) if answer.is_final else HostError(answer.why)
        assert isinstance(answer, PublishedCapture)
        return answer

    def close(self) -> None:
        with self._lock:
            self._closed = True
            if self._process is not None:
                self._process.kill()

    def _ready(self) -> Connection:
        """Returns the connection to a process that runs."""
        with self._lock:
            if self._closed:
                raise HostError("the server is about to end")
            if self._process is not None and self._process.poll() is None and self._connection is not None:
                return self._connection
            self._end()
            own, other = socket.socketpair()
            with own, other:
                self._process = self._start(other.fileno())
                self._connection = Connection(own.detach())
            return self._connection

    def _start(self, descriptor: int) -> "subprocess.Popen[bytes]":
        """Starts the process in a thread that stays until it ends: the kernel ends a guarded one with the thread that made it."""
        started: Future[subprocess.Popen[bytes]] = Future()
        program = (f"{sys.prefix}/bin/python", "-m", "blockmap.commit.publisher")

        def keep() -> None:
            try:
                # It logs to this process's standard error, which is the server's log.
                process = subprocess.Popen(
                    guarded([*program, self._store, str(self._state), str(descriptor), *self._sign]),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=(descriptor,),
                    cwd="/",
                )
            except BaseException as error:
                started.set_exception(error)
                return
            started.set_result(process)
            process.wait()

        threading.Thread(target=keep, name="publisher", daemon=True).start()
        return started.result()

    def _drop(self) -> str:
        """Ends the process, if it has not ended; returns how it ended."""
        with self._lock:
            process = self._process
            self._end()
        return "" if process is None or process.returncode is None else f"its status is {process.returncode}"

    def _end(self) -> None:
        """Ends the process; the lock is held."""
        if self._connection is not None:
            self._connection.close()
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            self._process.wait()
        self._process = self._connection = None
