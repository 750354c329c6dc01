"""Checks that an engine keeps the promises that blockmap depends on."""

import secrets
import threading
from concurrent.futures import ThreadPoolExecutor

from blockmap.errors import AlreadyExists, StoreRefused
from blockmap.format import keys
from blockmap.store.base import Pruner, Writer

PREFIX = "probe-"
_CREATORS = 8
_BYTES = 4096
_RANGE = (100, 300)


def check(store: Pruner) -> None:
    """Tries an engine; StoreRefused names the promise that it breaks."""
    key = f"{PREFIX}{secrets.token_hex(8)}"
    try:
        content = _one_winner(store, key)
        if store.get_range(key, *_RANGE) != content[slice(*_RANGE)] or store.get(key, _BYTES) != content:
            raise StoreRefused(f"{store.url} does not answer a range with its bytes: use another engine")
        if key not in store.list(""):
            raise StoreRefused(f"{store.url} does not list an object that was just created: use another engine")
    finally:
        store.delete(key)
    if store.exists(key):
        raise StoreRefused(f"{store.url} still has an object that was just deleted: use another engine")


def check_writable(store: Writer) -> None:
    """Raises StoreReadOnly or StoreUnavailable where nothing can be written; leaves nothing that was not there."""
    store.replace(keys.CLOCK, b"")


def _one_winner(store: Pruner, key: str) -> bytes:
    """Lets several writers create one object at once, and returns what the one that won has stored."""
    contents = [bytes([number]) * _BYTES for number in range(_CREATORS)]
    start = threading.Barrier(_CREATORS)

    def create(content: bytes) -> bool:
        start.wait()
        try:
            store.create(key, [content])
        except AlreadyExists:
            return False
        return True

    with ThreadPoolExecutor(_CREATORS) as pool:
        winners = [content for content, won in zip(contents, pool.map(create, contents), strict=True) if won]
    if len(winners) != 1:
        raise StoreRefused(
            f"{store.url} let {len(winners)} of {_CREATORS} parallel writers create one object where exactly one may: "
            "blockmap would lose updates on it; use another engine"
        )
    return winners[0]
