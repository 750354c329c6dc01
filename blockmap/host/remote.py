"""Uses a server of another host, of which nothing is known but what NBD says."""

from dataclasses import dataclass

from blockmap.control.client import Client
from blockmap.host.devices.negotiation import READ_ONLY, negotiate

_SECONDS = 60.0
"""A version that its host has never seen is opened with its head from the store."""


@dataclass(frozen=True, slots=True)
class RemoteServer:
    """A server without a control socket on this host: it is not told of starts, and says nothing of what they read."""

    address: str
    """HOST:PORT."""


Server = Client | RemoteServer


def resolve_remote(server: RemoteServer, name: str) -> tuple[str, bool]:
    """Returns the name by digest of the version that an export stands for now, with its label, and whether it can be written to.

    A server that describes no exports, as other software, leaves the name as it is. HostError.
    """
    connection, offer = negotiate(server.address, name, _SECONDS)
    connection.close()
    _, plus, label = name.partition("+")
    export = offer.description + plus + label if "@sha256:" in offer.description else name
    return export, not offer.flags & READ_ONLY
