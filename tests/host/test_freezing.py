"""A file system is frozen for a moment, and thaws whatever becomes of those who froze it."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from blockmap.errors import HostError
from blockmap.host.freezing import freezer
from tests.waiting import until

pytestmark = pytest.mark.root

EXPEDITED = Path("/sys/kernel/rcu_expedited")
FREEZE = """
import sys, time
from pathlib import Path
from blockmap.host.freezing import freezer
with freezer(Path(sys.argv[1]), lambda: None) as ready, ready.frozen():
    print("frozen", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def mounted(tmp_path: Path, need_root: None) -> Iterator[Path]:
    image, where = tmp_path / "image", tmp_path / "mounted"
    where.mkdir()
    image.touch()
    os.truncate(image, 64 << 20)
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, where], check=True)
    yield where
    until(
        lambda: subprocess.run(["umount", where], capture_output=True).returncode == 0
    )  # a freezer may be about to end


class FileWriter:
    """Writes a file in a thread of its own, which waits while the file system is frozen."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.thread = threading.Thread(target=path.write_bytes, args=(b"x",))
        self.thread.start()

    def waits(self) -> bool:
        self.thread.join(0.2)
        return self.thread.is_alive()

    def ends(self) -> bool:
        self.thread.join(30)
        return not self.thread.is_alive()


def test_writers_wait_while_a_file_system_is_frozen(mounted: Path) -> None:
    before = EXPEDITED.read_text() if EXPEDITED.exists() else None
    prepared = []
    with freezer(mounted, lambda: prepared.append(True)) as ready:
        assert prepared
        with ready.frozen():
            writer = FileWriter(mounted / "file")
            assert writer.waits()
        assert writer.ends()
    assert ready.stall > 0.1
    assert before is None or EXPEDITED.read_text() == before, "what the kernel was asked for is put back"


def test_a_file_system_thaws_when_its_freezer_is_killed(mounted: Path) -> None:
    def kill() -> None:
        with freezer(mounted, lambda: None) as ready, ready.frozen():
            ready._process.send_signal(signal.SIGKILL)
            ready._process.wait()
            writers.append(FileWriter(mounted / "file"))
            assert writers[0].waits()

    writers: list[FileWriter] = []
    with pytest.raises(HostError, match="thawed before it was to"):
        kill()
    assert writers[0].ends()


def test_a_file_system_thaws_when_who_froze_it_is_killed(mounted: Path, tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", FREEZE, mounted], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "frozen\n"
    writer = FileWriter(mounted / "file")
    assert writer.waits()
    process.kill()
    process.wait()
    process.stdout.close()
    assert writer.ends()


def test_what_cannot_be_frozen_is_said(tmp_path: Path, need_root: None) -> None:
    with pytest.raises(HostError, match="cannot"), freezer(tmp_path / "none", lambda: None):
        pass
