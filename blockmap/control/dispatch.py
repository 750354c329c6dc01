"""The server's end of the control socket: hands each request to whoever registered for its class.

Root and the server's own user are answered, and members of a group what they may ask: a request whose class says so.
"""

import logging
import os
import socket
import struct
import threading
from collections.abc import Callable
from typing import Any

from blockmap.control.encoding import decode_request, encode_answer, encode_error
from blockmap.control.operation import AnswerT, Operation
from blockmap.errors import BlockmapError, HostError, UsageError

_MAX_LINE = 1 << 16
_IDLE_SECONDS = 60
_CLIENTS_AT_ONCE = 64
"""Clients that are answered at once; others wait, so that they do not use up the threads and descriptors of a process that
serves disks."""
_SO_PEERGROUPS = 59
"""The option of socket(7) has no name in Python; Linux has it since 4.13."""
_GROUPS_BYTES = 1024
"""The most that Python asks for: 256 groups. Who is in more needs the server's as the primary one."""
_log = logging.getLogger("blockmap")


class Dispatcher:
    """Answers requests by a table of handlers, one of each operation; safe to share between threads once all are there."""

    def __init__(self, group: int | None = None) -> None:
        """`group` is the number of the group whose members may ask; None for no group."""
        self._group = group
        self._handlers: dict[type[Operation[Any]], Callable[[Any], Any]] = {}
        self.kinds: dict[str, type[Operation[Any]]] = {}
        """What is answered, by `op`."""
        self._lock = threading.Lock()  # guards uses
        self.uses = 0
        """Requests by those who use the server, and do not only watch it."""
        self._free = threading.Semaphore(_CLIENTS_AT_ONCE)

    def register(self, kind: type[Operation[AnswerT]], handler: Callable[[Any], AnswerT]) -> None:
        """Has `handler` answer the requests of a class; it may raise any BlockmapError, which then crosses to the client."""
        self._handlers[kind] = handler
        self.kinds[kind.op] = kind

    def start(self, listening: socket.socket) -> None:
        """Answers on a listening Unix socket, each client in a thread of its own."""
        threading.Thread(target=self._accept, args=(listening,), name="control", daemon=True).start()

    def _accept(self, listening: socket.socket) -> None:
        listening.setblocking(True)
        while True:
            self._free.acquire()
            try:
                client, _ = listening.accept()
            except OSError as error:
                _log.error("the control socket failed: %s", error)
                return
            threading.Thread(target=self._serve_one, args=(client,), name="control client", daemon=True).start()

    def _serve_one(self, client: socket.socket) -> None:
        try:
            self.serve(client)
        finally:
            self._free.release()

    def serve(self, client: socket.socket) -> None:
        """Answers one client until it hangs up, says nothing for a minute, or sends a line without an end."""
        with client:
            _, uid, gid = struct.unpack("3I", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            may_change = uid in (0, os.geteuid())
            if not may_change and (self._group is None or self._group not in (gid, *_further_groups(client))):
                _log.warning("a control client with uid %d was refused", uid)
                return
            client.settimeout(_IDLE_SECONDS)
            try:
                with client.makefile("rb") as lines:
                    while line := lines.readline(_MAX_LINE):
                        client.sendall(self.answer(line, may_change))
                        if not line.endswith(b"\n"):
                            return
            except OSError:
                return

    def answer(self, line: bytes, may_change: bool) -> bytes:
        """Returns the answer to one request, whatever it is; `may_change` is False for a member of the group alone."""
        try:
            if not line.endswith(b"\n"):
                raise UsageError(f"a request ends with a newline, and has {_MAX_LINE} bytes at most")
            request = decode_request(line, self.kinds)
            if not (may_change or request.group_may):
                raise HostError(f"the server does {request.op!r} for root and its own user only: run it with sudo")
            with self._lock:
                self.uses += request.is_use
            return encode_answer(self._handlers[type(request)](request))
        except BlockmapError as error:
            return encode_error(error)
        except Exception as error:
            _log.exception("a control request failed")
            return encode_error(HostError(f"the server failed: {error!r}; see its log"))


def _further_groups(client: socket.socket) -> tuple[int, ...]:
    """Returns the supplementary groups that a client had when it connected."""
    try:
        found = client.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _GROUPS_BYTES)
    except OSError:  # it has more
        return ()
    return struct.unpack(f"{len(found) // 4}I", found)
