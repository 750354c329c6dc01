"""Everything that one server serves: exports by name, each version opened once however many clients it has."""

import threading
from pathlib import Path

from blockmap.errors import NotFound
from blockmap.fetch.cache import Cache, default_cap
from blockmap.fetch.fetcher import Fetcher
from blockmap.fetch.known import Known, open_served
from blockmap.format.digest import Digest
from blockmap.format.refs import parse_reference
from blockmap.store.base import Writer
from blockmap.store.names import NameLog
from blockmap.store.repository import Repository
from blockmap.volume.listing import Listing
from blockmap.volume.opener import ANSWER_SECONDS, Opener
from blockmap.volume.opening import Found
from blockmap.volume.view import View


class Exports:
    """The exports of one store through one cache; safe to share between threads."""

    def __init__(self, store_url: str, cache_directory: Path, cache_bytes: int | None = None) -> None:
        store, form = open_served(store_url, cache_directory, ANSWER_SECONDS)
        self._repository = Repository(store)
        cap = default_cap(cache_directory) if cache_bytes is None else cache_bytes
        self._cache = Cache(cache_directory, cap)
        self._known = Known(cache_directory, store.url)
        self._known.meet(store, form)
        self._fetcher = Fetcher(self._repository, self._cache)
        self._opener = Opener(store, self._known, self._fetcher, NameLog(store) if isinstance(store, Writer) else None)
        self._listing = Listing(store, self._known, ANSWER_SECONDS)
        self._lock = threading.Lock()  # guards what follows; not held across I/O
        self._views: dict[Digest, View] = {}
        self._open: dict[Digest, int] = {}
        self._opened = 0

    def names(self) -> list[tuple[str, str]]:
        """The catalogue: export names, each with a description; raises StoreError where nothing is known of it."""
        return self._listing.names()

    def open(self, export: str) -> View:
        """The volume that an export name stands for now; call its `close` once. NotFound, UsageError, StoreError, Corrupt."""
        found = self._find(export)
        with self._lock:
            view = self._views.get(found.name)
            if view is None:
                view = View(found.pinned, found.root, self._fetcher, lambda: self._closed(found.name))
                self._views[found.name] = view
            self._open[found.name] = self._open.get(found.name, 0) + 1
            self._opened += 1
        return view

    def resolve(self, export: str) -> str:
        """The export name by digest of the version that `export` stands for now."""
        return self._find(export).pinned

    def config(self, export: str) -> bytes:
        """The OCI image configuration of an export; NotFound where it has none."""
        found = self._find(export)
        if found.version.config is None:
            raise NotFound(f"{export} is a disk image without a configuration: attach it instead")
        return found.version.config

    def status(self) -> dict[str, object]:
        """Counters, for people and machines."""
        with self._lock:
            exports = [
                {"export": self._views[name].name, "connections": count, "size": self._views[name].size}
                for name, count in self._open.items()
            ]
            opened = self._opened
        return {
            "store": self._repository.store.url,
            "exports": exports,
            "opened": opened,
            "unconfirmed": self._opener.unconfirmed,
            "fetch": self._fetcher.status(),
            "cache": self._cache.status(),
        }

    def close(self) -> None:
        self._fetcher.close()
        self._cache.close()
        self._known.close()

    def _find(self, export: str) -> Found:
        return self._opener.find(parse_reference(export))

    def _closed(self, name: Digest) -> None:
        with self._lock:
            self._open[name] -= 1
            if not self._open[name]:
                del self._open[name], self._views[name]
