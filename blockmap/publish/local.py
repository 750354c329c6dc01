"""Remembers a store's catalogue on this host: entries, versions and hooks never change, so none is fetched twice.

One SQLite file per store. It can be rebuilt: a damaged one is made anew; if it cannot be read or written, an import fetches
everything.
"""

import logging
import sqlite3
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blockmap.format import record
from blockmap.format.digest import ABSENT, Digest
from blockmap.format.placement import Placement
from blockmap.format.tree import Root
from blockmap.format.version import decode_placement, encode_placement
from blockmap.local import database

_log = logging.getLogger(__name__)

_SCHEMA = database.Schema(
    version=1,
    tables="""
CREATE TABLE entries (key TEXT PRIMARY KEY, version BLOB, number INTEGER NOT NULL);   -- version NULL: the name is removed
CREATE TABLE versions (
    version BLOB NOT NULL, number INTEGER NOT NULL, size INTEGER NOT NULL,
    root BLOB NOT NULL, root_at TEXT NOT NULL, extra BLOB NOT NULL, extra_at TEXT NOT NULL,
    PRIMARY KEY (version, number)
);
CREATE TABLE hooks (root BLOB PRIMARY KEY, object BLOB NOT NULL);                    -- as stored, so with its seal
""",
)

_DELETE = (
    "DELETE FROM entries WHERE key = ?",
    "DELETE FROM versions WHERE version = ? AND number = ?",
    "DELETE FROM hooks WHERE root = ?",
)
_INSERT = (
    "INSERT OR REPLACE INTO entries VALUES (?, ?, ?)",
    "INSERT OR REPLACE INTO versions VALUES (?, ?, ?, ?, ?, ?, ?)",
    "INSERT OR REPLACE INTO hooks VALUES (?, ?)",
)

Numbered = tuple[Digest, int]
"""A version, and the number of its record."""


@dataclass(slots=True)
class CatalogueSnapshot:
    entries: dict[str, tuple[Digest | None, int]] = field(default_factory=dict)
    """Version and number of its record by the entry's key; no version where the entry removes the name."""
    versions: dict[Numbered, tuple[Root, Root]] = field(default_factory=dict)
    """Root and extra root."""
    hooks: dict[Digest, bytes] = field(default_factory=dict)
    """Objects by root."""


class LocalCatalogue:
    """Saves a snapshot in a file; without a path, saves nothing."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._before = CatalogueSnapshot()

    def load(self) -> CatalogueSnapshot:
        """Returns what was saved last; an empty snapshot where that cannot be read."""
        if self._path is None or not self._path.exists():
            return CatalogueSnapshot()
        try:
            connection, found = database.open_or_forget(self._path, _SCHEMA, _read, self._begin_empty)
            connection.close()
        except (OSError, sqlite3.Error):
            found = CatalogueSnapshot()  # nothing can be saved either, which is logged then
        self._before = CatalogueSnapshot(dict(found.entries), dict(found.versions), dict(found.hooks))
        return found

    def save(self, now: CatalogueSnapshot) -> None:
        """Makes the file equal to `now`; logs if it cannot be written."""
        if self._path is None:
            return
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            connection = database.open_database(self._path, _SCHEMA)
            with closing(connection), database.transaction(connection):
                self._write(connection, now)
        except (sqlite3.Error, OSError) as error:
            _log.warning("%s cannot be written, so the next import fetches again: %s", self._path, error)

    def _write(self, connection: sqlite3.Connection, now: CatalogueSnapshot) -> None:
        for delete, insert, before, after in zip(_DELETE, _INSERT, _rows(self._before), _rows(now), strict=True):
            connection.executemany(delete, before.keys() - after.keys())
            connection.executemany(insert, [row for key, row in after.items() if before.get(key) != row])

    def _begin_empty(self, error: Exception) -> None:
        _log.warning("what %s remembers of the store is damaged, and is fetched again: %s", self._path, error)


def _read(connection: sqlite3.Connection) -> CatalogueSnapshot:
    entries = {key: (_digest(name), n) for key, name, n in connection.execute("SELECT * FROM entries")}
    versions = {
        (Digest(name), n): (_root(root, size, root_at), _root(extra, size, extra_at))
        for name, n, size, root, root_at, extra, extra_at in connection.execute("SELECT * FROM versions")
    }
    hooks = {Digest(root): data for root, data in connection.execute("SELECT * FROM hooks")}
    return CatalogueSnapshot(entries, versions, hooks)


def _rows(of: CatalogueSnapshot) -> list[dict[tuple[Any, ...], tuple[Any, ...]]]:
    """Returns the rows of each table, by key."""
    return [
        {(key,): (key, *entry) for key, entry in of.entries.items()},
        {
            key: (*key, root.size, root.digest, _place(root), extra.digest, _place(extra))
            for key, (root, extra) in of.versions.items()
        },
        {(root,): (root, data) for root, data in of.hooks.items()},
    ]


def _place(root: Root) -> str:
    place = encode_placement(root.placement)
    return "" if place is None else record.encode(place).decode()


def _root(name: bytes, size: int, place: str) -> Root:
    at: Placement | None = decode_placement(record.decode(place.encode())) if place else None
    return Root(Digest(name), size, at if name != ABSENT else None)


def _digest(name: bytes | None) -> Digest | None:
    return None if name is None else Digest(name)
