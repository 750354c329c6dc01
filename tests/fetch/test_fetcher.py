"""The fetcher: one flight however many wait, damage that is fetched again, prefetch that harms nobody."""

import errno
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from blockmap.cache.cache import Cache
from blockmap.cache.datafile import DataFile
from blockmap.errors import Corrupt, StoreUnavailable
from blockmap.fetch.fetcher import Fetcher
from blockmap.fetch.neighbours import Neighbours
from blockmap.format import BLOCK, keys
from blockmap.format.chunker import SPAN
from blockmap.format.digest import Digest
from blockmap.format.pack import PackKind, seal
from blockmap.origin.link import Link
from blockmap.origin.outage_policy import OutagePolicy
from blockmap.origin.ranges import Ranges
from blockmap.store.memory import MemoryStore
from blockmap.store.pack_logs import record_moved
from blockmap.store.packs import Sealer
from blockmap.store.plan import Wanted, chunk_at
from blockmap.store.repository import Repository
from blockmap.store.walk import leaves
from tests.image.builder import bulk
from tests.volume.building import Watched, publish
from tests.waiting import until

BLOCKS = 600
READERS = 8
FAIL = OutagePolicy(0)
LONG = OutagePolicy(20)


def content(number: int, chunks: list[Wanted]) -> bytes:
    """Returns the content of a chunk of the volume."""
    at = sum(each.place.raw for each in chunks[:number])
    return bulk(1, BLOCKS * BLOCK)[at : at + chunks[number].place.raw]


def get(fetcher: Fetcher, chunks: list[Wanted], number: int, policy: OutagePolicy = FAIL, alone: bool = False) -> bytes:
    """A chunk, by a reader who knows what lies around it."""
    known = Neighbours()
    known.add([] if alone else chunks)
    return fetcher.get([chunks[number]], known.around, fetcher.outage.attempt(policy))


@pytest.fixture
def store() -> Watched:
    made = Watched(MemoryStore())
    made.create(keys.FORMAT, [b"{}"])
    return made


@pytest.fixture
def chunks(store: Watched) -> list[Wanted]:
    """All chunks of a volume, in its order."""
    root = publish(store, [(0, bulk(1, BLOCKS * BLOCK))], SPAN)
    found = []
    for _, leaf in leaves(root, Repository(store.inner).packs.nodes):
        for chunk, place in zip(leaf.chunks, leaf.placements, strict=True):
            assert place is not None
            found.append(chunk_at(chunk, place))
    return found


@pytest.fixture
def link() -> Link:
    """What the fetcher knows of the link."""
    return Link()


@pytest.fixture
def fetcher(store: Watched, link: Link, tmp_path: Path) -> Iterator[Fetcher]:
    cache = Cache(tmp_path / "cache", 1 << 30)
    made = Fetcher(Ranges(store, link), cache)
    yield made
    store.gate.set()
    made.close()
    cache.close()


def asked(store: Watched) -> list[tuple[str, int, int]]:
    """The ranges of packs that were asked for."""
    return [each for each in store.ranges if each[0] != keys.FORMAT]


def joined(fetcher: Fetcher) -> int:
    """Returns how many reads waited, or wait, for what another one fetches."""
    return fetcher.status()["joined_reads"]


def settled(fetcher: Fetcher) -> None:
    """Waits until nothing is in flight."""
    until(lambda: fetcher.status()["in_flight"] == 0)


# --- single flight


def test_many_readers_of_one_chunk_make_one_request(fetcher: Fetcher, store: Watched, chunks: list[Wanted]) -> None:
    store.gate.clear()
    start = threading.Barrier(READERS)

    def read(_: int) -> bytes:
        start.wait()
        return get(fetcher, chunks, 0, alone=True)

    with ThreadPoolExecutor(READERS) as pool:
        reads = [pool.submit(read, number) for number in range(READERS)]
        until(lambda: joined(fetcher) == READERS - 1)
        store.gate.set()
        assert {read.result(20) for read in reads} == {content(0, chunks)}
    assert len(asked(store)) == 1
    assert fetcher.status()["requests"] == 1


def test_neighbours_come_along_and_their_readers_wait_for_them(
    fetcher: Fetcher, store: Watched, chunks: list[Wanted]
) -> None:
    number = next(n for n in range(2, len(chunks)) if chunks[n].place.stored < 60_000)
    store.gate.clear()
    with ThreadPoolExecutor(2) as pool:
        leader = pool.submit(get, fetcher, chunks, number)
        until(lambda: len(asked(store)) == 2)
        assert fetcher.status()["in_flight"] >= 3
        follower = pool.submit(get, fetcher, chunks, number + 1)
        until(lambda: joined(fetcher) == 1)
        store.gate.set()
        assert (leader.result(20), follower.result(20)) == (content(number, chunks), content(number + 1, chunks))
    settled(fetcher)
    assert len(asked(store)) == 2
    assert min(end - start for _, start, end in asked(store)) == chunks[number].place.stored, "alone, and small"


def test_where_neighbours_take_no_time_one_range_brings_all(
    fetcher: Fetcher, store: Watched, link: Link, chunks: list[Wanted]
) -> None:
    link.bytes_per_s = 1e12
    known = Neighbours()
    known.add(chunks)
    near = known.around(chunks[4], 128 << 10)
    assert get(fetcher, chunks, 4) == content(4, chunks)
    settled(fetcher)
    assert len(asked(store)) == 1
    assert len(near) > 0
    assert all(fetcher.cache.lookup(each.key) >= 0 for each in near)


def test_what_one_read_needs_is_asked_for_at_once(fetcher: Fetcher, store: Watched, chunks: list[Wanted]) -> None:
    """Side by side in one range, elsewhere in parallel."""
    store.gate.clear()
    with ThreadPoolExecutor(1) as pool:
        wanted = [chunks[0], chunks[1], chunks[9]]
        reader = pool.submit(fetcher.get, wanted, lambda own, each: [], fetcher.outage.attempt(FAIL))
        until(lambda: len(asked(store)) == 2)
        assert sorted((start, end) for _, start, end in asked(store)) == [
            (chunks[0].place.offset, chunks[1].end),
            (chunks[9].place.offset, chunks[9].end),
        ]
        store.gate.set()
        assert reader.result(20) == content(0, chunks)
    settled(fetcher)
    assert [get(fetcher, chunks, number) for number in (1, 9)] == [content(1, chunks), content(9, chunks)]
    assert len(asked(store)) == 2


def test_all_chunks_come_whatever_the_order(fetcher: Fetcher, store: Watched, chunks: list[Wanted]) -> None:
    order = list(range(len(chunks)))

    def read(number: int) -> bool:
        return get(fetcher, chunks, number) == content(number, chunks)

    with ThreadPoolExecutor(READERS) as pool:
        assert all(pool.map(read, order[::-1] + order[::3] + order))
    settled(fetcher)
    stored = sum(each.place.stored for each in chunks)
    assert fetcher.status()["bytes"] <= 2 * stored, "chunks at hand are only fetched again to join requests"


# --- damage and failure


class Damage:
    """Flips a byte in the middle of a chunk, in so many of the ranges that have it."""

    def __init__(self, store: Watched, wanted: Wanted, times: int) -> None:
        self.wanted, self.left = wanted, times
        store.damage = self

    def __call__(self, data: bytes, start: int) -> bytes:
        at = self.wanted.place.offset + self.wanted.place.stored // 2 - start
        if not self.left or not 0 <= at < len(data):
            return data
        self.left -= 1
        return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def test_a_damaged_chunk_is_fetched_again_alone(
    fetcher: Fetcher, store: Watched, chunks: list[Wanted], caplog: pytest.LogCaptureFixture
) -> None:
    Damage(store, chunks[0], 2)
    assert get(fetcher, chunks, 0) == content(0, chunks)
    own = (chunks[0].place.offset, chunks[0].end)
    assert sum((start, end) == own for _, start, end in asked(store)) == 3
    assert fetcher.status()["damaged"] == 2
    assert "fetched again" in caplog.text


def test_a_chunk_that_stays_damaged_is_an_error_for_all_who_wait(
    fetcher: Fetcher, store: Watched, chunks: list[Wanted]
) -> None:
    Damage(store, chunks[0], -1)
    store.gate.clear()
    with ThreadPoolExecutor(3) as pool:
        reads = [pool.submit(get, fetcher, chunks, 0, LONG, True) for _ in range(3)]
        until(lambda: joined(fetcher) == 2)
        store.gate.set()
        for one in reads:
            with pytest.raises(Corrupt, match=chunks[0].name.hex()):
                one.result(20)
    settled(fetcher)
    assert fetcher.cache.lookup(chunks[0].key) == -1


def test_a_damaged_neighbour_is_its_own_readers_matter(
    fetcher: Fetcher, store: Watched, chunks: list[Wanted], caplog: pytest.LogCaptureFixture
) -> None:
    Damage(store, chunks[1], 1)
    store.gate.clear()
    with ThreadPoolExecutor(2) as pool:
        leader = pool.submit(get, fetcher, chunks, 0)
        until(lambda: len(asked(store)) == 2)
        follower = pool.submit(get, fetcher, chunks, 1)
        until(lambda: joined(fetcher) == 1)
        store.gate.set()
        assert (leader.result(20), follower.result(20)) == (content(0, chunks), content(1, chunks))
    settled(fetcher)
    assert fetcher.cache.lookup(chunks[2].key) >= 0, "the others of the range are kept"
    assert "when it is read" in caplog.text


def test_advice_that_makes_a_range_impossible_costs_a_request(
    fetcher: Fetcher, store: Watched, link: Link, chunks: list[Wanted]
) -> None:
    """A neighbour said to lie beyond the end of the pack."""
    link.bytes_per_s = 1e12
    last = max(chunks, key=lambda each: each.end)
    number = chunks.index(last)
    lie = chunk_at(Digest(bytes(31) + b"x"), last.place._replace(offset=last.end))
    assert fetcher.get([last], lambda own, each: [lie], fetcher.outage.attempt(FAIL)) == content(number, chunks)
    assert len(asked(store)) == 2


def stored_again(store: Watched, chunks: list[Wanted]) -> None:
    """Stores chunks in another pack, and says so in the log of theirs."""
    frames = [(item.name, content(number, chunks)) for number, item in enumerate(chunks)]
    made = seal(PackKind.CHUNKS, Sealer().frames(frames), bytes(16))
    store.create(keys.pack(made.name), made.parts)
    places = {item.name: place for item, place in zip(chunks, made.placements, strict=True)}
    record_moved(store.inner, chunks[0].place.pack, places)


@pytest.mark.parametrize("how", ["gone", "short", "damaged"])
def test_what_is_read_ahead_is_read_where_it_was_stored_again(
    fetcher: Fetcher, store: Watched, chunks: list[Wanted], how: str
) -> None:
    key = keys.pack(chunks[0].place.pack)
    data = store.inner.get(key)
    stored_again(store, chunks)
    store.inner.delete(key)
    first = chunks[0].place
    if how == "short":
        store.inner.create(key, [data[: chunks[3].end]])
    elif how == "damaged":
        store.inner.create(key, [data[: first.offset], bytes(first.stored), data[first.offset + first.stored :]])
    fetcher.complete(chunks[:8])
    settled(fetcher)
    assert [fetcher.cache.get(item.key) for item in chunks[:8]] == [content(n, chunks) for n in range(8)]


def test_a_cache_that_cannot_keep_a_chunk_does_not_fail_its_reader(
    fetcher: Fetcher, chunks: list[Wanted], monkeypatch: pytest.MonkeyPatch
) -> None:
    def put(*_: object) -> int:
        raise OSError("the disk is gone")

    monkeypatch.setattr(fetcher.cache, "put", put)
    for number in (0, 0, 1):
        assert get(fetcher, chunks, number) == content(number, chunks)
    settled(fetcher)


# --- a store that is away


def test_patient_readers_wait_until_it_is_back_and_one_probe_asks(
    fetcher: Fetcher, store: Watched, chunks: list[Wanted]
) -> None:
    store.down = True
    with ThreadPoolExecutor(READERS) as pool:
        reads = [pool.submit(get, fetcher, chunks, number, LONG) for number in range(READERS)]
        until(lambda: fetcher.outage.away and fetcher.status()["in_flight"] == 0)
        before = len(asked(store))
        until(lambda: len(store.ranges) >= before + 3)
        assert len(asked(store)) == before, "while it is away, readers do not ask"
        with pytest.raises(StoreUnavailable, match="away"):
            get(fetcher, chunks, 20)
        assert len(asked(store)) == before, "nor do those whose policy is not to wait"
        store.down = False
        assert [read.result(20) for read in reads] == [content(number, chunks) for number in range(READERS)]
    assert fetcher.status()["outages"] == 1
    assert not fetcher.outage.away


def test_waiting_ends_with_an_error(fetcher: Fetcher, store: Watched, chunks: list[Wanted]) -> None:
    store.down = True
    began = time.monotonic()
    with pytest.raises(StoreUnavailable, match="no answer"):
        get(fetcher, chunks, 0, OutagePolicy(0.4))
    assert 0.4 <= time.monotonic() - began < 10
    store.down = False
    assert get(fetcher, chunks, 0, LONG) == content(0, chunks)


def test_a_request_that_is_not_done_is_given_up_and_kept_when_it_comes(
    fetcher: Fetcher, store: Watched, chunks: list[Wanted]
) -> None:
    store.gate.clear()
    began = time.monotonic()
    with pytest.raises(StoreUnavailable, match="not done after"):
        get(fetcher, chunks, 0, OutagePolicy(0.2), alone=True)
    assert 0.2 <= time.monotonic() - began < 10
    assert fetcher.status()["outages"] == 1
    store.gate.set()
    until(lambda: fetcher.cache.lookup(chunks[0].key) >= 0)
    until(lambda: not fetcher.outage.away)
    assert get(fetcher, chunks, 0) == content(0, chunks)
    assert len(asked(store)) == 1


def test_a_prefetch_that_is_not_done_is_given_up_by_who_waits_for_it(
    fetcher: Fetcher, store: Watched, chunks: list[Wanted]
) -> None:
    store.gate.clear()
    fetcher.want(lambda: [chunks[0]])
    until(lambda: fetcher.status()["in_flight"] == 1)
    with pytest.raises(StoreUnavailable, match="not done after"):
        get(fetcher, chunks, 0, alone=True)
    store.gate.set()
    until(lambda: fetcher.cache.lookup(chunks[0].key) >= 0)


def test_who_gives_up_a_request_spoils_it_for_nobody(fetcher: Fetcher, store: Watched, chunks: list[Wanted]) -> None:
    store.gate.clear()
    with ThreadPoolExecutor(2) as pool:
        impatient = pool.submit(get, fetcher, chunks, 0, FAIL, True)
        patient = pool.submit(get, fetcher, chunks, 0, LONG, True)
        with pytest.raises(StoreUnavailable):
            impatient.result(20)
        store.gate.set()
        assert patient.result(20) == content(0, chunks)
    settled(fetcher)


def test_what_is_at_hand_needs_no_store(fetcher: Fetcher, store: Watched, chunks: list[Wanted]) -> None:
    get(fetcher, chunks, 0, alone=True)
    store.down = True
    with pytest.raises(StoreUnavailable):
        get(fetcher, chunks, 5)
    fetcher.flush()
    assert fetcher.cache.get(chunks[0].key) == content(0, chunks)


def test_stopping_ends_all_waiting(fetcher: Fetcher, store: Watched, chunks: list[Wanted]) -> None:
    store.down = True
    with ThreadPoolExecutor(4) as pool:
        reads = [pool.submit(get, fetcher, chunks, number, OutagePolicy(3600)) for number in range(4)]
        until(lambda: fetcher.outage.away and fetcher.status()["in_flight"] == 0)
        fetcher.stop()
        for read in reads:
            with pytest.raises(StoreUnavailable):
                read.result(20)
    with pytest.raises(StoreUnavailable, match="ending"):
        get(fetcher, chunks, 0, LONG)


def test_a_failure_among_successes_is_tried_again(fetcher: Fetcher, store: Watched, chunks: list[Wanted]) -> None:
    """One request fails while another is answered: no outage, even for a reader whose policy is not to wait."""
    store.gate.clear()
    refused = threading.Event()

    def refuse(data: bytes, start: int) -> bytes:
        if start == chunks[0].place.offset and not refused.is_set():
            refused.set()
            until(lambda: fetcher.cache.lookup(chunks[9].key) >= 0)
            raise StoreUnavailable("reset")
        return data

    store.damage = refuse
    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(get, fetcher, chunks, 0, FAIL, True)
        until(lambda: len(asked(store)) == 1)
        other = pool.submit(get, fetcher, chunks, 9, FAIL, True)
        until(lambda: len(asked(store)) == 2)
        store.gate.set()
        assert (one.result(20), other.result(20)) == (content(0, chunks), content(9, chunks))
    status = fetcher.status()
    assert (status["retries"], status["outages"]) == (1, 0)


# --- what is wanted for later


def test_want_brings_everything_once(fetcher: Fetcher, store: Watched, chunks: list[Wanted]) -> None:
    fetcher.want(lambda: chunks)
    until(lambda: all(fetcher.cache.lookup(each.key) >= 0 for each in chunks))
    assert fetcher.status()["bytes"] == sum(each.place.stored for each in chunks)
    before = len(asked(store))
    assert get(fetcher, chunks, 0) == content(0, chunks)
    assert len(asked(store)) == before


def test_want_neither_raises_nor_blocks(fetcher: Fetcher, store: Watched, chunks: list[Wanted]) -> None:
    store.down = True
    fetcher.want(list)
    fetcher.want(lambda: chunks)
    until(lambda: fetcher.status()["requests"] > 0 and fetcher.status()["in_flight"] == 0)
    store.down = False
    store.gate.clear()
    fetcher.want(lambda: chunks)  # returns, although nothing arrives
    until(lambda: fetcher.status()["in_flight"] > 0)
    store.gate.set()
    fetcher.close()
    fetcher.want(lambda: chunks)
    settled(fetcher)


def test_no_more_is_wanted_at_once_than_there_is_room_for(
    fetcher: Fetcher, store: Watched, chunks: list[Wanted], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blockmap.fetch.fetcher._MAX_WANTED", 10)
    held, found = threading.Event(), []

    def find() -> list[Wanted]:
        assert held.wait(30)
        found.append(1)
        return []

    for _ in range(100):
        fetcher.want(find)
    held.set()
    until(lambda: len(found) >= 10)
    fetcher.want(lambda: chunks)
    until(lambda: all(fetcher.cache.lookup(each.key) >= 0 for each in chunks))
    assert len(found) <= 14, "4 are asked at once"


def test_what_is_wanted_for_later_waits_while_readers_fill_the_link(
    fetcher: Fetcher, store: Watched, chunks: list[Wanted], monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting: list[bool] = []
    await_headroom = Ranges.await_headroom

    def noted(ranges: Ranges) -> None:
        waiting.append(not ranges.has_headroom)
        await_headroom(ranges)

    monkeypatch.setattr(Ranges, "await_headroom", noted)
    store.gate.clear()
    few = [number for number in range(len(chunks)) if chunks[number].place.stored > 20_000][:20]
    with ThreadPoolExecutor(20) as pool:
        reads = [pool.submit(get, fetcher, chunks, number, FAIL, True) for number in few]
        until(lambda: len(asked(store)) == len(few))
        assert sum(end - start for _, start, end in asked(store)) > 256 << 10
        fetcher.want(lambda: chunks)
        late = pool.submit(fetcher.fetch_now, chunks)
        until(lambda: len(waiting) >= 2)
        assert all(waiting)
        assert len(asked(store)) == len(few)
        store.gate.set()
        for read in reads:
            read.result(20)
        late.result(20)
    until(lambda: all(fetcher.cache.lookup(each.key) >= 0 for each in chunks))


def test_what_is_left_undone_for_later_is_said(
    fetcher: Fetcher, caplog: pytest.LogCaptureFixture, store: Watched
) -> None:
    caplog.set_level("INFO")

    def fail() -> None:
        raise StoreUnavailable("no answer")

    fetcher.later(fail)
    fetcher.close()
    fetcher.later(fail)
    assert caplog.text.count("in the background failed") == 1


def test_a_cache_that_cannot_be_written_is_brought_nothing_ahead(
    store: Watched, chunks: list[Wanted], fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(DataFile, "write", full)
        assert get(fetcher, chunks, 5) == content(5, chunks)
        settled(fetcher)
        store.ranges.clear()
        for number in (5, 6, 7):
            assert get(fetcher, chunks, number) == content(number, chunks)
        fetcher.fetch_now(chunks)
        assert asked(store) == [
            (keys.pack(each.place.pack), each.place.offset, each.place.offset + each.place.stored)
            for each in chunks[5:8]
        ]
    assert get(fetcher, chunks, 5) == content(5, chunks)  # written again, so that neighbours are worth it again
    fetcher.flush()
    store.ranges.clear()
    get(fetcher, chunks, 20)
    until(lambda: sum(fetcher.cache.lookup(each.key) >= 0 for each in chunks) > 2)
