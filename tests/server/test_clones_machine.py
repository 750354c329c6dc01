"""Clones of a server against the simplest model, through commits, forks, rewinds, collections, restarts and crashes.

A crash strikes at any point before or after something is made durable: a layer's bytes, the record of clones, an object of
the store. A killed server loses nothing that was answered. After a power cut each unit has a value that it had since the last
flush that finished; what was captured is a version of just that moment, once; forks are all there, or none.
"""

import itertools
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from blockmap.errors import BlockmapError, HostError, StoreUnavailable
from blockmap.format import BLOCK, keys
from blockmap.format.entry import Entry
from blockmap.format.refs import parse_reference
from blockmap.image.layer import config_chains
from blockmap.server import clones, commits
from blockmap.server.registry import Opened
from blockmap.server.server import Server
from blockmap.store.directory import DirectoryStore
from blockmap.store.names import NameLog, NameTarget
from blockmap.store.opening import create_store, open_writer
from blockmap.store.repository import Repository
from blockmap.store.resolver import find_version
from blockmap.store.volume_reader import stored_reader
from blockmap.upkeep.collect import Collector
from blockmap.upkeep.verify import check_version
from blockmap.volume.clone import CloneVolume
from blockmap.volume.clone_table import CaptureDraft, CloneRecord, CloneTable
from tests.commit.in_process import InProcess
from tests.image.builder import bulk
from tests.volume.building import model, name, publish
from tests.volume.volatile import Unsynced, VolatileFile
from tests.waiting import until

UNIT = 512
BASE_BLOCKS = 24
PIECES = [(2, bulk(1, 9 * BLOCK)), (15, bulk(2, 6 * BLOCK))]
NAMES = ("app:1", "app:2", "other:1")
"""Clones are of the first."""
MOST_CLONES = 4


class PowerOff(HostError):
    """Whatever would be durable is not: the host is off, or the process was killed."""


class Disk:
    """What is durable on the host and in the store; ends everything at a chosen point."""

    def __init__(self) -> None:
        self.left: int | None = None
        """Points until the end; None for never."""
        self.dead = False
        self.away = False
        """True while the store cannot be written."""
        self.boot = bytes(16)
        self.unsynced: dict[Path, Unsynced] = {}

    def point(self) -> None:
        if self.left is not None:
            self.left -= 1
            self.dead = self.dead or self.left < 0
        if self.dead:
            raise PowerOff("the power is off")

    @contextmanager
    def step(self) -> Iterator[None]:
        self.point()
        yield
        self.point()

    def cut(self, choice: random.Random) -> None:
        """Leaves of each file what a power cut may leave."""
        for path, since in self.unsynced.items():
            if path.exists():
                file = VolatileFile(path, since)
                file.cut(choice)
                file.close()
        self.unsynced.clear()
        self.boot = (int.from_bytes(self.boot, "big") + 1).to_bytes(16, "big")


def patch(monkeypatch: pytest.MonkeyPatch, disk: Disk) -> None:
    """Has all that the library makes durable go through `disk`."""

    class GatedFile(VolatileFile):
        def __init__(self, path: Path) -> None:
            super().__init__(path, disk.unsynced.setdefault(path, {}))

        def sync(self) -> None:
            with disk.step():
                super().sync()

    class GatedTable(CloneTable):
        @contextmanager
        def _changing(self) -> Iterator[object]:  # type: ignore[override]
            with disk.step(), super()._changing() as connection:
                yield connection

    def gated(inner: Callable[..., None]) -> Callable[..., None]:
        def call(*arguments: object) -> None:
            with disk.step():
                if disk.away:
                    raise StoreUnavailable("the store is away")
                inner(*arguments)

        return call

    monkeypatch.setattr(clones, "ScratchFile", GatedFile)
    monkeypatch.setattr(clones, "CloneTable", GatedTable)
    monkeypatch.setattr(clones, "boot_id", lambda: disk.boot)
    monkeypatch.setattr(commits, "_RETRY_SECONDS", (3600.0,))
    for each in ("create", "replace", "delete"):
        monkeypatch.setattr(DirectoryStore, each, gated(getattr(DirectoryStore, each)))


def units(data: bytes) -> list[bytes]:
    return [data[at : at + UNIT] for at in range(0, len(data), UNIT)]


@dataclass(slots=True)
class Captured:
    """A moment that is to become a version."""

    target: str
    nonce: str
    content: list[bytes]
    force: bool
    conflict: bool = False


@dataclass(slots=True)
class CloneModel:
    name: str
    now: list[bytes]
    base: str
    """The export name of its version."""
    may: list[set[bytes]] = field(init=False)
    """What each unit may be after a power cut."""
    captures: list[Captured] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.synced()

    def synced(self) -> None:
        self.may = [{each} for each in self.now]


@dataclass(frozen=True, slots=True)
class Operation:
    """What may be interrupted by a crash."""

    act: Callable[[], object]
    done: Callable[[], object]
    """Does the same to the model."""
    is_done: Callable[[], bool]
    """Says after a crash whether it has happened."""


RANGES = st.tuples(st.integers(0, BASE_BLOCKS * 8 - 1), st.sampled_from([1, 3, 8, 16, 40]))
CHOICE = st.integers(0, 11)
"""Which of the clones, or of the versions, modulo how many there are."""


class ClonesMachine(RuleBasedStateMachine):
    """Drives all clones of a server; what is captured is published before the next step, unless the store is away."""

    def __init__(self, where: Path, disk: Disk) -> None:
        super().__init__()
        self.where, self.disk = where, disk
        self.numbers = itertools.count(1)
        self.server: Server | None = None

    @initialize()
    def make(self) -> None:
        shutil.rmtree(self.where, ignore_errors=True)
        self.where.mkdir()
        self.disk.__init__()  # type: ignore[misc]
        store = create_store(str(self.where / "store"))[0]
        name(store, publish(store, PIECES, BASE_BLOCKS), "app", "1")
        self.start()
        self.clones: dict[str, CloneModel] = {}
        self.open: dict[str, Opened] = {}
        first = self.found("app:1")
        self.versions: dict[str, list[tuple[str, list[bytes]]]] = {
            "app:1": [(first, units(bytes(model(PIECES, BASE_BLOCKS))))]
        }
        """By name, the versions that it stood for since the last collection, with their contents."""
        self.waiting: list[tuple[CloneModel, Captured]] = []
        """What is captured and not published, in order."""
        self.perform(self._clone(0, 0))

    def teardown(self) -> None:
        if self.server is None:
            return
        try:
            self.disk.away = False
            self.settle()
            for each in self.clones.values():
                assert self.content(each) == each.now
            self.collect()
            for each in self.clones.values():
                assert self.content(each) == each.now
                record = self.record(each.name)
                assert self.store().exists(
                    keys.pin(find_version(self.repository(), parse_reference(record.base)).name, record.pin)
                )
            for each in self.clones.values():
                self._pass(lambda own=each: self.running.settle_captures(own.name, True, None, False))
                each.captures.clear()
            self.waiting.clear()
            while len(self.clones) > 1:
                self.perform(self._remove(0))
            (last,) = self.clones
            layers = {number for number, _ in self.table().layers(self.record(last))}
            files = [path for path in (self.where / "state/layers").iterdir() if int(path.name) not in layers]
            assert [path.stat().st_size for path in files] == [0] * len(files), "made a moment before a crash"
        finally:
            self.end()

    # --- the server

    def start(self) -> None:
        self.passes = 0
        self.server = Server(
            str(self.where / "store"),
            self.where / "cache",
            1 << 24,
            state=self.where / "state",
            publisher=InProcess(str(self.where / "store"), self.where / "state"),
            hydrate=False,
        )
        publish_all = self.server._commits._publish_all

        def counted() -> bool:
            try:
                return publish_all()
            finally:
                self.passes += 1

        self.server._commits._publish_all = counted  # type: ignore[method-assign]

    def end(self) -> None:
        assert self.server is not None
        server, self.server = self.server, None
        self.open.clear()
        server.close()
        until(lambda: not server._commits._is_running)

    @property
    def running(self) -> Server:
        assert self.server is not None
        return self.server

    def volume(self, clone: CloneModel) -> CloneVolume:
        if clone.name not in self.open:
            self.open[clone.name] = self.running.open(clone.name)
        found = self.open[clone.name].volume
        assert isinstance(found, CloneVolume)
        return found

    def close(self, clone: CloneModel) -> None:
        opened = self.open.pop(clone.name, None)
        if opened is not None:
            opened.close()

    def content(self, clone: CloneModel) -> list[bytes]:
        volume = self.volume(clone)
        buf = bytearray(b"\xee" * volume.size)
        volume.reader(self.open[clone.name].start)(memoryview(buf), 0)
        return units(bytes(buf))

    def store(self) -> DirectoryStore:
        return DirectoryStore(self.where / "store")

    def repository(self) -> Repository:
        return Repository(self.store())

    def found(self, reference: str) -> str:
        return find_version(self.repository(), parse_reference(reference)).pinned

    def stored(self, export: str) -> list[bytes]:
        found = find_version(self.repository(), parse_reference(export))
        assert list(check_version(self.repository(), found.version)) == []
        return units(stored_reader(self.repository(), found.root)(0, found.root.size * BLOCK))

    def table(self) -> CloneTable:
        return self.running._clones._table()

    def record(self, of: str) -> CloneRecord:
        found = self.running._clones.find(of)
        assert found is not None
        return found

    def chosen(self, number: int) -> CloneModel:
        return list(self.clones.values())[number % len(self.clones)]

    # --- steps

    @rule(which=CHOICE, where=RANGES, fua=st.booleans())
    def write(self, which: int, where: tuple[int, int], fua: bool) -> None:
        clone = self.chosen(which)
        start, end = where[0], min(sum(where), len(clone.now))
        value = next(self.numbers).to_bytes(4, "little") * (UNIT // 4)
        self.volume(clone).write(value * (end - start), start * UNIT)
        self._changed(clone, start, end, value)
        if fua:
            self.perform(self._flush(which))

    @rule(which=CHOICE, where=RANGES, how=st.sampled_from(["zero", "allocate", "trim"]))
    def zero(self, which: int, where: tuple[int, int], how: str) -> None:
        clone = self.chosen(which)
        start, end = where[0], min(sum(where), len(clone.now))
        at, count = start * UNIT, (end - start) * UNIT
        if how == "trim":
            self.volume(clone).trim(at, count)
        else:
            self.volume(clone).zero(at, count, allocate=how == "allocate")
        self._changed(clone, start, end, bytes(UNIT))

    @rule(which=CHOICE)
    def read(self, which: int) -> None:
        clone = self.chosen(which)
        assert self.content(clone) == clone.now

    @rule(which=CHOICE)
    def close_client(self, which: int) -> None:
        clone = self.chosen(which)
        self.close(clone)
        clone.synced()

    @rule()
    def store_goes_away(self) -> None:
        self.disk.away = True

    @rule(
        which=CHOICE,
        what=CHOICE,
        how=st.sampled_from(["flush", "commit", "fork", "rewind", "remove", "clone", "settle"]),
    )
    def act(self, which: int, what: int, how: str) -> None:
        operation = getattr(self, f"_{how}")(which, what)
        if operation is not None:
            self.perform(operation)

    @rule(
        which=CHOICE,
        what=CHOICE,
        how=st.sampled_from(["flush", "commit", "commit", "fork", "rewind", "remove", "clone", "settle"]),
        point=st.integers(0, 45),
        power=st.booleans(),
        choice=st.randoms(use_true_random=False),
    )
    def crash(self, which: int, what: int, how: str, point: int, power: bool, choice: random.Random) -> None:
        """Begins something, and ends the server, or cuts the power, at some point of it."""
        operation = getattr(self, f"_{how}")(which, what)
        if operation is None:
            return
        self.disk.left = point
        finished = False
        with suppress(BlockmapError):
            operation.act()
            finished = True
        self.disk.dead = True
        if finished:
            operation.done()
        self._restart(power, choice)
        if not finished and operation.is_done():
            operation.done()
        self._look(power)
        self.settle()

    @rule(power=st.booleans(), choice=st.randoms(use_true_random=False))
    def crash_at_rest(self, power: bool, choice: random.Random) -> None:
        self.disk.dead = True
        self._restart(power, choice)
        self._look(power)
        self.settle()

    @rule()
    def restart(self) -> None:
        self.end()
        for each in self.clones.values():
            each.synced()
        self.start()
        self.settle()

    @rule()
    def collect(self) -> None:
        """Collects all garbage, and forgets the cache."""
        if self.disk.away:
            return
        store = open_writer(str(self.where / "store"))[0]
        collector = Collector(store, 0, 0, config_chains)
        if collector.condemn(collector.state(), collector.plan(collector.state())):
            collector.sweep(collector.state())
        for versions in self.versions.values():
            del versions[:-1]
        self.end()
        for each in self.clones.values():
            each.synced()
        shutil.rmtree(self.where / "cache")
        self.start()
        self.settle()

    # --- what may be interrupted; None where it makes no sense now

    def perform(self, operation: Operation) -> None:
        try:
            operation.act()
            operation.done()
        except StoreUnavailable:
            assert self.disk.away
            assert not operation.is_done()
        self.settle()

    def _flush(self, which: int, _: int = 0) -> Operation:
        clone = self.chosen(which)
        return Operation(lambda: self.volume(clone).flush(), clone.synced, lambda: False)

    def _clone(self, which: int, larger: int) -> Operation | None:
        if len(self.clones) >= MOST_CLONES:
            return None
        fresh = f"c{next(self.numbers)}"
        export, content = self.versions["app:1"][-1]
        size = (BASE_BLOCKS + larger) * BLOCK
        if len(content) * UNIT > size:
            return None
        now = content + [bytes(UNIT)] * (size // UNIT - len(content))

        def done() -> None:
            self.clones[fresh] = CloneModel(fresh, now, export)

        return Operation(
            lambda: self.running.clone("app:1", fresh, size), done, lambda: self.running._clones.find(fresh) is not None
        )

    def _commit(self, which: int, what: int) -> Operation:
        clone = self.chosen(which)
        captured = Captured(NAMES[what % 3], f"nonce {next(self.numbers)}", [], what % 4 == 0)
        repo, tag = captured.target.split(":")
        draft = CaptureDraft(repo, tag, captured.force, "why", "who", "[]", captured.nonce)

        def done() -> None:
            clone.synced()
            captured.content = list(clone.now)
            clone.captures.append(captured)
            self.waiting.append((clone, captured))

        def is_done() -> bool:
            nonces = {each.draft.nonce for each in self.table().captures()}
            return captured.nonce in nonces or self._entry(captured) is not None

        return Operation(lambda: self._pass(lambda: self.running.capture(clone.name, draft)), done, is_done)

    def _fork(self, which: int, what: int) -> Operation | None:
        if len(self.clones) > MOST_CLONES - 2:
            return None
        clone, number = self.chosen(which), next(self.numbers)
        names = [f"f{number}-{each}" for each in range(1 + what % 2)]

        def done() -> None:
            clone.synced()
            for each in names:
                self.clones[each] = CloneModel(each, list(clone.now), clone.base)

        def is_done() -> bool:
            there = [self.running._clones.find(each) is not None for each in names]
            assert len(set(there)) == 1, "all or none"
            return there[0]

        return Operation(lambda: self.running.fork(clone.name, names), done, is_done)

    def _rewind(self, which: int, what: int) -> Operation | None:
        clone = self.chosen(which)
        known = [each for versions in self.versions.values() for each in versions]
        export, content = known[what % len(known)]
        if len(content) > len(clone.now):
            return None
        if clone.captures:
            self._refused(clone, lambda: self.running.rewind(clone.name, export))
            return None
        pin = self.record(clone.name).pin

        def act() -> None:
            self.close(clone)
            self.running.rewind(clone.name, export)

        def done() -> None:
            clone.base = export
            clone.now = content + [bytes(UNIT)] * (len(clone.now) - len(content))
            clone.synced()

        return Operation(act, done, lambda: self.record(clone.name).pin != pin)

    def _remove(self, which: int, _: int = 0) -> Operation | None:
        clone = self.chosen(which)
        if len(self.clones) == 1:
            return None
        if clone.captures:
            self._refused(clone, lambda: self.running.remove_clone(clone.name))
            return None

        def act() -> None:
            self.close(clone)
            self.running.remove_clone(clone.name)

        return Operation(
            act, lambda: self.clones.pop(clone.name), lambda: self.running._clones.find(clone.name) is None
        )

    def _settle(self, _: int, what: int) -> Operation:
        """Publishes what waits, once the store is there again, and decides what needs a decision."""
        self.disk.away = False
        chosen = next((each for each in self.clones.values() if each.captures and each.captures[0].conflict), None)

        def act() -> None:
            if chosen is None:
                self._pass(self.running.begin)
            else:
                target = NameTarget("app", "2") if what % 3 == 0 else None
                self._pass(lambda: self.running.settle_captures(chosen.name, what % 3 == 1, target, what % 3 == 2))

        def done() -> None:
            if chosen is None:
                return
            if what % 3 == 1:
                self.waiting = [each for each in self.waiting if each[0] is not chosen]
                chosen.captures.clear()
            else:
                first = chosen.captures[0]
                first.conflict, first.force = False, what % 3 == 2
                if what % 3 == 0:
                    first.target = "app:2"

        def is_done() -> bool:
            if chosen is None:
                return False
            left = {each.draft.nonce: each for each in self.table().captures(self.record(chosen.name).id)}
            if what % 3 == 1:  # one after another
                chosen.captures = [each for each in chosen.captures if each.nonce in left]
                self.waiting = [each for each in self.waiting if each[0] is not chosen or each[1].nonce in left]
                return False
            first = left.get(chosen.captures[0].nonce)
            return first is None or not first.conflict

        return Operation(act, done, is_done)

    # --- what became of it

    def settle(self) -> None:
        """Does to the model what became of captures; checks it."""
        self._pass(self.running.begin)
        if self.disk.away:
            return
        left: list[tuple[CloneModel, Captured]] = []
        blocked: set[str] = set()
        for clone, captured in self.waiting:
            known = self.versions.setdefault(captured.target, [])
            newest = known[-1][0] if known else ""
            moved = captured.target == "app:1" and newest != clone.base and not captured.force
            captured.conflict = captured.conflict or (clone.name not in blocked and moved)
            if captured.conflict or clone.name in blocked:
                blocked.add(clone.name)
                left.append((clone, captured))
                assert self._entry(captured) is None
                continue
            entry = self._entry(captured)
            if entry is None and captured.force and newest:  # it stands for the same version already
                assert known[-1][1] == captured.content
                entry = newest
            else:
                assert entry is not None
                known.append((entry, captured.content))
            assert self.stored(entry) == captured.content
            clone.base = entry
            clone.captures.remove(captured)
        self.waiting = left
        recorded = {each.draft.nonce: bool(each.conflict) for each in self.table().captures()}
        assert recorded == {captured.nonce: captured.conflict for _, captured in left}
        for each in self.clones.values():
            assert self.record(each.name).base == each.base
        for target, versions in self.versions.items():
            repo = target.partition(":")[0]
            stood = [f"{repo}@sha256:{each.version.hex()}" for each in self._history(target) if each.version]
            assert stood[: len(versions)] == [export for export, _ in reversed(versions)]

    def _history(self, target: str) -> list[Entry]:
        repo, tag = target.split(":")
        return [each for each in NameLog(self.store()).history(repo, tag) if not each.is_fence]

    def _entry(self, captured: Captured) -> str | None:
        """Returns the export name of the version that a capture has become."""
        repo = captured.target.partition(":")[0]
        found = [each.version for each in self._history(captured.target) if each.nonce == captured.nonce]
        assert len(found) < 2
        return f"{repo}@sha256:{found[0].hex()}" if found and found[0] else None

    def _pass(self, act: Callable[[], object]) -> None:
        """Does something after which captures are published, and waits until all were tried."""
        before = self.passes
        act()
        until(lambda: self.passes > before)

    def _refused(self, clone: CloneModel, act: Callable[[], object]) -> None:
        self.close(clone)
        clone.synced()
        with pytest.raises(HostError, match="not published yet"):
            act()

    def _restart(self, power: bool, choice: random.Random) -> None:
        self.end()
        self.disk.dead, self.disk.left = False, None
        if power:
            self.disk.cut(choice)
        self.start()

    def _look(self, power: bool) -> None:
        """Checks each clone after a crash."""
        for clone in self.clones.values():
            found = self.content(clone)
            if power:
                for at, each in enumerate(found):
                    assert each in clone.may[at], f"{clone.name}, unit {at}"
                clone.now = found
                clone.synced()
            else:
                assert found == clone.now

    def _changed(self, clone: CloneModel, start: int, end: int, value: bytes) -> None:
        for at in range(start, end):
            clone.now[at] = value
            clone.may[at].add(value)


def explore(where: Path, monkeypatch: pytest.MonkeyPatch, examples: int, steps: int) -> None:
    disk = Disk()
    patch(monkeypatch, disk)
    run_state_machine_as_test(
        lambda: ClonesMachine(where / "host", disk),  # type: ignore[arg-type]
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_clones_are_their_model_through_crashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    explore(tmp_path, monkeypatch, 15, 25)


@pytest.mark.long
def test_clones_are_their_model_through_many_crashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    explore(tmp_path, monkeypatch, 400, 50)
