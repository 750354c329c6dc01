"""Opens the SQLite files of this host, each of which has a schema with a version.

`open_or_forget` is for files that can be rebuilt; `open_database`, for all others, migrates a file of an earlier version, and
raises whatever else is wrong. Connections are in autocommit; `transaction` groups statements.
"""

import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

_T = TypeVar("_T")

_WAIT_SECONDS = 10.0
"""How long a statement waits for another process that has the file locked: nobody holds it for long."""


@dataclass(frozen=True, slots=True)
class Schema:
    """The tables of a file, and how a file of an earlier version gets them."""

    version: int
    """`PRAGMA user_version`, at least 1."""
    tables: str
    """The statements that fill a new file."""
    migrations: Mapping[int, str] = field(default_factory=dict)
    """Statements that turn a file of the version that is their key into one of the next."""
    wal: bool = False
    """True if a new file is to have a write-ahead log, so that readers and a writer do not wait for each other."""


def open_database(path: Path | str, schema: Schema) -> sqlite3.Connection:
    """Opens a file; makes an absent one, and migrates an older one. The connection may be handed to another thread.

    Raises sqlite3.Error if it is damaged, or of a version that `schema` cannot migrate.
    """
    if path != ":memory:":
        # SQLite explains what fails, and gives its other files the mode of this one. One that exists is not touched: to close
        # it would end the locks of this process on it, and whoever then thinks that nobody has it open deletes the log.
        with suppress(OSError):
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    connection = sqlite3.connect(path, timeout=_WAIT_SECONDS, check_same_thread=False, isolation_level=None)
    try:
        _bring(connection, schema)
        return connection
    except BaseException:
        connection.close()
        raise


def open_to_read(path: Path, schema: Schema) -> sqlite3.Connection:
    """Opens a file that exists, and changes nothing of it, so that an older one stays older; sqlite3.Error as above.

    A file whose maker was killed before it had tables reads as an empty one.
    """
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=_WAIT_SECONDS)
    try:
        version = _version(connection)
        if _is_bare(connection, version):
            connection.close()
            return open_database(":memory:", schema)
        if version != schema.version and version not in schema.migrations:
            raise _unknown(version)
        return connection
    except BaseException:
        connection.close()
        raise


def open_or_forget(
    path: Path, schema: Schema, read: Callable[[sqlite3.Connection], _T], forgotten: Callable[[Exception], None]
) -> tuple[sqlite3.Connection, _T]:
    """Opens a file, and returns what `read` finds in it; if either fails, passes the error to `forgotten`, and makes a new file.

    Raises OSError or sqlite3.Error if no new file can be made.
    """
    try:
        return _open_and_read(path, schema, read)
    except Exception as error:  # not all are sqlite3's own: text of a damaged file may not decode
        forgotten(error)
    delete(path)
    return _open_and_read(path, schema, read)


def delete(path: Path) -> None:
    """Deletes a file, which nobody may have open, with all that SQLite keeps beside it; OSError."""
    for suffix in ("", "-journal", "-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Commits what is written within it as a whole, or, if something raises, nothing."""
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
    """Migrates a file to the schema's version, one step per transaction."""
    while (version := _version(connection)) != schema.version:
        if _is_bare(connection, version):
            if schema.wal:
                connection.execute("PRAGMA journal_mode=WAL")
            statements, reached = schema.tables, schema.version
        elif version in schema.migrations:
            statements, reached = schema.migrations[version], version + 1
        else:
            raise _unknown(version)
        connection.executescript(f"BEGIN IMMEDIATE; {statements} PRAGMA user_version={reached}; COMMIT;")


def _is_bare(connection: sqlite3.Connection, version: int) -> bool:
    """Returns True if a file of this version has no tables yet."""
    return version == 0 and not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _unknown(version: int) -> sqlite3.DatabaseError:
    return sqlite3.DatabaseError(f"it has format {version}")
