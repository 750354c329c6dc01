"""What is attached where, with devices that are slow or hang: one never holds up another, and the record outlives releases."""

import contextlib
import os
import shutil
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from blockmap.control.client import Client
from blockmap.errors import HostError, UsageError
from blockmap.host.attachment_table import changing
from blockmap.host.attachments import Attachments
from blockmap.host.devices import loops, mounts
from blockmap.host.devices.device import Device
from blockmap.host.warm import warming
from tests.waiting import LIMIT_S, until

pytestmark = pytest.mark.root

COUNT = 10
SLOW_S = 2.0
MOST_RATIO = 1.2
SOON_S = 10.0
OLD_SCHEMA = """
CREATE TABLE IF NOT EXISTS devices (
    directory TEXT PRIMARY KEY,   -- what the device needs lies here
    socket TEXT NOT NULL,
    export TEXT NOT NULL,         -- by digest
    kind TEXT NOT NULL, path TEXT NOT NULL, pid INTEGER NOT NULL, started INTEGER NOT NULL, mount TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS mounts (
    directory TEXT PRIMARY KEY,   -- where it is mounted
    device TEXT NOT NULL REFERENCES devices (directory),
    name TEXT NOT NULL            -- as it was asked for
);
"""


class LoopAttacher:
    """Makes a loop device of the file `image`; slow, and with probes that hang, where a test says so."""

    kind = "loop"

    def __init__(self, image: Path) -> None:
        self.image = image
        self.seconds = 0.0
        self.made = 0
        self.dead: set[str] = set()
        """Paths of devices that answer no more."""
        self.hung: set[str] = set()
        """Paths of devices whose probes wait for `go_on`."""
        self.go_on = threading.Event()
        self.probes = 0
        self._lock = threading.Lock()  # guards the counters

    def attach(self, nbd_socket: Path, export: str, directory: Path, *, writable: bool = False) -> Device:
        with self._lock:
            self.made += 1
        time.sleep(self.seconds)
        shutil.copy(self.image, directory / "image")
        return Device(self.kind, loops.attach(directory / "image"), {"file": str(directory / "image")})

    def detach(self, device: Device) -> None:
        for loop in loops.showing(device.state["file"]):
            loops.detach(loop)

    def clear(self, directory: Path) -> None:
        self.detach(Device(self.kind, "", {"file": str(directory / "image")}))

    def is_alive(self, device: Device) -> bool:
        with self._lock:
            self.probes += 1
        if device.path in self.hung:
            assert self.go_on.wait(LIMIT_S)
        return device.path not in self.dead

    def is_open(self, device: Device) -> bool:
        return loops.is_mounted(device.path)

    def use_small_sectors(self, device: Device) -> bool:
        return False


class Unwarmed:
    """A warming that does nothing: to fork a process with threads is no good."""

    def go_on(self, where: Path | str) -> None:
        pass

    def give_up(self) -> None:
        pass


@dataclass(frozen=True, slots=True)
class SlowHost:
    """A state of its own, directories to attach at, and an attacher that may be slow."""

    where: Path
    attacher: LoopAttacher
    attachments: Attachments
    said: list[str]

    @property
    def state(self) -> Path:
        return self.where / "state"

    def attach(self, export: int, directory: str, *, exact: bool = False) -> None:
        there = self.where / directory
        there.mkdir(exist_ok=True)
        client = Client(self.where / "nbd.sock")
        self.attachments.attach(client, f"app@{export}", f"app:{export}", there, exact=exact)

    def detach(self, directory: str) -> None:
        self.attachments.detach(self.where / directory)

    def devices(self) -> dict[str, str]:
        """Path of the device by directory."""
        return {Path(each.directory).name: each.device for each in self.attachments.list()}

    def folders(self) -> list[Path]:
        return list((self.state / "devices").glob("*"))


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory, need: Callable[..., None]) -> Path:
    need("mke2fs")
    made = tmp_path_factory.mktemp("image") / "image"
    subprocess.run(["mke2fs", "-q", "-b", "4096", "-O", "^has_journal", made, "64"], check=True, capture_output=True)
    return made


@pytest.fixture
def place(tmp_path: Path, image: Path, need_root: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowHost]:
    monkeypatch.setattr(warming, "begin", lambda *_: Unwarmed())
    attacher, said = LoopAttacher(image), []
    made = SlowHost(tmp_path, attacher, Attachments(tmp_path / "state", attacher, said.append), said)
    yield made
    for directory, device in mounts.sources().items():
        if directory.startswith(f"{tmp_path}/"):
            subprocess.run(["umount", directory], check=True)
            with contextlib.suppress(HostError):
                loops.detach(device)


def at_once(*calls: Callable[[], None]) -> list[BaseException | None]:
    """Calls all in threads; what each raised."""
    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.exception(LIMIT_S) for future in [pool.submit(call) for call in calls]]


def took_s(call: Callable[[], object]) -> float:
    began = time.monotonic()
    call()
    return time.monotonic() - began


def test_attaches_of_many_exports_take_about_as_long_as_one(place: SlowHost) -> None:
    place.attacher.seconds = SLOW_S
    one_s = took_s(lambda: place.attach(100, "one", exact=True))
    calls = [lambda number=number: place.attach(number, f"at{number}", exact=True) for number in range(COUNT)]
    raised: list[BaseException | None] = []
    all_s = took_s(lambda: raised.extend(at_once(*calls)))
    assert raised == [None] * COUNT
    assert all_s <= MOST_RATIO * one_s
    assert len(set(place.devices().values())) == COUNT + 1
    at_once(*(lambda directory=directory: place.detach(directory) for directory in place.devices()))
    assert (place.devices(), place.folders()) == ({}, [])


def test_attaches_of_one_export_at_once_share_a_device(place: SlowHost) -> None:
    place.attacher.seconds = 0.2
    calls = [lambda number=number: place.attach(1, f"at{number}") for number in range(COUNT)]
    assert at_once(*calls) == [None] * COUNT
    assert place.attacher.made == 1
    assert len(place.devices()) == COUNT
    assert len(set(place.devices().values())) == 1
    calls = [lambda number=number: place.detach(f"at{number}") for number in range(COUNT)]
    assert at_once(*calls) == [None] * COUNT
    assert (place.devices(), place.folders()) == ({}, [])


def test_of_attaches_at_one_directory_at_once_one_succeeds(place: SlowHost) -> None:
    place.attacher.seconds = 0.2
    raised = at_once(*(lambda number=number: place.attach(number, "here") for number in range(4)))
    assert sorted(str(each).partition(" at ")[0] for each in raised) == ["None", *["something is mounted"] * 3]
    place.detach("here")
    assert (place.devices(), place.folders()) == ({}, [])


def test_a_directory_is_free_again_when_the_attach_there_failed(
    place: SlowHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def fail(*_: object, **__: object) -> None:
        begun.set()
        assert go_on.wait(LIMIT_S)
        raise HostError("it is broken")

    broken = LoopAttacher(place.attacher.image)
    monkeypatch.setattr(broken, "attach", fail)
    failing = replace(place, attachments=Attachments(place.state, broken, place.said.append))
    with ThreadPoolExecutor() as pool:
        first = pool.submit(failing.attach, 1, "here")
        assert begun.wait(LIMIT_S)
        second = pool.submit(place.attach, 2, "here")
        time.sleep(0.2)  # so that it waits, as far as one can tell
        assert not second.done()
        go_on.set()
        assert str(first.exception(LIMIT_S)) == "it is broken"
        second.result(LIMIT_S)
    place.detach("here")
    assert place.folders() == []


def test_a_probe_that_hangs_holds_up_nobody_else(place: SlowHost) -> None:
    place.attach(1, "hung")
    place.attacher.hung.add(place.devices()["hung"])
    attaching = threading.Thread(target=place.attach, args=(1, "more"))
    attaching.start()
    until(lambda: place.attacher.probes == 1)
    detaching = threading.Thread(target=place.detach, args=("hung",))
    detaching.start()

    def others() -> None:
        place.attach(2, "other")
        place.attach(2, "another")
        assert set(place.devices()) == {"hung", "other", "another"}
        place.detach("other")
        place.detach("another")

    assert took_s(others) < SOON_S
    assert set(place.devices()) == {"hung"}
    assert attaching.is_alive()
    assert detaching.is_alive()
    place.attacher.go_on.set()
    attaching.join()
    detaching.join()
    assert set(place.devices()) == {"more"}
    place.detach("more")
    assert place.folders() == []


def test_only_the_device_that_is_asked_for_is_probed(place: SlowHost) -> None:
    place.attach(1, "a")
    place.attach(2, "b")
    place.attach(2, "b2")
    assert place.attacher.probes == 1
    place.detach("b")
    assert place.attacher.probes == 2
    place.detach("b2")
    place.detach("a")
    assert place.attacher.probes == 2


def test_a_device_stays_until_the_last_file_of_it_is_closed(place: SlowHost) -> None:
    place.attach(1, "a")
    root = os.open(place.where / "a", os.O_RDONLY | os.O_DIRECTORY)
    try:
        subprocess.run(["umount", "-l", place.where / "a"], check=True)
        assert place.attachments.tidy()
        assert len(place.folders()) == 1
    finally:
        os.close(root)
    until(lambda: not place.attachments.tidy())
    assert place.folders() == []


def test_a_dead_device_is_made_anew_by_the_attach_that_needs_it(place: SlowHost) -> None:
    place.attach(1, "a")
    place.attach(2, "b")
    place.attacher.dead = set(place.devices().values())
    place.attach(1, "a2")
    assert set(place.devices()) == {"b", "a2"}
    place.attach(2, "b")
    assert set(place.devices()) == {"b", "a2"}
    assert [text.partition(" is unmounted")[0] for text in place.said] == [f"{place.where}/a", f"{place.where}/b"]
    place.attacher.dead.clear()
    place.detach("a2")
    place.detach("b")
    assert place.folders() == []


def test_a_server_takes_apart_what_the_one_before_it_left(place: SlowHost, monkeypatch: pytest.MonkeyPatch) -> None:
    place.attach(1, "dead")
    place.attach(2, "alive")
    place.attacher.dead.add(place.devices()["dead"])
    (place.state / "devices/left").mkdir()
    place.attachments.clean(place.where / "another.sock")
    assert (set(place.devices()), place.attacher.probes) == ({"dead", "alive"}, 0)
    assert len(place.folders()) == 2
    with monkeypatch.context() as patch:
        patch.setattr("os.geteuid", lambda: 1000)
        place.attachments.clean(place.where / "nbd.sock")
    assert (set(place.devices()), place.attacher.probes) == ({"dead", "alive"}, 0)
    place.attachments.clean(place.where / "nbd.sock")
    assert set(place.devices()) == {"alive"}
    place.detach("alive")
    assert place.folders() == []


def test_a_record_of_earlier_releases_is_migrated(place: SlowHost) -> None:
    place.attach(1, "a")
    ((folder, path),) = [(each, place.devices()["a"]) for each in place.folders()]
    (folder / "lock").unlink()  # there was none
    (place.state / "attachments.db").unlink()
    with contextlib.closing(sqlite3.connect(place.state / "attachments.db")) as connection, connection:
        connection.executescript(OLD_SCHEMA)
        device = (str(folder), str(place.where / "nbd.sock"), "app@1", "nbdfuse", path, 17, 23, f"{folder}/fuse")
        connection.execute("INSERT INTO devices VALUES (?, ?, ?, ?, ?, ?, ?, ?)", device)
        connection.execute("INSERT INTO mounts VALUES (?, ?, 'app:1')", (str(place.where / "a"), str(folder)))
    assert place.devices() == {"a": path}, "it can be listed as it is"
    with changing(place.state) as table:
        assert table.device(folder) == Device("nbdfuse", path, {"pid": 17, "started": 23, "mount": f"{folder}/fuse"})
        assert table.folder_showing(str(place.where / "nbd.sock"), "app@1") == folder
    with contextlib.closing(sqlite3.connect(place.state / "attachments.db")) as connection, connection:
        connection.execute("UPDATE devices SET state = json_object('file', ?)", (str(folder / "image"),))
    place.attach(1, "b")
    assert place.devices() == {"a": path, "b": path}
    place.detach("a")
    place.detach("b")
    assert (place.devices(), place.folders()) == ({}, [])


def test_a_record_of_a_newer_release_is_refused(place: SlowHost) -> None:
    place.attach(1, "a")
    for version, outcome in ((9, pytest.raises(HostError, match="it has format 9")), (1, contextlib.nullcontext())):
        with contextlib.closing(sqlite3.connect(place.state / "attachments.db")) as connection:
            connection.execute(f"PRAGMA user_version={version}")
        with outcome:
            place.attachments.list()
        with outcome:
            place.detach("a")
    assert place.folders() == []
    with pytest.raises(UsageError, match="nothing is attached"):
        place.detach("a")
