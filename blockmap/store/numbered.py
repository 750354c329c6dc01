"""Objects that are derived, and so can be checked: of several numbers the highest that is right is believed.

Whoever created the first may have been wrong, or it was damaged since: a right one gets the next number. Number 0 is what
older stores have, under a key without a number.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import TypeVar

from blockmap.errors import BlockmapError, Corrupt, FormatError, NotFound, StoreError, Untrusted
from blockmap.store.base import Reader
from blockmap.store.concurrent import spawn
from blockmap.store.log import LogReader

_log = logging.getLogger(__name__)

_T = TypeVar("_T")

_READ = 8
"""Objects that are read, the newest ones: there is a second only where the first turned out wrong."""

Key = Callable[[int], str]
"""Returns the key of a number."""

Numbered = Mapping[int, bytes | Corrupt]
"""Objects as stored, or why one cannot be right, by number."""


def read_numbers(store: Reader, key: Key, most: int) -> Numbered:
    """Returns the newest objects without number 0; one with more than `most` bytes cannot be right."""
    log = LogReader(store, key, most)
    second = spawn(lambda: log.exists(2))
    found: dict[int, bytes | Corrupt] = {}
    with suppress(NotFound):
        found[1] = _get(log, 1)
    newest = log.newest(2) if second.result() else 1
    for number in range(newest, max(newest - _READ, 1), -1):
        with suppress(NotFound):
            found[number] = _get(log, number)
    return found


def newest_right(store: Reader, key: Key, most: int, check: Callable[[bytes], _T], numbered: Numbered) -> _T | None:
    """Returns what `check` makes of the highest object that it takes, given those with numbers; None where there is none at all.

    `check` raises NotFound, Corrupt, FormatError or Untrusted for one that is wrong. Raises NotFound if it raised that for
    each, Untrusted if it did for one, else Corrupt; StoreUnavailable.
    """
    errors: list[BlockmapError] = []
    for number, stored in _descending(store, key, most, numbered):
        try:
            if isinstance(stored, Corrupt):
                raise stored
            return check(stored)
        except (NotFound, Corrupt, FormatError, Untrusted) as error:
            _log.warning("%s in %s is not believed: %s", key(number), store.url, error)
            errors.append(error)
    if not errors:
        return None
    if all(isinstance(error, NotFound) for error in errors):
        raise errors[0]
    untrusted = next((error for error in errors if isinstance(error, Untrusted)), None)
    if untrusted is not None:
        raise untrusted
    raise Corrupt(
        f"{key(max(numbered, default=0))} is damaged or wrong, importing the image again mends it: {errors[0]}"
    )


def _descending(store: Reader, key: Key, most: int, numbered: Numbered) -> Iterator[tuple[int, bytes | Corrupt]]:
    yield from sorted(numbered.items(), reverse=True)
    try:
        yield 0, store.get(key(0), most)
    except NotFound:
        pass
    except Corrupt as error:
        yield 0, error
    except StoreError:  # a server may have no good answer where there is a directory
        if not numbered:
            raise


def _get(log: LogReader, number: int) -> bytes | Corrupt:
    try:
        return log.get(number)
    except Corrupt as error:
        return error
