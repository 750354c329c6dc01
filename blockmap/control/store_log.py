"""Reads a running server's log of what it asked the store for."""

from blockmap.control.client import Client
from blockmap.control.messages import Calls
from blockmap.errors import HostError
from blockmap.store.call import Call


def read_calls(client: Client, since: int) -> tuple[list[Call], int]:
    """Returns the calls from number `since` on (the first of a server is 0), and the number to go on from.

    HostError where some are forgotten, but for `since` 0, which takes what there is.
    """
    found: list[Call] = []
    at = since
    while True:
        answer = client.ask(Calls(since=at))
        first, calls = answer.first, answer.calls
        if first != at and at:
            raise HostError(
                f"calls {min(at, first)} to {max(at, first)} of the store are no longer remembered, or the server was "
                "started again: ask more often"
            )
        found += calls
        at = first + len(calls)
        if not calls:
            return found, at
