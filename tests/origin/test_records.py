"""What a host knows of its stores: kept over restarts, by store, never believed when it is damaged."""

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from blockmap.errors import NotAStore, StoreTooNew
from blockmap.format import keys, record
from blockmap.format.digest import Digest
from blockmap.origin.records import RecordCache, open_served
from blockmap.store.opening import create_store

RECORD = record.seal([b"{}"])
KEY = keys.version(Digest(b"\1" * 32), 1)


@pytest.fixture
def records(tmp_path: Path) -> Iterator[RecordCache]:
    opened = RecordCache(tmp_path, "there")
    yield opened
    opened.close()


def again(tmp_path: Path, url: str = "there") -> RecordCache:
    return RecordCache(tmp_path, url)


def test_what_is_kept_is_there_after_a_restart(records: RecordCache, tmp_path: Path) -> None:
    records.keep(KEY, RECORD)
    records.confirm("a", "1", 3, b"old")
    records.confirm("a", "1", 4, b"new")
    records.close()
    other = again(tmp_path)
    assert other.record(KEY) == RECORD
    assert other.name("a", "1") == (4, b"new")
    assert other.names() == [("a", "1", 4, b"new")]
    other.forget_name("a", "1")
    other.forget(KEY)
    assert (other.name("a", "1"), other.record(KEY)) == (None, None)
    other.close()


def test_stores_are_apart(records: RecordCache, tmp_path: Path) -> None:
    records.keep(KEY, RECORD)
    records.confirm("a", "1", 3, b"x")
    other = again(tmp_path, "elsewhere")
    assert (other.record(KEY), other.name("a", "1"), other.names()) == (None, None, [])
    other.close()


def test_the_oldest_records_are_forgotten_at_the_start(
    records: RecordCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blockmap.origin.records._MAX_RECORDS", 3)
    for number in range(1, 6):
        records.keep(keys.version(Digest(b"\1" * 32), number), RECORD)
    records.keep(KEY, RECORD)
    records.close()
    other = again(tmp_path)
    kept = [number for number in range(1, 6) if other.record(keys.version(Digest(b"\1" * 32), number))]
    assert kept == [1, 4, 5]
    other.close()


@pytest.mark.parametrize("sabotage", ["format", "directory"])
def test_a_file_that_cannot_be_used_is_a_host_that_knows_nothing(
    tmp_path: Path, sabotage: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "names.db"
    if sabotage == "format":
        connection = sqlite3.connect(path)
        connection.execute("PRAGMA user_version=9")
        connection.close()
    else:
        path.mkdir()
    records = again(tmp_path)
    records.confirm("a", "1", 1, b"x")
    assert records.name("a", "1") == (1, b"x")
    records.close()
    assert "cannot be read" in caplog.text
    assert ("cannot be made" in caplog.text) == (sabotage == "directory")


def test_a_file_of_earlier_releases_is_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    connection = sqlite3.connect(tmp_path / "names.db")
    connection.executescript(
        """
        PRAGMA journal_mode=WAL;
        CREATE TABLE records (store TEXT, key TEXT, data BLOB NOT NULL, UNIQUE (store, key));
        CREATE TABLE names (store TEXT, repo TEXT, tag TEXT, n INTEGER NOT NULL, entry BLOB NOT NULL,
                            PRIMARY KEY (store, repo, tag));
        PRAGMA user_version=1;
        INSERT INTO names VALUES ('there', 'a', '1', 4, x'78');
        """
    )
    connection.close()
    records = again(tmp_path)
    assert records.name("a", "1") == (4, b"x")
    records.close()
    assert not caplog.records


def test_a_database_that_fails_later_is_said_once(
    records: RecordCache, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with closing(sqlite3.connect(tmp_path / "names.db")) as other:
        other.execute("DROP TABLE names")
    for _ in range(3):
        records.confirm("a", "1", 1, b"x")
        assert records.name("a", "1") is None
        assert records.names() == []
    assert caplog.text.count("cannot be read or written") == 1


# --- opening a store that may be away


def served(url: Path, directory: Path) -> str:
    """As a server does at its start; the store's UUID."""
    store, form = open_served(str(url), directory, 30.0)
    records = RecordCache(directory, store.url)
    records.meet(store, form)
    records.close()
    return form.store


def test_a_store_that_was_served_opens_while_it_is_away(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    url, cache = tmp_path / "store", tmp_path / "cache"
    cache.mkdir()
    with pytest.raises(NotAStore):
        served(url, cache)
    form = create_store(str(url))[1]
    assert served(url, cache) == form.store
    url.rename(tmp_path / "away")
    assert served(url, cache) == form.store
    assert "the store is away" in caplog.text
    with pytest.raises(NotAStore):
        served(url, tmp_path / "other cache")


def test_another_store_at_the_same_url_is_met_anew(tmp_path: Path) -> None:
    url, cache = tmp_path / "store", tmp_path / "cache"
    cache.mkdir()
    create_store(str(url))
    served(url, cache)
    records = RecordCache(cache, str(url))
    records.confirm("a", "1", 1, b"x")
    records.close()
    url.rename(tmp_path / "old")
    other = create_store(str(url))[1]
    assert served(url, cache) == other.store
    records = RecordCache(cache, str(url))
    assert records.names() == []
    records.close()
    url.rename(tmp_path / "new")
    assert served(url, cache) == other.store


def test_a_store_of_a_newer_format_is_refused_though_it_was_served(tmp_path: Path) -> None:
    url, cache = tmp_path / "store", tmp_path / "cache"
    cache.mkdir()
    create_store(str(url))
    served(url, cache)
    path = url / "format"
    path.chmod(0o644)
    path.write_text(path.read_text().replace('"version": 1', '"version": 2'))
    with pytest.raises(StoreTooNew):
        served(url, cache)


def test_what_a_host_knows_of_a_store_may_be_damaged(tmp_path: Path) -> None:
    url, cache = tmp_path / "store", tmp_path / "cache"
    cache.mkdir()
    form = create_store(str(url))[1]
    for damage in (b"", b"{}", b"\xff"):
        records = RecordCache(cache, str(url))
        records.keep(keys.FORMAT, damage)
        records.close()
        assert served(url, cache) == form.store
    (cache / "names.db").write_bytes(b"no database")
    assert served(url, cache) == form.store


def test_what_was_held_goes_into_the_next_directory(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    made = RecordCache(tmp_path / "cache", "store")
    made.keep("key", b"data")
    made.confirm("a", "1", 1, b"entry")
    shutil.rmtree(tmp_path / "cache")
    made.begin_anew(in_memory=True)
    assert not (tmp_path / "cache").exists()
    (tmp_path / "cache").mkdir()
    made.begin_anew(in_memory=False)
    made.keep("another", b"more")
    made.close()
    made = RecordCache(tmp_path / "cache", "store")
    assert [made.record(key) for key in ("key", "another")] == [b"data", b"more"]
    assert made.names() == [("a", "1", 1, b"entry")]
    made.close()
