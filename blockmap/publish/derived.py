"""Stores what is derived from a version, and so can be checked: one that is damaged or wrong is superseded."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import count

from blockmap.errors import Corrupt, NotFound, StoreError
from blockmap.publish.object_writer import put
from blockmap.store.base import Buffer, Pruner, Writer
from blockmap.store.numbered import Key, newest_right, read_numbers


def put_derived(
    store: Pruner, warn: Callable[[str], object], key: Key, most: int, data: bytes, is_right: Callable[[bytes], bool]
) -> None:
    """Stores an object that is derived, under the next number, unless the newest that reads well is right.

    `most` is the limit on its bytes; `is_right` raises NotFound, Corrupt, FormatError for one that does not read well.
    """
    numbered = read_numbers(store, key, most)
    try:
        right = newest_right(store, key, most, is_right, numbered)
    except (NotFound, Corrupt):
        right = False
    newest = max(numbered, default=0)
    if right is None:
        put_next(store, key, 0, [data])
    elif not right:
        supersede(store, warn, key, newest, [data])


def supersede(store: Pruner, warn: Callable[[str], object], key: Key, newest: int, parts: Sequence[Buffer]) -> None:
    """Stores an object in place of the one with the number `newest`, which is damaged or wrong, and says so."""
    warn(f"{key(newest)} is damaged or wrong, and superseded")
    with suppress(StoreError):  # in a directory, a file without a number stands where numbers are to be
        store.delete(key(0))
    put_next(store, key, newest, parts)


def put_next(store: Writer, key: Key, newest: int, parts: Sequence[Buffer]) -> None:
    """Stores an object under the first number after `newest` that is free."""
    next(n for n in count(newest + 1) if put(store, key(n), parts))
