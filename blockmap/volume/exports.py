"""Everything that one server serves: exports by name, each version opened once however many clients it has."""

import logging
import threading
import time
from pathlib import Path

from blockmap.errors import Corrupt, NotFound
from blockmap.fetch.cache import Cache, default_cap
from blockmap.fetch.fetcher import Fetcher
from blockmap.format.digest import Digest
from blockmap.format.refs import parse_reference
from blockmap.store.names import NameReader
from blockmap.store.observed import Observed
from blockmap.store.opening import open_store
from blockmap.store.repository import Repository
from blockmap.volume.calls import CallLog
from blockmap.volume.opening import Found, find_version
from blockmap.volume.view import View

_log = logging.getLogger(__name__)

CATALOGUE_SECONDS = 1.0
"""How old a listing of names may be; an open by name always asks the store."""


class Exports:
    """The exports of one store through one cache; safe to share between threads."""

    def __init__(self, store_url: str, cache_directory: Path, cache_bytes: int | None = None) -> None:
        store, _ = open_store(store_url)
        self.calls = CallLog()
        self._repository = Repository(Observed(store, self.calls.note))
        cap = default_cap(cache_directory) if cache_bytes is None else cache_bytes
        self._cache = Cache(cache_directory, cap)
        self._fetcher = Fetcher(self._repository, self._cache)
        self._lock = threading.Lock()  # guards what follows; not held across I/O
        self._views: dict[Digest, View] = {}
        self._open: dict[Digest, int] = {}
        self._names: list[tuple[str, str]] = []
        self._names_at = float("-inf")
        self._opened = 0

    def names(self) -> list[tuple[str, str]]:
        """The catalogue: export names, each with a description; raises StoreUnavailable."""
        now = time.monotonic()
        with self._lock:
            if now - self._names_at < CATALOGUE_SECONDS:
                return self._names
        reader = NameReader(self._repository.store)
        found = []
        for (repo, tag), n in sorted(reader.catalogue().items()):
            try:
                entry = reader.entry(repo, tag, n)[0]
            except Corrupt as error:
                _log.warning("%s:%s is left out of the catalogue: %s", repo, tag, error)
                continue
            if entry.version is not None:
                found.append((f"{repo}:{tag}", f"version {entry.version.hex()[:12]}, entry {n}"))
        with self._lock:
            self._names, self._names_at = found, now
        return found

    def open(self, export: str) -> View:
        """The volume that an export name stands for now; call its `close` once. NotFound, UsageError, StoreError, Corrupt."""
        found = self._find(export)
        with self._lock:
            view = self._views.get(found.name)
            if view is None:
                view = View(found.pinned, found.version.root, self._fetcher, lambda: self._closed(found.name))
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
                {"export": view.name, "connections": self._open[name], "size": view.size, "waiting": view.waiting}
                for name, view in self._views.items()
            ]
            opened = self._opened
        return {
            "store": self._repository.store.url,
            "exports": exports,
            "opened": opened,
            "remote": self.calls.status(),
            "fetch": self._fetcher.status(),
            "cache": self._cache.status(),
        }

    def close(self) -> None:
        self._fetcher.close()
        self._cache.close()

    def _find(self, export: str) -> Found:
        return find_version(self._repository, parse_reference(export))

    def _closed(self, name: Digest) -> None:
        with self._lock:
            self._open[name] -= 1
            if not self._open[name]:
                del self._open[name], self._views[name]
