"""A server under load takes its locks in the order that blockmap.server says, and in no other."""

import linecache
import random
import re
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from graphlib import TopologicalSorter
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import blockmap.server
from blockmap.format import BLOCK, hint, keys
from blockmap.server.server import Server
from blockmap.store.opening import create_store
from nbdplugin.session import Sessions
from tests.image.builder import bulk
from tests.volume.building import name, publish
from tests.volume.bundled import bundled

BLOCKS = 600
SEEDS = {"app:1": 1, "app:1+migrate": 1, "other:1": 2}
"""What the data of each export is made of; the first two are one version."""
OURS = Path(blockmap.server.__file__).parents[2]
_ASSIGNED = re.compile(r"\s*(?:self\.)?(\w+)\b.*=")

Pairs = set[tuple[str, str]]
"""Locks of which the second was taken while the first was held."""


def listed_threads() -> set[str]:
    """The first column of the table beside the server."""
    first = [line[4:30] for line in str(blockmap.server.__doc__).splitlines() if line.startswith("    ")]
    return {name for cell in first for name in re.split(r", |  | \(", cell)}


def allowed_pairs() -> Pairs:
    """The exceptions that the text beside the server lists."""
    return set(re.findall(r"^ +(\w+\.\w+) +> (\w+\.\w+)", str(blockmap.server.__doc__), re.MULTILINE))


class LockWatch:
    """Notes which locks each thread takes while it holds others; locks are known by class and attribute."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pairs: Pairs = set()
        self.threads: set[str] = set()
        """The names of those that took any."""
        self._held = threading.local()
        self._lock, self._rlock, self._condition = threading.Lock, threading.RLock, threading.Condition
        monkeypatch.setattr(threading, "Lock", lambda: self._watched(self._lock(), WatchedLock))
        monkeypatch.setattr(threading, "RLock", lambda: self._watched(self._rlock(), WatchedRLock))
        monkeypatch.setattr(threading, "Condition", self._make_condition)

    def took(self, lock: "WatchedLock") -> None:
        held = self._held.__dict__.setdefault("locks", [])
        if lock not in held:
            self.pairs |= {(each.name, lock.name) for each in held}
        held.append(lock)
        self.threads.add(re.sub(r"_\d+$", "", threading.current_thread().name))

    def left(self, lock: "WatchedLock") -> None:
        self._held.locks.remove(lock)

    def _make_condition(self, lock: Any = None) -> Any:
        return self._condition(self._watched(self._rlock(), WatchedRLock) if lock is None else lock)

    def _watched(self, lock: Any, kind: "Callable[[Any, str, LockWatch], Any]") -> Any:
        made_in = sys._getframe(2)
        return kind(lock, _name(made_in), self) if _is_ours(made_in) else lock


def _is_ours(frame: FrameType) -> bool:
    path = Path(frame.f_code.co_filename)
    return path.is_relative_to(OURS / "blockmap") or path.is_relative_to(OURS / "nbdplugin")


def _name(frame: FrameType) -> str:
    """Class and attribute, or function and variable."""
    line = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
    assigned = _ASSIGNED.match(line)
    assert assigned, line
    return f"{frame.f_code.co_qualname.split('.')[0]}.{assigned[1]}"


class WatchedLock:
    def __init__(self, lock: Any, name: str, watch: LockWatch) -> None:
        self.name = name
        self._lock, self._watch = lock, watch

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        got = bool(self._lock.acquire(blocking, timeout))
        if got:
            self._watch.took(self)
        return got

    def release(self) -> None:
        self._watch.left(self)
        self._lock.release()

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


class WatchedRLock(WatchedLock):
    """With what a condition asks of a lock that may be taken twice; it is taken once, here."""

    def _release_save(self) -> Any:
        self._watch.left(self)
        return self._lock._release_save()

    def _acquire_restore(self, state: Any) -> None:
        self._lock._acquire_restore(state)
        self._watch.took(self)

    def _is_owned(self) -> bool:
        return bool(self._lock._is_owned())


def import_all(folder: Path) -> None:
    """Makes a store with two images, each with bundles for two labels."""
    store = create_store(str(folder))[0]
    for export, seed in (("app", 1), ("other", 2)):
        root = publish(store, [(0, bulk(seed, BLOCKS * BLOCK))], BLOCKS)
        made = name(store, root, export, "1")
        bundles = tuple(
            replace(bundled(store, root, wanted, keys.bundle(made.name, label, 1, 1)), label=label)
            for label, wanted in (("default", range(0, 200, 3)), ("migrate", range(150, 300, 2)))
        )
        key = keys.name_hint(export, "1")
        store.replace(key, hint.encode(replace(hint.decode(store.get(key), export, "1"), bundles=bundles)))


class Load:
    """Clients of two versions, one of them under two labels, and whoever asks the server something meanwhile."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.sessions = Sessions(server)

    def read(self, seed: int) -> None:
        chosen = random.Random(seed)
        for _ in range(6):
            export = chosen.choice(list(SEEDS))
            session = self.sessions.open(export, True)
            data = bulk(SEEDS[export], BLOCKS * BLOCK)
            for _ in range(100):
                block = chosen.randrange(BLOCKS - 4)
                buf = bytearray(4 * BLOCK)
                session.read(memoryview(buf), block * BLOCK)
                assert buf == data[block * BLOCK : (block + 4) * BLOCK]
                session.tally().hits += 1
            session.volume.want(chosen.randrange(BLOCKS) * BLOCK, 16 * BLOCK, session.start)
            session.volume.extents(0, session.volume.size, session.start)
            self.sessions.close(session)

    def write(self, seed: int) -> None:
        chosen = random.Random(seed)
        for number in range(20):
            session = self.sessions.open("clone", True)
            for _ in range(20):
                block = chosen.randrange(BLOCKS - 4)
                session.writable.write(bytes([number]) * BLOCK, block * BLOCK)
                session.read(memoryview(bytearray(4 * BLOCK)), block * BLOCK)
                session.writable.trim(chosen.randrange(BLOCKS) * BLOCK, BLOCK)
                session.tally().hits += 1
            session.writable.flush()
            session.volume.extents(0, session.volume.size, session.start)
            self.sessions.close(session)

    def ask(self, seed: int) -> None:
        chosen = random.Random(seed)
        for _ in range(40):
            export = chosen.choice(list(SEEDS))
            pinned, _, label = self.server.resolve(export).partition("+")
            self.server.traces.expect(pinned, label or "default", exact=True, start=True)
            self.server.readings(export)
            self.server.hydrate(export)
            self.server.names()
            self.sessions.status()
            self.server.calls.since(0, 10)
            self.server.traces.traces()
            self.server.traces.ready(pinned, label or "default")


def test_locks_are_taken_in_the_order_that_is_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import_all(tmp_path / "store")
    watch = LockWatch(monkeypatch)
    server = Server(str(tmp_path / "store"), tmp_path / "cache", 300 * BLOCK)
    server.clone("app:1", "clone", None)
    load = Load(server)
    with ThreadPoolExecutor(8, "test") as pool:
        acts = [load.read] * 4 + [load.ask] * 2 + [load.write] * 2
        done = [pool.submit(act, seed) for seed, act in enumerate(acts)]
        for each in done:
            each.result(120)
    status = server.status()
    server.close()
    assert status["cache"]["evicted"] > 0  # type: ignore[index]
    assert status["fetch"]["bundles"] > 0  # type: ignore[index]
    assert ("Cache._room", "Cache._lock") in watch.pairs, "the test sees pairs"
    assert watch.pairs <= allowed_pairs()
    assert watch.threads - {"MainThread", "test"} <= listed_threads()


def test_the_order_that_is_written_down_has_no_circle() -> None:
    order = TopologicalSorter[str]()
    for outer, inner in allowed_pairs():
        order.add(inner, outer)
    assert list(order.static_order())
