"""What only a directory store has: files of its own kind, open descriptors, other processes' deletions."""

import errno
import os
from pathlib import Path

import pytest

from blockmap import durable
from blockmap.errors import NotFound, StoreUnavailable
from blockmap.store.directory import DirectoryStore
from blockmap.store.opening import create_store


def descriptors(top: Path) -> list[str]:
    found = []
    for fd in Path("/proc/self/fd").iterdir():
        target = os.readlink(fd) if fd.is_symlink() else ""
        if target.startswith(str(top)):
            found.append(target)
    return found


def test_objects_are_plain_files(tmp_path: Path) -> None:
    """A web server over the directory, or rsync, is as good."""
    store = DirectoryStore(tmp_path)
    store.create("packs/ab/one", [b"data"])
    assert (tmp_path / "packs/ab/one").read_bytes() == b"data"
    (tmp_path / "packs/ab/two").write_bytes(b"more")
    assert store.get("packs/ab/two") == b"more"
    assert store.list("packs/") == ["packs/ab/one", "packs/ab/two"]


def test_what_others_are_writing_is_not_listed(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    store.create("packs/ab/one", [b"data"])
    (tmp_path / f"packs/ab/{durable.TEMPORARY}0123").write_bytes(b"half")
    (tmp_path / f"{durable.TEMPORARY}0123").write_bytes(b"half")
    assert store.list("") == store.list("packs/ab/") == ["packs/ab/one"]


def test_descriptors_are_bounded_and_closed(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    for number in range(200):
        store.create(f"packs/{number}", [b"data"])
        assert store.get_range(f"packs/{number}", 1, 3) == b"at"
    assert 0 < len(descriptors(tmp_path)) <= 64
    for number in range(200):
        store.delete(f"packs/{number}")
    assert descriptors(tmp_path) == []
    store.create("packs/last", [b"data"])
    store.get_range("packs/last", 0, 1)
    del store
    assert descriptors(tmp_path) == []


def test_a_range_of_a_directory_is_not_found(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    store.create("packs/ab/one", [b"data"])
    for _ in range(2):
        with pytest.raises(NotFound):
            store.get_range("packs/ab", 0, 1)


def test_a_handle_that_went_stale_is_opened_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What NFS answers after another host deleted, and perhaps wrote again, a file that is open here."""
    store = DirectoryStore(tmp_path)
    store.create("packs/one", [b"data"])
    store.create("packs/two", [b"data"])
    store.get_range("packs/one", 0, 4)
    store.get_range("packs/two", 0, 4)
    os.unlink(tmp_path / "packs/two")
    pread = os.pread
    stale = 1

    def answer(fd: int, count: int, offset: int) -> bytes:
        nonlocal stale
        if stale:
            stale -= 1
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return pread(fd, count, offset)

    monkeypatch.setattr(os, "pread", answer)
    assert store.get_range("packs/one", 0, 4) == b"data"
    stale = 1
    with pytest.raises(NotFound, match="packs/two"):
        store.get_range("packs/two", 0, 4)
    stale = 2
    with pytest.raises(StoreUnavailable, match="check that the store is mounted"):
        store.get_range("packs/one", 0, 4)


def test_a_directory_that_vanished_is_made_again(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    store.create("packs/ab/one", [b"data"])
    store.delete("packs/ab/one")
    (tmp_path / "packs/ab").rmdir()
    store.create("packs/ab/one", [b"again"])
    assert store.get("packs/ab/one") == b"again"


def test_a_store_that_is_not_mounted_any_more_is_away_and_comes_back(tmp_path: Path) -> None:
    store, _ = create_store(str(tmp_path / "store"))
    store.create("packs/a", [b"content"])
    assert store.get_range("packs/a", 0, 3) == b"con"
    (tmp_path / "store").rename(tmp_path / "elsewhere")
    for _ in range(2):
        for missing in (
            lambda: store.get("packs/b"),
            lambda: store.get_range("packs/b", 0, 1),
            lambda: store.exists("packs/a"),
            lambda: store.get_range("format", 0, 1),
            lambda: store.get_range("packs/a", 0, 1),
        ):
            with pytest.raises(StoreUnavailable, match="mounted"):
                missing()
        (tmp_path / "store").mkdir(exist_ok=True)  # the bare mount point
    (tmp_path / "store").rmdir()
    (tmp_path / "elsewhere").rename(tmp_path / "store")
    assert store.get_range("packs/a", 0, 3) == b"con"
    assert not store.exists("packs/b")
    with pytest.raises(NotFound):
        store.get("packs/b")


def test_what_is_no_regular_file_is_no_object(tmp_path: Path) -> None:
    """A FIFO would be waited for, a device might be endless."""
    store = DirectoryStore(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    for key in ("pipe", "device"):
        assert not store.exists(key)
        for call in (lambda key=key: store.get(key), lambda key=key: store.get_range(key, 0, 1)):
            with pytest.raises(NotFound, match=key):
                call()
