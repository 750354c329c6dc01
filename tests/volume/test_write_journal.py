"""The journal of changes to a clone's map: what was noted is found, whichever way it was written."""

import errno
from pathlib import Path

import pytest

from blockmap.errors import DiskFull
from blockmap.local import holes
from blockmap.volume.overlay import Kind
from blockmap.volume.write_journal import RECORDS, MapChange, WriteJournal

BOOT = bytes(range(16))


def changes(first: int, count: int) -> list[MapChange]:
    return [MapChange(n, n * 512, n * 512 + 4096, Kind(n % 2)) for n in range(first, first + count)]


@pytest.fixture(params=["memory", "calls"])
def path(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a journal may be, on a file system where its memory is written to, and on one where that might lack room."""
    if request.param == "calls":
        monkeypatch.setattr(holes, "writes_in_place", lambda fd: False)
    return tmp_path / "journal"


def found(path: Path, stored: int, boot: bytes = BOOT) -> list[MapChange]:
    journal = WriteJournal(path, boot, stored)
    journal.close()
    return journal.found


def test_what_was_noted_is_found_by_the_next_process(path: Path) -> None:
    """Nothing is written when the first one ends: it may have been killed."""
    journal = WriteJournal(path, BOOT, 0)
    for each in changes(0, 10):
        journal.write(each)
    assert found(path, 0) == changes(0, 10)
    assert found(path, 7) == changes(7, 3)
    last = changes(RECORDS - 5, 10)  # the first change's place is taken again
    for each in last:
        journal.write(each)
    assert found(path, 0) == changes(5, 5) + last
    assert found(path, RECORDS) == last[5:]
    assert found(path, 0, bytes(16)) == []
    journal.close()


def test_it_takes_room_as_changes_need_it(path: Path) -> None:
    journal = WriteJournal(path, BOOT, 0)
    assert path.stat().st_blocks * 512 <= 4096
    for number, most in ((0, 1), (RECORDS // 2, 5), (RECORDS - 1, 9), (RECORDS * 7 + 3, 9)):
        journal.write(*changes(number, 1))
        assert path.stat().st_blocks * 512 <= most << 20
    journal.close()


def test_without_room_a_change_fails_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "journal"
    monkeypatch.setattr(holes, "writes_in_place", lambda fd: True)
    journal = WriteJournal(path, BOOT, 0)
    real = holes.allocate
    monkeypatch.setattr(holes, "allocate", lambda *_: errno.ENOSPC)
    with pytest.raises(DiskFull, match="journal"):
        journal.write(changes(0, 1)[0])
    monkeypatch.setattr(holes, "allocate", real)
    for each in changes(0, 2):
        journal.write(each)
    assert found(path, 0) == changes(0, 2)
    journal.close()
