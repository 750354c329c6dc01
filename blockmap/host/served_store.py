"""Checks which store a server serves."""

import os

from blockmap.control.client import Client
from blockmap.errors import HostError


def check_store(client: Client, store: str) -> None:
    """Raises HostError where the server serves another store than `store`, and NoServer where none answers."""
    served = client.status()["store"]
    if served in (store, os.path.abspath(store)):
        return
    from blockmap.store.opening import location  # the engines take 0.2 s, which most need not wait for

    if (asked := location(store)) != served:
        raise HostError(
            f"the server at {client.nbd_socket} serves {served}, not {asked}: name another server with --socket, which is "
            "started if need be"
        )
