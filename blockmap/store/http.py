"""Reads a store behind a web server: the files of a directory store, or a cache in front of a bucket."""

from obstore.store import HTTPStore

from blockmap.errors import CannotList, UsageError
from blockmap.store import answers
from blockmap.store.objects import CLIENT, RETRIES, ObjectReader


class HttpStore(ObjectReader):
    """Reads objects by GET and HEAD; cannot list, as no web server's listing can be relied on."""

    def list(self, prefix: str) -> list[str]:
        raise CannotList(f"{self.url} cannot list what it holds: use the store behind it for this")


def open_http(url: str) -> HttpStore:
    """Returns the store at http(s)://HOST/PATH; makes no call. UsageError."""
    where = url.rstrip("/")
    try:
        return HttpStore(where, HTTPStore(where, client_options=CLIENT, retry_config=RETRIES))
    except answers.ERRORS as error:
        raise UsageError(f"{url} is not the URL of a store: {answers.one_line(error)}") from error
