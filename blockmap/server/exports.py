"""Everything that one server serves: exports by name, each version opened once however many clients it has."""

import threading
from collections.abc import Mapping
from pathlib import Path

from blockmap.cache.cache import Cache, default_cap
from blockmap.cache.scrubber import Scrubber
from blockmap.errors import NotFound
from blockmap.fetch.fetcher import Fetcher
from blockmap.format.digest import Digest
from blockmap.format.reading_list import ReadItem
from blockmap.format.refs import parse_reference
from blockmap.origin.keepalive import ConnectionKeeper
from blockmap.origin.outage_policy import DEFAULT, OutagePolicy
from blockmap.origin.records import RecordCache, open_served
from blockmap.server.hydration import Hydration
from blockmap.server.listing import Listing
from blockmap.server.opener import ANSWER_SECONDS, Opener
from blockmap.server.store_log import CallLog
from blockmap.store.base import Writer
from blockmap.store.concurrent import spawn
from blockmap.store.names import NameLog
from blockmap.store.observed import Observed
from blockmap.store.repository import Repository
from blockmap.store.resolver import Resolved
from blockmap.volume.readonly import ReadOnlyVolume

_HEAD_SECONDS = 10.0
_REPLAY_SECONDS = 3600.0
_MOST = 0.5
"""Of an image's blocks: where its starts read more, all of it is brought."""

_Key = tuple[Digest, OutagePolicy]
"""A version, and how patient its readers are."""


class Exports:
    """The exports of one store through one cache; safe to share between threads.

    `outages` has the patience of exports by name, that of all others by the empty name.
    """

    def __init__(
        self,
        store_url: str,
        cache_directory: Path,
        cache_bytes: int | None = None,
        outages: Mapping[str, OutagePolicy] | None = None,
    ) -> None:
        engine, form = open_served(store_url, cache_directory, ANSWER_SECONDS)
        self.calls = CallLog()
        store = Observed(engine, self.calls.note)
        self._repository = Repository(store)
        cap = default_cap(cache_directory) if cache_bytes is None else cache_bytes
        self._cache = Cache(cache_directory, cap)
        self._scrubber = Scrubber(self._cache.scrub)
        self._known = RecordCache(cache_directory, store.url)
        self._known.meet(store, form)
        self._fetcher = Fetcher(self._repository, self._cache)
        self._warmth = None if store.local else ConnectionKeeper(self._fetcher.ping)
        mend = NameLog(engine) if isinstance(engine, Writer) else None
        self._opener = Opener(store, self._known, self._fetcher, mend)
        self._listing = Listing(store, self._known, ANSWER_SECONDS)
        self._lock = threading.Lock()  # guards what follows; not held across I/O
        self._outages = {"": DEFAULT, **(outages or {})}
        self._views: dict[_Key, ReadOnlyVolume] = {}
        self._open: dict[_Key, int] = {}
        self._opened = 0
        self._hydrations: dict[Digest, Hydration] = {}
        self._closing = False

    def names(self) -> list[tuple[str, str]]:
        """The catalogue: export names, each with a description; raises StoreError where nothing is known of it."""
        return self._listing.names()

    def open(self, export: str) -> ReadOnlyVolume:
        """The volume that an export name stands for now, whatever its label; call its `close` once. NotFound, UsageError,
        StoreError, Corrupt."""
        found = self._find(export)
        with self._lock:
            patience = self._outages.get(export.partition("+")[0], self._outages[""])
            key = found.name, patience
            view = self._views.get(key)
            if view is None:
                view = ReadOnlyVolume(found.pinned, found.root, self._fetcher, lambda: self._closed(key), patience)
                self._views[key] = view
            if found.replay is not None and view.replay is not found.replay:
                view.replay = found.replay
                spawn(lambda: self._hydrate_covered(found))
            self._open[key] = self._open.get(key, 0) + 1
            self._opened += 1
        return view

    def resolve(self, export: str) -> str:
        """The export name by digest of the version that `export` stands for now, with its label; it is as patient as
        `export` is."""
        pinned = self._find(export).pinned
        name, plus, label = export.partition("+")
        with self._lock:
            if name in self._outages:
                self._outages.setdefault(pinned, self._outages[name])
        return pinned + plus + label

    def config(self, export: str) -> bytes:
        """The OCI image configuration of an export; NotFound where it has none."""
        found = self._find(export)
        if found.version.config is None:
            raise NotFound(f"{export} is a disk image without a configuration: attach it instead")
        return found.version.config

    def readings(self, export: str) -> tuple[int, list[ReadItem], int]:
        """The profile that is replayed for an export, what its starts read, in order, for the kernel of a new device to be
        warmed with, and how many blocks of that come within a moment; 0 and nothing without one."""
        found = self._find(export)
        replay = found.replay
        head = None if replay is None else replay.wait_head(_HEAD_SECONDS)
        if replay is None or head is None:
            return 0, [], 0
        with self._lock:
            for (name, _), view in self._views.items():
                if name == found.name:
                    view.profile = replay.number
        return replay.number, head.read_items, replay.soon_blocks(head)

    def hydrate(self, export: str) -> None:
        """Begins to bring all of an export into the cache; NotFound, UsageError, StoreError, Corrupt."""
        self._hydrate(self._find(export))

    def status(self) -> dict[str, object]:
        """Counters, for people and machines."""
        with self._lock:
            exports = [
                {"export": view.name, "connections": self._open[key], "size": view.size, "waiting": view.waiting}
                for key, view in self._views.items()
            ]
            opened = self._opened
            hydrations = [each.status() for each in self._hydrations.values()]
        return {
            "store": self._repository.store.url,
            "exports": exports,
            "opened": opened,
            "unconfirmed": self._opener.unconfirmed,
            "warm": self._warmth is None or self._warmth.is_warm,
            "hydrations": hydrations,
            "remote": self.calls.status(),
            "fetch": self._fetcher.status(),
            "cache": self._cache.status(),
        }

    def stop(self) -> None:
        """Ends all waiting for the store, with StoreUnavailable."""
        self._fetcher.stop()

    def close(self) -> None:
        if self._warmth is not None:
            self._warmth.close()
        self._scrubber.close()
        self._fetcher.stop()
        with self._lock:
            self._closing = True
            hydrations = list(self._hydrations.values())
        for each in hydrations:
            each.stop()
        self._fetcher.close()
        self._cache.close()
        self._known.close()

    def _find(self, export: str) -> Resolved:
        return self._opener.find(parse_reference(export))

    def _hydrate(self, found: Resolved) -> None:
        with self._lock:
            at_work = self._hydrations.get(found.name)
            if not self._closing and (at_work is None or at_work.ended):
                self._hydrations[found.name] = Hydration(found.pinned, found.root, self._fetcher, found.replay)

    def _hydrate_covered(self, found: Resolved) -> None:
        """Hydrates, after the start, what the profile covers most of: lazy is to be no slower than a pull."""
        replay = found.replay
        if replay is None or not replay.wait_end(_REPLAY_SECONDS) or replay.head is None or replay.failed:
            return
        if sum(each.blocks for each in replay.head.read_items) > _MOST * replay.head.image_blocks:
            self._hydrate(found)

    def _closed(self, key: _Key) -> None:
        with self._lock:
            self._open[key] -= 1
            if not self._open[key]:
                del self._open[key], self._views[key]
