"""The cache's index on disk: SQLite, written in batches by a thread of its own.

It may be behind, and after a power cut wrong: every slot is checked against its own header before it is first used. A
journal that cannot be read is an empty one.
"""

import logging
import queue
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

_log = logging.getLogger(__name__)

_VERSION = 1
_BATCH_SECONDS = 0.5

Row = tuple[int, bytes, int, int]
"""Position of the slot's header, digest, length in bytes, mask."""


class Journal:
    """Slots added and removed; safe to share between threads after `load`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._queue: queue.Queue[Row | int | threading.Event | None] = queue.Queue()
        self._thread = threading.Thread(target=self._write, name="cache journal", daemon=True)

    def load(self) -> Iterator[Row]:
        """The slots on record, by position; none where the journal cannot be read. Then starts writing."""
        rows: list[Row] = []
        try:
            with _connect(self._path) as connection:
                if connection.execute("PRAGMA user_version").fetchone()[0] == _VERSION:
                    rows = [
                        (pos, digest, length, mask & (1 << 64) - 1)
                        for pos, digest, length, mask in connection.execute("SELECT * FROM slots ORDER BY pos")
                    ]
            connection.close()
        except sqlite3.Error as error:
            _log.warning("the cache's index %s cannot be read (%s): the cache starts empty", self._path, error)
            rows = []
        if not rows:
            self._reset()
        self._thread.start()
        return iter(rows)

    def add(self, row: Row) -> None:
        """Queues a slot; never blocks."""
        self._queue.put(row)

    def remove(self, position: int) -> None:
        """Queues the end of a slot; never blocks."""
        self._queue.put(position)

    def flush(self) -> None:
        """Waits until what was queued is written."""
        done = threading.Event()
        self._queue.put(done)
        done.wait()

    def close(self) -> None:
        self._queue.put(None)
        self._thread.join()

    def _reset(self) -> None:
        for suffix in ("", "-wal", "-shm"):
            Path(f"{self._path}{suffix}").unlink(missing_ok=True)
        with _connect(self._path) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute(
                "CREATE TABLE slots (pos INTEGER PRIMARY KEY, digest BLOB NOT NULL, length INTEGER NOT NULL, "
                "mask INTEGER NOT NULL)"
            )
            connection.execute(f"PRAGMA user_version={_VERSION}")
        connection.close()

    def _write(self) -> None:
        connection = _connect(self._path)
        connection.execute("PRAGMA synchronous=OFF")
        ended = False
        while not ended:
            item = self._queue.get()
            waiting: list[threading.Event] = []
            try:
                with connection:
                    while True:
                        if item is None:
                            ended = True
                            break
                        if isinstance(item, threading.Event):
                            waiting.append(item)
                            break
                        self._apply(connection, item)
                        try:
                            item = self._queue.get(timeout=_BATCH_SECONDS)
                        except queue.Empty:
                            break
            except sqlite3.Error as error:
                _log.warning(
                    "the cache's index %s cannot be written (%s): part of the cache is lost at the next start",
                    self._path,
                    error,
                )
            for event in waiting:
                event.set()
        connection.close()

    @staticmethod
    def _apply(connection: sqlite3.Connection, item: Row | int) -> None:
        if isinstance(item, int):
            connection.execute("DELETE FROM slots WHERE pos = ?", (item,))
        else:
            position, digest, length, mask = item
            signed = mask - (1 << 64) if mask >> 63 else mask
            connection.execute("INSERT OR REPLACE INTO slots VALUES (?, ?, ?, ?)", (position, digest, length, signed))


def _connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, timeout=10)
