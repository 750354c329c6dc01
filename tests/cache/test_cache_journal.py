"""The cache's index on disk: behind, damaged, hostile or gone, it costs cached content and nothing else."""

import logging
import os
import random
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from blockmap.cache.cache import Cache
from blockmap.cache.journal import Journal
from blockmap.cache.slot import Row
from blockmap.format import BLOCK
from tests.waiting import until

from .contents import content, name

CAP = 1 << 20
COUNT = 30


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    """A cache of 30 chunks of 3 blocks, closed."""
    cache = Cache(tmp_path, CAP)
    for number in range(COUNT):
        cache.put(name(number), content(number, 3 * BLOCK))
    cache.close()
    return tmp_path


def held(directory: Path) -> int:
    """How much of it a new start serves, rightly; then what is put is kept."""
    cache = Cache(directory, CAP)
    found = [cache.get(name(number)) for number in range(COUNT)]
    assert all(data is None or data == content(number, 3 * BLOCK) for number, data in enumerate(found))
    for number in range(100, 110):
        assert cache.put(name(number), content(number, 3 * BLOCK)) >= 0
    for number in range(COUNT):
        assert cache.get(name(number)) == found[number]
    for number in range(100, 110):
        assert cache.get(name(number)) == content(number, 3 * BLOCK)
    cache.close()
    return sum(data is not None for data in found)


def change(directory: Path, *statements: str) -> None:
    with closing(sqlite3.connect(directory / "index.db")) as connection, connection:
        for statement in statements:
            connection.execute(statement)


def test_a_restart_finds_everything(filled: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert held(filled) == COUNT
    assert not caplog.records


@pytest.mark.parametrize("rubbish", [b"", b"rubbish" * 1000, b"SQLite format 3\0" + bytes(4080)])
def test_an_index_that_is_rubbish_is_an_empty_one(filled: Path, rubbish: bytes) -> None:
    (filled / "index.db").write_bytes(rubbish)
    assert held(filled) == 0
    cache = Cache(filled, CAP)
    assert cache.get(name(105)) is not None, "a new index was begun"
    cache.close()


def test_an_index_of_another_format_is_an_empty_one(filled: Path, caplog: pytest.LogCaptureFixture) -> None:
    change(filled, "PRAGMA user_version=77")
    assert held(filled) == 0
    assert "format 77" in caplog.text


def test_an_index_that_is_cut_short_is_an_empty_one(filled: Path, caplog: pytest.LogCaptureFixture) -> None:
    os.truncate(filled / "index.db", 4096)
    assert held(filled) == 0
    assert "cannot be read" in caplog.text


def test_an_index_that_cannot_be_made_is_gone_without(filled: Path, caplog: pytest.LogCaptureFixture) -> None:
    (filled / "index.db").unlink()
    (filled / "index.db").mkdir()
    assert held(filled) == 0
    assert [record.message.split("(")[0].split("index.db ")[1] for record in caplog.records] == [
        "cannot be read ",
        "cannot be made ",
        "cannot be written ",
    ]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE slots SET digest = 'a text of thirty-two characters.' WHERE pos = 0",
        "UPDATE slots SET digest = x'00' WHERE pos = 0",
        "UPDATE slots SET length = 'x' WHERE pos = 0",
        "UPDATE slots SET length = -1 WHERE pos = 0",
        "UPDATE slots SET length = 1 << 40 WHERE pos = 0",
        "UPDATE slots SET length = 2 * 4096 WHERE pos = 0",
        "UPDATE slots SET mask = 1 WHERE pos = 0",
        "UPDATE slots SET mask = -1 WHERE pos = 0",
        "UPDATE slots SET mask = 1.5 WHERE pos = 0",
        "UPDATE slots SET pos = 1 WHERE pos = 0",
        "UPDATE slots SET pos = -4096 WHERE pos = 0",
        "UPDATE slots SET pos = (1 << 62) WHERE pos = 0",
        "UPDATE slots SET digest = (SELECT digest FROM slots WHERE pos = 16384) WHERE pos = 0",
    ],
)
def test_a_row_that_is_wrong_costs_at_most_its_neighbours(filled: Path, statement: str) -> None:
    change(filled, statement)
    assert COUNT - 2 <= held(filled) < COUNT


def test_a_slot_that_claims_to_reach_over_the_others_costs_these(filled: Path) -> None:
    change(filled, f"UPDATE slots SET length = {100 * BLOCK} WHERE pos = {10 * 4 * BLOCK}")
    assert held(filled) == 10


def test_flipped_bytes_never_fail_a_start_nor_a_read(filled: Path) -> None:
    index = filled / "index.db"
    good, data = index.read_bytes(), (filled / "data").read_bytes()
    chance = random.Random(7)
    for _ in range(60):
        broken = bytearray(good)
        for _ in range(chance.choice([1, 5, 100])):
            broken[chance.randrange(len(broken))] ^= 1 << chance.randrange(8)
        for suffix in ("-wal", "-shm"):
            Path(f"{index}{suffix}").unlink(missing_ok=True)
        index.write_bytes(broken)
        (filled / "data").write_bytes(data)
        held(filled)


class Endless:
    """A queue that always has one more row, until the journal is closed."""

    def __init__(self) -> None:
        self.position = 0
        self.closed = False

    def put(self, item: None) -> None:
        self.closed = True

    def get(self) -> Row | None:
        self.position += 1
        assert self.position < 1_000_000, "a batch does not end"
        return None if self.closed else (self.position * BLOCK, name(1), BLOCK, 1)

    get_nowait = get


def test_a_batch_ends_however_fast_more_arrives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("queue.SimpleQueue", Endless)
        journal = Journal(tmp_path / "index.db")
    assert journal.load() == []
    with closing(sqlite3.connect(tmp_path / "index.db")) as connection:
        until(lambda: connection.execute("SELECT count(*) FROM slots").fetchone()[0] > 0)
    journal.close()


def test_what_a_full_disk_kept_from_the_journal_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = Cache(tmp_path, CAP)
    for number in range(10):
        cache.put(name(number), content(number, 3 * BLOCK))
    cache.flush()
    change(tmp_path, "DROP TABLE slots")
    for number in range(10, 20):
        cache.put(name(number), content(number, 3 * BLOCK))
        cache.flush()
    cache.close()
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "cannot be written" in caplog.text


def test_an_index_of_earlier_releases_is_kept(filled: Path, caplog: pytest.LogCaptureFixture) -> None:
    with closing(sqlite3.connect(filled / "index.db")) as connection:
        rows = connection.execute("SELECT * FROM slots").fetchall()
    (filled / "index.db").unlink()
    change(
        filled,
        "PRAGMA journal_mode=WAL",
        "CREATE TABLE slots (pos INTEGER PRIMARY KEY, digest BLOB NOT NULL, length INTEGER NOT NULL, mask INTEGER NOT NULL)",
        "PRAGMA user_version=1",
    )
    with closing(sqlite3.connect(filled / "index.db")) as connection, connection:
        connection.executemany("INSERT INTO slots VALUES (?, ?, ?, ?)", rows)
    assert held(filled) == COUNT
    assert not caplog.records
