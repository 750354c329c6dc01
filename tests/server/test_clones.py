"""Clones of one server: what they share, when they are closed, and their pins."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from blockmap.errors import Collected, DiskFull, NotFound
from blockmap.format import BLOCK, keys
from blockmap.format.collection import StepKind
from blockmap.format.digest import Digest
from blockmap.format.refs import parse_reference
from blockmap.server.server import Server
from blockmap.store.base import Pruner
from blockmap.store.collections import CollectionLog
from blockmap.store.opening import create_store
from nbdplugin.session import Sessions
from tests.image.builder import bulk
from tests.volume.building import name, publish

BLOCKS = 64
DATA = bulk(1, BLOCKS * BLOCK)


@pytest.fixture
def store(tmp_path: Path) -> Pruner:
    made = create_store(str(tmp_path / "store"))[0]
    name(made, publish(made, [(0, DATA)], BLOCKS), "app", "1")
    return made


@pytest.fixture
def server(store: Pruner, tmp_path: Path) -> Iterator[Server]:
    opened = Server(str(tmp_path / "store"), tmp_path / "cache", 1 << 28, state=tmp_path / "state")
    yield opened
    opened.close()


def version(server: Server) -> Digest:
    digest = parse_reference(server.version("app:1")).digest
    assert digest is not None
    return Digest(digest)


def test_clients_of_a_clone_share_it_and_clones_share_their_base(server: Server) -> None:
    sessions = Sessions(server)
    for clone in ("a", "b"):
        server.clone("app:1", clone, None)
    image, first, again, other = (sessions.open(each, True) for each in ("app:1", "a", "a", "b"))
    assert first.volume is again.volume
    assert first.volume._base is other.volume._base is image.volume  # type: ignore[attr-defined]
    first.writable.write(b"x" * BLOCK, 0)
    buf = bytearray(BLOCK)
    again.read(memoryview(buf), 0)
    assert buf == b"x" * BLOCK
    other.read(memoryview(buf), 0)
    assert buf == DATA[:BLOCK]
    exports = {each["export"]: each["connections"] for each in sessions.status()["exports"]}  # type: ignore[attr-defined]
    assert exports == {server.version("app:1"): 1, "a": 2, "b": 1}
    for each in (image, first, again, other):
        sessions.close(each)
    assert sessions.status()["exports"] == []


def test_what_was_written_without_a_flush_is_there_for_the_next_client(server: Server) -> None:
    sessions = Sessions(server)
    server.clone("app:1", "c", None)
    session = sessions.open("c", True)
    session.writable.write(b"x" * BLOCK, 0)
    sessions.close(session)
    assert not server.is_untouched("c")
    session = sessions.open("c", True)
    buf = bytearray(BLOCK)
    session.read(memoryview(buf), 0)
    assert buf == b"x" * BLOCK
    sessions.close(session)


def test_a_clone_that_cannot_be_flushed_stays_open(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    sessions = Sessions(server)
    server.clone("app:1", "c", None)
    session = sessions.open("c", True)
    session.writable.write(b"x" * BLOCK, 0)
    volume = session.volume

    def fail(*_: object) -> None:
        raise DiskFull("no room left")

    with monkeypatch.context() as patched:
        patched.setattr(volume, "_keep", fail)
        sessions.close(session)
    session = sessions.open("c", True)
    assert session.volume is volume
    sessions.close(session)
    session = sessions.open("c", True)
    assert session.volume is not volume
    sessions.close(session)


def test_a_clone_pins_its_version(server: Server, store: Pruner) -> None:
    pinned = f"{keys.PINS}{version(server).hex()}/"
    server.clone("app:1", "a", None)
    server.clone("app:1", "b", None)
    assert len(store.list(pinned)) == 2
    server.remove_clone("a")
    assert len(store.list(pinned)) == 1
    server.remove_clone("b")
    assert store.list(pinned) == []


def test_a_version_that_is_condemned_gets_no_clone(server: Server, store: Pruner) -> None:
    log = CollectionLog(store)
    assert log.append(log.state(), StepKind.CONDEMN, [keys.version(version(server), 1)])
    with pytest.raises(Collected, match="condemned"):
        server.clone("app:1", "c", None)
    assert store.list(keys.PINS) == []
    with pytest.raises(NotFound):
        server.open("c")
