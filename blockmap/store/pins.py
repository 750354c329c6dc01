"""Pins: objects that keep a version from being collected while a host needs it, whatever its names stand for.

A collection looks at pins after it has condemned, and before it deletes. Whoever has made one therefore looks whether the
version is condemned already: it may be about to go.
"""

import socket
import time
from contextlib import suppress

from blockmap.errors import AlreadyExists, Collected
from blockmap.format import keys, record
from blockmap.format.digest import Digest
from blockmap.store.base import Pruner
from blockmap.store.collections import CollectionReader

_DAY_S = 86400
_PIN_DAYS = 2
"""Days for which the pin of an open device counts, which is made anew each day."""


def pin_version(store: Pruner, version: Digest, holder: str) -> None:
    """Pins a version for `holder`, who has no other pin on it; Collected if it is condemned, StoreError."""
    about = record.encode({"host": socket.gethostname(), "time": int(time.time())})
    with suppress(AlreadyExists):  # by an attempt whose answer was lost
        store.create(keys.pin(version, holder), [record.seal([about])])
    condemned = map(keys.parse_version, CollectionReader(store).state().condemned)
    if any(found is not None and found[0] == version for found in condemned):
        unpin_version(store, version, holder)
        raise Collected(
            f"version {version.hex()[:12]} is condemned as garbage: no name stands for it any more, import the image again"
        )


def unpin_version(store: Pruner, version: Digest, holder: str) -> None:
    """Takes a pin back; an absent one is no error. StoreError."""
    store.delete(keys.pin(version, holder))


def is_stale(holder: str, now: float) -> bool:
    """Returns True if a pin, given what its key says of the holder, was made for a day that is over: `HOST.DAY`."""
    _, dot, day = holder.rpartition(".")
    return bool(dot) and day.isdecimal() and int(day) + _PIN_DAYS <= now / _DAY_S
