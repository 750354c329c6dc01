"""What every store promises, whatever its engine."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from blockmap.errors import AlreadyExists, Corrupt, NotFound, UsageError
from blockmap.store.base import Pruner
from blockmap.store.directory import DirectoryStore
from blockmap.store.memory import MemoryStore

MANY = 8


def at_once(calls: list[Callable[[], object]]) -> list[object]:
    """Runs all calls, beginning together; an exception is a result."""
    start = threading.Barrier(len(calls))

    def run(call: Callable[[], object]) -> object:
        start.wait()
        try:
            return call()
        except Exception as error:
            return error

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(run, calls))


def test_what_was_created_is_read_back(store: Pruner) -> None:
    store.create("packs/ab/one", [b"abc", bytearray(b"def"), memoryview(b"ghi")])
    assert store.get("packs/ab/one") == b"abcdefghi"
    assert type(store.get("packs/ab/one")) is bytes
    assert store.exists("packs/ab/one")
    assert store.size("packs/ab/one") == 9


@pytest.mark.parametrize("parts", [[], [b""], [b"", b""]])
def test_an_object_may_be_empty(store: Pruner, parts: list[bytes]) -> None:
    store.create("empty", parts)
    assert store.get("empty") == b""
    assert store.list("") == ["empty"]


def test_an_object_is_created_once(store: Pruner) -> None:
    store.create("a/b", [b"first"])
    with pytest.raises(AlreadyExists, match="a/b"):
        store.create("a/b", [b"second"])
    assert store.get("a/b") == b"first"


def test_what_the_caller_changes_later_is_not_stored(store: Pruner) -> None:
    data = bytearray(b"abc")
    store.create("a", [data])
    data[:] = b"xyz"
    assert store.get("a") == b"abc"


def test_of_parallel_creators_one_wins(store: Pruner) -> None:
    for round_ in range(10 if isinstance(store, (MemoryStore, DirectoryStore)) else 3):  # SeaweedFS takes 2 s for each
        key = f"names/redis/7/{round_:016d}"

        def create(number: int, key: str = key) -> int:
            store.create(key, [bytes([number]) * 10_000])
            return number

        results = at_once([lambda number=number: create(number) for number in range(MANY)])
        winners = [result for result in results if isinstance(result, int)]
        assert len(winners) == 1
        assert sum(isinstance(result, AlreadyExists) for result in results) == MANY - 1
        assert store.get(key) == bytes([winners[0]]) * 10_000


def test_creators_of_many_keys_do_not_disturb_each_other(store: Pruner) -> None:
    def create(number: int) -> None:
        for at in range(20):
            store.create(f"packs/{at:02x}/{number}", [bytes([number, at]) * 500])

    assert at_once([lambda number=number: create(number) for number in range(MANY)]) == [None] * MANY
    assert len(store.list("packs/")) == MANY * 20
    for number in range(MANY):
        for at in range(20):
            assert store.get(f"packs/{at:02x}/{number}") == bytes([number, at]) * 500


@pytest.mark.parametrize("call", ["get", "get_range", "size"])
@pytest.mark.parametrize("key", ["absent", "a/absent", "a", "a/b/below-an-object", "x/y/z"])
def test_what_is_absent_is_not_found(store: Pruner, key: str, call: str) -> None:
    store.create("a/b", [b"data"])
    with pytest.raises(NotFound, match=key):
        store.get_range(key, 0, 1) if call == "get_range" else getattr(store, call)(key)
    assert not store.exists(key)


def test_ranges_are_exact(store: Pruner) -> None:
    data = bytes(range(256)) * 16
    store.create("a", [data[:1000], data[1000:]])
    for start, end in [(0, 1), (0, 4096), (1, 2), (999, 1001), (4095, 4096), (100, 100), (0, 0), (4096, 4096)]:
        assert store.get_range("a", start, end) == data[start:end]


@pytest.mark.parametrize(("start", "end"), [(0, 11), (9, 11), (10, 11), (11, 12), (100, 200)])
def test_a_range_past_the_end_is_corrupt(store: Pruner, start: int, end: int) -> None:
    store.create("a", [b"0123456789"])
    with pytest.raises(Corrupt, match="a ends at byte"):
        store.get_range("a", start, end)
    assert store.get_range("a", 0, 10) == b"0123456789"


def test_a_listing_says_how_long_objects_are_and_when_they_were_written(store: Pruner) -> None:
    store.create("a/one", [b"x" * 10])
    store.replace("hints/clock", b"")
    assert {key: found.size for key, found in store.listing("").items()} == {"a/one": 10, "hints/clock": 0}
    assert list(store.listing("a/")) == ["a/one"]
    assert store.listing("b/") == {}
    written, now = store.modified("a/one"), store.modified("hints/clock")
    assert abs(store.listing("a/")["a/one"].modified - written) < 1.5, "some engines round to seconds in one of them"
    assert 0 <= now - written + 1 < 60
    with pytest.raises(NotFound):
        store.modified("a/two")


def test_big_objects(store: Pruner) -> None:
    part = bytes(range(256)) * 4096
    store.create("packs/big", [part] * 20)
    for at in (0, 5 << 20, (20 << 20) - 300):
        assert store.get_range("packs/big", at, at + 300) == (part * 2)[at % len(part) :][:300]
    assert store.get("packs/big") == part * 20


def test_what_is_longer_than_its_reader_takes_is_not_read(store: Pruner) -> None:
    store.create("a", [bytes(3000)])
    assert store.get("a", 3000) == bytes(3000)
    for most in (2999, 1, 0):
        with pytest.raises(Corrupt, match=rf"/?a has 3,000 bytes where at most {most:,} are expected"):
            store.get("a", most)
    store.create("empty", [])
    assert store.get("empty", 0) == b""


def test_a_range_longer_than_any_object_takes_no_memory(store: Pruner) -> None:
    store.create("a", [b"0123456789"])
    with pytest.raises(Corrupt, match="a ends at byte 10"):
        store.get_range("a", 0, 1 << 45)


def test_listing_is_sorted_and_below_the_prefix(store: Pruner) -> None:
    keys = ["names/b/1/2", "names/a/2/1", "names/a/10/1", "names2/x", "names/b/1/10", "format", "names-/y", "n"]
    for key in keys:
        store.create(key, [b"x"])
    assert store.list("") == sorted(keys)
    assert store.list("names/") == sorted(key for key in keys if key.startswith("names/"))
    assert store.list("names/b/") == ["names/b/1/10", "names/b/1/2"]
    assert store.list("absent/") == []
    assert store.list("names/b/1/2/") == []
    assert store.list("format/") == []


def test_an_empty_store_lists_nothing(store: Pruner) -> None:
    assert store.list("") == []
    assert store.list("names/") == []
    assert not store.exists("format")


def test_replaced_objects_are_read_in_one_piece(store: Pruner) -> None:
    values = [bytes([number]) * 5000 for number in range(MANY)]
    store.replace("hints/names/a/b", values[0])
    done = threading.Event()
    wrong: list[bytes] = []

    def read() -> None:
        while not done.is_set():
            data = store.get("hints/names/a/b")
            if data not in values:
                wrong.append(data)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for _ in range(20):
            for value in values:
                store.replace("hints/names/a/b", value)
    finally:
        done.set()
        reader.join()
    assert not wrong
    assert store.get("hints/names/a/b") == values[-1]
    assert store.list("") == ["hints/names/a/b"]


def test_a_range_of_a_replaced_object_is_of_the_new_one(store: Pruner) -> None:
    store.replace("hints/a", b"old")
    assert store.get_range("hints/a", 0, 3) == b"old"
    store.replace("hints/a", b"new and longer")
    assert store.get_range("hints/a", 0, 14) == b"new and longer"


def test_deleting(store: Pruner) -> None:
    store.create("packs/aa/one", [b"1"])
    store.create("packs/aa/two", [b"2"])
    assert store.get_range("packs/aa/one", 0, 1) == b"1"
    store.delete("packs/aa/one")
    store.delete("packs/aa/one")
    store.delete("never/was")
    assert store.list("") == ["packs/aa/two"]
    assert not store.exists("packs/aa/one")
    for call in (lambda: store.get("packs/aa/one"), lambda: store.get_range("packs/aa/one", 0, 1)):
        with pytest.raises(NotFound):
            call()
    store.create("packs/aa/one", [b"3"])
    assert store.get_range("packs/aa/one", 0, 1) == b"3"


class Breaks:
    """A part that cannot be read: nothing of its object may stay."""

    def __buffer__(self, flags: int) -> memoryview:
        raise BufferError("broken")


def test_a_create_after_a_failed_one(store: Pruner) -> None:
    with pytest.raises((TypeError, BufferError)):
        store.create("packs/aa/one", [b"half", Breaks()])  # type: ignore[list-item]
    assert store.list("") == []
    assert not store.exists("packs/aa/one")
    store.create("packs/aa/one", [b"whole"])
    assert store.get("packs/aa/one") == b"whole"


BAD = ["", "/", "/etc/passwd", "..", "../x", "a/../../x", "a//b", "a/", "./a", "a/.", ".tmp-1", "a/.tmp-1/b", "a\0b"]


@pytest.mark.parametrize("key", BAD)
def test_keys_that_leave_the_store_are_refused(store: Pruner, key: str) -> None:
    calls: list[Callable[[], object]] = [
        lambda: store.get(key),
        lambda: store.get_range(key, 0, 1),
        lambda: store.exists(key),
        lambda: store.create(key, [b"x"]),
        lambda: store.replace(key, b"x"),
        lambda: store.delete(key),
    ]
    for call in calls:
        with pytest.raises(UsageError, match="is not a key"):
            call()
    assert store.list("") == []


def test_readers_in_many_threads(store: Pruner) -> None:
    """More objects than a directory store keeps open, so that files are closed while others are read."""
    count = 150
    for number in range(count):
        store.create(f"packs/{number}", [number.to_bytes(2, "big") * 2048])

    def read(seed: int) -> None:
        for step in range(600):
            number = (seed * 37 + step * 61) % count
            at = step % 2048 * 2
            assert store.get_range(f"packs/{number}", at, at + 2) == number.to_bytes(2, "big")

    assert at_once([lambda seed=seed: read(seed) for seed in range(MANY)]) == [None] * MANY
