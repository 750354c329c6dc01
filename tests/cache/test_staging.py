"""What bundles have brought: at hand at once, in the cache when the start has gone quiet, and always one of both."""

import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blockmap.cache.cache import Cache
from blockmap.cache.staging import StagingArea
from blockmap.format import BLOCK
from blockmap.format.bundle import Piece
from blockmap.format.digest import chunk_digest, held_block_digests
from tests.image.builder import bulk
from tests.waiting import until

CHUNK = bulk(1, 16 * BLOCK)
NAME = chunk_digest(held_block_digests(CHUNK))


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Cache]:
    made = Cache(tmp_path / "cache", 1 << 30)
    yield made
    made.close()


@pytest.fixture
def staging(cache: Cache) -> Iterator[StagingArea]:
    made = StagingArea(cache)
    yield made
    made.close()


def part(mask: int, content: bytes = CHUNK, name: bytes = NAME) -> tuple[Piece, memoryview]:
    blocks = len(content) // BLOCK
    data = b"".join(content[at * BLOCK : (at + 1) * BLOCK] for at in range(blocks) if mask >> at & 1)
    return Piece(name, blocks, mask, b"", 0, 0), memoryview(data)  # type: ignore[arg-type]


def blocks(start: int, end: int) -> int:
    """The mask of the blocks that have the bytes [start, end)."""
    return sum(1 << block for block in range(start // BLOCK, -(-end // BLOCK)))


@settings(deadline=None)
@given(mask=st.integers(1, (1 << 16) - 1), start=st.integers(0, 16 * BLOCK - 1), length=st.integers(1, 5 * BLOCK))
def test_bytes_of_a_part_are_those_of_the_chunk(
    tmp_path_factory: pytest.TempPathFactory, mask: int, start: int, length: int
) -> None:
    cache = Cache(tmp_path_factory.mktemp("cache"), 1 << 30)
    staging = StagingArea(cache)
    try:
        end = min(start + length, len(CHUNK))
        assert staging.put(*part(mask))
        wanted = blocks(start, end)
        assert staging.has(NAME, wanted) == (wanted & mask == wanted)
        buf = bytearray(end - start)
        assert staging.read(NAME, start, wanted, memoryview(buf)) == (wanted & mask == wanted)
        if wanted & mask == wanted:
            assert buf == CHUNK[start:end]
        staging.flush()
        assert not staging.read(NAME, start, wanted, memoryview(buf))
        assert staging.has(NAME, wanted) == (wanted & mask == wanted)
    finally:
        staging.close()
        cache.close()


def test_it_goes_to_the_cache_by_itself(cache: Cache, staging: StagingArea, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blockmap.cache.staging._QUIET_S", 0.01)
    assert staging.put(*part(0b101))
    until(lambda: cache.lookup(NAME) >= 0)
    assert cache.mask(cache.lookup(NAME)) == 0b101
    assert cache.check(cache.lookup(NAME), NAME)


def test_what_is_read_all_the_time_is_written_too(
    cache: Cache, staging: StagingArea, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blockmap.cache.staging._LONGEST_S", 0.05)
    monkeypatch.setattr("blockmap.cache.staging._QUIET_S", 0.01)
    assert staging.put(*part(0xFFFF))
    buf = memoryview(bytearray(BLOCK))

    def reads() -> bool:
        staging.read(NAME, 0, 1, buf)
        return cache.lookup(NAME) >= 0

    until(reads)


def test_another_part_of_the_same_chunk_joins_it(cache: Cache, staging: StagingArea) -> None:
    assert staging.put(*part(0b0011))
    assert staging.put(*part(0b0110))
    assert staging.put(*part(1 << 15))
    buf = bytearray(3 * BLOCK)
    assert staging.read(NAME, 0, 0b0111, memoryview(buf)), "one read of both"
    assert buf == CHUNK[: 3 * BLOCK]
    assert staging.has(NAME, 0b0111 | 1 << 15)
    staging.flush()
    slot = cache.lookup(NAME)
    assert cache.mask(slot) == 0b0111 | 1 << 15
    assert cache.check(slot, NAME)


def test_what_has_no_room_beside_another_part_goes_to_the_cache_with_it(
    cache: Cache, staging: StagingArea, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blockmap.cache.staging._MOST_BYTES", 3 * BLOCK)
    assert staging.put(*part(0b0011))
    assert staging.put(*part(0b1100))
    assert staging.count == 0
    assert staging.has(NAME, 0b0110), "for one read of both"
    assert cache.mask(cache.lookup(NAME)) == 0b1111


def test_a_part_that_comes_while_another_is_written_is_not_lost(
    cache: Cache, staging: StagingArea, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = cache.put
    later = [part(0b1100)]

    def interrupted(digest: bytes, data: memoryview, mask: int) -> int:
        slot = put(digest, data, mask)
        if later:
            assert staging.put(*later.pop())
        return slot

    monkeypatch.setattr(cache, "put", interrupted)
    assert staging.put(*part(0b0011))
    staging.flush()
    assert cache.mask(cache.lookup(NAME)) == 0b1111
    assert staging.count == 0


def test_memory_is_bounded(cache: Cache, staging: StagingArea, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blockmap.cache.staging._MOST_BYTES", 40 * BLOCK)
    contents = [bulk(seed, 16 * BLOCK) for seed in range(6)]
    names = [chunk_digest(held_block_digests(content)) for content in contents]
    for content, name in zip(contents, names, strict=True):
        assert staging.put(*part(0xFFFF, content, name))
    buf = memoryview(bytearray(BLOCK))
    assert sum(staging.read(name, 0, 1, buf) for name in names) == 2
    assert all(staging.has(name, 0xFFFF) for name in names)
    staging.flush()
    assert all(cache.get(name) == content for name, content in zip(names, contents, strict=True))
    assert staging.put(*part(0xFFFF, bulk(9, 16 * BLOCK), bytes(32)))
    assert staging.read(bytes(32), 0, 1, buf), "there is room again"


def test_readers_never_miss_what_moves_to_the_cache(cache: Cache, staging: StagingArea) -> None:
    contents = {chunk_digest(held_block_digests(c)): c for c in (bulk(seed, 16 * BLOCK) for seed in range(40))}
    names = list(contents)
    for name in names:
        assert staging.put(*part(0xFFFF, contents[name], name))
    missed: list[bytes] = []
    ended = threading.Event()

    def reader(seed: int) -> None:
        chosen = random.Random(seed)
        buf = bytearray(BLOCK)
        while not ended.is_set():
            name = chosen.choice(names)
            if staging.read(name, 5 * BLOCK, 1 << 5, memoryview(buf)):
                found: bytes | None = bytes(buf)
            else:
                whole = cache.get(name)
                found = None if whole is None else whole[5 * BLOCK : 6 * BLOCK]
            if found != contents[name][5 * BLOCK : 6 * BLOCK]:
                missed.append(name)

    threads = [threading.Thread(target=reader, args=(seed,)) for seed in range(4)]
    for each in threads:
        each.start()
    staging.flush()
    ended.set()
    for each in threads:
        each.join()
    assert not missed


def test_it_closes_with_all_written(cache: Cache) -> None:
    staging = StagingArea(cache)
    assert staging.put(*part(0xFFFF))
    staging.close()
    assert cache.get(NAME) == CHUNK
