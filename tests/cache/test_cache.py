"""The host's cache, one behaviour at a time."""

import errno
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from blockmap.cache import cache as cache_module
from blockmap.cache.cache import Cache
from blockmap.cache.datafile import DataFile
from blockmap.errors import HostError
from blockmap.format import BLOCK

from .contents import allocated, content, name, read_present, with_holes

CAP = 1 << 20


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Cache]:
    cache = Cache(tmp_path / "cache", CAP)
    yield cache
    cache.close()


def put(cache: Cache, number: int, blocks: int, mask: int | None = None) -> int:
    data = content(number, blocks * BLOCK)
    return cache.put(name(number), data if mask is None else with_holes(data, mask), mask)


@pytest.mark.parametrize("length", [1, BLOCK - 1, BLOCK, BLOCK + 1, 64 * BLOCK, 64 * BLOCK + 1, 500 * BLOCK, 1 << 20])
def test_content_comes_back_whole(tmp_path: Path, length: int) -> None:
    for restarted in (False, True):
        cache = Cache(tmp_path, 2 << 20)
        data = content(1, length)
        if not restarted:
            assert cache.put(name(1), data) >= 0
        assert cache.get(name(1)) == data
        assert read_present(cache, 1, length) is not None
        assert cache.status()["bytes"] == allocated(length, (1 << 64) - 1 if length > 64 * BLOCK else cache.mask(0))
        cache.close()


def test_what_was_never_put_is_a_miss(cache: Cache) -> None:
    assert cache.lookup(name(1)) == -1
    assert cache.get(name(1)) is None


def test_a_digest_that_is_held_is_not_written_again(cache: Cache) -> None:
    slot = put(cache, 1, 8)
    assert put(cache, 1, 8) == slot
    assert put(cache, 1, 8, 0b101) == slot
    assert cache.status()["stored"] == 1


def test_blocks_that_arrive_later_join_those_that_are_there(cache: Cache) -> None:
    first = put(cache, 1, 8, 0b0000_0110)
    assert cache.get(name(1)) is None
    assert read_present(cache, 1, 8 * BLOCK) == 0b0000_0110
    second = put(cache, 1, 8, 0b1100_0011)
    assert second != first
    assert cache.dead[first]
    assert read_present(cache, 1, 8 * BLOCK) == 0b1100_0111
    assert cache.status()["bytes"] == 6 * BLOCK
    put(cache, 1, 8, 0b0011_1000)
    assert cache.get(name(1)) == content(1, 8 * BLOCK)
    assert cache.status()["slots"] == 1


def test_a_joined_slot_survives_a_restart(tmp_path: Path) -> None:
    cache = Cache(tmp_path, CAP)
    put(cache, 1, 64, 1)
    put(cache, 1, 64, 1 << 63)
    cache.close()
    cache = Cache(tmp_path, CAP)
    assert read_present(cache, 1, 64 * BLOCK) == 1 | 1 << 63
    cache.close()


def test_content_of_more_than_64_blocks_is_whole_or_not_at_all(cache: Cache) -> None:
    with pytest.raises(ValueError, match="cannot be held in part"):
        cache.put(name(1), content(1, 65 * BLOCK), 1)


def test_the_oldest_go_first_but_those_in_use_get_a_second_chance(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 4 * allocated(3 * BLOCK, 7))
    for number in range(4):
        put(cache, number, 3)
    cache.used[cache.lookup(name(0))] = 1
    put(cache, 4, 3)
    assert [cache.lookup(name(number)) >= 0 for number in range(5)] == [True, False, True, True, True]
    put(cache, 5, 3)
    put(cache, 6, 3)
    put(cache, 7, 3)
    assert cache.lookup(name(0)) == -1, "one chance, not two"
    assert cache.status()["evicted"] == 4
    cache.close()


def test_pinned_slots_stay_and_the_cap_still_holds(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 4 * allocated(3 * BLOCK, 7))
    pinned = [put(cache, number, 3) for number in range(3)]
    for slot in pinned:
        cache.pin(slot)
        cache.pin(slot)
    for number in range(3, 20):
        assert put(cache, number, 3) >= 0
    assert put(cache, 20, 7) == -1, "more than is not pinned"
    assert cache.lookup(name(19)) >= 0, "and nothing was given up for it"
    for slot in pinned:
        cache.unpin(slot)
        assert not cache.dead[slot]
    assert cache.status()["pinned_bytes"] == 3 * 4 * BLOCK
    assert cache.status()["bytes"] <= cache.cap_bytes
    cache.clear()
    assert cache.status()["slots"] == 3
    for slot in pinned:
        cache.unpin(slot)
    cache.clear()
    assert cache.status()["slots"] == cache.status()["bytes"] == cache.status()["pinned_bytes"] == 0
    cache.close()


def test_what_is_larger_than_the_cap_is_not_kept(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 8 * BLOCK)
    put(cache, 1, 3)
    assert put(cache, 2, 8) == -1
    assert cache.get(name(1)) is not None
    cache.close()


def test_a_smaller_cap_holds_from_the_start(tmp_path: Path) -> None:
    cache = Cache(tmp_path, CAP)
    for number in range(40):
        put(cache, number, 3)
    cache.close()
    cache = Cache(tmp_path, 10 * 4 * BLOCK)
    assert cache.status()["bytes"] == 10 * 4 * BLOCK
    assert on_disk(cache) <= 12 * 4 * BLOCK
    assert cache.get(name(39)) is not None
    cache.close()


def test_the_disk_has_what_the_cache_says(cache: Cache) -> None:
    for number in range(400):
        put(cache, number, number % 9 + 1)
    os.fsync(cache.fd)
    assert cache.status()["evicted"] > 200
    # An extent-tree block of the file system's own counts as well.
    assert on_disk(cache) <= cache.status()["bytes"] + 4 * BLOCK <= CAP + 4 * BLOCK


def test_discarded_slots_are_gone_and_their_numbers_stay_unused(cache: Cache) -> None:
    slot = put(cache, 1, 3)
    cache.discard(slot)
    cache.discard(slot)
    cache.discard(-1)
    assert cache.dead[slot]
    assert cache.get(name(1)) is None
    assert put(cache, 1, 3) != slot
    assert cache.status()["bytes"] == 4 * BLOCK


@pytest.mark.parametrize("at", [0, 4, 7, 8, 40, 50, 56, 80, 95, BLOCK, 3 * BLOCK + 17, 4 * BLOCK - 1])
def test_a_damaged_byte_is_found_said_once_and_never_served(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, at: int
) -> None:
    cache = Cache(tmp_path, CAP)
    put(cache, 1, 4, 0b1101)  # block 1 is absent: bytes [2 * BLOCK, 3 * BLOCK) of the slot
    put(cache, 2, 4)
    cache.close()
    flip(tmp_path / "data", at)
    cache = Cache(tmp_path, CAP)
    assert read_present(cache, 1, 4 * BLOCK) is None
    assert cache.lookup(name(1)) == -1
    assert cache.get(name(2)) == content(2, 4 * BLOCK)
    assert cache.status()["damaged"] == 1
    assert [record.message.split()[4] for record in caplog.records] == [name(1).hex()]
    cache.close()


def test_a_slot_that_holds_another_digest_is_bad(tmp_path: Path) -> None:
    cache = Cache(tmp_path, CAP)
    put(cache, 1, 3)
    put(cache, 2, 3)
    cache.close()
    with (tmp_path / "data").open("r+b") as file:
        first, second = file.read(4 * BLOCK), file.read(4 * BLOCK)
        file.seek(0)
        file.write(second + first)
    cache = Cache(tmp_path, CAP)
    assert cache.get(name(1)) is None
    assert cache.get(name(2)) is None
    assert cache.status()["damaged"] == 2
    cache.close()


@pytest.mark.parametrize(
    ("start", "end"), [(0, 4), (0, 1), (2, 3), (1, 4)], ids=["evicted", "header", "block", "content"]
)
def test_what_a_crash_left_unwritten_or_unnoted_is_lost_and_not_damaged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, start: int, end: int
) -> None:
    cache = Cache(tmp_path, CAP)
    for number in range(3):
        put(cache, number, 3)
    cache.close()
    with (tmp_path / "data").open("r+b") as file:
        for slot in range(2):
            file.seek((slot * 4 + start) * BLOCK)
            file.write(bytes((end - start) * BLOCK))
    cache = Cache(tmp_path, CAP)
    assert [cache.get(name(number)) is not None for number in range(3)] == [False, False, True]
    status = cache.status()
    assert (status["lost"], status["damaged"]) == (2, 0)
    assert [record.message.split(":")[0] for record in caplog.records] == [
        f"chunks and nodes that the cache {tmp_path} had on record are lost"
    ]
    cache.close()


def test_damaged_blocks_are_not_joined_to_new_ones(tmp_path: Path) -> None:
    cache = Cache(tmp_path, CAP)
    put(cache, 1, 4, 0b0011)
    flip(tmp_path / "data", BLOCK + 5)  # after the check: the joined slot would make it good
    put(cache, 1, 4, 0b0100)
    assert read_present(cache, 1, 4 * BLOCK) == 0b0100
    assert cache.status()["damaged"] == 1
    cache.close()


def test_scrubbing_finds_what_was_damaged_since_it_was_checked(cache: Cache) -> None:
    for number in range(20):
        put(cache, number, 3)
    flip(cache.directory / "data", 13 * 4 * BLOCK + 2 * BLOCK)
    found = [cache.scrub(5 * 4 * BLOCK) for _ in range(8)]
    assert found == [0, 0, 1, 0, 0, 0, 0, 0]
    assert cache.lookup(name(13)) == -1
    assert cache.scrub(1 << 30) == 0
    cache.clear()
    assert cache.scrub(1 << 30) == 0


def test_a_data_file_that_was_cut_short_loses_what_it_lost(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = Cache(tmp_path, CAP)
    for number in range(10):
        put(cache, number, 3)
    cache.close()
    # Slot 5 keeps its header and loses its content; what is put next must not be where that content was.
    os.truncate(tmp_path / "data", 5 * 4 * BLOCK + BLOCK)
    cache = Cache(tmp_path, CAP)
    assert "4 chunks and nodes" in caplog.text
    assert put(cache, 50, 3) >= 0
    assert [cache.get(name(number)) is not None for number in range(10)] == [True] * 5 + [False] * 5
    assert cache.get(name(50)) == content(50, 3 * BLOCK)
    assert read_present(cache, 50, 3 * BLOCK) == 0b111
    cache.close()


def test_a_data_file_that_is_gone_makes_misses(tmp_path: Path) -> None:
    cache = Cache(tmp_path, CAP)
    put(cache, 1, 3)
    cache.close()
    (tmp_path / "data").unlink()
    cache = Cache(tmp_path, CAP)
    assert cache.get(name(1)) is None
    assert cache.status()["bytes"] == 0
    assert put(cache, 1, 3) >= 0
    cache.close()
    cache = Cache(tmp_path, CAP)
    assert cache.get(name(1)) == content(1, 3 * BLOCK)
    cache.close()


def test_the_file_begins_anew_before_it_is_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "_MAX_POSITION", 1 << 18)
    cache = Cache(tmp_path, 1 << 16)
    for number in range(1000):
        assert put(cache, number, number % 5 + 1) >= 0
        assert cache.get(name(number)) == content(number, (number % 5 + 1) * BLOCK)
        assert (tmp_path / "data").stat().st_size <= 1 << 18
    cache.close()
    cache = Cache(tmp_path, 1 << 16)
    held = [number for number in range(1000) if cache.lookup(name(number)) >= 0]
    assert held
    assert held[-1] == 999
    for number in held:
        assert cache.get(name(number)) == content(number, (number % 5 + 1) * BLOCK)
    assert cache.status()["damaged"] == 0
    cache.close()


def test_one_process_owns_a_cache(cache: Cache) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(HostError, match=f"in use by process {os.getpid()}:"):
        Cache(cache.directory, CAP)
    assert len(os.listdir("/proc/self/fd")) == before
    put(cache, 1, 3)
    assert cache.get(name(1)) is not None


def test_a_directory_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HostError, match="cannot use the cache"):
        Cache(tmp_path / "file" / "cache", CAP)


def test_a_disk_that_refuses_writes_makes_misses_said_once_a_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = 100.0
    cache = Cache(tmp_path, CAP, lambda: now)
    put(cache, 1, 3)
    real = os.pwritev

    def part(fd: int, buffers: list[memoryview], position: int) -> int:
        if position % (2 * BLOCK):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(fd, [buffers[0][:BLOCK]], position)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", part)
        for number in range(2, 12):
            assert put(cache, number, 3) == -1
        now += 61
        assert put(cache, 12, 3) == -1
    assert cache.status()["failed_writes"] == 11
    assert len(caplog.records) == 2
    assert "No space left" in caplog.text
    assert cache.status()["bytes"] == 4 * BLOCK
    assert cache.get(name(1)) == content(1, 3 * BLOCK)
    assert put(cache, 2, 3) >= 0
    cache.close()


def test_a_write_that_goes_through_in_pieces_is_whole(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwritev
    monkeypatch.setattr(os, "pwritev", lambda fd, parts, position: real(fd, [parts[0][:1000]], position))
    put(cache, 1, 5)
    put(cache, 2, 8, 0b1011_0110)
    assert cache.get(name(1)) == content(1, 5 * BLOCK)
    assert read_present(cache, 2, 8 * BLOCK) == 0b1011_0110


def test_space_that_cannot_be_freed_stays_accounted_for(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(DataFile, "punch", lambda *_: False)
        stored = sum(put(cache, number, 15) >= 0 for number in range(100))
    assert stored == CAP // (16 * BLOCK)
    assert on_disk(cache) <= CAP + 4 * BLOCK


def test_a_disk_that_cannot_be_read_makes_misses(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    put(cache, 1, 3)

    def fails(*_: object) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", fails)
        assert cache.get(name(1)) is None
        assert cache.get(name(1)) is None
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert cache.get(name(1)) == content(1, 3 * BLOCK)


def on_disk(cache: Cache) -> int:
    return os.fstat(cache.fd).st_blocks * 512


def flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 0x40]))
