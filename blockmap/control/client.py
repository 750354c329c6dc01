"""Asks a running server through its control socket."""

import json
import socket
import time
from pathlib import Path
from typing import Any

from blockmap import errors
from blockmap.errors import BlockmapError, HostError
from blockmap.local.paths import control_socket

VERSION = 1
_ANSWER_SECONDS = 60


class Client:
    """A server, by its NBD socket; each request is a connection of its own."""

    def __init__(self, nbd_socket: Path, seconds: float = _ANSWER_SECONDS) -> None:
        self.nbd_socket = nbd_socket
        self._seconds = seconds
        """How long an answer may take."""
        self._path = control_socket(nbd_socket)

    def request(self, op: str, **fields: object) -> dict[str, Any]:
        """The answer to one request; the error that the server had, or HostError where none answers."""
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.settimeout(self._seconds)
                connection.connect(str(self._path))
                connection.sendall(json.dumps({"v": VERSION, "op": op, **fields}).encode() + b"\n")
                with connection.makefile("rb") as lines:
                    line = lines.readline()
        except OSError as error:
            raise HostError(
                f"no blockmap server answers at {self.nbd_socket} ({error.strerror or error}): start one with "
                "`blockmap serve`, or name its socket with --socket"
            ) from error
        if not line:
            raise HostError(f"the server at {self.nbd_socket} hung up: it serves root and its own user only")
        try:
            answer: dict[str, Any] = json.loads(line)
        except ValueError as error:
            raise HostError(
                f"what answers at {self._path} is no blockmap server: name its socket with --socket"
            ) from error
        if not answer.get("ok"):
            kind = getattr(errors, str(answer.get("kind")), HostError)
            raise (kind if isinstance(kind, type) and issubclass(kind, BlockmapError) else HostError)(
                answer.get("error")
            )
        return answer

    def answers(self) -> bool:
        """Whether a server is there."""
        try:
            self.request("status")
        except HostError:
            return False
        return True

    def wait_ready(self, seconds: float) -> None:
        """Waits until the server answers; HostError after so many seconds."""
        end = time.monotonic() + seconds
        while not self.answers():
            if time.monotonic() > end:
                raise HostError(f"no server answers at {self.nbd_socket} after {seconds:.0f} s: look at its log")
            time.sleep(0.05)
