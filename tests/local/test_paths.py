"""Directories of this host."""

import os
import stat
from contextlib import closing
from pathlib import Path

import pytest

from blockmap.errors import HostError
from blockmap.local.database import Schema, open_database
from blockmap.local.paths import own


def test_files_of_state_are_private(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        with closing(open_database(tmp_path / "file", Schema(1, "CREATE TABLE t (a);", wal=True))) as connection:
            connection.execute("INSERT INTO t VALUES (1)")
            files = {each.name: stat.S_IMODE(each.stat().st_mode) for each in tmp_path.iterdir()}
    finally:
        os.umask(old)
    assert files == dict.fromkeys(("file", "file-wal", "file-shm"), 0o600)


def test_a_directory_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name in ("", "absent", "file/below"):
        assert own(tmp_path / name) == tmp_path / name
    assert not (tmp_path / "absent").exists()


@pytest.mark.root
def test_a_directory_of_another_user_is_refused(tmp_path: Path, need_root: None) -> None:
    os.chown(tmp_path, 65534, 65534)
    with pytest.raises(HostError, match=r"belongs to another user \(uid 65534\)"):
        own(tmp_path)
