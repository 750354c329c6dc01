"""A process that is killed at each point at which something becomes durable, one after another, and looks at what is left:

    python -m tests.upkeep.crashing points SCENARIO WHERE FIRST EVERY [STORE]
    python -m tests.upkeep.crashing moments SCENARIO WHERE COUNT

A scenario prepares a folder with a store and clones; acts on a copy of it, in a process that is killed by SIGKILL at point
FIRST, FIRST + EVERY and so on; and checks, in a process of its own, that all is there that was told. The points are those before
each fsync, fdatasync, link, rename, unlink and mkdir, and before each transaction of SQLite; with STORE, the URL of a place in an
object store, those before and after each put and delete as well. Or it is killed at COUNT moments. It prints the number of points,
and at which it was killed.
"""

import itertools
import json
import os
import random
import shutil
import signal
import sqlite3
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import obstore

from blockmap.cli.fsck import fsck
from blockmap.cli.garbage import gc
from blockmap.cli.images import create
from blockmap.cli.imports import import_
from blockmap.commit.task import PublishedCapture
from blockmap.errors import NotFound
from blockmap.format import BLOCK, keys
from blockmap.format.refs import parse_reference
from blockmap.image.layer import config_chains
from blockmap.server.server import Server
from blockmap.store.base import Pruner
from blockmap.store.collections import store_time
from blockmap.store.names import NameLog, NameTarget
from blockmap.store.opening import open_writer
from blockmap.store.repository import Repository
from blockmap.store.resolver import Resolved, find_version
from blockmap.store.volume_reader import stored_reader
from blockmap.upkeep.collect import Collector
from blockmap.upkeep.verify import check_version
from blockmap.volume.clone import CloneVolume
from blockmap.volume.clone_table import CaptureDraft
from tests.commit.in_process import InProcess
from tests.image.builder import bulk, import_image
from tests.image.layouts import archive, file, layout
from tests.store.made import open_or_create
from tests.waiting import until

SIZE = 48 * BLOCK
OWN, SHARED, DISK = bulk(1, 16 * BLOCK), bulk(2, 16 * BLOCK), bulk(3, SIZE)


class Place:
    """A host: its folder, its clones, and a store."""

    def __init__(self, where: Path, store: str) -> None:
        self.where, self.url, self.state = where, store or str(where / "store"), where / "state"

    @property
    def store(self) -> Pruner:
        return open_writer(self.url)[0]

    def put(self, name: str, data: bytes) -> None:
        """Imports a disk; makes the store if there is none."""
        disk = self.where / "disk"
        disk.write_bytes(data)
        open_or_create(self.url)
        import_image(self.store, str(disk), name, self.where)

    def check(self, reference: str) -> tuple[Repository, Resolved]:
        """Checks that all is whole that a reference stands for."""
        repository = Repository(self.store)
        found = find_version(repository, parse_reference(reference))
        assert [fault.message for fault in check_version(repository, found.version)] == []
        return repository, found

    def bytes(self, reference: str) -> bytes:
        """Returns what a disk's name stands for, all of which must be whole."""
        repository, found = self.check(reference)
        return stored_reader(repository, found.root)(0, found.root.size * BLOCK)

    def history(self, name: str) -> list[str]:
        """What a name stood for, the oldest first."""
        repo, tag = name.split(":")
        entries = [each for each in NameLog(self.store).history(repo, tag) if not each.is_fence]
        return [f"{repo}@sha256:{each.version.hex()}" for each in reversed(entries) if each.version is not None]

    def collect(self) -> None:
        """Collects all garbage; a collection that was begun before is ended first."""
        for _ in range(3):
            before = store_time(self.store)
            until(lambda before=before: store_time(self.store) > before)  # an object store's has whole seconds
            run(gc, "--store", self.url, "--keep", "0s", "--grace", "0s")
        run(fsck, "--store", self.url, "--keep", "0s")

    @contextmanager
    def server(self) -> Iterator[Server]:
        """A server that publishes in this process."""
        publisher = InProcess(self.url, self.state)
        made = Server(self.url, self.where / "cache", 1 << 24, state=self.state, publisher=publisher, hydrate=False)
        try:
            yield made
        finally:
            made.close()


def run(command: Any, *arguments: str) -> None:
    command.main(list(arguments), standalone_mode=False)


class Scenario(Protocol):
    def prepare(self, place: Place) -> None: ...

    def act(self, place: Place, tell: Callable[[], None]) -> None:
        """Does several things; tells when each is done."""

    def check(self, place: Place, told: int) -> None:
        """Fails unless all is there that was told, and one thing more at most."""


class Imports:
    """An image is imported under a name that stands for another, with which it shares a layer."""

    def prepare(self, place: Place) -> None:
        for own in (OWN, OWN[::-1]):
            layout(self._layout(place, own), [archive([file("shared", SHARED)]), archive([file("own", own)])])
            import_image(place.where / "reference", f"oci:{self._layout(place, own)}", "app:1", place.where)
        (place.where / "expected").write_text(
            json.dumps(Place(place.where, str(place.where / "reference")).history("app:1"))
        )
        place.put("disk:1", DISK)
        import_image(place.store, f"oci:{self._layout(place, OWN)}", "app:1", place.where)

    def act(self, place: Place, tell: Callable[[], None]) -> None:
        source, cache = f"oci:{self._layout(place, OWN[::-1])}", str(place.where / "cache")
        run(import_, source, "app:1", "--store", place.url, "--cache", cache, "--quiet", "--platform", "linux/amd64")
        tell()

    def check(self, place: Place, told: int) -> None:
        expected = json.loads((place.where / "expected").read_text())
        found = place.history("app:1")
        assert found in (expected, expected[: 1 + told])
        for each in found:
            place.check(each)
        self.act(place, lambda: None)
        assert place.history("app:1") == expected
        place.collect()
        place.check("app:1")
        assert place.bytes("disk:1") == DISK
        assert garbage(place) == []

    @staticmethod
    def _layout(place: Place, own: bytes) -> Path:
        return place.where / f"image-{own[0]}"


class Creates:
    """A store is made."""

    def prepare(self, place: Place) -> None:
        pass

    def act(self, place: Place, tell: Callable[[], None]) -> None:
        run(create, place.url)
        tell()

    def check(self, place: Place, told: int) -> None:
        place.put("disk:1", DISK)
        assert place.bytes("disk:1") == DISK


class Collects:
    """What a name stood for, what another stood for, and leftovers go; a clone keeps its version."""

    def prepare(self, place: Place) -> None:
        for number in range(3):
            place.put("app:1", bulk(number, 8 * BLOCK) + SHARED)
        place.put("gone:1", bulk(9, SIZE))
        with place.server() as server:
            server.clone("app:1@{2}", "c", None)
        NameLog(place.store).remove(NameTarget("gone", "1"), "")

    def act(self, place: Place, tell: Callable[[], None]) -> None:
        for _ in range(2):
            run(gc, "--store", place.url, "--keep", "0s", "--grace", "0s")
            tell()

    def check(self, place: Place, told: int) -> None:
        self._look(place)
        place.collect()
        self._look(place)
        try:
            place.bytes("app:1@{1}")
        except NotFound:
            pass
        else:
            raise AssertionError("it was garbage")
        assert garbage(place) == []

    def _look(self, place: Place) -> None:
        assert place.bytes("app:1") == bulk(2, 8 * BLOCK) + SHARED
        shutil.rmtree(place.where / "cache", ignore_errors=True)
        with place.server() as server:
            assert content(server, "c") == bulk(1, 8 * BLOCK) + SHARED


@dataclass(frozen=True, slots=True)
class HostState:
    """What clones have, and what names stand for, the oldest first."""

    clones: dict[str, bytes]
    names: dict[str, list[bytes]]


Step = tuple[Callable[[Server], object], Callable[[HostState], HostState]]


class Clones:
    """Clones are made, written to, captured, forked, put back and removed; what is captured is published at once."""

    def __init__(self) -> None:
        numbers = itertools.count()

        def write(name: str, block: int, seed: int) -> Step:
            data = bulk(seed, 2 * BLOCK)

            def act(server: Server) -> None:
                with opened(server, name) as volume:
                    volume.write(data, block * BLOCK)
                    volume.flush()

            return act, lambda state: changed(state, name, data, block)

        def zero(name: str, block: int) -> Step:
            def act(server: Server) -> None:
                with opened(server, name) as volume:
                    volume.trim(block * BLOCK, 2 * BLOCK)

            return act, lambda state: changed(state, name, bytes(2 * BLOCK), block)

        def commit(name: str, target: str, force: bool = False) -> Step:
            repo, tag = target.split(":")
            draft = CaptureDraft(repo, tag, force, "why", "who", "[]", f"nonce {next(numbers)}")

            def act(server: Server) -> None:
                number = server.capture(name, draft)
                assert isinstance(server.published(number, 30), PublishedCapture)

            def after(state: HostState) -> HostState:
                named = [*state.names.get(target, []), state.clones[name]]
                return HostState(state.clones, {**state.names, target: named})

            return act, after

        def fork(name: str, *names: str) -> Step:
            return (
                lambda server: server.fork(name, names),
                lambda state: HostState({**state.clones, **dict.fromkeys(names, state.clones[name])}, state.names),
            )

        def rewind(name: str, reference: str, at: int) -> Step:
            def after(state: HostState) -> HostState:
                found = state.names[reference.partition("@")[0]][at]
                return HostState({**state.clones, name: found}, state.names)

            return lambda server: server.rewind(name, reference), after

        def remove(name: str) -> Step:
            return (
                lambda server: server.remove_clone(name),
                lambda state: HostState(
                    {each: state.clones[each] for each in state.clones if each != name}, state.names
                ),
            )

        def clone(name: str) -> Step:
            return (
                lambda server: server.clone("disk:1", name, None),
                lambda state: HostState({**state.clones, name: state.names["disk:1"][-1]}, state.names),
            )

        self._steps = [
            clone("c"), write("c", 3, 10), zero("c", 4), commit("c", "disk:1"), write("c", 7, 11),
            fork("c", "d", "e"), write("d", 9, 12), commit("d", "other:1"), commit("c", "disk:1", force=True),
            write("c", 20, 13), rewind("c", "disk:1@{1}", 0), write("c", 1, 14), commit("c", "disk:1", force=True),
            remove("d"),
        ]  # fmt: skip
        self._states = [HostState({}, {"disk:1": [DISK]})]
        for _, after in self._steps:
            self._states.append(after(self._states[-1]))

    def prepare(self, place: Place) -> None:
        place.put("disk:1", DISK)

    def act(self, place: Place, tell: Callable[[], None]) -> None:
        with place.server() as server:
            for act, _ in self._steps:
                act(server)
                tell()

    def check(self, place: Place, told: int) -> None:
        found = self._state(place)
        assert found in self._states[told : told + 2], f"after {told} steps"
        with place.server() as server:  # all can go on
            for number, each in enumerate(found.clones):
                with opened(server, each) as volume:
                    volume.write(bulk(50 + number, BLOCK), 30 * BLOCK)
                done = server.published(server.capture(each, CaptureDraft("new", each, False, "", "", "[]", each)), 30)
                assert isinstance(done, PublishedCapture), done
        for number, each in enumerate(found.clones):
            moment = bytearray(found.clones[each])
            moment[30 * BLOCK : 31 * BLOCK] = bulk(50 + number, BLOCK)
            assert place.bytes(f"new:{each}") == moment
        place.collect()
        shutil.rmtree(place.where / "cache")
        with place.server() as server:
            for each in found.clones:
                assert content(server, each) == place.bytes(f"new:{each}")
                server.remove_clone(each)
            server.clone("disk:1", "last", None)
            server.remove_clone("last")
        left = [path.stat().st_size for path in (place.state / "layers").iterdir()]
        assert not any(left), "a layer that was made for a capture or fork that never was is empty"
        assert len(place.store.list(keys.PINS)) <= 2, "those of the clones that were about to be made"
        place.collect()
        assert garbage(place) == []
        assert place.bytes("disk:1") == found.names["disk:1"][-1]

    def _state(self, place: Place) -> HostState:
        """Returns what there is once all that was captured is published."""
        with place.server() as server:
            server.begin()
            until(lambda: server._clones.captures() == [])
            clones = {name: content(server, name) for name, _ in server._clones.names()}
        names = {"disk:1": [place.bytes(each) for each in place.history("disk:1")]}
        if other := place.history("other:1"):
            names["other:1"] = [place.bytes(each) for each in other]
        return HostState(clones, names)


def changed(state: HostState, name: str, data: bytes, block: int) -> HostState:
    now = bytearray(state.clones[name])
    now[block * BLOCK : block * BLOCK + len(data)] = data
    return HostState({**state.clones, name: bytes(now)}, state.names)


@contextmanager
def opened(server: Server, name: str) -> Iterator[CloneVolume]:
    found = server.open(name)
    assert isinstance(found.volume, CloneVolume)
    try:
        yield found.volume
    finally:
        found.close()


def content(server: Server, name: str) -> bytes:
    found = server.open(name)
    try:
        buf = bytearray(b"\xee" * found.volume.size)
        found.volume.reader(found.start)(memoryview(buf), 0)
        return bytes(buf)
    finally:
        found.close()


def garbage(place: Place) -> list[str]:
    """What is left that nothing needs, however young, and what killed writers left in a directory."""
    collector = Collector(place.store, 0, 0, config_chains)
    plan = collector.plan(collector.state())
    left = [str(path) for path in Path(place.url).rglob(".tmp-*")] if "://" not in place.url else []
    return [*plan.garbage, *plan.young, *left]


SCENARIOS: dict[str, Callable[[], Scenario]] = {
    "create": Creates,
    "import": Imports,
    "gc": Collects,
    "clone": Clones,
}


class Killer:
    """Counts points, and kills this process at one of them."""

    def __init__(self, at: int, log: Path) -> None:
        self._at = at
        self._lock = threading.Lock()
        self._count = 0
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def point(self, what: str) -> None:
        with self._lock:
            os.write(self._log, f"{what}\n".encode())
            if self._count == self._at:
                os.kill(os.getpid(), signal.SIGKILL)
            self._count += 1

    def install(self) -> None:
        for name in ("fsync", "fdatasync", "link", "rename", "unlink", "mkdir"):
            self._before(os, name)
        for name in ("put", "delete"):
            self._before(obstore, name, after=True)
        point, connect = self.point, sqlite3.connect

        class Counted(sqlite3.Connection):
            def executescript(self, script: str) -> sqlite3.Cursor:
                point("sqlite")
                return super().executescript(script)

            def __exit__(self, *about: Any) -> Any:
                point("sqlite")
                return super().__exit__(*about)

        sqlite3.connect = lambda *arguments, **named: connect(*arguments, factory=Counted, **named)  # type: ignore[assignment]

    def _before(self, module: Any, name: str, after: bool = False) -> None:
        inner = getattr(module, name)

        def call(*arguments: Any, **named: Any) -> Any:
            self.point(name)
            done = inner(*arguments, **named)
            if after:
                self.point(f"{name} done")
            return done

        setattr(module, name, call)


def apart(work: Callable[[], object], seconds: float | None = None) -> int:
    """Does something in a process of its own, killed after so many seconds; returns its status, as `subprocess` does."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def crash(scenario: Scenario, where: Path, at: int, store: str = "", seconds: float | None = None) -> list[str] | None:
    """Acts on a copy of what was prepared; returns the points that were met if it was killed, None if it came to its end."""
    place = Place(where / "copy", store and f"{store}/{at}")
    if store:
        place.where.mkdir()
        assert apart(lambda: scenario.prepare(place)) == 0
    else:
        shutil.copytree(where / "prepared", place.where)
    told, points = place.where / "told", place.where / "points"
    for each in (told, points):
        each.touch()

    def act() -> None:
        Killer(at, points).install()
        fd = os.open(told, os.O_WRONLY | os.O_APPEND)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        scenario.act(place, lambda: os.write(fd, b"."))

    def check() -> None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        scenario.check(place, told.stat().st_size)

    status = apart(act, seconds)
    assert status in (0, -signal.SIGKILL), status
    met = points.read_text().splitlines()
    looked = apart(check)
    assert looked == 0, f"killed at point {at}, {met[-1:]}, after {told.stat().st_size} steps: {looked}"
    shutil.rmtree(place.where)
    return met if status else None


def main(how: str, name: str, where: str, *numbers: str) -> None:
    scenario, top = SCENARIOS[name](), Path(where)
    store = numbers[2] if len(numbers) > 2 else ""
    if not store:
        (top / "prepared").mkdir()
        assert apart(lambda: scenario.prepare(Place(top / "prepared", ""))) == 0
    killed = Counter[str]()
    met: list[str] = []
    if how == "points":
        at = int(numbers[0])
        while (found := crash(scenario, top, at, store)) is not None:
            met = found
            killed[met[-1]] += 1
            at += int(numbers[1])
    else:
        began, chosen = time.monotonic(), random.Random(name)
        assert crash(scenario, top, -1) is None
        seconds = (time.monotonic() - began) / 2  # the check takes as long
        for _ in range(int(numbers[0])):
            found = crash(scenario, top, -1, seconds=chosen.random() * seconds)
            killed["killed" if found is not None else "ended before"] += 1
    print(json.dumps({"points": len(met), "killed": sum(killed.values()), "at": killed}))


if __name__ == "__main__":
    main(*sys.argv[1:])
