"""Attaches and detaches on this host, in few imports: every start waits for them."""

import os
from collections.abc import Sequence
from pathlib import Path

from blockmap.control.device_messages import AttachDevice, AttachedAnswer
from blockmap.errors import NoServer, UsageError
from blockmap.host.manager.client import Devices, need_root
from blockmap.local.paths import default_socket, is_remote


def attach(
    state: Path,
    name: str,
    directory: Path | None,
    *,
    store: str | None,
    cache: Path | None,
    socket: Path | None,
    trust: Sequence[str],
    hydrate: bool | None,
    follow: bool,
) -> AttachedAnswer:
    """Mounts an image read-only at a directory, or a clone writable, or without one makes a device alone; starts the server where
    none answers, unless `socket` is HOST:PORT of another host's. Errors as for `Host.attach`."""
    need_root("attach")
    where = "" if directory is None else str(directory.resolve())
    devices = Devices(state)
    if is_remote(socket):
        if follow or hydrate is not None:
            raise UsageError("a server on another host takes no requests from here: leave out --follow and --hydrate")
        return devices.ask_attach(AttachDevice(str(socket), "", name, where))
    nbd_socket = (socket or default_socket()).absolute()
    served = "" if not store else store if "://" in store else os.path.abspath(store)
    request = AttachDevice(str(nbd_socket), served, name, where, fixed=not follow, hydrate=hydrate)
    if trust:
        _find_server(store, cache, socket, trust)
    try:
        answer = devices.ask_attach(request)
    except NoServer:
        _find_server(store, cache, socket, trust)
        answer = devices.ask_attach(request)
    if follow:
        from blockmap.host import followers  # most need not wait for it

        followers.begin(state.absolute(), nbd_socket, name, where)
    return answer


def _find_server(store: str | None, cache: Path | None, socket: Path | None, trust: Sequence[str]) -> None:
    from blockmap.api.server import find_server  # a start that finds its server need not wait for it

    find_server(store, cache, socket, trust)
