"""Keeps the cache's index on disk: SQLite, written in batches by a thread of its own.

It may be behind, and after a power cut wrong: every slot is checked against its own header before it is first used. A
journal that cannot be read is an empty one; one that cannot be written costs the next start, nothing else.
"""

import logging
import queue
import sqlite3
import threading
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TypeVar

from blockmap.cache.slot import MAX_BYTES, Row
from blockmap.format import BLOCK
from blockmap.format.digest import DIGEST_BYTES
from blockmap.local import database

_T = TypeVar("_T")

_log = logging.getLogger(__name__)

INDEX = "index.db"
"""The file's name in the directory of the cache."""
_SCHEMA = database.Schema(
    version=1,
    tables="""
CREATE TABLE slots (pos INTEGER PRIMARY KEY, digest BLOB NOT NULL, length INTEGER NOT NULL, mask INTEGER NOT NULL);
""",
    wal=True,
)
_BATCH_SECONDS = 0.5
"""Seconds that the journal may be behind: a kill loses what came within them."""
_BATCH_ITEMS = 20_000
"""Rows of a transaction."""
_STATEMENT_ROWS = 500
"""Rows of a statement."""

# A damaged database may hold anything at all: rows that cannot be right are left out.
_SELECT = f"""
SELECT pos, digest, length, mask FROM slots
WHERE pos BETWEEN 0 AND {1 << 44} AND pos % {BLOCK} = 0 AND typeof(digest) = 'blob' AND length(digest) = {DIGEST_BYTES}
  AND typeof(length) = 'integer' AND length BETWEEN 0 AND {MAX_BYTES} AND typeof(mask) = 'integer'
ORDER BY pos
"""


@dataclass(frozen=True, slots=True)
class _Anew:
    """Stands in the queue where the file is given up."""

    delete: bool


class Journal:
    """Records which slots are added and removed; safe to share between threads after `load`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._queue: queue.SimpleQueue[Row | int | threading.Event | _Anew | None] = queue.SimpleQueue()
        self._write_now = threading.Event()
        """Set where a batch is to be written at once."""
        self._thread = threading.Thread(target=self._run, name="cache journal", daemon=True)

    def load(self) -> list[Row]:
        """Returns the slots on record, by position, none if the journal cannot be read; from then on it is written."""
        rows: list[Row] = []
        try:
            connection, rows = database.open_or_forget(self._path, _SCHEMA, _rows, self._begin_empty)
            connection.close()
        except (OSError, sqlite3.Error) as error:
            _log.warning("the cache's index %s cannot be made (%s)", self._path, error)
        self._thread.start()
        return rows

    def add(self, row: Row) -> None:
        """Queues a slot; never blocks."""
        self._queue.put(row)

    def remove(self, position: int) -> None:
        """Queues the end of a slot; never blocks."""
        self._queue.put(position)

    def begin_anew(self, delete: bool) -> None:
        """Forgets all that was queued, gives the file up, and makes one with the next slot; never blocks.

        With `delete`, what is in its place now is deleted.
        """
        self._queue.put(_Anew(delete))

    def flush(self) -> None:
        """Waits until all that was queued is written."""
        done = threading.Event()
        self._queue.put(done)
        self._write_now.set()
        done.wait()

    def close(self) -> None:
        self._queue.put(None)
        self._write_now.set()
        self._thread.join()

    def _begin_empty(self, error: Exception) -> None:
        _log.warning("the cache's index %s cannot be read (%s): the cache starts empty", self._path, error)

    def _run(self) -> None:
        connection: sqlite3.Connection | None = None
        well = True
        ended = False
        while not ended:
            batch, waiting, anew, ended = self._batch()
            if anew is not None and connection is not None:
                connection.close()
                connection = None
            try:
                if anew is not None and anew.delete:
                    database.delete(self._path)
                if connection is None and batch:
                    connection = database.open_database(self._path, _SCHEMA)
                    connection.execute("PRAGMA synchronous=OFF")
                if connection is not None and batch:
                    with database.transaction(connection):
                        _apply(connection, batch)
                    well = True
            except Exception as error:
                if well:  # logged once, until it works again
                    _log.warning(
                        "the cache's index %s cannot be written (%s): part of the cache is lost at the next start",
                        self._path,
                        error,
                    )
                well = False
            for event in waiting:
                event.set()
        if connection is not None:
            connection.close()

    def _batch(self) -> tuple[list[Row | int], list[threading.Event], _Anew | None, bool]:
        """Returns what came within the time of a batch, who waits for it, how the file is given up before if it is, and True
        if it is the last."""
        items: list[Row | int] = []
        anew: _Anew | None = None
        item = self._queue.get()
        self._write_now.wait(_BATCH_SECONDS)  # not for each item: whoever adds one would hand the interpreter over
        self._write_now.clear()
        while True:
            if item is None:
                return items, [], anew, True
            if isinstance(item, threading.Event):
                return items, [item], anew, False
            if isinstance(item, _Anew):
                items, anew = [], item
            else:
                items.append(item)
            if len(items) >= _BATCH_ITEMS:
                self._write_now.set()
                break
            try:
                item = self._queue.get_nowait()
            except queue.Empty:
                break
        return items, [], anew, False


def count_slots(directory: Path) -> int:
    """Returns the number of slots on record for the cache in a directory, and changes nothing; sqlite3.Error."""
    with closing(database.open_to_read(directory / INDEX, _SCHEMA)) as connection:
        return int(connection.execute("SELECT count(*) FROM slots").fetchone()[0])


def _rows(connection: sqlite3.Connection) -> list[Row]:
    return connection.execute(_SELECT).fetchall()


def _apply(connection: sqlite3.Connection, batch: list[Row | int]) -> None:
    """Writes the last change of each position in a batch."""
    last: dict[int, Row | None] = {}
    for item in batch:
        if isinstance(item, int):
            last[item] = None
        else:
            last[item[0]] = item
    gone = [position for position, row in last.items() if row is None]
    rows = [(*row[:3], row[3] - (row[3] >> 63 << 64)) for row in last.values() if row is not None]
    # Many rows a statement: Python releases the interpreter's lock for each, and readers wait when it takes it back.
    for positions in _pieces(gone):
        connection.execute(f"DELETE FROM slots WHERE pos IN ({','.join('?' * len(positions))})", positions)
    for some in _pieces(rows):
        values = ",".join(["(?,?,?,?)"] * len(some))
        connection.execute(f"INSERT OR REPLACE INTO slots VALUES {values}", list(chain.from_iterable(some)))


def _pieces(items: list[_T]) -> list[list[_T]]:
    return [items[at : at + _STATEMENT_ROWS] for at in range(0, len(items), _STATEMENT_ROWS)]
