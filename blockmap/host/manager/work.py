"""What is done for one client, in a process of its own, so that nobody waits for another, and its mounts are the client's."""

import logging
import socket
import struct
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from blockmap.control.client import Client
from blockmap.control.device_messages import (
    AttachDevice,
    AttachedAnswer,
    AttachedDirectories,
    DetachDevice,
    DetachedAnswer,
    DirectoriesAnswer,
)
from blockmap.control.dispatch import Dispatcher
from blockmap.control.messages import Hydrate, Resolve, ResolveAnswer
from blockmap.errors import HostError, UsageError
from blockmap.host.attachments import Attachments
from blockmap.host.devices.kinds import HostDevices
from blockmap.host.devices.namespace import namespace_of
from blockmap.host.manager.hang_up import interrupted_by
from blockmap.host.remote import RemoteServer, Server, resolve_remote
from blockmap.host.served_store import check_store
from blockmap.local.paths import is_remote

_log = logging.getLogger(__name__)


def serve(state: Path, client: socket.socket) -> None:
    """Answers one client until it hangs up."""
    pid, _, _ = struct.unpack("3i", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    with ExitStack() as stack:
        work = _Work(state, client, pid, stack)
        answers = Dispatcher()
        answers.register(AttachDevice, work.attach)
        answers.register(DetachDevice, work.detach)
        answers.register(AttachedDirectories, work.directories)
        answers.serve(client)


def tidy(state: Path, say: Callable[[str], None]) -> None:
    """Takes apart devices that nobody uses any more."""
    Attachments(state, HostDevices(state), say).tidy()


class _Work:
    """What one client asks for."""

    def __init__(self, state: Path, client: socket.socket, pid: int, stack: ExitStack) -> None:
        self._client = client
        self._notes: list[str] = []
        try:
            namespace = namespace_of(pid, stack)
        except OSError as error:
            raise HostError(f"process {pid}, which asks for a device, has ended") from error
        self._attachments = Attachments(state, HostDevices(state), self._note, namespace)

    def attach(self, request: AttachDevice) -> AttachedAnswer:
        with interrupted_by(self._client):
            server, found = self._found(request)
            if not request.fixed and (found.writable or "@" in request.name):
                raise UsageError(
                    f"{request.name} does not move, so that there is nothing to follow: leave out --follow"
                )
            if request.hydrate is False and isinstance(server, Client):
                server.ask(Hydrate(found.export, wanted=False))
            if not request.directory:
                device = self._attachments.attach_device(server, found.export, request.name, writable=found.writable)
            else:
                device = self._attachments.attach(
                    server, found.export, request.name, Path(request.directory),
                    exact=request.exact, writable=found.writable, start=request.start or "+" in request.name,
                )  # fmt: skip
        if request.hydrate and isinstance(server, Client):
            server.ask(Hydrate(found.export))
        return AttachedAnswer(found.export, device, self._attachments.kind, found.writable, self._notes)

    def _found(self, request: AttachDevice) -> tuple[Server, ResolveAnswer]:
        """Returns the server, and what the name stands for there."""
        if is_remote(request.socket):
            remote = RemoteServer(request.socket)
            return remote, ResolveAnswer(*resolve_remote(remote, request.name))
        server = Client(Path(request.socket))
        if request.store:
            check_store(server, request.store)
        if request.export:
            return server, ResolveAnswer(request.export, request.writable)
        return server, server.ask(Resolve(request.name))

    def detach(self, request: DetachDevice) -> DetachedAnswer:
        self._attachments.detach(Path(request.directory))
        return DetachedAnswer(self._notes)

    def directories(self, request: AttachedDirectories) -> DirectoriesAnswer:
        return DirectoriesAnswer([each.directory for each in self._attachments.list()])

    def _note(self, text: str) -> None:
        self._notes.append(text)
        _log.warning(text)
