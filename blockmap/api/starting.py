"""Starts a server for a command that found none."""

from collections.abc import Sequence
from pathlib import Path

from blockmap.format.signature import PublicKey
from blockmap.host.serve.supervisor import spawn
from blockmap.local.paths import own
from blockmap.origin.records import open_served
from blockmap.server.opener import ANSWER_SECONDS
from blockmap.store.opening import location


def start(store: str, cache: Path, nbd_socket: Path, idle_seconds: float, trusted: Sequence[PublicKey]) -> None:
    """Starts a server of the store, which ends when nobody has used it for a while; errors as for opening the store."""
    url = location(store)
    open_served(url, own(cache), ANSWER_SECONDS)
    spawn(url, cache, nbd_socket, idle_seconds, list(map(str, trusted)))
