"""Asks a running server through its control socket."""

import socket
import time
from pathlib import Path

from blockmap.control.encoding import decode_answer, encode_request
from blockmap.control.messages import ServerStatus, Status
from blockmap.control.operation import AnswerT, Operation
from blockmap.errors import HostError, NoServer
from blockmap.local.paths import control_socket

_ANSWER_SECONDS = 60


class Client:
    """A server, by its NBD socket; each request is a connection of its own."""

    def __init__(self, nbd_socket: Path, seconds: float = _ANSWER_SECONDS) -> None:
        self.nbd_socket = nbd_socket
        self._seconds = seconds
        """How long an answer may take."""
        self._path = control_socket(nbd_socket)

    @property
    def address(self) -> str:
        """Returns where NBD clients find it."""
        return str(self.nbd_socket.absolute())

    def ask(self, request: Operation[AnswerT]) -> AnswerT:
        """Returns the answer; raises the error that the server had, or NoServer where none answers, HostError where it is not
        for this user, or another program's."""
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.settimeout(self._seconds)
                connection.connect(str(self._path))
                connection.sendall(encode_request(request))
                with connection.makefile("rb") as lines:
                    line = lines.readline()
        except PermissionError as error:
            raise HostError(
                f"this user may not use the server at {self.nbd_socket}: run it with sudo; to ask for status and images, be in "
                "the group that `blockmap serve --group` names"
            ) from error
        except OSError as error:
            raise NoServer(
                f"no blockmap server answers at {self.nbd_socket} ({error.strerror or error}): start one with "
                "`blockmap serve`, or name its socket with --socket"
            ) from error
        if not line:
            raise HostError(
                f"the server at {self.nbd_socket} hung up: it serves root, its own user and its --group only"
            )
        try:
            return decode_answer(request, line)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise HostError(
                f"what answers at {self._path} is no blockmap server of this release: name its socket with --socket"
            ) from error

    def status(self) -> ServerStatus:
        """Returns what the server is and counts, as far as it says; HostError."""
        return self.ask(Status()).status

    def full_status(self) -> ServerStatus:
        """Returns all that a server of this release says; HostError where one of another release answers."""
        status = self.status()
        if not ServerStatus.__required_keys__ <= status.keys():
            raise HostError(
                f"the server at {self.nbd_socket} is of another release, and counts other things: end it when nothing is "
                "attached, with `blockmap stop`, and it is started anew when it is needed"
            )
        return status

    def answers(self) -> bool:
        """Returns True if a server is there."""
        try:
            self.status()
        except HostError:
            return False
        return True

    def wait_ready(self, seconds: float) -> None:
        """Waits until the server answers; HostError after `seconds`."""
        end = time.monotonic() + seconds
        while not self.answers():
            if time.monotonic() > end:
                raise HostError(f"no server answers at {self.nbd_socket} after {seconds:.0f} s: look at its log")
            time.sleep(0.05)
