"""`blockmap images`: of very many names far away, and in a window of any width."""

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner

from blockmap.api import store as api_store
from blockmap.cli import image_list
from blockmap.format import keys
from blockmap.store import limits
from blockmap.store.directory import DirectoryStore
from blockmap.store.memory import MemoryStore
from blockmap.store.names import EntryDraft, NameLog, NameTarget
from blockmap.store.opening import open_store
from tests.faults.links import netshape
from tests.image.builder import import_image
from tests.image.layouts import archive, file, layout
from tests.store.made import open_or_create
from tests.store.servers import nginx

NAMES = 200
TRIP_S = 0.02


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store with an image of very many names."""
    where = tmp_path / "store"
    import_image(where, f"oci:{layout(tmp_path / 'image', [archive([file('a', b'x')])])}", "one:1", tmp_path)
    log = NameLog(open_or_create(str(where))[0])
    entry = log.newest("one", "1")
    assert entry is not None
    draft = EntryDraft(entry.version, entry.number, entry.root, entry.run, entry.oci)
    for number in range(NAMES - 1):
        log.append(NameTarget(f"team/app{number:04}", "v1"), None, draft)
    return where


class Far(DirectoryStore):
    """A store whose answers take a while; `most_at_once` is how many were asked for at the same time."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.asked = self.most_at_once = 0
        self._lock = threading.Lock()  # guards _under_way
        self._under_way = 0

    def get(self, key: str, most: int = limits.RECORD) -> bytes:
        with self._trip():
            return super().get(key, most)

    def get_range(self, key: str, start: int, end: int) -> bytes:
        with self._trip():
            return super().get_range(key, start, end)

    @contextmanager
    def _trip(self) -> Iterator[None]:
        with self._lock:
            self.asked += 1
            self._under_way += 1
            self.most_at_once = max(self.most_at_once, self._under_way)
        time.sleep(TRIP_S)
        yield
        with self._lock:
            self._under_way -= 1


def test_very_many_names_are_asked_for_at_once(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    far = Far(store)
    monkeypatch.setattr(api_store, "open_store", lambda url: (far, open_store(url)[1]))
    done = CliRunner().invoke(image_list.images, ["--store", str(store), "--json"])
    rows = json.loads(done.output)
    assert len(rows) == NAMES
    assert {row["data_bytes"] for row in rows} == {None}
    assert far.asked <= NAMES + 2
    assert far.most_at_once >= 8
    done = CliRunner().invoke(image_list.images, ["--store", str(store), "--json", "--data"])
    assert {row["data_bytes"] > 0 for row in json.loads(done.output)} == {True}
    assert far.asked <= 2 * (NAMES + 10)  # a tree that many names share is read once


def test_a_thousand_names_behind_a_web_server_20_ms_away(tmp_path: Path, need: Callable[..., None]) -> None:
    need("nginx")
    where = tmp_path / "store"
    import_image(where, f"oci:{layout(tmp_path / 'image', [archive([file('a', b'x')])])}", "one:1", tmp_path)
    entry = NameLog(open_or_create(str(where))[0]).newest("one", "1")
    assert entry is not None
    draft = EntryDraft(entry.version, entry.number, entry.root, entry.run, entry.oci)
    memory = MemoryStore()  # without a disk that has each one on it before the next
    log = NameLog(memory)
    for number in range(1000):
        log.append(NameTarget(f"team/app{number // 4:03}", f"v{number % 4}"), None, draft)
    for key in memory.list(""):
        (where / key).parent.mkdir(parents=True, exist_ok=True)
        (where / key).write_bytes(memory.get(key, 1 << 20))
    with nginx(tmp_path, where) as url, netshape(int(url.rpartition(":")[2])) as (port, _):
        command = [sys.executable, "-m", "blockmap.cli.main", "images", "--json", "--store", f"http://127.0.0.1:{port}"]
        began = time.monotonic()
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        took = time.monotonic() - began
    assert len(json.loads(done.stdout)) == 1000
    assert took < 10, f"{took:.1f} s; one after the other they take 20 s and more"


def test_a_damaged_entry_is_told_and_the_others_are_listed(store: Path, caplog: pytest.LogCaptureFixture) -> None:
    damaged = store / keys.entry("team/app0001", "v1", 1)
    damaged.chmod(0o644)
    damaged.write_bytes(b"x")
    done = CliRunner().invoke(image_list.images, ["--store", str(store)])
    assert done.exit_code == 0
    assert "team/app0001:v1: entry 1 of team/app0001:v1 is damaged" in caplog.text
    assert len(done.stdout.splitlines()) == NAMES


@pytest.mark.parametrize(
    ("columns", "shown"),
    [
        (80, ["NAME", "DIGEST", "UPDATED", "VOLUME"]),
        (44, ["NAME", "DIGEST", "UPDATED"]),
        (36, ["NAME", "DIGEST"]),
        (8, ["NAME"]),
    ],
)
def test_the_name_is_the_last_to_go(store: Path, columns: int, shown: list[str]) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-m", "blockmap.cli.main", "images", "--store", str(store)],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": str(columns)},
    )
    os.close(theirs)
    said = b""
    try:
        while piece := os.read(ours, 1 << 16):
            said += piece
    except OSError:
        pass  # the other end is closed
    os.close(ours)
    assert process.wait() == 0
    lines = re.sub(r"\x1b\[[0-9;]*m", "", said.decode()).replace("\r", "").splitlines()
    assert lines[0].split() == shown
    assert max(map(len, lines)) <= columns
    assert "".join(line.split()[0] for line in lines[1:]).count("team/app0007:v1") == 1
