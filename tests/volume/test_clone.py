"""Clones against the simplest model: the values that each unit of a volume may have after a crash."""

import os
import random
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from blockmap.durable import Buffer
from blockmap.errors import DiskFull, HostError
from blockmap.format import BLOCK
from blockmap.origin.outage_policy import OutagePolicy
from blockmap.store.memory import MemoryStore
from blockmap.volume.clone import CloneLayer, CloneVolume
from blockmap.volume.clone_loader import load_clone
from blockmap.volume.clone_table import CaptureDraft, CloneRecord, CloneTable
from blockmap.volume.overlay import Held, Kind, OverlayMap
from blockmap.volume.readonly import ReadOnlyVolume
from tests.image.builder import bulk
from tests.volume.building import model, publish
from tests.volume.opened import NotedReads, OpenVolume, opened
from tests.volume.volatile import PowerCut, VolatileFile
from tests.waiting import until

UNIT = 512
"""Clients write less than a block, too."""
BASE_BLOCKS, BLOCKS = 24, 32
SIZE = BLOCKS * BLOCK
UNITS = SIZE // UNIT
PIECES = [(2, bulk(1, 9 * BLOCK)), (15, bulk(2, 6 * BLOCK))]
BOOT = bytes(range(16))
CAPTURE = CaptureDraft("repo", "tag", False, "why", "who", "[]", "nonce")


class Stand:
    """One clone with its files, which outlive the process that serves it."""

    def __init__(self, where: Path, base: OpenVolume, blocks: int = BLOCKS) -> None:
        self.where = where
        self.base = base
        self.boot = BOOT
        self.table = CloneTable(where)
        self.record: CloneRecord = self.table.create("c", "store", "a:1", "a@sha256:0", "", blocks * BLOCK)
        self.files: dict[int, VolatileFile] = {}
        self.open()

    def open(self) -> None:
        """Opens the clone, as a new process does."""
        self.stack = ExitStack()
        record = self.table.find("c")
        assert record is not None
        self.volume: CloneVolume = load_clone(
            self.table, record, self.base.volume, self.file, self.where / "journal", self.boot, self.stack
        )
        self.read = self.volume.reader(self.base.start)

    def file(self, number: int) -> VolatileFile:
        self.files[number] = VolatileFile(self.where / str(number))
        return self.files[number]

    def kill(self) -> None:
        """Ends the process; the host goes on."""
        self.stack.close()
        self.open()

    def cut(self, choice: random.Random) -> None:
        """Cuts the power, and starts the host again."""
        for file in self.files.values():
            file.cut(choice)
        self.stack.close()
        self.files.clear()
        self.boot = choice.randbytes(16)
        self.open()

    def freeze(self) -> None:
        number = self.table.add_layer()
        fresh = CloneLayer(number, self.file(number), OverlayMap())
        self.volume.freeze(fresh, lambda *changes: self.table.push(number, self.record.id, *changes, CAPTURE))

    def bytes(self, offset: int = 0, count: int | None = None) -> bytes:
        buf = bytearray(b"\xee" * (self.volume.size - offset if count is None else count))
        self.read(memoryview(buf), offset)
        return bytes(buf)

    def end(self) -> None:
        self.stack.close()
        self.table.close()


@contextmanager
def based(where: Path) -> Iterator[OpenVolume]:
    store = MemoryStore()
    with opened(store, publish(store, PIECES, BASE_BLOCKS), where / "cache") as base:
        yield base


@pytest.fixture
def stand(tmp_path: Path) -> Iterator[Stand]:
    with based(tmp_path) as base:
        (tmp_path / "clone").mkdir()
        made = Stand(tmp_path / "clone", base)
        yield made
        made.end()


def units(data: bytes) -> list[bytes]:
    return [data[at : at + UNIT] for at in range(0, len(data), UNIT)]


RANGES = st.tuples(st.integers(0, UNITS - 1), st.sampled_from([1, 3, 8, 16, 40])).map(
    lambda each: (each[0], min(each[0] + each[1], UNITS))
)


class CloneMachine(RuleBasedStateMachine):
    """Drives a clone; `may` has what each unit may be after a power cut."""

    def __init__(self, where: Path, base: OpenVolume) -> None:
        super().__init__()
        self.where, self.base = where, base
        self.writes = 0

    @initialize()
    def make(self) -> None:
        shutil.rmtree(self.where, ignore_errors=True)
        self.where.mkdir()
        self.stand = Stand(self.where, self.base)
        self.now = units(bytes(model(PIECES, BASE_BLOCKS)).ljust(SIZE, b"\0"))
        self.may = [{each} for each in self.now]

    def teardown(self) -> None:
        if hasattr(self, "stand"):
            self.stand.end()

    @rule(where=RANGES, fua=st.booleans())
    def write(self, where: tuple[int, int], fua: bool) -> None:
        start, end = where
        self.writes += 1
        value = self.writes.to_bytes(4, "little") * (UNIT // 4)
        self.stand.volume.write(value * (end - start), start * UNIT)
        self._changed(start, end, value)
        if fua:
            self.flush()

    @rule(where=RANGES, how=st.sampled_from(["zero", "allocate", "trim"]))
    def zero(self, where: tuple[int, int], how: str) -> None:
        start, end = where
        at, count = start * UNIT, (end - start) * UNIT
        if how == "trim":
            self.stand.volume.trim(at, count)
        else:
            self.stand.volume.zero(at, count, allocate=how == "allocate")
        self._changed(start, end, bytes(UNIT))

    @rule(where=RANGES)
    def read(self, where: tuple[int, int]) -> None:
        start, end = where
        assert self.stand.bytes(start * UNIT, (end - start) * UNIT) == b"".join(self.now[start:end])

    @rule(where=RANGES)
    def look(self, where: tuple[int, int]) -> None:
        start, end = where[0] * UNIT, where[1] * UNIT
        at = start
        while at < end:
            found = self.stand.volume.extents(at, end - at, self.base.start)
            for first, count, hole in found:
                assert first == at
                assert not hole or not any(self.stand.bytes(first, count))
                at += count
        assert at == end

    @rule()
    def flush(self) -> None:
        self.stand.volume.flush()
        self.may = [{each} for each in self.now]

    @rule()
    def freeze(self) -> None:
        self.stand.freeze()
        self.may = [{each} for each in self.now]

    @rule()
    def kill(self) -> None:
        """What was answered is there, whether it was flushed or not."""
        self.stand.kill()
        assert units(self.stand.bytes()) == self.now

    @rule(choice=st.randoms(use_true_random=False))
    def cut(self, choice: random.Random) -> None:
        self.stand.cut(choice)
        found = units(self.stand.bytes())
        for at, each in enumerate(found):
            assert each in self.may[at], f"unit {at}"
        self.now, self.may = found, [{each} for each in found]

    @rule(point=st.integers(0, 3), power=st.booleans(), choice=st.randoms(use_true_random=False))
    def crash_in_flush(self, point: int, power: bool, choice: random.Random) -> None:
        """Ends the process, or cuts the power, before and after each of the two steps of a flush."""
        volume, file = self.stand.volume, self.stand.files[self.stand.volume._layers[0].number]
        sync, keep = file.sync, volume._keep

        def step(number: int, work: Callable[..., None]) -> Callable[..., None]:
            def crash(*arguments: object) -> None:
                if point == number:
                    raise PowerCut
                work(*arguments)
                if point == number + 1:
                    raise PowerCut

            return crash

        file.sync, volume._keep = step(0, sync), step(2, keep)  # type: ignore[method-assign]
        try:
            volume.flush()
            self.may = [{each} for each in self.now]  # it had nothing to store
        except PowerCut:
            pass
        if power:
            self.cut(choice)
        else:
            self.kill()

    @rule(where=RANGES)
    def write_to_a_full_disk(self, where: tuple[int, int]) -> None:
        """It fails, and nothing has changed."""
        file = self.stand.files[self.stand.volume._layers[0].number]
        file.full = True
        with pytest.raises(DiskFull):
            self.stand.volume.write(b"x" * UNIT, where[0] * UNIT)
        file.full = False

    @rule(where=RANGES, choice=st.randoms(use_true_random=False))
    def write_while_a_flush_ends(self, where: tuple[int, int], choice: random.Random) -> None:
        """What is written once the file was synced is not stored as if it were durable."""
        file = self.stand.files[self.stand.volume._layers[0].number]
        sync = file.sync

        def sync_then_write() -> None:
            sync()
            file.sync = sync  # type: ignore[method-assign]
            self.may = [{each} for each in self.now]
            self.write(where, False)

        file.sync = sync_then_write  # type: ignore[method-assign]
        self.stand.volume.flush()
        file.sync = sync  # type: ignore[method-assign]
        self.cut(choice)

    @rule()
    def flush_to_a_full_disk(self) -> None:
        """The map cannot be stored; another flush does."""
        volume = self.stand.volume
        keep = volume._keep

        def fail(*_: object) -> None:
            raise DiskFull("no room left")

        volume._keep = fail
        with suppress(DiskFull):
            volume.flush()
        volume._keep = keep

    @invariant()
    def sound(self) -> None:
        if hasattr(self, "stand"):
            for layer in self.stand.volume._layers:
                layer.map.check()

    def _changed(self, start: int, end: int, value: bytes) -> None:
        for at in range(start, end):
            self.now[at] = value
            self.may[at].add(value)


def test_a_clone_is_its_model_through_crashes(tmp_path: Path) -> None:
    with based(tmp_path) as base:
        run_state_machine_as_test(
            lambda: CloneMachine(tmp_path / "clone", base),  # type: ignore[arg-type]
            settings=settings(
                max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
            ),
        )


def test_what_is_written_is_seen_however_close_to_what_is_not(tmp_path: Path) -> None:
    """Reads of any length that begin before, in and behind what was written, and all of which the cache could answer; then
    the same after the clone was put on a version that has what was written."""
    store, blocks = MemoryStore(), 1024
    have = bytearray(bulk(4, blocks * BLOCK))
    with opened(store, publish(store, [(0, bytes(have))], blocks), tmp_path / "cache") as base:
        stand = Stand(tmp_path, base, blocks)

        def hits() -> int:
            """Reads block by block; how many were read as the base's own are."""
            buf, found = memoryview(bytearray(BLOCK)), 0
            for at in range(0, len(have), BLOCK):
                found += stand.read(buf, at) is None
                assert buf == have[at : at + BLOCK]
            return found

        choice = random.Random(5)
        until(lambda: hits() == blocks)
        for block in range(80, blocks, 80):  # at the beginning of a grain: chunks lie across it
            new = choice.randbytes(choice.choice([UNIT, 3 * BLOCK]))
            at = block * BLOCK
            stand.volume.write(new, at)
            have[at : at + len(new)] = new
            for _ in range(300):
                offset = choice.randrange(at - 64 * BLOCK, at + 8 * BLOCK)
                count = choice.choice([UNIT, BLOCK, choice.randrange(1, 64 * BLOCK)])
                assert stand.bytes(offset, count) == have[offset : offset + count]
        assert hits() > blocks / 2

        root = publish(store, [(0, bytes(have))], blocks)
        stand.freeze()
        stand.volume.rebase(ReadOnlyVolume("a@sha256:1", root, base.fetcher, OutagePolicy(0)), 1)
        stand.volume.write(b"new", 3 * BLOCK)
        have[3 * BLOCK : 3 * BLOCK + 3] = b"new"
        until(lambda: hits() > blocks / 2)
        assert stand.bytes() == have
        stand.end()


def test_the_journal_makes_room_by_flushing(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    """More changes than it has places for, of which a killed server must lose none."""
    for name in ("clone", "write_journal"):
        monkeypatch.setattr(f"blockmap.volume.{name}.RECORDS", 16)
    for number in range(100):
        stand.volume.write(bytes([number + 1]), 2 * number)
    stand.kill()
    assert stand.bytes(0, 200)[::2] == bytes(range(1, 101))
    assert stand.table.find("c").stored > 80  # type: ignore[union-attr]


def test_a_server_that_is_killed_twice_loses_nothing(stand: Stand) -> None:
    """What the first left in the journal is still needed: nobody flushed since."""
    for number in range(4):
        stand.volume.write(bytes([number + 1]) * BLOCK, number * 2 * BLOCK)
        stand.kill()
    assert stand.bytes(0, 8 * BLOCK)[:: 2 * BLOCK] == bytes(range(1, 5))


def test_records_of_an_earlier_boot_are_never_believed(stand: Stand) -> None:
    stand.volume.write(b"a" * BLOCK, 0)
    stand.volume.write(b"b" * BLOCK, BLOCK)
    stand.cut(random.Random(1))
    stand.volume.write(b"c" * BLOCK, 0)
    stand.kill()
    assert stand.bytes(0, 2 * BLOCK) == b"c" * BLOCK + bytes(BLOCK)


def test_nothing_is_written_after_a_sync_failed(stand: Stand) -> None:
    """The kernel forgets what it could not write, and says so once: a second sync would succeed, and mean nothing."""
    stand.volume.write(b"a" * BLOCK, 0)
    stand.volume.flush()
    stand.volume.write(b"b" * BLOCK, 0)

    def fail() -> None:
        raise HostError("Input/output error")

    stand.files[1].sync = fail  # type: ignore[method-assign]
    with pytest.raises(HostError, match="until it is opened again"):
        stand.volume.flush()
    del stand.files[1].sync
    for attempt in (stand.volume.flush, lambda: stand.volume.write(b"c", 0), lambda: stand.volume.trim(0, 1)):
        with pytest.raises(HostError, match="until it is opened again"):
            attempt()
    assert stand.bytes(0, BLOCK) == b"b" * BLOCK


def test_writers_on_many_threads_while_it_is_flushed_and_frozen(stand: Stand) -> None:
    """Each has blocks of its own, and reads back what it wrote; what is flushed in the end is all there after a power cut."""
    failures: list[BaseException] = []
    barrier = threading.Barrier(4)

    def work(own: int) -> None:
        try:
            choice = random.Random(own)
            barrier.wait()
            for number in range(300):
                at = (own * 8 + choice.randrange(8)) * BLOCK + choice.randrange(8) * UNIT
                data = bytes([own + 1, number % 256]) * (UNIT // 2)
                stand.volume.write(data, at)
                if number % 7 == 0:
                    stand.volume.flush()
                if number % 50 == own:
                    stand.volume.zero(at, UNIT)
                    data = bytes(UNIT)
                assert stand.bytes(at, UNIT) == data
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(own,)) for own in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(5):
        stand.freeze()
    for thread in threads:
        thread.join()
    assert not failures
    stand.volume.flush()
    whole = stand.bytes()
    stand.cut(random.Random(1))
    assert stand.bytes() == whole


def test_a_freeze_waits_for_what_has_begun_and_lets_nothing_begin(stand: Stand) -> None:
    below, entered, go_on = stand.files[1], threading.Event(), threading.Event()
    write = below.write

    def write_slowly(data: Buffer, offset: int) -> None:
        entered.set()
        assert go_on.wait(30)
        write(data, offset)

    below.write = write_slowly  # type: ignore[method-assign]
    with ThreadPoolExecutor() as pool:
        early = pool.submit(stand.volume.write, b"early", 0)
        assert entered.wait(30)
        freezing = pool.submit(stand.freeze)
        until(lambda: stand.volume._freezing)
        late = pool.submit(stand.volume.write, b"late", BLOCK)
        assert not freezing.done()
        assert not late.done()
        go_on.set()
        for each in (early, freezing, late):
            each.result(30)
    upper, lower = stand.volume._layers
    assert list(lower.map) == [Held(0, 5, Kind.DATA)]
    assert list(upper.map) == [Held(BLOCK, BLOCK + 4, Kind.DATA)]


def test_a_trim_under_way_ends_before_its_layer_is_frozen(stand: Stand) -> None:
    """The hole of a trim is punched before the layer is frozen: what is frozen never changes."""
    stand.volume.write(b"a" * BLOCK, 0)
    below, entered, go_on = stand.files[1], threading.Event(), threading.Event()
    punch = below.punch

    def punch_slowly(offset: int, count: int) -> None:
        entered.set()
        assert go_on.wait(30)
        punch(offset, count)

    below.punch = punch_slowly  # type: ignore[method-assign]
    with ThreadPoolExecutor() as pool:
        trimming = pool.submit(stand.volume.trim, 0, BLOCK)
        assert entered.wait(30)
        stand.volume.write(b"b" * BLOCK, 0)
        freezing = pool.submit(stand.freeze)
        with pytest.raises(TimeoutError):
            freezing.result(0.3)
        go_on.set()
        trimming.result(30)
        freezing.result(30)
    assert stand.bytes(0, BLOCK) == bytes(BLOCK)


def test_a_frozen_layer_is_one_moment(stand: Stand) -> None:
    """A counter that goes up in one place before it does in another is never seen the other way round."""
    stop = threading.Event()

    def count() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            for at in (0, 20 * BLOCK):
                stand.volume.write(number.to_bytes(8, "little"), at)

    thread = threading.Thread(target=count)
    thread.start()
    try:
        for _ in range(20):
            stand.freeze()
            below = stand.volume._layers[1].file
            first, second = bytearray(8), bytearray(8)
            if {0, 20 * BLOCK} <= {start for start, _, _ in stand.volume._layers[1].map}:
                below.read(memoryview(first), 0)
                below.read(memoryview(second), 20 * BLOCK)
                assert 0 <= int.from_bytes(first, "little") - int.from_bytes(second, "little") <= 1
    finally:
        stop.set()
        thread.join()


def test_what_is_beyond_the_base_reads_as_zeros(tmp_path: Path) -> None:
    with based(tmp_path) as base:
        (tmp_path / "clone").mkdir()
        stand = Stand(tmp_path / "clone", base, 1 << 12)
        assert stand.bytes() == bytes(model(PIECES, BASE_BLOCKS)).ljust(BLOCK << 12, b"\0")
        stand.end()


def test_nothing_is_a_change_of_no_bytes(stand: Stand) -> None:
    stand.volume.write(b"", 100)
    stand.volume.trim(100, 0)
    stand.volume.flush()
    stand.kill()
    assert stand.volume.untouched


def test_space_of_what_is_trimmed_comes_back(stand: Stand) -> None:
    stand.volume.write(bulk(3, 16 * BLOCK), 0)
    stand.volume.flush()
    full = os.stat(stand.where / "1").st_blocks
    stand.volume.trim(0, 16 * BLOCK)
    assert os.stat(stand.where / "1").st_blocks < full
    stand.volume.zero(0, 16 * BLOCK, allocate=True)
    assert os.stat(stand.where / "1").st_blocks >= full
    assert stand.bytes(0, 16 * BLOCK) == bytes(16 * BLOCK)


def test_reads_that_miss_the_layers_are_noted_and_others_are_not(stand: Stand) -> None:
    recorder = NotedReads()
    stand.volume.write(b"a" * BLOCK, 3 * BLOCK)
    read = stand.volume.reader(stand.base.start, recorder)
    for block in (2, 3, 4):
        read(memoryview(bytearray(BLOCK)), block * BLOCK)
    assert recorder.noted == [2 * BLOCK, 4 * BLOCK]
