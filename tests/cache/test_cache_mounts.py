"""The cache on file systems of its own: one that is full, one without holes."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from blockmap.cache.cache import Cache, default_cap
from blockmap.errors import HostError
from blockmap.format import BLOCK

from .contents import content, name

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root"),
]


@contextmanager
def mounted(kind: str, options: str, path: Path) -> Iterator[Path]:
    path.mkdir()
    done = subprocess.run(["mount", "-t", kind, "-o", options, "none", path], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"cannot mount {kind}: {done.stderr.strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", path], check=True)


def test_a_full_disk_makes_misses_and_recovers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with mounted("tmpfs", "size=2M", tmp_path / "mount") as mount:
        cache = Cache(mount / "cache", 1 << 30)
        stored = [cache.put(name(number), content(number, 15 * BLOCK)) >= 0 for number in range(60)]
        assert True in stored[:20]
        assert not all(stored)
        for number, kept in enumerate(stored):
            assert cache.get(name(number)) == (content(number, 15 * BLOCK) if kept else None)
        assert cache.status()["failed_writes"] == stored.count(False)
        assert "No space left" in caplog.text
        cache.clear()
        assert cache.put(name(99), content(99, 15 * BLOCK)) >= 0
        assert cache.get(name(99)) == content(99, 15 * BLOCK)
        cache.close()
        cache = Cache(mount / "cache", 1 << 30)
        for number in range(100):
            assert cache.get(name(number)) in (None, content(number, 15 * BLOCK))
        cache.close()


def test_a_disk_that_is_full_from_the_start_is_no_error(tmp_path: Path) -> None:
    with mounted("tmpfs", "size=256k", tmp_path / "mount") as mount:
        with pytest.raises(OSError, match="No space left"):
            (mount / "filler").write_bytes(bytes(1 << 20))
        cache = Cache(mount / "cache", 1 << 30)
        assert cache.put(name(1), content(1, 3 * BLOCK)) == -1
        assert cache.get(name(1)) is None
        (mount / "filler").unlink()
        assert cache.put(name(1), content(1, 3 * BLOCK)) >= 0
        assert cache.get(name(1)) == content(1, 3 * BLOCK)
        cache.close()


def test_a_file_system_without_holes_is_refused_when_the_cache_is_opened(tmp_path: Path) -> None:
    with mounted("ramfs", "", tmp_path / "mount") as mount:
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(2):
            with pytest.raises(HostError, match="cannot punch holes: name a directory on ext4"):
                Cache(mount / "cache", 1 << 20)
        assert len(os.listdir("/proc/self/fd")) == before


def test_the_default_cap_does_not_shrink_as_the_cache_fills(tmp_path: Path) -> None:
    with mounted("tmpfs", "size=16M", tmp_path / "mount") as mount:
        directory = mount / "not" / "there" / "yet"
        before = default_cap(directory)
        assert before == 4 << 20
        cache = Cache(directory, before)
        for number in range(100):
            cache.put(name(number), content(number, 60 * BLOCK))
        cache.flush()
        assert cache.status()["bytes"] > before * 0.9
        assert default_cap(directory) > before * 0.95  # the rest is the index
        cache.close()
