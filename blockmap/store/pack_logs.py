"""The logs about packs of one store: what in them is damaged, and where what was in them is now.

A pack is never written twice and nodes never change, so a part of a pack that was lost is stored again in another one, and
the log of the first says where. A place may have been lost as well, and moved in its turn.
"""

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from typing import TypeVar

from blockmap.errors import Corrupt, FormatError, NotFound
from blockmap.format import keys, pack_log
from blockmap.format.digest import Digest
from blockmap.format.placement import Placement
from blockmap.store import limits
from blockmap.store.base import Reader, Writer
from blockmap.store.concurrent import each
from blockmap.store.log import DenseLog, LogReader, newest_of, nonce

_MAX_STEPS = 4
"""From a pack to another that holds now what it held."""
_MAX_ATTEMPTS = 16
"""Places that are tried for one chunk or node."""
_MAX_ENTRIES = 1000
"""Entries of one log that are read: a healing import writes one."""
_PLACES_IN_MEMORY = 100_000
"""Places that are kept, some 30 MB; of one log about as many are read at most, the oldest first."""

_T = TypeVar("_T")

Damage = Mapping[Digest, frozenset[Digest] | None]
"""What is damaged, by pack; None where all of it is."""


class MovedLogs:
    """Reads where things of packs are now, and keeps what it read; safe to share between threads."""

    def __init__(self, store: Reader) -> None:
        self._store = store
        self._read: OrderedDict[Digest, tuple[int, list[dict[Digest, Placement]]]] = OrderedDict()
        """By pack: the number of the newest entry, and the places in entries, newest first. A value is never changed."""

    def follow(self, name: Digest, pack: Digest, attempt: Callable[[Placement], _T | None]) -> _T | None:
        """Returns what `attempt` makes of the first place of a chunk or node that serves it, or None where none does."""
        packs, seen, attempts = [pack], {pack}, 0
        for _ in range(_MAX_STEPS):
            below = []
            for each_pack in packs:
                for place in self._places(each_pack, name):
                    attempts += 1
                    if attempts > _MAX_ATTEMPTS:
                        return None
                    made = attempt(place)
                    if made is not None:
                        return made
                    if place.pack not in seen:
                        seen.add(place.pack)
                        below.append(place.pack)
            packs = below
        return None

    def _places(self, pack: Digest, name: Digest) -> Iterator[Placement]:
        """Yields places, newest first, of what was read before; then of the entries that were added since."""
        newest, known = self._read.get(pack, (0, []))
        yield from (entry[name] for entry in known if name in entry)
        added: list[dict[Digest, Placement]] = []
        log = LogReader(self._store, partial(keys.moved, pack), limits.PACK_LOG)
        while newest < _MAX_ENTRIES and _count([*added, *known]) < _PLACES_IN_MEMORY:
            try:
                data = log.get(newest + 1)
            except NotFound:
                break
            newest += 1
            try:
                added.insert(0, pack_log.decode_moved(data, pack))
            except (FormatError, Corrupt):
                continue  # another entry may serve
        if added:
            self._read[pack] = newest, [*added, *known]
            while len(self._read) > 1 and sum(_count(own) for _, own in list(self._read.values())) > _PLACES_IN_MEMORY:
                self._read.popitem(last=False)
        yield from (entry[name] for entry in added if name in entry)


def _count(entries: Collection[Mapping[Digest, Placement]]) -> int:
    return sum(map(len, entries))


def read_moved(store: Reader, pack: Digest) -> Iterator[dict[Digest, Placement]]:
    """Yields the entries that say where things of a pack are now, oldest first; leaves out damaged ones."""
    log = LogReader(store, partial(keys.moved, pack), limits.PACK_LOG)
    for n in range(1, _MAX_ENTRIES + 1):
        try:
            yield pack_log.decode_moved(log.get(n), pack)
        except NotFound:
            return
        except (FormatError, Corrupt):
            continue


def read_damage(store: Reader) -> dict[Digest, frozenset[Digest] | None]:
    """Returns all damage that is recorded in a store; it must be one that can list."""
    newest = newest_of(store.list(keys.DAMAGED), keys.parse_damaged)
    return dict(zip(newest, each(lambda pack: damage_of(store, pack), newest), strict=True))


def damage_of(store: Reader, pack: Digest) -> frozenset[Digest] | None:
    """Returns what is recorded as damaged in one pack, None for all of it."""
    found: frozenset[Digest] = frozenset()
    log = LogReader(store, partial(keys.damaged, pack), limits.PACK_LOG)
    for n in range(1, _MAX_ENTRIES + 1):
        try:
            names = pack_log.decode_damaged(log.get(n), pack)
        except NotFound:
            break
        except (FormatError, Corrupt):
            continue
        if names is None:
            return None
        found |= names
    return found


def record_damage(store: Writer, pack: Digest, names: Collection[Digest] | None) -> None:
    """Records that things in a pack are damaged, with None all of it, unless that is recorded already."""
    known = damage_of(store, pack)
    if known is None:
        return
    new = None if names is None else sorted(set(names) - known)
    parts = (
        [None]
        if new is None
        else [new[at : at + pack_log.MAX_PLACES] for at in range(0, len(new), pack_log.MAX_PLACES)]
    )
    for part in parts:
        log = DenseLog(store, partial(keys.damaged, pack), limits.PACK_LOG)
        log.add(pack_log.encode_damaged(pack, part, nonce()), f"the damage of pack {pack.hex()} was recorded")


def record_moved(store: Writer, pack: Digest, places: Mapping[Digest, Placement]) -> None:
    """Records where things of a pack are now."""
    rows = sorted(places.items())
    for start in range(0, len(rows), pack_log.MAX_PLACES):
        part = dict(rows[start : start + pack_log.MAX_PLACES])
        log = DenseLog(store, partial(keys.moved, pack), limits.PACK_LOG)
        log.add(pack_log.encode_moved(pack, part, nonce()), f"what was in pack {pack.hex()} was moved")
