"""Pins: objects that keep a version from being collected while a host needs it, whatever its names stand for.

A clone's counts until it is deleted. That of something open says in its key for which day it was made, and counts for that day
and the next, so that those of hosts that died do not stay.

A collection looks at pins after it has condemned, and before it deletes. Whoever has made one therefore looks whether the
version is condemned already: it may be about to go. If it is not, it is there, or has gone before.
"""

import socket
import time
from contextlib import suppress

from blockmap.errors import AlreadyExists, Collected
from blockmap.format import keys, record
from blockmap.format.digest import Digest
from blockmap.store.base import Pruner
from blockmap.store.collections import CollectionReader, CollectionState

_DAY_S = 86400
_PIN_DAYS = 2
"""Days for which the pin of an open device counts, which is made anew each day."""


def pin_version(store: Pruner, version: Digest, holder: str) -> None:
    """Pins a version for `holder`, who has no other pin on it; Collected if it is condemned or gone, StoreError."""
    _create(store, version, holder)
    is_condemned = _is_condemned(CollectionReader(store).state(), version)
    if is_condemned or not store.list(keys.versions(version)):  # in this order: a collection may just have ended
        unpin_version(store, version, holder)
        raise Collected(
            f"version {version.hex()[:12]} is {'condemned' if is_condemned else 'collected'} as garbage: no name stands for it "
            "any more, import the image again"
        )


def hold_version(store: Pruner, version: Digest, holder: str) -> bool:
    """Pins a version that is open already; returns True if it is being collected, which a pin comes too late for. StoreError."""
    _create(store, version, holder)
    state = CollectionReader(store).state()
    return state.sweeping and _is_condemned(state, version)


def unpin_version(store: Pruner, version: Digest, holder: str) -> None:
    """Takes a pin back; an absent one is no error. StoreError."""
    store.delete(keys.pin(version, holder))


def pin_day(now: float) -> int:
    """Returns the day of a time by the store's clock, for `open_holder`."""
    return int(now // _DAY_S)


def open_holder(server: str, day: int) -> str:
    """Returns the holder of the pin that a server makes on a day for what it has open."""
    return f"{server}.{day}"


def is_stale(holder: str, now: float) -> bool:
    """Returns True if a pin, given what its key says of the holder, was made for a day that is over: `HOST.DAY`."""
    _, dot, day = holder.rpartition(".")
    return bool(dot) and day.isdecimal() and int(day) + _PIN_DAYS <= now / _DAY_S


def _create(store: Pruner, version: Digest, holder: str) -> None:
    about = record.encode({"host": socket.gethostname(), "time": int(time.time())})
    with suppress(AlreadyExists):  # by an attempt whose answer was lost
        store.create(keys.pin(version, holder), [record.seal([about])])


def _is_condemned(state: CollectionState, version: Digest) -> bool:
    return any(found is not None and found[0] == version for found in map(keys.parse_version, state.condemned))
