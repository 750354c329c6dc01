"""The record of a host's clones, in SQLite: what each is made of, and what its layers hold.

It cannot be rebuilt, so it is migrated, and never thrown away. All clones are in one file, so that whatever concerns several
of them, or a layer and its clone, is one transaction. A layer may be in the stacks of several clones; only one that is the
highest of a single stack is written to.
"""

import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import TypeVar

from blockmap.durable import sync_directory
from blockmap.errors import AlreadyExists, DiskFull, HostError, NotFound
from blockmap.local.database import Schema, open_database, open_to_read, transaction
from blockmap.volume.overlay import Held, Kind, OverlayMap

_FILE = "clones.db"
_SCHEMA = Schema(
    version=2,
    wal=True,
    tables="""
CREATE TABLE clones (
    id INTEGER PRIMARY KEY AUTOINCREMENT,   -- names its folder, and is never used again
    name TEXT NOT NULL UNIQUE,
    store TEXT NOT NULL,                    -- the store's UUID
    origin TEXT NOT NULL,                   -- the image as it was asked for
    base TEXT NOT NULL,                     -- the version below the layers: its export name by digest
    pin TEXT NOT NULL,                      -- the holder of the pin on that version; empty where the store has none
    size INTEGER NOT NULL,                  -- bytes
    created INTEGER NOT NULL,               -- Unix time
    stored INTEGER NOT NULL DEFAULT 0       -- the first change of its journal that `extents` does not have
);
CREATE TABLE layers (
    id INTEGER PRIMARY KEY AUTOINCREMENT    -- names its scratch file, and is never used again
);
CREATE TABLE stacks (
    clone INTEGER NOT NULL REFERENCES clones (id),
    height INTEGER NOT NULL,                -- the clone writes to the highest
    layer INTEGER NOT NULL REFERENCES layers (id),
    PRIMARY KEY (clone, height)
) WITHOUT ROWID;
CREATE INDEX stacks_of ON stacks (layer);
CREATE TABLE captures (
    id INTEGER PRIMARY KEY AUTOINCREMENT,   -- a clone's captures become versions in this order
    clone INTEGER NOT NULL REFERENCES clones (id),
    layer INTEGER NOT NULL REFERENCES layers (id),  -- the highest of its moment
    repo TEXT NOT NULL,                     -- the name that is to stand for the version
    tag TEXT NOT NULL,
    force INTEGER NOT NULL,                 -- 1 to move the name whatever it stands for
    message TEXT NOT NULL,
    author TEXT NOT NULL,
    changes TEXT NOT NULL,                  -- of the image's configuration, as JSON
    nonce TEXT NOT NULL,                    -- by which the entry is found again after a crash
    created INTEGER NOT NULL,               -- Unix time
    conflict TEXT NOT NULL DEFAULT '',      -- why it waits for a person
    expected INTEGER                        -- the entry that the name must have then; NULL: as the publisher finds it
);
CREATE INDEX captures_of ON captures (clone);
CREATE TABLE extents (
    layer INTEGER NOT NULL REFERENCES layers (id),
    start INTEGER NOT NULL,                 -- bytes [start, stop) of the volume
    stop INTEGER NOT NULL,
    kind INTEGER NOT NULL,                  -- 0 zeros, 1 in the scratch file
    PRIMARY KEY (layer, start)
) WITHOUT ROWID;
""",
    migrations={1: "ALTER TABLE captures ADD COLUMN expected INTEGER;"},
)
_T = TypeVar("_T")
_BATCH = 200
"""Rows that one statement changes: each gives the interpreter away, and has to wait for it among all that read and write.
SQLite takes some 1,000 values at least."""
_COLUMNS = "clones.id, name, store, origin, base, pin, size, created, stored"


@dataclass(frozen=True, slots=True)
class CloneRecord:
    """A clone, as it is recorded."""

    id: int
    name: str
    store: str
    """The store's UUID."""
    origin: str
    """The image as it was asked for."""
    base: str
    """The export name by digest of the version below its layers."""
    pin: str
    """The holder of the pin on that version, empty where the store has none: this host may not write to it."""
    size: int
    """Bytes."""
    created: int
    """Unix time."""
    stored: int
    """The first change of its journal that its recorded map lacks."""


@dataclass(frozen=True, slots=True)
class CaptureDraft:
    """What is to become of a moment of a clone."""

    repo: str
    tag: str
    force: bool
    """True if the name is to be moved although it has moved on since the clone was made of it."""
    message: str
    author: str
    changes: str
    """Changes of the image's configuration, as JSON."""
    nonce: str
    expected: int | None = None
    """The number of the entry that the name must have when it is moved; None where the publisher says what it must stand for."""


@dataclass(frozen=True, slots=True)
class CaptureRecord:
    """A moment of a clone that is not published yet."""

    id: int
    clone: int
    layer: int
    """The highest of its layers."""
    draft: CaptureDraft
    created: int
    """Unix time."""
    conflict: str
    """Why it waits for a person; empty where it does not."""


class CloneTable:
    """Reads and changes the record; safe to share between threads. Raises DiskFull and HostError."""

    def __init__(self, state: Path) -> None:
        self._path = state / _FILE
        # Guards the connection; held across I/O of the local disk, and no other is taken meanwhile.
        self._lock = threading.Lock()
        try:
            if not state.is_dir():
                state.mkdir(mode=0o700, parents=True, exist_ok=True)
                sync_directory(state.parent)
            self._connection = open_database(self._path, _SCHEMA)
            self._connection.execute("PRAGMA synchronous=FULL")  # what a flush has stored survives a crash
        except (OSError, sqlite3.Error) as error:
            raise _unusable(self._path, error) from error

    def find(self, name: str) -> CloneRecord | None:
        with self._reading():
            row = self._connection.execute(f"SELECT {_COLUMNS} FROM clones WHERE name = ?", (name,)).fetchone()
        return CloneRecord(*row) if row else None

    def get(self, number: int) -> CloneRecord:
        """Returns the clone with a number; NotFound."""
        with self._reading():
            row = self._connection.execute(f"SELECT {_COLUMNS} FROM clones WHERE id = ?", (number,)).fetchone()
        if row is None:
            raise NotFound(f"there is no clone with number {number} any more")
        return CloneRecord(*row)

    def create(self, name: str, store: str, origin: str, base: str, pin: str, size: int) -> CloneRecord:
        """Records a new clone with one layer, which is empty; AlreadyExists."""
        created = int(time.time())
        with self._changing() as connection:
            self._check_free(connection, name)
            cursor = connection.execute(
                "INSERT INTO clones (name, store, origin, base, pin, size, created) VALUES (?, ?, ?, ?, ?, ?, ?)",
                (name, store, origin, base, pin, size, created),
            )
            number = int(cursor.lastrowid or 0)
            self._put_on(connection, number, self._new_layer(connection))
        return CloneRecord(number, name, store, origin, base, pin, size, created, 0)

    def remove(self, record: CloneRecord) -> list[int]:
        """Forgets a clone, and the layers that no other clone has; returns these."""
        with self._changing() as connection:
            layers = self._clear(connection, record.id)
            connection.execute("DELETE FROM captures WHERE clone = ?", (record.id,))
            connection.execute("DELETE FROM clones WHERE id = ?", (record.id,))
            return self._forget_unused(connection, layers)

    def is_empty(self, record: CloneRecord) -> bool:
        """Returns True if the layers of a clone have nothing."""
        query = "SELECT 1 FROM stacks JOIN extents ON extents.layer = stacks.layer WHERE clone = ? LIMIT 1"
        with self._reading():
            return self._connection.execute(query, (record.id,)).fetchone() is None

    def layers(self, record: CloneRecord) -> list[tuple[int, OverlayMap]]:
        """Returns the layers of a clone, the highest first."""
        with self._reading():
            rows = self._connection.execute(
                "SELECT layer FROM stacks WHERE clone = ? ORDER BY height DESC", (record.id,)
            ).fetchall()
            return [(layer, self._map(layer)) for (layer,) in rows]

    def keep(self, clone: int, layer: int, extents: Sequence[Held], gone: Sequence[int], stored: int) -> None:
        """Stores changes of a layer's map: extents by their starts, and starts where there is none any more; `stored` is
        the first change of the clone's journal that they lack."""
        with self._changing():
            self._keep(clone, layer, extents, gone, stored)

    def add_layer(self) -> int:
        """Records a layer that is in no stack yet; returns its number."""
        with self._changing() as connection:
            return self._new_layer(connection)

    def forget_layers(self, layers: Sequence[int]) -> list[int]:
        """Forgets those of some layers that are in no stack; returns these."""
        with self._changing() as connection:
            return self._forget_unused(connection, layers)

    def push(
        self,
        fresh: int,
        clone: int,
        layer: int,
        extents: Sequence[Held],
        gone: Sequence[int],
        stored: int,
        capture: CaptureDraft,
    ) -> int:
        """Stores changes of a map as `keep` does, puts the layer `fresh` on the stack, and records the capture of what is
        below it, all or nothing; returns the capture's number."""
        with self._changing() as connection:
            self._keep(clone, layer, extents, gone, stored)
            self._put_on(connection, clone, fresh)
            cursor = connection.execute(
                "INSERT INTO captures (clone, layer, repo, tag, force, message, author, changes, nonce, expected, created)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (clone, layer, *astuple(capture), int(time.time())),
            )
            return int(cursor.lastrowid or 0)

    def fork(
        self,
        fresh: int,
        clone: CloneRecord,
        layer: int,
        extents: Sequence[Held],
        gone: Sequence[int],
        stored: int,
        forks: Sequence[tuple[str, str]],
    ) -> bool:
        """Stores changes of a map as `keep` does, puts the layer `fresh` on the stack, and records clones that share what is
        below it, all or nothing: `forks` has the name of each, and its pin on the clone's version. Returns False, and does nothing,
        where the clone has another version by now. AlreadyExists."""
        now = int(time.time())
        with self._changing() as connection:
            (base,) = connection.execute("SELECT base FROM clones WHERE id = ?", (clone.id,)).fetchone()
            if base != clone.base:
                return False
            self._keep(clone.id, layer, extents, gone, stored)
            for name, pin in forks:
                self._check_free(connection, name)
                number = connection.execute(
                    "INSERT INTO clones (name, store, origin, base, pin, size, created)"
                    " SELECT ?, store, origin, base, ?, size, ? FROM clones WHERE id = ?",
                    (name, pin, now, clone.id),
                ).lastrowid
                connection.execute(
                    "INSERT INTO stacks SELECT ?, height, layer FROM stacks WHERE clone = ?", (number, clone.id)
                )
                self._put_on(connection, int(number or 0), self._new_layer(connection))
            self._put_on(connection, clone.id, fresh)
            return True

    def rewind(self, clone: int, base: str, pin: str) -> list[int]:
        """Puts a clone on a version, and forgets all that was written to it; returns those of its layers that no other clone
        has."""
        with self._changing() as connection:
            layers = self._clear(connection, clone)
            self._put_on(connection, clone, self._new_layer(connection))
            connection.execute("UPDATE clones SET base = ?, pin = ? WHERE id = ?", (base, pin, clone))
            return self._forget_unused(connection, layers)

    def captures(self, clone: int | None = None) -> list[CaptureRecord]:
        """Returns what is captured and not published, of one clone or of all, in order."""
        with self._reading():
            rows = self._connection.execute(
                "SELECT id, clone, layer, created, conflict, repo, tag, force, message, author, changes, nonce,"
                " expected FROM captures WHERE ? IS NULL OR clone = ? ORDER BY id",
                (clone, clone),
            ).fetchall()
        return [
            CaptureRecord(number, clone, layer, CaptureDraft(*draft), created, conflict)
            for number, clone, layer, created, conflict, *draft in rows
        ]

    def note_conflict(self, capture: int, why: str) -> None:
        """Notes that a capture waits for a person."""
        with self._changing() as connection:
            connection.execute("UPDATE captures SET conflict = ? WHERE id = ?", (why, capture))

    def redirect(self, capture: int, repo: str, tag: str, force: bool) -> None:
        """Has a capture published under another name, or by force."""
        with self._changing() as connection:
            connection.execute(
                "UPDATE captures SET repo = ?, tag = ?, force = ?, expected = NULL, conflict = '' WHERE id = ?",
                (repo, tag, force, capture),
            )

    def drop_capture(self, capture: int) -> None:
        """Forgets that something was captured; what was written stays in the clone."""
        with self._changing() as connection:
            connection.execute("DELETE FROM captures WHERE id = ?", (capture,))

    def rebase(self, capture: CaptureRecord, base: str) -> list[int]:
        """Puts a clone on the version that a capture of it became, in place of the layers that it was made of; returns those
        layers that no other clone has, which are forgotten."""
        with self._changing() as connection:
            below = (
                "SELECT layer FROM stacks WHERE clone = ? AND height <="
                " (SELECT height FROM stacks WHERE clone = ? AND layer = ?)"
            )
            layers = [n for (n,) in connection.execute(below, (capture.clone, capture.clone, capture.layer))]
            connection.executemany(
                "DELETE FROM stacks WHERE clone = ? AND layer = ?", [(capture.clone, layer) for layer in layers]
            )
            connection.execute("DELETE FROM captures WHERE id = ?", (capture.id,))
            connection.execute("UPDATE clones SET base = ? WHERE id = ?", (base, capture.clone))
            return self._forget_unused(connection, layers)

    def loose_layers(self) -> list[int]:
        """Returns the layers that are in no stack: being made, or left by a crash."""
        with self._reading():
            query = "SELECT id FROM layers WHERE NOT EXISTS (SELECT 1 FROM stacks WHERE stacks.layer = layers.id)"
            return [number for (number,) in self._connection.execute(query)]

    def known(self) -> tuple[set[int], set[int]]:
        """Returns the numbers of all clones and layers."""
        with self._reading():
            clones = {number for (number,) in self._connection.execute("SELECT id FROM clones")}
            return clones, {number for (number,) in self._connection.execute("SELECT id FROM layers")}

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    @staticmethod
    def _check_free(connection: sqlite3.Connection, name: str) -> None:
        if connection.execute("SELECT 1 FROM clones WHERE name = ?", (name,)).fetchone():
            raise AlreadyExists(f"there is a clone {name} already: name another, or remove it with `blockmap rm`")

    @staticmethod
    def _new_layer(connection: sqlite3.Connection) -> int:
        return int(connection.execute("INSERT INTO layers DEFAULT VALUES").lastrowid or 0)

    @staticmethod
    def _put_on(connection: sqlite3.Connection, clone: int, layer: int) -> None:
        """Puts a layer on a clone's stack, which may be empty."""
        connection.execute(
            "INSERT INTO stacks SELECT ?1, coalesce(max(height) + 1, 0), ?2 FROM stacks WHERE clone = ?1",
            (clone, layer),
        )

    @staticmethod
    def _clear(connection: sqlite3.Connection, clone: int) -> list[int]:
        """Takes all layers from a clone's stack; returns them."""
        layers = [layer for (layer,) in connection.execute("SELECT layer FROM stacks WHERE clone = ?", (clone,))]
        connection.execute("DELETE FROM stacks WHERE clone = ?", (clone,))
        return layers

    @staticmethod
    def _forget_unused(connection: sqlite3.Connection, layers: Sequence[int]) -> list[int]:
        """Forgets those of `layers` that are in no stack; returns them."""
        gone = []
        for layer in layers:
            if connection.execute("SELECT 1 FROM stacks WHERE layer = ?", (layer,)).fetchone() is None:
                connection.execute("DELETE FROM extents WHERE layer = ?", (layer,))
                connection.execute("DELETE FROM layers WHERE id = ?", (layer,))
                gone.append(layer)
        return gone

    def _keep(self, clone: int, layer: int, extents: Sequence[Held], gone: Sequence[int], stored: int) -> None:
        for some in _batches(gone):
            marks = ",".join("?" * len(some))
            self._connection.execute(f"DELETE FROM extents WHERE layer = ? AND start IN ({marks})", (layer, *some))
        for batch in _batches(extents):
            marks = ",".join(["(?,?,?,?)"] * len(batch))
            values = [value for start, end, kind in batch for value in (layer, start, end, int(kind))]
            self._connection.execute(f"INSERT OR REPLACE INTO extents VALUES {marks}", values)
        self._connection.execute("UPDATE clones SET stored = ? WHERE id = ?", (stored, clone))

    def _map(self, layer: int) -> OverlayMap:
        rows = self._connection.execute("SELECT start, stop, kind FROM extents WHERE layer = ? ORDER BY 1", (layer,))
        found = OverlayMap([Held(start, stop, Kind(kind)) for start, stop, kind in rows])
        found.check()
        return found

    @contextmanager
    def _reading(self) -> Iterator[None]:
        with self._lock:
            try:
                yield
            except sqlite3.Error as error:
                raise _unusable(self._path, error) from error

    @contextmanager
    def _changing(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                with transaction(self._connection):
                    yield self._connection
            except sqlite3.Error as error:
                raise _unusable(self._path, error) from error


def _batches(items: Sequence[_T]) -> Iterator[Sequence[_T]]:
    return (items[at : at + _BATCH] for at in range(0, len(items), _BATCH))


def has_clones(state: Path) -> bool:
    """Returns True if the host ever had a clone."""
    return (state / _FILE).exists()


@dataclass(frozen=True, slots=True)
class CloneUsage:
    """What a clone has, for people."""

    record: CloneRecord
    written: int
    """Bytes that its layers have."""
    unpublished: int
    """Captures that are not published yet."""
    conflict: str
    """Why the first of them waits for a decision; empty where none does."""


def read_clones(state: Path) -> list[CloneUsage]:
    """Returns all clones of a host, by name; HostError."""
    if not has_clones(state):
        return []
    query = f"""
SELECT {_COLUMNS}, coalesce(sum(stop - start), 0),
    (SELECT count(*) FROM captures WHERE captures.clone = clones.id),
    (SELECT coalesce(max(conflict), '') FROM captures WHERE captures.clone = clones.id)
FROM clones
LEFT JOIN stacks ON stacks.clone = clones.id
LEFT JOIN extents ON extents.layer = stacks.layer AND kind = {Kind.DATA.value}
GROUP BY clones.id ORDER BY name
"""
    try:
        with closing(open_to_read(state / _FILE, _SCHEMA)) as connection:
            return [CloneUsage(CloneRecord(*row[:-3]), *row[-3:]) for row in connection.execute(query)]
    except sqlite3.Error as error:
        raise _unusable(state / _FILE, error) from error


def _unusable(path: Path, error: Exception) -> HostError:
    code = getattr(error, "sqlite_errorcode", None)
    if code == sqlite3.SQLITE_FULL:
        return DiskFull(f"no room left to write {path}: free some space, then go on")
    said = error.strerror if isinstance(error, OSError) else error
    return HostError(f"the record of clones, {path}, cannot be used: {said}")
