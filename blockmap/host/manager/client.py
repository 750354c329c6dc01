"""Asks the process that attaches devices, and starts it where none runs."""

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from socket import SHUT_WR, socket
from typing import TYPE_CHECKING

from blockmap.control.device_messages import AttachDevice, AttachedAnswer, AttachedDirectories, DetachDevice
from blockmap.control.encoding import decode_answer, encode_request
from blockmap.control.operation import AnswerT, Operation
from blockmap.errors import HostError
from blockmap.host.manager.place import LOG, connect
from blockmap.local.paths import own

if TYPE_CHECKING:
    from blockmap.control.client import Client  # whoever has one has imported it

_IDLE_SECONDS = 60.0
_START_SECONDS = 30.0
_POLL_SECONDS = 0.002
_UNDO_SECONDS = 15.0
_TRIES = 3
"""Attempts: a process that is about to end, as it is of an older release, hangs up on whoever connects at that moment."""


class Devices:
    """What is attached on this host, through the process that keeps it."""

    def __init__(self, state: Path) -> None:
        self._state = state.absolute()

    def attach(
        self,
        client: "Client",
        export: str,
        name: str,
        directory: Path,
        *,
        exact: bool = False,
        writable: bool = False,
        start: bool = False,
    ) -> str:
        """Mounts an export, by digest or a clone, at a directory, as `Attachments.attach` does; returns the device's path."""
        request = AttachDevice(
            str(client.nbd_socket.absolute()), "", name, str(directory.resolve()), export,
            exact=exact, writable=writable, start=start,
        )  # fmt: skip
        return self.ask_attach(request).device

    def ask_attach(self, request: AttachDevice) -> AttachedAnswer:
        """Mounts an export at a directory; NoServer, HostError, UsageError and what else the server has."""
        need_root("attach")
        return self._ask(request)

    def detach(self, directory: Path) -> Sequence[str]:
        """Unmounts a directory, and takes its device apart when it was the last; returns what people should know. UsageError,
        HostError."""
        need_root("detach")
        return self._ask(DetachDevice(str(directory.resolve()))).notes

    def directories(self) -> Sequence[str]:
        """Returns where something is attached; HostError."""
        need_root("detach")
        return self._ask(AttachedDirectories()).directories

    def _ask(self, request: Operation[AnswerT]) -> AnswerT:
        line = encode_request(request)
        try:
            for _ in range(_TRIES):
                with connect(own(self._state)) or self._started() as connection:
                    answer = _exchange(connection, line)
                if answer:
                    return decode_answer(request, answer)
        except OSError as error:
            raise HostError(f"cannot reach what attaches devices, in {self._state}: {error.strerror}") from error
        raise HostError(f"what attaches devices ended before it answered: look at {self._state / LOG}")

    def _started(self) -> socket:
        """Starts the process, or waits for one that somebody else has started; HostError."""
        from subprocess import DEVNULL, Popen  # most starts need not wait for it
        from threading import Thread

        log = self._state / LOG
        self._state.mkdir(mode=0o700, parents=True, exist_ok=True)
        command = [sys.executable, "-m", "blockmap.cli.main", "devices", "--idle-exit", str(_IDLE_SECONDS)]
        with open(os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600), "ab") as out:
            process = Popen(
                command, stdin=DEVNULL, stdout=out, stderr=out, start_new_session=True, cwd="/",
                env={**os.environ, "BLOCKMAP_STATE": str(self._state)},
            )  # fmt: skip
        Thread(target=process.wait, daemon=True).start()  # so that a script which goes on has no zombie
        end = time.monotonic() + _START_SECONDS
        while (connection := connect(self._state)) is None:
            if process.returncode or time.monotonic() > end:
                last = log.read_text(errors="replace").strip().splitlines()[-1:]
                raise HostError(f"what attaches devices did not start: {' '.join(last) or 'no message'} (log: {log})")
            time.sleep(_POLL_SECONDS)
        return connection


def _exchange(connection: socket, line: bytes) -> bytes:
    """Returns the answer to a line, empty where the other end hung up; an interrupted one is undone first."""
    try:
        connection.sendall(line)
        with connection.makefile("rb") as lines:
            return lines.readline()
    except ConnectionError:
        return b""
    except BaseException:
        connection.shutdown(SHUT_WR)  # which says that nobody waits for it any more
        connection.settimeout(_UNDO_SECONDS)
        connection.recv(1)
        raise


def need_root(what: str) -> None:
    """Raises HostError unless this process is root's, without the imports of `tools`."""
    if os.geteuid() != 0:
        raise HostError(f"{what} needs root: run it with sudo")
