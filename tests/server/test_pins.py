"""What is open is pinned in the store, so that a device reads on although its name has moved and its old version is collected."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import blockmap.server.pins
from blockmap.errors import StoreReadOnly, StoreUnavailable
from blockmap.format import keys
from blockmap.format.digest import Digest
from blockmap.image.layer import config_chains
from blockmap.server.pins import OpenPins
from blockmap.server.server import Server
from blockmap.store.base import Pruner
from blockmap.store.memory import MemoryStore
from blockmap.store.names import NameLog, NameTarget
from blockmap.store.opening import create_store
from blockmap.upkeep.collect import Collector
from nbdplugin.session import Session, Sessions
from tests.image.builder import bulk, import_image
from tests.image.layouts import archive, file, layout
from tests.waiting import until

VERSION = Digest(bytes(range(32)))
DAY = 86400.0


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blockmap.server.pins, "_DELAY_S", 0.0)
    monkeypatch.setattr(blockmap.server.pins, "_PATROL_S", 0.01)


class Clock:
    """The store's clock and the host's, in seconds; both go on with `seconds`."""

    seconds = 1_700_000_000.0
    ahead = 0.0
    """What the host's clock is ahead."""

    def host(self) -> float:
        return self.seconds + self.ahead


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(clock: Clock) -> MemoryStore:
    return MemoryStore("memory:", lambda: clock.seconds)


@pytest.fixture
def pins(store: MemoryStore, clock: Clock) -> Iterator[OpenPins]:
    made = OpenPins(store, clock.host)
    yield made
    made.close()


def days(store: MemoryStore) -> list[int]:
    return [int(key.rpartition(".")[2]) for key in store.list(keys.PINS)]


def test_one_pin_holds_a_version_until_its_last_connection_is_closed(store: MemoryStore, pins: OpenPins) -> None:
    pins.hold(VERSION)
    pins.hold(VERSION)
    until(lambda: len(store.list(keys.PINS)) == 1)
    pins.release(VERSION)
    pins.hold(Digest(bytes(32)))
    until(lambda: len(store.list(keys.PINS)) == 2)
    pins.release(VERSION)
    until(lambda: store.list(keys.PINS) == store.list(keys.pin(Digest(bytes(32)), "")))
    pins.release(Digest(bytes(32)))
    until(lambda: store.list(keys.PINS) == [])
    until(lambda: "pins" not in {thread.name for thread in threading.enumerate()})
    pins.hold(VERSION)
    until(lambda: len(store.list(keys.PINS)) == 1)


@pytest.mark.parametrize("ahead", [0, DAY, -DAY])
def test_a_pin_is_made_anew_each_day_by_the_stores_clock(
    store: MemoryStore, clock: Clock, pins: OpenPins, ahead: float
) -> None:
    clock.ahead = ahead
    pins.hold(VERSION)
    first = int(clock.seconds // DAY)
    until(lambda: days(store) == [first])
    clock.seconds += DAY
    until(lambda: days(store) == [first + 1])


def test_a_store_that_does_not_answer_is_asked_again(store: MemoryStore, clock: Clock) -> None:
    create, failures = store.create, [StoreUnavailable("no answer"), StoreUnavailable("no answer")]

    def failing(key: str, parts: object) -> None:
        if failures:
            raise failures.pop()
        create(key, parts)  # type: ignore[arg-type]

    store.create = failing  # type: ignore[method-assign,assignment]
    pins = OpenPins(store, clock.host)
    pins.hold(VERSION)
    until(lambda: len(store.list(keys.PINS)) == 1)
    pins.close()
    assert len(store.list(keys.PINS)) == 1, "a device outlives a server that is started again"


def test_where_nothing_can_be_written_nothing_is_pinned(store: MemoryStore, clock: Clock) -> None:
    def refuse(key: str, data: bytes) -> None:
        raise StoreReadOnly("not this user's")

    store.replace = refuse  # type: ignore[method-assign]
    for pins in (OpenPins(store, clock.host), OpenPins(None)):
        pins.hold(VERSION)
        until(lambda: "pins" not in {thread.name for thread in threading.enumerate()})
        pins.hold(VERSION)
        pins.release(VERSION)
        pins.close()
    assert store.list("") == []


def test_a_device_reads_on_after_its_names_old_version_was_swept(tmp_path: Path) -> None:
    """The second open is of a version that no name stands for any more; what nobody has open goes."""
    made, _ = create_store(str(tmp_path / "store"))
    put(made, tmp_path, 1)
    version = NameLog(made).newest("a", "1")
    assert version is not None
    assert version.version is not None
    server = Server(made.url, tmp_path / "cache", hydrate=False)
    sessions = Sessions(server)
    try:
        session = sessions.open("a:1", is_local=True)
        until(lambda: len(made.list(keys.PINS)) == 1)
        put(made, tmp_path, 2)
        NameLog(made).remove(NameTarget("a", "1"), "")
        collect(made)
        assert made.exists(keys.version(version.version, 1))
        again = sessions.open(f"a@sha256:{version.version.hex()}", is_local=True)
        assert contents(session) == contents(again)
        for each in (session, again):
            each.close()
        until(lambda: made.list(keys.PINS) == [])
        collect(made)
        assert not made.exists(keys.version(version.version, 1))
        assert made.list("packs/") == []
    finally:
        server.close()


def test_a_device_reads_on_after_what_it_knows_was_moved(tmp_path: Path) -> None:
    """Most of the pack with its chunks is garbage, and the rest is in a new pack when it reads for the first time."""
    made, _ = create_store(str(tmp_path / "store"))
    put(made, tmp_path, 1, 3_000_000, "big:1")
    put(made, tmp_path, 2, 50_000)
    server = Server(made.url, tmp_path / "cache", hydrate=False)
    other = Server(made.url, tmp_path / "other", hydrate=False)
    try:
        session = Sessions(server).open("a:1", is_local=True)
        expected = contents(Sessions(other).open("a:1", is_local=True))
        NameLog(made).remove(NameTarget("big", "1"), "")
        before = set(made.list("packs/"))
        collect(made)
        assert len(made.list("moved/")) == 1
        assert made.list("moved/")[0].split("/")[1] in {
            key.rpartition("/")[2] for key in before - set(made.list("packs/"))
        }
        assert contents(session) == expected
        session.close()
    finally:
        server.close()
        other.close()


def put(store: Pruner, work: Path, seed: int, size: int = 300_000, name: str = "a:1") -> None:
    layers = [[file("shared", bulk(9, 400_000))], [file("data", bulk(seed, size))]]
    source = layout(work / f"image-{seed}", [archive(members) for members in layers])
    import_image(store, f"oci:{source}", name, work)


def collect(store: Pruner) -> None:
    one = Collector(store, -1, -1, config_chains)
    plan = one.plan(one.state())
    if plan.garbage or plan.sparse:
        assert one.condemn(one.state(), plan)
        one.compact(plan)
        one.sweep(one.state())


def contents(session: Session) -> bytes:
    data = bytearray(20 << 20)
    session.read(memoryview(data), 0)
    return bytes(data)
