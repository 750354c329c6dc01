"""The fetcher: one flight however many wait, damage that is fetched again, prefetch that harms nobody."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from blockmap.errors import BlockmapError, Corrupt, StoreUnavailable
from blockmap.fetch.cache import Cache
from blockmap.fetch.fetcher import Fetcher
from blockmap.fetch.plan import Wanted
from blockmap.format import BLOCK
from blockmap.format.chunker import SPAN
from blockmap.format.tree import leaves
from blockmap.store.memory import MemoryStore
from blockmap.store.repository import Repository
from tests.image.builder import bulk
from tests.volume.building import Watched, publish

BLOCKS = 600
READERS = 8


class Counted(Repository):
    """Counts the ranges that are asked for, and can hold, damage or refuse them."""

    def __init__(self, store: Watched) -> None:
        super().__init__(store)
        self.watched = store

    @property
    def ranges(self) -> int:
        return len(self.watched.ranges)


@pytest.fixture
def repository() -> Counted:
    return Counted(Watched(MemoryStore()))


@pytest.fixture
def chunks(repository: Counted) -> list[Wanted]:
    """All chunks of a volume, in its order."""
    root = publish(repository.watched, [(0, bulk(1, BLOCKS * BLOCK))], SPAN)
    found = []
    for _, leaf in leaves(root, Repository(repository.watched.inner).node):
        for chunk, place in zip(leaf.chunks, leaf.placements, strict=True):
            assert place is not None
            found.append(Wanted(chunk, place))
    repository.watched.ranges.clear()
    return found


@pytest.fixture
def fetcher(repository: Counted, tmp_path: Path) -> Iterator[Fetcher]:
    cache = Cache(tmp_path / "cache", 1 << 30)
    made = Fetcher(repository, cache)
    yield made
    repository.watched.gate.set()
    made.close()
    cache.close()


def until(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.005)


def waiting(fetcher: Fetcher) -> int:
    """Readers that wait for a flight of another's."""
    with fetcher._lock:
        flights = list(fetcher._flights.values())
    return sum(len(flight.landed._cond._waiters) for flight in flights)  # type: ignore[attr-defined]


def settled(fetcher: Fetcher) -> None:
    """Waits until nothing is in flight."""
    until(lambda: not fetcher._flights)


# --- single flight


def test_many_readers_of_one_chunk_make_one_request(
    fetcher: Fetcher, repository: Counted, chunks: list[Wanted]
) -> None:
    repository.watched.gate.clear()
    start = threading.Barrier(READERS)

    def read(_: int) -> bytes:
        start.wait()
        return fetcher.chunk(lambda: chunks, chunks[0].chunk)

    with ThreadPoolExecutor(READERS) as pool:
        reads = [pool.submit(read, number) for number in range(READERS)]
        until(lambda: waiting(fetcher) == READERS - 1)
        repository.watched.gate.set()
        assert {read.result(20) for read in reads} == {bulk(1, BLOCKS * BLOCK)[: chunks[0].place.raw]}
    assert repository.ranges == 1
    assert fetcher.status()["requests"] == 1


def test_neighbours_come_along_and_their_readers_wait_for_them(
    fetcher: Fetcher, repository: Counted, chunks: list[Wanted]
) -> None:
    repository.watched.gate.clear()
    with ThreadPoolExecutor(2) as pool:
        leader = pool.submit(fetcher.chunk, lambda: chunks, chunks[0].chunk)
        until(lambda: repository.ranges == 1)
        follower = pool.submit(fetcher.chunk, lambda: chunks[1:], chunks[1].chunk)
        until(lambda: waiting(fetcher) == 1)
        repository.watched.gate.set()
        whole = bulk(1, BLOCKS * BLOCK)
        assert leader.result(20) + follower.result(20) == whole[: chunks[0].place.raw + chunks[1].place.raw]
    assert repository.ranges == 1


def test_all_chunks_come_whatever_the_order(fetcher: Fetcher, repository: Counted, chunks: list[Wanted]) -> None:
    whole, at = bulk(1, BLOCKS * BLOCK), 0
    expected = {}
    for chunk, place in chunks:
        expected[chunk] = whole[at : at + place.raw]
        at += place.raw
    order = list(range(len(chunks)))

    def read(number: int) -> bool:
        return fetcher.chunk(lambda: chunks[number:], chunks[number].chunk) == expected[chunks[number].chunk]

    with ThreadPoolExecutor(READERS) as pool:
        assert all(pool.map(read, order[::-1] + order[::3] + order))
    settled(fetcher)
    stored = sum(place.stored for _, place in chunks)
    assert fetcher.status()["bytes"] <= 2 * stored, "chunks at hand are only fetched again to join requests"


# --- damage and failure


class Damage:
    """Flips a byte in the middle of a chunk, in so many of the ranges that have it."""

    def __init__(self, store: Watched, wanted: Wanted, times: int) -> None:
        self.place, self.left = wanted.place, times
        self.store = store
        store.damage = self

    def __call__(self, data: bytes) -> bytes:
        _, start, end = self.store.ranges[-1]
        at = self.place.offset + self.place.stored // 2
        if not self.left or not start <= at < end:
            return data
        self.left -= 1
        return data[: at - start] + bytes([data[at - start] ^ 1]) + data[at - start + 1 :]


def test_a_damaged_chunk_is_fetched_again_alone(
    fetcher: Fetcher, repository: Counted, chunks: list[Wanted], caplog: pytest.LogCaptureFixture
) -> None:
    Damage(repository.watched, chunks[0], 1)
    data = fetcher.chunk(lambda: chunks, chunks[0].chunk)
    assert data == bulk(1, BLOCKS * BLOCK)[: len(data)]
    _, start, end = repository.watched.ranges[-1]
    assert (start, end - start) == (chunks[0].place.offset, chunks[0].place.stored)
    assert fetcher.status()["damaged"] == 1
    assert "fetched again" in caplog.text


def test_a_chunk_that_stays_damaged_is_an_error_for_all_who_wait(
    fetcher: Fetcher, repository: Counted, chunks: list[Wanted]
) -> None:
    Damage(repository.watched, chunks[0], -1)
    repository.watched.gate.clear()

    def read(_: int) -> bytes:
        return fetcher.chunk(lambda: chunks[:1], chunks[0].chunk)

    with ThreadPoolExecutor(3) as pool:
        reads = [pool.submit(read, number) for number in range(3)]
        until(lambda: waiting(fetcher) == 2)
        repository.watched.gate.set()
        for one in reads:
            with pytest.raises(Corrupt, match=chunks[0].chunk.hex()):
                one.result(20)
    settled(fetcher)
    assert fetcher.cache.lookup(chunks[0].chunk) == -1


def test_a_damaged_neighbour_is_its_own_readers_matter(
    fetcher: Fetcher, repository: Counted, chunks: list[Wanted], caplog: pytest.LogCaptureFixture
) -> None:
    Damage(repository.watched, chunks[1], 1)
    repository.watched.gate.clear()
    with ThreadPoolExecutor(2) as pool:
        leader = pool.submit(fetcher.chunk, lambda: chunks, chunks[0].chunk)
        until(lambda: repository.ranges == 1)
        follower = pool.submit(fetcher.chunk, lambda: chunks[1:], chunks[1].chunk)
        until(lambda: waiting(fetcher) == 1)
        repository.watched.gate.set()
        whole, length = bulk(1, BLOCKS * BLOCK), chunks[0].place.raw
        assert leader.result(20) == whole[:length]
        assert follower.result(20) == whole[length : length + chunks[1].place.raw]
    settled(fetcher)
    assert fetcher.cache.lookup(chunks[2].chunk) >= 0, "the others of the range are kept"
    assert "when it is read" in caplog.text


def test_where_the_leader_fails_those_who_wait_try_themselves(
    fetcher: Fetcher, repository: Counted, chunks: list[Wanted]
) -> None:
    first = threading.Event()

    def once(data: bytes) -> bytes:
        if not first.is_set():
            first.set()
            raise StoreUnavailable("no answer")
        return data

    repository.watched.damage = once
    repository.watched.gate.clear()

    def read(number: int) -> bytes | BlockmapError:
        try:
            return fetcher.chunk(lambda: chunks[number % 2 :], chunks[number % 2].chunk)
        except BlockmapError as error:
            return error

    with ThreadPoolExecutor(4) as pool:
        leader = pool.submit(read, 0)
        until(lambda: repository.ranges == 1)
        others = [pool.submit(read, number) for number in (0, 1, 0)]
        until(lambda: waiting(fetcher) == 3)
        repository.watched.gate.set()
        assert isinstance(leader.result(20), StoreUnavailable)
        whole, length = bulk(1, BLOCKS * BLOCK), chunks[0].place.raw
        found = [other.result(20) for other in others]
    assert found == [whole[:length], whole[length : length + chunks[1].place.raw], whole[:length]]
    assert fetcher.status()["failed"] == 1


def test_a_cache_that_cannot_keep_a_chunk_does_not_fail_its_reader(
    fetcher: Fetcher, repository: Counted, chunks: list[Wanted], monkeypatch: pytest.MonkeyPatch
) -> None:
    def put(*_: object) -> int:
        raise OSError("the disk is gone")

    monkeypatch.setattr(fetcher.cache, "put", put)
    whole, length = bulk(1, BLOCKS * BLOCK), chunks[0].place.raw
    for _ in range(2):
        assert fetcher.chunk(lambda: chunks, chunks[0].chunk) == whole[:length]
        assert fetcher.chunk(lambda: chunks[1:], chunks[1].chunk) == whole[length : length + chunks[1].place.raw]
    settled(fetcher)


# --- what is wanted for later


def test_want_brings_everything_once(fetcher: Fetcher, repository: Counted, chunks: list[Wanted]) -> None:
    fetcher.want(chunks)
    fetcher._bringers.shutdown(wait=True)
    settled(fetcher)
    assert all(fetcher.cache.lookup(chunk) >= 0 for chunk, _ in chunks)
    assert fetcher.status()["bytes"] == sum(place.stored for _, place in chunks)
    asked = repository.ranges
    whole = bulk(1, BLOCKS * BLOCK)
    assert fetcher.chunk(lambda: chunks, chunks[0].chunk) == whole[: chunks[0].place.raw]
    assert repository.ranges == asked


def test_want_neither_raises_nor_blocks(
    fetcher: Fetcher, repository: Counted, chunks: list[Wanted], caplog: pytest.LogCaptureFixture
) -> None:
    repository.watched.down = True
    fetcher.want([])
    fetcher.want(chunks)
    until(lambda: "prefetch of chunk" in caplog.text)
    repository.watched.down = False
    repository.watched.gate.clear()
    fetcher.want(chunks)  # returns, although nothing arrives
    until(lambda: len(fetcher._flights) > 0)
    repository.watched.gate.set()
    fetcher.close()
    fetcher.want(chunks)
    settled(fetcher)


def test_what_is_wanted_for_later_never_holds_up_a_reader(
    fetcher: Fetcher, repository: Counted, chunks: list[Wanted]
) -> None:
    """Wishes for chunks that are in flight already do not take the threads that must land those flights."""
    repository.watched.gate.clear()
    with ThreadPoolExecutor(2) as pool:
        leader = pool.submit(fetcher.chunk, lambda: chunks, chunks[0].chunk)
        until(lambda: repository.ranges == 1)
        for _ in range(6):
            fetcher.want(chunks[1:3])
        repository.watched.gate.set()
        leader.result(20)
        follower = pool.submit(fetcher.chunk, lambda: chunks[1:], chunks[1].chunk)
        assert len(follower.result(20)) == chunks[1].place.raw
    settled(fetcher)
