"""The cache's directory is removed, or replaced by another, while a server uses it."""

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from blockmap.cache.cache import Cache
from blockmap.format import BLOCK

from .contents import allocated, content, name, nameless
from .test_cache_races import Readers, together

CAP = 1 << 20
COUNT = 30


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Cache]:
    """A cache of 30 chunks of 3 blocks, one of which is pinned."""
    made = Cache(tmp_path / "cache", CAP)
    for number in range(COUNT):
        made.put(name(number), content(number, 3 * BLOCK))
    made.pin(made.lookup(name(0)))
    made.flush()
    yield made
    made.close()


def works(cache: Cache) -> None:
    """Keeps what it is given, and does so on disk."""
    for number in range(1000, 1010):
        assert cache.put(name(number), content(number, 3 * BLOCK)) >= 0
    for number in range(1000, 1010):
        assert cache.get(name(number)) == content(number, 3 * BLOCK)
    cache.flush()
    assert nameless(os.getpid(), cache.directory) == []
    assert (cache.directory / "data").stat().st_blocks * 512 >= 10 * 4 * BLOCK


def remove(directory: Path) -> None:
    shutil.rmtree(directory)


def empty(directory: Path) -> None:
    for each in directory.iterdir():
        each.unlink()


def lose_data(directory: Path) -> None:
    (directory / "data").unlink()


def replace_by_new(directory: Path) -> None:
    directory.rename(directory.with_name("cache-before"))
    directory.mkdir(0o700)


def replace_by_used(directory: Path) -> None:
    other = Cache(directory.with_name("other"), CAP)
    for number in range(COUNT):  # in other places than this one had them
        other.put(name(number + 1), content(number + 1, 4 * BLOCK))
    other.close()
    directory.rename(directory.with_name("cache-before"))
    directory.with_name("other").rename(directory)


@pytest.mark.parametrize("change", [remove, empty, lose_data, replace_by_new, replace_by_used])
def test_it_begins_anew_in_the_same_place(
    cache: Cache, caplog: pytest.LogCaptureFixture, change: Callable[[Path], None]
) -> None:
    assert not cache.look_after()
    fd, slot = cache.fd, cache.lookup(name(0))
    change(cache.directory)
    assert cache.get(name(1)) == content(1, 3 * BLOCK), "nobody has noticed yet"
    assert cache.look_after()
    assert (cache.fd, cache.dead[slot]) == (fd, 1)
    status = cache.status()
    assert [status[key] for key in ("slots", "bytes", "pinned_bytes", "replaced", "missing")] == [0, 0, 0, 1, 0]
    assert all(cache.get(name(number)) is None for number in range(COUNT + 1))
    cache.unpin(slot)
    works(cache)
    assert not cache.look_after()
    said = [record.message for record in caplog.records]
    assert said == [
        f"the cache {cache.directory} was removed or replaced while it was in use",
        f"the cache {cache.directory} begins anew, empty",
    ]
    again = Cache(cache.directory.with_name("second"), CAP)
    again.close()


def test_what_it_keeps_then_is_there_at_the_next_start(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", CAP)
    cache.put(name(1), content(1, 3 * BLOCK))
    replace_by_used(cache.directory)
    assert cache.look_after()
    works(cache)
    cache.close()
    cache = Cache(tmp_path / "cache", CAP)
    assert [number for number in range(1100) if cache.get(name(number))] == list(range(1000, 1010))
    assert cache.status()["lost"] == cache.status()["damaged"] == 0
    cache.close()


def by_a_file(directory: Path) -> Callable[[], None]:
    directory.write_text("notes")
    return directory.unlink


def by_the_cache_of_another(directory: Path) -> Callable[[], None]:
    return Cache(directory, CAP).close


@pytest.mark.parametrize(
    ("occupy", "why"), [(by_a_file, "cannot use the cache"), (by_the_cache_of_another, "is in use by process")]
)
def test_it_goes_on_without_one_until_there_can_be_one(
    cache: Cache, caplog: pytest.LogCaptureFixture, occupy: Callable[[Path], Callable[[], None]], why: str
) -> None:
    remove(cache.directory)
    free = occupy(cache.directory)
    before = sorted(cache.directory.rglob("*"))
    assert cache.look_after()
    for _ in range(3):
        assert not cache.look_after()
        assert cache.put(name(1), content(1, 3 * BLOCK)) == -1
        assert cache.get(name(1)) is None
    status = cache.status()
    assert (status["missing"], status["replaced"], status["bytes"], cache.can_write) == (1, 1, 0, False)
    cache.flush()
    assert nameless(os.getpid(), cache.directory) == []
    assert len([record for record in caplog.records if why in record.message]) == 1
    assert sorted(cache.directory.rglob("*")) == before, "what is another's is left alone"
    free()
    assert cache.look_after()
    assert (cache.status()["missing"], cache.can_write) == (0, True)
    works(cache)


def test_readers_never_see_a_wrong_byte_while_it_is_removed(tmp_path: Path) -> None:
    chunks = 300
    whole = sum(allocated((number % 8 + 1) * BLOCK, (1 << number % 8 + 1) - 1) for number in range(chunks))
    cache = Cache(tmp_path / "cache", whole // 2)
    readers = Readers(cache, chunks, 2.0)
    ended = threading.Event()
    times = 0

    def remover() -> None:
        nonlocal times
        while not ended.wait(0.02):
            shutil.rmtree(cache.directory, ignore_errors=True)
            times += cache.look_after()

    def read(seed: int) -> None:
        try:
            readers.run(seed)
        finally:
            if not seed:
                ended.set()

    together(remover, *(lambda seed=seed: read(seed) for seed in range(4)))
    status = cache.status()
    assert status["damaged"] == status["lost"] == status["failed_writes"] == 0
    assert times > 5
    assert readers.hits > 100
    cache.look_after()
    works(cache)
    cache.clear()
    assert cache.status()["bytes"] == 0
    cache.close()
