"""Files are whole and durable, or absent: the order of syncs, and the files that failures leave."""

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from blockmap import durable
from blockmap.errors import AlreadyExists, StoreReadOnly, StoreRefused, StoreUnavailable
from blockmap.store.directory import DirectoryStore

DATA = [b"first part, ", memoryview(b"second part")]
WHOLE = b"first part, second part"


class Killed(BaseException):
    """Ends a call before a system call, as a kill or a power cut would."""


@dataclass
class Journal:
    """The calls that matter for durability, in order, and the synced state, which a power cut would leave."""

    events: list[tuple[str, str]] = field(default_factory=list)
    """Calls, each with the path that it changed."""
    contents: dict[int, bytes] = field(default_factory=dict)
    """Contents of each inode at its last sync."""
    names: dict[str, dict[str, int]] = field(default_factory=dict)
    """Inodes by name in each directory at its last sync."""
    kill_at: int | None = None
    """Number of the event before which the process ends."""

    def note(self, call: str, path: str) -> None:
        if len(self.events) == self.kill_at:
            raise Killed
        self.events.append((call, path))

    def synced(self, path: str) -> None:
        if os.path.isdir(path):
            self.names[path] = {name: os.lstat(os.path.join(path, name)).st_ino for name in os.listdir(path)}
        else:
            self.contents[os.stat(path).st_ino] = Path(path).read_bytes()

    def left(self, path: Path, top: Path) -> bytes | None:
        """Returns the content that a power cut leaves of a file below `top`, which existed before; None if it leaves no file."""
        directory, inode = top, 0
        for name in path.relative_to(top).parts:
            known = self.names.get(str(directory), {})
            if name not in known:
                return None
            directory, inode = directory / name, known[name]
        return self.contents.get(inode, b"")


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    noted = Journal()
    fsync = os.fsync

    def watched_fsync(fd: int) -> None:
        path = os.readlink(f"/proc/self/fd/{fd}")
        noted.note("fsync", path)
        fsync(fd)
        noted.synced(path)

    def watched(call: str) -> Callable[..., None]:
        real = getattr(os, call)

        def watch(*args: object, **options: object) -> None:
            noted.note(call, str(args[-1]))
            real(*args, **options)

        return watch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", watched_fsync)
        for call in ("link", "mkdir", "rename", "unlink"):
            patch.setattr(os, call, watched(call))
        yield noted


def temporaries(top: Path) -> list[Path]:
    return list(top.rglob(f"{durable.TEMPORARY}*"))


def test_bytes_are_synced_before_the_name_and_the_name_before_the_return(journal: Journal, tmp_path: Path) -> None:
    durable.publish(tmp_path / "a", DATA)
    calls = [call for call, _ in journal.events]
    assert calls == ["fsync", "link", "unlink", "fsync"]
    temporary = Path(journal.events[0][1])
    assert temporary.parent == tmp_path
    assert temporary.name.startswith(durable.TEMPORARY)
    assert journal.events[-1] == ("fsync", str(tmp_path))


def test_new_directories_are_synced_up_to_one_that_was_there(journal: Journal, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    durable.publish(tmp_path / "there/new/newer/a", DATA)
    after_link = journal.events[[call for call, _ in journal.events].index("link") :]
    synced = {path for call, path in after_link if call == "fsync"}
    assert synced == {str(tmp_path / part) for part in ("there", "there/new", "there/new/newer")}


@pytest.mark.parametrize("name", ["a", "new/a", "new/newer/newest/a"])
def test_killed_anywhere_it_leaves_all_or_nothing(journal: Journal, tmp_path: Path, name: str) -> None:
    for kill_at in range(100):
        top = tmp_path / str(kill_at)
        top.mkdir()
        path = top / name
        journal.events.clear()
        journal.kill_at = kill_at
        try:
            durable.publish(path, DATA)
        except Killed:
            assert journal.left(path, top) in (None, WHOLE)
            assert not path.exists() or path.read_bytes() == WHOLE
            # Leftovers are in nobody's way: the next attempt finds its place free, or taken by the whole file.
            journal.kill_at = None
            with suppress(AlreadyExists):
                durable.publish(path, DATA)
            assert path.read_bytes() == WHOLE
        else:
            assert journal.left(path, top) == WHOLE
            assert not temporaries(top)
            break
    else:
        pytest.fail("publish never came to its end")
    assert kill_at >= 4


def test_what_one_was_killed_over_is_durable_once_another_answers(journal: Journal, tmp_path: Path) -> None:
    """Directories and objects that exist, but were never synced, are synced by the next call that depends on them."""
    for kill_at in range(100):
        top = tmp_path / str(kill_at)
        top.mkdir()
        journal.events.clear()
        journal.kill_at = kill_at
        finished = False
        with suppress(Killed):
            DirectoryStore(top).create("packs/ab/one", DATA)
            finished = True
        journal.kill_at = None
        other = DirectoryStore(top)
        if (top / "packs/ab/one").exists():
            with pytest.raises(AlreadyExists):
                other.create("packs/ab/one", DATA)
            assert journal.left(top / "packs/ab/one", top) == WHOLE
        other.create("packs/ab/two", DATA)
        assert journal.left(top / "packs/ab/two", top) == WHOLE
        if finished:
            assert other.list("") == ["packs/ab/one", "packs/ab/two"]
            break
    else:
        pytest.fail("create never came to its end")


def test_replacing_killed_anywhere_leaves_the_old_or_the_new(journal: Journal, tmp_path: Path) -> None:
    for kill_at in range(100):
        path = tmp_path / f"hint-{kill_at}"
        journal.kill_at = None
        durable.replace(path, b"old")
        journal.events.clear()
        journal.kill_at = kill_at
        try:
            durable.replace(path, b"new and longer")
        except Killed:
            assert path.read_bytes() in (b"old", b"new and longer")
            assert journal.left(path, tmp_path) in (b"old", b"new and longer")
        else:
            assert path.read_bytes() == b"new and longer"
            assert [call for call, _ in journal.events] == ["fsync", "rename", "fsync"]
            break
    else:
        pytest.fail("replace never came to its end")


def test_removing_is_durable(journal: Journal, tmp_path: Path) -> None:
    path = tmp_path / "a"
    durable.publish(path, DATA)
    durable.remove(path)
    assert journal.left(path, tmp_path) is None
    durable.remove(path)
    durable.remove(tmp_path / "never/was")


def test_what_is_there_is_not_replaced(tmp_path: Path) -> None:
    durable.publish(tmp_path / "a", DATA)
    with pytest.raises(AlreadyExists, match=str(tmp_path / "a")):
        durable.publish(tmp_path / "a", [b"other"])
    assert (tmp_path / "a").read_bytes() == WHOLE
    assert not temporaries(tmp_path)


FAILURES = [
    (errno.ENOSPC, StoreUnavailable, "free some space"),
    (errno.EDQUOT, StoreUnavailable, "free some space"),
    (errno.EROFS, StoreReadOnly, "mount options"),
    (errno.EACCES, StoreReadOnly, "permissions"),
    (errno.EIO, StoreUnavailable, "Input/output error"),
]


@pytest.mark.parametrize("call", ["open", "write", "fsync", "link", "rename"])
@pytest.mark.parametrize(("number", "expected", "advice"), FAILURES)
def test_failures_say_what_to_do_and_leave_nothing(
    tmp_path: Path, call: str, number: int, expected: type[Exception], advice: str
) -> None:
    def fail(*args: object, **options: object) -> None:
        raise OSError(number, os.strerror(number))

    path = tmp_path / "hint"
    durable.replace(path, b"old")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, call, fail)
        if call != "rename":
            with pytest.raises(expected, match=advice):
                durable.publish(tmp_path / "a", DATA)
        if call != "link":
            with pytest.raises(expected, match=advice):
                durable.replace(path, b"new")
    assert not temporaries(tmp_path)
    assert not (tmp_path / "a").exists()
    assert path.read_bytes() == b"old"
    durable.publish(tmp_path / "a", DATA)


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP])
def test_a_file_system_without_hard_links_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(*args: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", fail)
    with pytest.raises(StoreRefused, match="hard links"):
        durable.publish(tmp_path / "a", DATA)
    assert not list(tmp_path.iterdir())


def test_short_writes_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, memoryview(data)[:3]))
    durable.publish(tmp_path / "a", DATA)
    assert (tmp_path / "a").read_bytes() == WHOLE


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_full_file_system(tmp_path: Path) -> None:
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "blockmap-test", tmp_path], check=False)
    if mounted.returncode != 0:
        pytest.skip("this host does not let root mount a tmpfs")
    try:
        store = DirectoryStore(tmp_path / "store")
        store.create("packs/aa/small", [bytes(4096)])
        with pytest.raises(StoreUnavailable, match="no room left"):
            store.create("packs/aa/big", [bytes(1 << 20)])
        assert store.list("") == ["packs/aa/small"]
        assert not temporaries(tmp_path)
        store.create("packs/aa/fits", [bytes(100_000)])
    finally:
        subprocess.run(["umount", tmp_path], check=True)
