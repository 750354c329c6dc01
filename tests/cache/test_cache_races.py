"""The cache under many threads, and under kill -9."""

import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from blockmap.cache import cache as cache_module
from blockmap.cache.cache import Cache
from blockmap.format import BLOCK

from .contents import allocated, content, name, read_present, with_holes
from .writer import NUMBERS, blocks_of

CHECKOUT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _quick_switches() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def together(*works: Callable[[], None]) -> None:
    """Runs functions in threads of their own; the first failure is raised."""
    failures: list[BaseException] = []

    def run(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


class Readers:
    """Read as volumes do: remember where a chunk was, preadv, look at the mark; put what is missing."""

    def __init__(self, cache: Cache, chunks: int, seconds: float) -> None:
        self.cache, self.chunks, self.end = cache, chunks, time.monotonic() + seconds
        self.hits = self.stale = self.raced = self.misses = 0

    def run(self, seed: int) -> None:
        cache, chance = self.cache, random.Random(seed)
        places: dict[int, tuple[int, int]] = {}
        hits = stale = raced = misses = 0
        while time.monotonic() < self.end:
            number = int(self.chunks * chance.random() ** 6)  # some are read often, as files are
            blocks = number % 8 + 1
            data = content(number, blocks * BLOCK)
            if number not in places:
                slot = cache.lookup(name(number))
                whole = (1 << blocks) - 1
                if slot < 0 or not cache.check(slot, name(number)) or cache.mask(slot) != whole:
                    misses += 1
                    mask = whole if chance.random() < 0.7 else chance.randrange(1, whole + 1)
                    cache.put(name(number), with_holes(data, mask), mask)
                    continue
                places[number] = cache.data_position(slot), slot
            position, slot = places[number]
            first = chance.randrange(blocks)
            expected = memoryview(data)[first * BLOCK : chance.randint(first + 1, blocks) * BLOCK]
            buffer = bytearray(len(expected))
            length = os.preadv(cache.fd, [buffer], position + first * BLOCK)
            if length == len(buffer) and not cache.dead[slot]:
                assert buffer == expected, f"slot {slot}, block {first} of chunk {number}"
                cache.used[slot] = 1
                hits += 1
            else:
                stale += 1
                raced += buffer != expected
                del places[number]
            if chance.random() < 0.002:
                cache.discard(cache.lookup(name(number)))
        self.hits += hits
        self.stale += stale
        self.raced += raced
        self.misses += misses


def torture(tmp_path: Path, seconds: float) -> Readers:
    chunks = 600
    whole = sum(allocated((number % 8 + 1) * BLOCK, (1 << number % 8 + 1) - 1) for number in range(chunks))
    cache = Cache(tmp_path, whole // 10)
    readers = Readers(cache, chunks, seconds)
    together(*(lambda seed=seed: readers.run(seed) for seed in range(4)))
    status = cache.status()
    assert status["damaged"] == status["failed_writes"] == 0
    assert status["bytes"] <= cache.cap_bytes
    live = sum(cache.lookup(name(number)) >= 0 for number in range(chunks))
    assert status["slots"] == live
    cache.clear()
    assert cache.status()["bytes"] == 0
    cache.close()
    assert readers.hits > 100
    assert readers.stale > 10
    assert status["evicted"] > 100
    return readers


def test_readers_never_see_a_wrong_byte_while_slots_are_evicted(tmp_path: Path) -> None:
    torture(tmp_path, 2.0)


@pytest.mark.long
def test_readers_never_see_a_wrong_byte_for_a_minute(tmp_path: Path) -> None:
    readers = torture(tmp_path, 60.0)
    print(
        f"{readers.hits} hits, {readers.misses} misses, {readers.stale} dead, of which {readers.raced} read other bytes"
    )


def test_readers_never_see_a_wrong_byte_while_the_file_begins_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "_MAX_POSITION", 2000 * BLOCK)
    torture(tmp_path, 1.0)


def test_the_cap_holds_on_disk_at_every_moment(tmp_path: Path) -> None:
    cap = 300 * BLOCK
    cache = Cache(tmp_path, cap)
    ended = threading.Event()
    most = 0

    def watch() -> None:
        nonlocal most
        while not ended.is_set():
            most = max(most, os.fstat(cache.fd).st_blocks * 512)

    def fill(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(400):
            number = chance.randrange(1000)
            cache.put(name(number), content(number, (number % 8 + 1) * BLOCK))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        together(*(lambda seed=seed: fill(seed) for seed in range(4)))
    finally:
        ended.set()
        watcher.join()
    # The file system's own blocks for the map of extents count as well.
    assert cap // 2 < most <= cap + 8 * BLOCK
    cache.close()


def test_threads_that_put_one_digest_keep_one_slot_with_all_its_blocks(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 1 << 24)
    blocks, threads = 32, 4
    barrier = threading.Barrier(threads)

    def put(thread: int, whole: bool) -> None:
        for number in range(40):
            data = content(number, blocks * BLOCK)
            mask = (1 << blocks) - 1 if whole else sum(1 << i for i in range(thread, blocks, threads))
            barrier.wait()
            assert cache.put(name(number), with_holes(data, mask), mask) >= 0

    for whole in (False, True):
        together(*(lambda thread=thread, whole=whole: put(thread, whole) for thread in range(threads)))
        for number in range(40):
            assert cache.get(name(number)) == content(number, blocks * BLOCK)
        assert cache.status()["slots"] == 40
        assert cache.status()["bytes"] == 40 * (blocks + 1) * BLOCK
        cache.clear()
    cache.close()


def test_what_a_killed_process_leaves_is_right(tmp_path: Path) -> None:
    served = lost = 0
    for seed in range(4):
        # A cap that evicts all the time, and one that keeps everything.
        cap = 2500 * BLOCK if seed % 2 else 1 << 28
        command = [sys.executable, "-m", "tests.cache.writer", str(tmp_path), str(cap), str(seed)]
        with subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            for _ in range(random.Random(seed).randrange(1, 12)):
                assert process.stdout.readline()
            process.kill()
        cache = Cache(tmp_path, 1 << 28)
        for number in range(NUMBERS):
            served += read_present(cache, number, blocks_of(number) * BLOCK) is not None
        for number in range(NUMBERS):
            data = content(number, blocks_of(number) * BLOCK)
            assert cache.get(name(number)) in (None, data)
            assert cache.put(name(number), data) >= 0
        for number in range(NUMBERS):
            assert cache.get(name(number)) == content(number, blocks_of(number) * BLOCK)
        assert cache.status()["damaged"] == 0, "nothing was"
        lost += cache.status()["lost"]
        cache.close()
    assert served > NUMBERS
    assert lost, "what was evicted within the journal's last half second"
