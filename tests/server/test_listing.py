"""The catalogue of a server: what it shows, how often it asks, what it shows while the store is away."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from blockmap.errors import CannotList, StoreUnavailable
from blockmap.format import entry as entries
from blockmap.format import keys
from blockmap.format.digest import Digest
from blockmap.origin.outage_policy import OutagePolicy
from blockmap.origin.records import RecordCache
from blockmap.server.listing import Listing
from blockmap.store.base import Pruner
from blockmap.store.memory import MemoryStore
from blockmap.store.names import EntryDraft, NameLog, NameTarget
from tests.store.faulty import Faulty
from tests.store.steps import Steps
from tests.waiting import LIMIT_S


@pytest.fixture
def store() -> Pruner:
    made = MemoryStore()
    made.create(keys.FORMAT, [b"{}"])
    return made


@pytest.fixture
def known(tmp_path: Path, store: Pruner) -> Iterator[RecordCache]:
    opened = RecordCache(tmp_path, store.url)
    yield opened
    opened.close()


def move(store: Pruner, tag: str, seed: int | None) -> None:
    log = NameLog(store)
    version = None if seed is None else Digest(bytes([seed]) * 32)
    log.append(NameTarget("a", tag), log.newest("a", tag), EntryDraft(version, 1))


def shown(listing: Listing) -> list[str]:
    return [name for name, _ in listing.names()]


class Clock:
    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def test_names_that_stand_for_something_are_shown(store: Pruner, known: RecordCache) -> None:
    for tag, seed in (("2", 2), ("1", 1), ("gone", 3), ("gone", None)):
        move(store, tag, seed)
    assert Listing(store, known, 1.0).names() == [
        ("a:1", f"version {'01' * 6}, entry 1"),
        ("a:2", f"version {'02' * 6}, entry 1"),
    ]


@pytest.mark.parametrize(("local", "seconds"), [(True, 1.0), (False, 30.0)])
def test_a_store_is_listed_so_often(store: Pruner, known: RecordCache, local: bool, seconds: float) -> None:
    move(store, "1", 1)
    steps, clock = Steps(store), Clock()
    steps.local = local
    listing = Listing(steps, known, 30.0, clock=clock)
    assert shown(listing) == ["a:1"]
    move(store, "2", 2)
    clock.seconds = seconds - 0.1
    assert shown(listing) == ["a:1"]
    clock.seconds = seconds
    assert shown(listing) == ["a:1", "a:2"]
    entry = keys.entry
    assert steps.serial == [
        ["list names/"], [f"get {entry('a', '1', 1)}"],
        ["list names/"], [f"get {entry('a', '2', 1)}"],
    ]  # fmt: skip


def test_many_entries_are_read_at_once(store: Pruner, known: RecordCache) -> None:
    for tag in range(32):
        move(store, str(tag), tag)
    steps = Steps(store, 1, 16, 16)
    assert len(shown(Listing(steps, known, 30.0))) == 32
    assert [len(step) for step in steps.serial] == [1, 16, 16]


def test_an_engine_that_cannot_list(store: Pruner, known: RecordCache) -> None:
    class Unlisted(Faulty):
        def list(self, prefix: str) -> list[str]:
            raise CannotList("this engine cannot list")

    listing = Listing(Unlisted(store), known, 1.0)
    assert shown(listing) == []
    move(store, "1", 1)
    assert shown(Listing(Unlisted(store), known, 1.0)) == ["a:1"]


def test_what_was_listed_before_serves_while_the_store_is_away(
    store: Pruner, known: RecordCache, caplog: pytest.LogCaptureFixture
) -> None:
    move(store, "1", 1)
    faulty, clock = Faulty(store), Clock()
    listing = Listing(faulty, known, 30.0, clock=clock)
    assert shown(listing) == ["a:1"]
    faulty.down = True
    clock.seconds = 2.0
    assert shown(listing) == ["a:1"]
    assert "cannot be listed, earlier names are served: no answer" in caplog.text
    move(store, "2", 2)
    faulty.down = False
    assert shown(listing) == ["a:1", "a:2"]


def test_who_asks_before_there_is_a_list_waits_for_it(store: Pruner, known: RecordCache) -> None:
    for tag in ("1", "2"):
        move(store, tag, 1)
    known.confirm("a", "1", 1, store.get(keys.entry("a", "1", 1)))
    began, gate = threading.Event(), threading.Event()

    class Slow(Faulty):
        def list(self, prefix: str) -> list[str]:
            began.set()
            assert gate.wait(LIMIT_S)
            return super().list(prefix)

    listing = Listing(Slow(store), known, 0.01)
    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(shown, listing) for _ in range(2)]
        assert began.wait(LIMIT_S)
        with pytest.raises(TimeoutError):
            asked[0].result(0.1)  # ten times what a later one would be waited for
        gate.set()
        assert [each.result(LIMIT_S) for each in asked] == [["a:1", "a:2"]] * 2


def test_a_store_that_hangs_or_is_not_mounted(store: Pruner, known: RecordCache, tmp_path: Path) -> None:
    move(store, "1", 1)
    move(store, "gone", 1)
    move(store, "gone", None)
    gate = threading.Event()

    class Hanging(Faulty):
        def list(self, prefix: str) -> list[str]:
            assert gate.wait(30)
            return super().list(prefix)

    for tag, n in (("1", 1), ("gone", 2)):
        known.confirm("a", tag, n, store.get(keys.entry("a", tag, n)))
    known.confirm(
        "a", "damaged", 1, entries.encode(entries.decode(store.get(keys.entry("a", "1", 1)), keys.entry("a", "1", 1)))
    )
    try:
        assert shown(Listing(Hanging(store), known, 0.01, OutagePolicy(0.02))) == ["a:1"]
        (tmp_path / "new").mkdir()
        with pytest.raises(StoreUnavailable, match=r"did not list its names within 0\.02 s"):
            Listing(Hanging(store), RecordCache(tmp_path / "new", store.url), 0.01, OutagePolicy(0.02)).names()
    finally:
        gate.set()
    assert shown(Listing(MemoryStore(), known, 30.0)) == ["a:1"]


def test_nothing_known_and_no_answer_is_an_error(store: Pruner, known: RecordCache) -> None:
    faulty = Faulty(store)
    faulty.down = True
    with pytest.raises(StoreUnavailable):
        Listing(faulty, known, 1.0).names()
