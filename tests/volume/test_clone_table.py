"""The record of clones of an earlier release goes on."""

import sqlite3
from contextlib import closing
from pathlib import Path

from blockmap.volume.clone_table import CaptureDraft, CloneTable, read_clones

DRAFT = CaptureDraft("app", "1", False, "why", "who", "[]", "nonce")


def test_a_capture_of_an_earlier_release_is_still_there(tmp_path: Path) -> None:
    table = CloneTable(tmp_path)
    record = table.create("c", "uuid", "app:1", "app@sha256:0", "", 4096)
    ((layer, _),) = table.layers(record)
    number = table.push(table.add_layer(), record.id, layer, [], [], 0, DRAFT)
    table.close()
    with closing(sqlite3.connect(tmp_path / "clones.db")) as connection:
        connection.executescript("ALTER TABLE captures DROP COLUMN expected; PRAGMA user_version = 1")
    assert [each.unpublished for each in read_clones(tmp_path)] == [1], "read as it is"
    table = CloneTable(tmp_path)
    (capture,) = table.captures()
    assert (capture.id, capture.draft) == (number, DRAFT)
    table.close()
