"""Remembers what this host has read from its stores: records that never change, and what each name stood for last.

It is an SQLite file in the cache's directory. Names are advice until the store confirms them, or does not answer; records are
verified by whoever asks for them, as if they came from the store. A file that cannot be used is made anew, or replaced by one
in memory: lost records are read from the store again.
"""

import logging
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, TypeVar

from blockmap.errors import BlockmapError, NotAStore, StoreError, StoreUnavailable
from blockmap.format import keys
from blockmap.local import database
from blockmap.store import limits
from blockmap.store.base import Reader
from blockmap.store.concurrent import spawn
from blockmap.store.opening import Format, open_store, parse_format, reach

_T = TypeVar("_T")

_log = logging.getLogger(__name__)

_FILE = "names.db"
_MAX_RECORDS = 5_000
"""Records of all stores; the oldest beyond are forgotten when a server starts."""
_SCHEMA = database.Schema(
    version=1,
    tables="""
CREATE TABLE records (store TEXT, key TEXT, data BLOB NOT NULL, UNIQUE (store, key));
CREATE TABLE names (store TEXT, repo TEXT, tag TEXT, n INTEGER NOT NULL, entry BLOB NOT NULL,
                    PRIMARY KEY (store, repo, tag));
""",
    wal=True,
)


class RecordCache:
    """Holds records and names of the store at one URL; safe to share between threads."""

    def __init__(self, directory: Path, url: str) -> None:
        self._url = url
        self._path = directory / _FILE
        self._lock = threading.Lock()  # guards the connection; held while SQLite reads or writes
        self._well = True
        self._connection = _open(self._path)
        self._run(lambda db: _forget_oldest(db), None)

    def record(self, key: str) -> bytes | None:
        """Returns an object that never changes; None where it is not held."""
        return self._value("SELECT data FROM records WHERE store = ? AND key = ?", key)

    def keep(self, key: str, data: bytes) -> None:
        """Holds an object that never changes from now on."""
        self._change("INSERT OR REPLACE INTO records VALUES (?, ?, ?)", key, data)

    def name(self, repo: str, tag: str) -> tuple[int, bytes] | None:
        """Returns number and stored form of the entry that was a name's newest when the store last confirmed one."""
        query = "SELECT n, entry FROM names WHERE store = ? AND repo = ? AND tag = ?"
        row = self._run(lambda db: db.execute(query, (self._url, repo, tag)).fetchone(), None)
        return row if row and type(row[0]) is int and isinstance(row[1], bytes) else None

    def names(self) -> list[tuple[str, str, int, bytes]]:
        """Returns every name that was opened here, sorted: repository, tag, number and stored form of the entry."""
        query = "SELECT repo, tag, n, entry FROM names WHERE store = ? ORDER BY repo, tag"
        rows: list[tuple[Any, ...]] = self._run(lambda db: db.execute(query, (self._url,)).fetchall(), [])
        return [row for row in rows if tuple(map(type, row)) == (str, str, int, bytes)]

    def confirm(self, repo: str, tag: str, n: int, entry: bytes) -> None:
        """Notes what a name stands for, as the store has confirmed."""
        self._change("INSERT OR REPLACE INTO names VALUES (?, ?, ?, ?, ?)", repo, tag, n, entry)

    def forget(self, key: str) -> None:
        """Forgets an object that was held, but did not work."""
        self._change("DELETE FROM records WHERE store = ? AND key = ?", key)

    def forget_name(self, repo: str, tag: str) -> None:
        """Deletes a name that the store does not have any more."""
        self._change("DELETE FROM names WHERE store = ? AND repo = ? AND tag = ?", repo, tag)

    def meet(self, store: Reader, form: Format) -> None:
        """Notes what the store says about itself, and deletes all of another store that was at this URL before."""
        if _parsed(self.record(keys.FORMAT), self._url) == form:
            return
        for table in ("records", "names"):
            self._change(f"DELETE FROM {table} WHERE store = ?")
        with suppress(BlockmapError):  # asked for again at the next start
            self.keep(keys.FORMAT, store.get(keys.FORMAT, limits.FORMAT))

    def begin_anew(self, in_memory: bool) -> None:
        """Goes on in a new file with what it holds, or in memory, where the directory was removed or replaced."""
        records, names = (self._rows(table) for table in ("records", "names"))
        with self._lock:
            # Before there is another: SQLite deletes what is beside the file by its name.
            self._connection.close()
            if in_memory:
                self._connection = database.open_database(":memory:", _SCHEMA)
            else:
                with suppress(OSError):
                    database.delete(self._path)
                self._connection = _open(self._path)
        self._run(lambda db: db.executemany("INSERT OR REPLACE INTO records VALUES (?, ?, ?)", records), None)
        self._run(lambda db: db.executemany("INSERT OR REPLACE INTO names VALUES (?, ?, ?, ?, ?)", names), None)

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    def _rows(self, table: str) -> list[tuple[Any, ...]]:
        return self._run(lambda db: db.execute(f"SELECT * FROM {table}").fetchall(), [])

    def _value(self, query: str, *values: str) -> bytes | None:
        row = self._run(lambda db: db.execute(query, (self._url, *values)).fetchone(), None)
        return row[0] if row and isinstance(row[0], bytes) else None

    def _change(self, statement: str, *values: str | bytes | int) -> None:
        self._run(lambda db: db.execute(statement, (self._url, *values)), None)

    def _run(self, act: Callable[[sqlite3.Connection], _T], otherwise: _T) -> _T:
        """Returns what `act` returns, or `otherwise` where the database fails."""
        try:
            with self._lock:
                done = act(self._connection)
            self._well = True
            return done
        except Exception as error:  # not all are sqlite3's own: text of a damaged file may not decode
            if self._well:  # logged once, until it works again
                _log.warning("the records that this host has of the store cannot be read or written: %s", error)
            self._well = False
            return otherwise


def open_served(url: str, directory: Path, answer_seconds: float) -> tuple[Reader, Format]:
    """Opens the store at `url`; if it does not answer in time, uses its format as this host noted it when it last served it.

    Raises what `open_store` raises if this host has never served it.
    """
    form = _recall(directory, reach(url).url)
    if form is None:
        return open_store(url)
    try:
        return spawn(lambda: open_store(url)).result(answer_seconds)
    except (TimeoutError, StoreUnavailable, NotAStore) as error:
        _log.warning("the store is away, this host serves what it knows of it: %s", error or f"{url} does not answer")
        return reach(url), form


def _recall(directory: Path, url: str) -> Format | None:
    """Returns what a store said about itself, as noted by the server that owns, or owned, the directory."""
    with suppress(sqlite3.Error), closing(database.open_to_read(directory / _FILE, _SCHEMA)) as db:
        row = db.execute("SELECT data FROM records WHERE store = ? AND key = ?", (url, keys.FORMAT)).fetchone()
        return _parsed(row[0] if row else None, url)
    return None


def _parsed(text: object, url: str) -> Format | None:
    if isinstance(text, bytes):
        with suppress(StoreError):
            return parse_format(text, url)
    return None


def _open(path: Path) -> sqlite3.Connection:
    def forgotten(error: Exception) -> None:
        _log.warning("%s cannot be read (%s): what this host knew of its stores is forgotten", path, error)

    try:
        return database.open_or_forget(path, _SCHEMA, _relax, forgotten)[0]
    except (OSError, sqlite3.Error) as error:
        _log.warning("%s cannot be made (%s): records are kept in memory only", path, error)
        return database.open_database(":memory:", _SCHEMA)


def _relax(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA synchronous=NORMAL")


def _forget_oldest(connection: sqlite3.Connection) -> None:
    connection.execute(
        "DELETE FROM records WHERE rowid <= (SELECT max(rowid) FROM records) - ?",
        (_MAX_RECORDS,),
    )
