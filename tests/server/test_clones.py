"""Clones of one server: what they share, when they are closed, and their pins."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from blockmap.commit.task import PublishedCapture, PublishTask
from blockmap.errors import Collected, DiskFull, NameMoved, NotFound
from blockmap.format import BLOCK, keys
from blockmap.format.collection import StepKind
from blockmap.format.digest import ABSENT, Digest
from blockmap.format.refs import parse_reference
from blockmap.server import commits
from blockmap.server.pin_notes import PinNotes
from blockmap.server.server import Server
from blockmap.store.base import Pruner
from blockmap.store.collections import CollectionLog
from blockmap.store.directory import DirectoryStore
from blockmap.store.opening import create_store, parse_format
from blockmap.store.pins import pin_version
from blockmap.store.repository import Repository
from blockmap.store.resolver import find_version
from blockmap.store.volume_reader import stored_reader
from blockmap.upkeep.verify import check_version
from blockmap.volume.clone_table import CaptureDraft, CloneTable
from blockmap.volume.scratch import ScratchFile, layer_file
from nbdplugin.session import Sessions
from tests.commit.in_process import InProcess
from tests.image.builder import bulk, import_image
from tests.image.layouts import archive, file, layout
from tests.volume.building import name, publish
from tests.waiting import until

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


def test_what_a_crash_left_of_clones_goes_when_a_server_starts(server: Server, store: Pruner, tmp_path: Path) -> None:
    """Pins whose clone was never recorded, or is gone, and layers that are in none; what is young may be in the making."""
    server.clone("app:1", "kept", None)
    held, state = version(server), tmp_path / "state"
    notes = PinNotes(state, parse_format(store.get(keys.FORMAT), store.url).store)
    (kept,) = store.list(keys.PINS)
    for holder in ("clone-old", "clone-young"):
        notes.add(held, holder)
        pin_version(store, held, holder)
    store.create(keys.pin(held, "clone-of-another-host"), [b""])
    table = CloneTable(state)
    old, young, bare, spare = (table.add_layer() for _ in range(4))
    layer_file(state, old).parent.mkdir(exist_ok=True)
    for layer in (old, young):
        layer_file(state, layer).touch()
    in_use = ScratchFile(layer_file(state, spare))
    for path in (*state.glob("pins/*/*"), *state.glob("layers/*")):
        if "young" not in path.name and path != layer_file(state, young):
            os.utime(path, (time.time() - 7200,) * 2)
    server.begin()
    until(lambda: len(store.list(keys.PINS)) == 3)
    assert set(store.list(keys.PINS)) == {kept, keys.pin(held, "clone-young"), keys.pin(held, "clone-of-another-host")}
    until(lambda: len(list(state.glob("pins/*/*"))) == 2)
    assert table.loose_layers() == [young, bare, spare]
    assert not layer_file(state, old).exists()
    assert layer_file(state, young).exists()
    assert layer_file(state, spare).exists()
    in_use.close()
    table.close()


class Hooked(InProcess):
    """Calls something before each attempt."""

    def __init__(self, where: Path, before: Callable[[], object] = lambda: None) -> None:
        super().__init__(str(where / "store"), where / "state")
        self._before = before

    def publish(self, task: PublishTask) -> PublishedCapture:
        self._before()
        return super().publish(task)


@pytest.fixture
def committing(store: Pruner, tmp_path: Path) -> Iterator[Server]:
    """A server with a clone, c, of which a moment with blocks 0 and 1 written is captured and not published yet."""
    gate = threading.Event()

    def late() -> None:
        assert gate.wait(30)

    opened = Server(
        str(tmp_path / "store"), tmp_path / "cache", 1 << 28, state=tmp_path / "state", publisher=Hooked(tmp_path, late)
    )
    opened.clone("app:1", "c", None)
    volume = opened.open("c")
    volume.volume.write(b"x" * 2 * BLOCK, 0)  # type: ignore[attr-defined]
    volume.close()
    number = opened.capture("c", CaptureDraft("new", "1", False, "", "", "[]", "n"))

    def publish_now() -> None:
        gate.set()
        assert isinstance(opened.published(number, 30), PublishedCapture)

    opened.publish_now = publish_now  # type: ignore[attr-defined]
    yield opened
    gate.set()
    opened.close()


def between(server: Server, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """Has the capture published just before a method of the clones runs, which got what was found before."""
    inner = getattr(server._clones, method)

    def late(*arguments: object) -> object:
        monkeypatch.undo()
        server.publish_now()  # type: ignore[attr-defined]
        return inner(*arguments)

    monkeypatch.setattr(server._clones, method, late)


def test_a_clone_that_is_put_on_its_version_while_it_is_opened(
    committing: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its layers are gone then, and the version below must be the new one."""
    between(committing, monkeypatch, "open")
    opened = committing.open("c")
    buf = bytearray(BLOCK)
    opened.volume.reader(opened.start)(memoryview(buf), 0)
    assert buf == b"x" * BLOCK
    opened.close()


def test_a_clone_that_is_put_on_its_version_while_it_is_forked(
    committing: Server, store: Pruner, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = committing.open("c")
    between(committing, monkeypatch, "fork")
    committing.fork("c", ["d", "e"])
    opened.close()
    for each in ("c", "d", "e"):
        record = committing._clones.find(each)
        assert record is not None
        digest = parse_reference(record.base).digest
        assert digest is not None
        assert store.exists(keys.pin(Digest(digest), record.pin)), f"{each} is without a pin"
    assert len(store.list(keys.PINS)) == 3


def test_a_clone_that_is_put_on_its_version_while_it_is_captured(
    committing: Server, store: Pruner, monkeypatch: pytest.MonkeyPatch
) -> None:
    between(committing, monkeypatch, "capture")
    number = committing.capture("c", CaptureDraft("new", "2", False, "", "", "[]", "m"))
    done = committing.published(number, 30)
    assert isinstance(done, PublishedCapture)
    repository = Repository(store)
    found = find_version(repository, parse_reference("new:2"))
    assert stored_reader(repository, found.root)(0, 2 * BLOCK) == b"x" * 2 * BLOCK


def test_who_waits_for_a_capture_is_told_that_it_was_dropped(committing: Server) -> None:
    (capture,) = committing._clones.captures()
    committing.settle_captures("c", True, None, False)
    with pytest.raises(NotFound, match="dropped"):
        committing.published(capture.id, 30)


def test_what_upper_layers_hide_stays_in_committed_versions(tmp_path: Path) -> None:
    """Hosts know a version by the hint of its name, which does not say where hidden contents are."""
    store = tmp_path / "store"
    layers = [archive([file("a", bulk(1, 40 * BLOCK))]), archive([file("a", bulk(2, 40 * BLOCK))])]
    import_image(store, f"oci:{layout(tmp_path / 'image', layers)}", "app:1", tmp_path)
    server = Server(str(store), tmp_path / "cache", 1 << 28, state=tmp_path / "state", publisher=Hooked(tmp_path))
    try:
        server.clone("app:1", "c", None)
        for number in range(2):
            volume = server.open("c")
            volume.volume.write(b"x" * BLOCK, (100 + number) * BLOCK)  # type: ignore[attr-defined]
            volume.close()
            captured = server.capture("c", CaptureDraft("new", "1", False, "", "", "[]", str(number)))
            assert isinstance(server.published(captured, 30), PublishedCapture)
    finally:
        server.close()
    repository = Repository(DirectoryStore(store))
    below = find_version(repository, parse_reference("app:1")).version.extra
    assert below.digest != ABSENT
    for committed in ("new:1", "new:1@{1}"):
        version = find_version(repository, parse_reference(committed)).version
        assert version.extra == below
        assert list(check_version(repository, version)) == []


def test_an_error_that_nobody_expects_ends_no_publishing(
    store: Pruner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when no process can be started."""
    monkeypatch.setattr(commits, "_RETRY_SECONDS", (0.01,))
    failures = [OSError("no more processes")]

    def fail_first() -> None:
        if failures:
            raise failures.pop()

    server = Server(
        str(tmp_path / "store"), tmp_path / "cache", 1 << 28, state=tmp_path / "state",
        publisher=Hooked(tmp_path, fail_first),
    )  # fmt: skip
    try:
        server.clone("app:1", "c", None)
        number = server.capture("c", CaptureDraft("app", "1", False, "", "", "[]", "1"))
        assert isinstance(server.published(number, 30), PublishedCapture)
    finally:
        server.close()


def test_a_conflict_that_cannot_be_recorded_stops_no_later_commit(
    store: Pruner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server(
        str(tmp_path / "store"), tmp_path / "cache", 1 << 28, state=tmp_path / "state",
        publisher=Hooked(tmp_path),
    )  # fmt: skip
    try:
        for clone in ("a", "b"):
            server.clone("app:1", clone, None)
        name(store, publish(store, [(0, DATA[::-1])], BLOCKS), "app", "1")

        def full(*_: object) -> None:
            raise DiskFull("no room left")

        with monkeypatch.context() as patched:
            patched.setattr(server._clones, "note_conflict", full)
            with pytest.raises(NameMoved):
                server.published(server.capture("a", CaptureDraft("app", "1", False, "", "", "[]", "1")), 30)
        done = server.published(server.capture("b", CaptureDraft("b", "1", False, "", "", "[]", "2")), 30)
        assert isinstance(done, PublishedCapture)
    finally:
        server.close()
