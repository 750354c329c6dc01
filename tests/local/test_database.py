"""SQLite files of this host: made, migrated, refused or forgotten."""

import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from blockmap.local.database import Schema, open_database, open_or_forget, open_to_read, transaction

FIRST = Schema(1, "CREATE TABLE things (name TEXT);", wal=True)
THIRD = Schema(
    3,
    "CREATE TABLE things (title TEXT, size INTEGER NOT NULL);",
    {
        1: "ALTER TABLE things RENAME COLUMN name TO title;",
        2: "ALTER TABLE things ADD COLUMN size INTEGER NOT NULL DEFAULT 7;",
    },
)
BROKEN = Schema(3, "", {1: THIRD.migrations[1], 2: "ALTER TABLE things ADD COLUMN size; SELECT nonsense;"})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of version 1 with one row."""
    made = tmp_path / "things.db"
    with closing(open_database(made, FIRST)) as connection:
        connection.execute("INSERT INTO things VALUES ('a')")
    return made


def asked(connection: sqlite3.Connection, statement: str) -> list[tuple[object, ...]]:
    with closing(connection):
        return connection.execute(statement).fetchall()


def set_version(path: Path, version: int) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version={version}")


def rows(connection: sqlite3.Connection) -> list[tuple[object, ...]]:
    return connection.execute("SELECT * FROM things").fetchall()


def test_a_file_has_the_version_and_the_log_of_its_schema(path: Path, tmp_path: Path) -> None:
    assert asked(open_database(path, FIRST), "SELECT * FROM things") == [("a",)]
    assert asked(open_database(path, FIRST), "PRAGMA user_version") == [(1,)]
    assert asked(open_database(path, FIRST), "PRAGMA journal_mode") == [("wal",)]
    assert asked(open_database(tmp_path / "new.db", THIRD), "PRAGMA user_version") == [(3,)]
    assert asked(open_database(tmp_path / "new.db", THIRD), "PRAGMA journal_mode") == [("delete",)]


@pytest.mark.parametrize("mode", ["DELETE", "WAL"])
def test_a_file_whose_maker_was_killed_reads_as_empty(tmp_path: Path, mode: str) -> None:
    made = tmp_path / "new.db"
    made.touch()
    with closing(sqlite3.connect(made)) as connection:
        connection.execute(f"PRAGMA journal_mode={mode}")
    assert asked(open_to_read(made, THIRD), "SELECT title, size FROM things") == []
    assert asked(open_to_read(made, THIRD), "SELECT title, size FROM things") == []
    assert asked(open_database(made, THIRD), "PRAGMA user_version") == [(3,)]


def test_an_older_file_is_migrated_step_by_step(path: Path) -> None:
    assert asked(open_to_read(path, THIRD), "SELECT name FROM things") == [("a",)]
    assert asked(open_database(path, THIRD), "SELECT title, size FROM things") == [("a", 7)]
    assert asked(open_to_read(path, THIRD), "PRAGMA user_version") == [(3,)]


def test_a_step_that_fails_changes_nothing(path: Path) -> None:
    with pytest.raises(sqlite3.OperationalError, match="nonsense"):
        open_database(path, BROKEN)
    assert asked(open_database(path, THIRD), "SELECT title, size FROM things") == [("a", 7)]


@pytest.mark.parametrize("version", [0, 9])
def test_a_version_that_nothing_leads_from_is_refused(path: Path, version: int) -> None:
    set_version(path, version)
    for attempt in (open_database, open_to_read):
        with pytest.raises(sqlite3.DatabaseError, match=f"it has format {version}"):
            attempt(path, THIRD)
    set_version(path, 1)
    assert asked(open_database(path, FIRST), "SELECT * FROM things") == [("a",)]


def test_reading_makes_nothing(tmp_path: Path) -> None:
    with pytest.raises(sqlite3.OperationalError):
        open_to_read(tmp_path / "new.db", FIRST)
    assert list(tmp_path.iterdir()) == []


def test_what_can_be_had_again_is_forgotten_and_said_once(path: Path) -> None:
    said: list[Exception] = []
    for expected in ([("a",)], []):
        connection, found = open_or_forget(path, FIRST, rows, said.append)
        connection.close()
        assert found == expected
        path.write_bytes(b"rubbish" * 1000)
    assert len(said) == 1


def test_rows_that_cannot_be_read_are_forgotten(path: Path) -> None:
    def refuse(connection: sqlite3.Connection) -> int:
        if rows(connection):
            raise ValueError("a row makes no sense")
        return 0

    said: list[Exception] = []
    connection, found = open_or_forget(path, FIRST, refuse, said.append)
    connection.close()
    assert (found, list(map(str, said))) == (0, ["a row makes no sense"])


def test_what_cannot_be_made_anew_is_raised(tmp_path: Path) -> None:
    said: list[Exception] = []
    with pytest.raises(OSError):
        open_or_forget(tmp_path, FIRST, rows, said.append)
    assert len(said) == 1


def test_a_transaction_is_whole(path: Path) -> None:
    connection = open_database(path, FIRST)

    def fail() -> None:
        with transaction(connection):
            connection.execute("INSERT INTO things VALUES ('b')")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with transaction(connection):
        connection.execute("INSERT INTO things VALUES ('c')")
        connection.execute("INSERT INTO things VALUES ('d')")
    assert asked(connection, "SELECT * FROM things") == [("a",), ("c",), ("d",)]


def test_a_second_connection_of_a_process_leaves_the_first_its_locks(tmp_path: Path) -> None:
    """Another process that closes the file last, as it thinks, would delete the log that the first connection writes to."""
    path, schema = tmp_path / "a.db", Schema(1, "CREATE TABLE t (n INTEGER);", wal=True)
    first = open_database(path, schema)
    open_database(path, schema).close()
    look = (
        f"import sqlite3; c = sqlite3.connect({str(path)!r}); print(c.execute('SELECT n FROM t').fetchall()); c.close()"
    )
    for number, rows in ((1, "[]"), (2, "[(1,)]"), (3, "[(1,), (2,)]")):
        found = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True).stdout
        assert found.strip() == rows
        first.execute("INSERT INTO t VALUES (?)", (number,))
    first.close()
