"""Finds the server that a command talks to."""

import os
from pathlib import Path

from blockmap.control.client import Client
from blockmap.errors import HostError
from blockmap.local.paths import default_cache, default_socket
from blockmap.terminal.options import need_store

_IDLE_SECONDS = 60.0


def server(store: str | None, cache: Path | None, socket: Path | None) -> Client:
    """Returns the server that answers, else one that is started for as long as it is needed."""
    client = Client((socket or default_socket()).absolute())
    try:
        served = client.status()["store"]
    except HostError:
        # Imported here: the engines take 0.2 s, which a start that finds its server need not wait for.
        from blockmap.cli.starting import start

        start(need_store(store), (cache or default_cache()).absolute(), client.nbd_socket, _IDLE_SECONDS)
    else:
        _check_store(client, served, store)
    return client


def _check_store(client: Client, served: str, store: str | None) -> None:
    """Raises HostError where the server that answers serves another store than the one asked for."""
    if not store or served in (store, os.path.abspath(store)):
        return
    from blockmap.store.opening import location  # as above

    if (asked := location(store)) != served:
        raise HostError(
            f"the server at {client.nbd_socket} serves {served}, not {asked}: name another server with --socket, which is "
            "started if need be"
        )
