"""Finds the server that serves a store on this host, or starts it."""

from collections.abc import Sequence
from pathlib import Path

from blockmap.control.client import Client
from blockmap.errors import HostError, NoServer
from blockmap.format.signature import PublicKey
from blockmap.host.served_store import check_store
from blockmap.local.paths import default_cache, default_socket, need_store

_IDLE_SECONDS = 60.0


def find_server(store: str | None, cache: Path | None, socket: Path | None, trust: Sequence[str] = ()) -> Client:
    """Returns the server that answers, else one that is started for as long as it is needed.

    Raises HostError where the one that answers trusts other keys than those of `trust`, UsageError where none answers and no
    store is given.
    """
    client = Client((socket or default_socket()).absolute())
    trusted = _read(trust) if trust else ()
    try:
        if store:
            check_store(client, store)
        else:
            client.status()
    except NoServer:
        # Imported here: the engines take 0.2 s, which a start that finds its server need not wait for.
        from blockmap.api.starting import start

        start(need_store(store), (cache or default_cache()).absolute(), client.nbd_socket, _IDLE_SECONDS, trusted)
    if trusted:  # also if it was started just now: another command may have been faster
        _check_trust(client, client.status()["trust"], trusted)
    return client


def _check_trust(client: Client, served: Sequence[str], trusted: Sequence[PublicKey]) -> None:
    """Raises HostError where the server that answers opens more than what one of the trusted keys signed."""
    ids = {key.id for key in trusted}
    if not (served and ids.issuperset(served)):
        raise HostError(
            f"the server at {client.nbd_socket} opens {'what ' + ' or '.join(served) + ' signed' if served else 'all'}, not only "
            f"what {' or '.join(sorted(ids))} signed: restart it with the same --trust, or name another with --socket"
        )


def _read(trust: Sequence[str]) -> Sequence[PublicKey]:
    from blockmap.store.key_files import read_trusted  # takes 0.1 s, which a start without keys need not wait for

    return read_trusted(trust)
