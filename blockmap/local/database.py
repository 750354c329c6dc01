"""SQLite files of this host: each has a schema with a version, and is opened here.

Whoever can have again what a file holds opens it with `open_or_forget`; whoever cannot, with `open_database`, which migrates
a file of an earlier version and raises whatever else is wrong. Connections are in autocommit: `transaction` groups.
"""

import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

_T = TypeVar("_T")

_WAIT_SECONDS = 10.0
"""How long a statement waits for another process that has the file locked: nobody holds it for long."""


@dataclass(frozen=True, slots=True)
class Schema:
    """What a file holds, and how one of an earlier version comes to hold it."""

    version: int
    """`PRAGMA user_version`, at least 1."""
    tables: str
    """The statements that fill a new file."""
    migrations: Mapping[int, str] = field(default_factory=dict)
    """Statements that turn a file of the version that is their key into one of the next."""
    wal: bool = False
    """Whether a new file has a write-ahead log, which readers and a writer of the same moment need."""


def open_database(path: Path | str, schema: Schema) -> sqlite3.Connection:
    """Opens a file, which is made where it is absent, and migrated where it is older; safe to hand to another thread.

    sqlite3.Error where it is damaged, or of a version that `schema` has no way from.
    """
    connection = sqlite3.connect(path, timeout=_WAIT_SECONDS, check_same_thread=False, isolation_level=None)
    try:
        _bring(connection, schema)
        return connection
    except BaseException:
        connection.close()
        raise


def open_to_read(path: Path, schema: Schema) -> sqlite3.Connection:
    """Opens a file that exists, and changes nothing of it, so that an older one stays older; sqlite3.Error as above."""
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=_WAIT_SECONDS)
    try:
        version = _version(connection)
        if version != schema.version and version not in schema.migrations:
            raise _unknown(version)
        return connection
    except BaseException:
        connection.close()
        raise


def open_or_forget(
    path: Path, schema: Schema, read: Callable[[sqlite3.Connection], _T], forgotten: Callable[[Exception], None]
) -> tuple[sqlite3.Connection, _T]:
    """Opens a file, and returns what `read` finds in it; where one of both fails, tells `forgotten` why, and begins anew.

    OSError, sqlite3.Error where no new file can be made.
    """
    try:
        return _open_and_read(path, schema, read)
    except Exception as error:  # not all are sqlite3's own: text of a damaged file may not decode
        forgotten(error)
    for suffix in ("", "-journal", "-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
    return _open_and_read(path, schema, read)


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Makes what is written within it happen as a whole, or, where it raises, not at all."""
    connection.execute("BEGIN IMMEDIATE")
    with connection:
        yield


def _open_and_read(
    path: Path, schema: Schema, read: Callable[[sqlite3.Connection], _T]
) -> tuple[sqlite3.Connection, _T]:
    connection = open_database(path, schema)
    try:
        return connection, read(connection)
    except BaseException:
        connection.close()
        raise


def _bring(connection: sqlite3.Connection, schema: Schema) -> None:
    """Makes a file one of the schema's version, a step at a time, each as a whole."""
    while (version := _version(connection)) != schema.version:
        if version == 0 and not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            if schema.wal:
                connection.execute("PRAGMA journal_mode=WAL")
            statements, reached = schema.tables, schema.version
        elif version in schema.migrations:
            statements, reached = schema.migrations[version], version + 1
        else:
            raise _unknown(version)
        connection.executescript(f"BEGIN IMMEDIATE; {statements} PRAGMA user_version={reached}; COMMIT;")


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _unknown(version: int) -> sqlite3.DatabaseError:
    return sqlite3.DatabaseError(f"it has format {version}")
