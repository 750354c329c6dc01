"""Which chunks and nodes of a store can be relied on: their packs are there, long enough, and not known to be damaged there.

What an old tree says of a place is advice: a pack may be lost or cut short since, and damage may be recorded. Each pack is
asked for its length once per import.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial

from blockmap.errors import NotFound
from blockmap.format import keys
from blockmap.format.digest import Digest
from blockmap.format.placement import Placement, PlacementTable
from blockmap.store.base import Reader
from blockmap.store.concurrent import each
from blockmap.store.log import LogReader
from blockmap.store.pack_logs import Damage, MovedLogs
from blockmap.store.packs import pack_key


class PackHealth:
    """Finds what is where a tree says, or was stored again; for one thread at a time."""

    def __init__(self, store: Reader, damage: Damage, condemned: Collection[str] = ()) -> None:
        """`condemned` are keys that a collection of garbage lists: a pack among them may be about to go, since what is needed of
        it was moved."""
        self._store = store
        self._condemned = condemned
        self._leaving: dict[Digest, bool] = {}
        """By condemned pack: whether its log says that anything was moved."""
        self._moved = MovedLogs(store)
        self._lengths: dict[Digest, int] = {}
        """The lengths of packs that were asked for, in bytes; 0 for one that is not there."""
        self._damage = dict(damage)
        self.lost: defaultdict[Digest, set[Digest]] = defaultdict(set)
        """Names of chunks and nodes, by the pack that should have them; some may have been stored again by others."""
        self.found_damaged: defaultdict[Digest, set[Digest]] = defaultdict(set)
        """Nodes whose content was not what their name says, by pack."""
        for pack, names in damage.items():
            self.lost[pack] |= names or set()

    @property
    def lengths(self) -> dict[Digest, int]:
        """Returns the lengths of the packs that were asked for and are there, in bytes."""
        return {pack: length for pack, length in self._lengths.items() if length}

    def know(self, lengths: Mapping[Digest, int]) -> None:
        """Takes lengths that were asked for a moment ago."""
        self._lengths.update(lengths)

    def ask(self, packs: Iterable[Digest]) -> None:
        """Asks for the lengths of packs, 16 at once; those that are known are not asked for again."""
        unknown = [pack for pack in dict.fromkeys(packs) if pack not in self._lengths]
        self._lengths.update(zip(unknown, each(self._length, unknown), strict=True))

    def find(self, name: Digest, place: Placement | None) -> Placement | None:
        """Returns where a chunk or node is that a tree has at `place`; None for what is lost, which is noted.

        Where the pack is condemned, that is where it was moved, as far as it was.
        """
        if place is None:
            return None
        is_sound = self._is_sound(name, place)
        if is_sound and not self._is_leaving(place.pack):
            return place
        moved = self.moved(name, place.pack)
        if moved is None and is_sound:
            return place
        if moved is None:
            self.lost[place.pack].add(name)
        return moved

    def find_all(self, names: Sequence[Digest], places: Sequence[Placement | None]) -> list[Placement | None]:
        """Returns where things are, as `find` does; asks for their packs at once."""
        self.ask(place.pack for place in places if place is not None)
        return [self.find(name, place) for name, place in zip(names, places, strict=True)]

    def all_sound(self, places: PlacementTable) -> bool:
        """Returns True if all of many places can be relied on, without a word about which not; asks for their packs at once."""
        ends = places.ends()
        self.ask(ends)
        return all(
            pack not in self._damage and not self._is_leaving(pack) and end <= self._lengths[pack]
            for pack, end in ends.items()
        )

    def moved(self, name: Digest, pack: Digest) -> Placement | None:
        """Returns where something of a pack was stored again, still is and may stay, or None where nobody says so."""

        def attempt(place: Placement) -> Placement | None:
            may_stay = not self._condemned or pack_key(place.pack) not in self._condemned
            return place if may_stay and self._is_sound(name, place) else None

        return self._moved.follow(name, pack, attempt)

    def note_damaged(self, name: Digest, pack: Digest) -> None:
        """Notes that something in a pack is not what its name says."""
        self.lost[pack].add(name)
        self.found_damaged[pack].add(name)
        known = self._damage.get(pack, frozenset())
        self._damage[pack] = None if known is None else known | {name}

    def _is_sound(self, name: Digest, place: Placement) -> bool:
        damaged = self._damage.get(place.pack, frozenset())
        if damaged is None or name in damaged:
            return False
        if place.pack not in self._lengths:
            self.ask([place.pack])
        return place.offset + place.stored <= self._lengths[place.pack]

    def _is_leaving(self, pack: Digest) -> bool:
        if not self._condemned or pack_key(pack) not in self._condemned:
            return False
        if pack not in self._leaving:
            self._leaving[pack] = LogReader(self._store, partial(keys.moved, pack)).exists(1)
        return self._leaving[pack]

    def _length(self, pack: Digest) -> int:
        try:
            return self._store.size(pack_key(pack))
        except NotFound:
            return 0
