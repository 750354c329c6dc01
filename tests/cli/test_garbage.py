"""`blockmap gc`, in a directory."""

import json
import os
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from blockmap.cli.garbage import gc
from blockmap.cli.history import log, untag
from blockmap.cli.images import verify
from tests.image.builder import bulk, import_image
from tests.image.layouts import archive, file, layout


def run(command: object, store: Path, *arguments: str) -> str:
    result = CliRunner().invoke(command, ["--store", str(store), *arguments], catch_exceptions=False)  # type: ignore[arg-type]
    assert result.exit_code == 0, result.output
    return result.output


def age(store: Path, seconds: float) -> None:
    """Makes all objects older."""
    for path in store.rglob("*"):
        if path.is_file():
            about = path.stat()
            os.utime(path, (about.st_atime - seconds, about.st_mtime - seconds))


@pytest.fixture
def store(tmp_path: Path) -> Path:
    where = tmp_path / "store"
    for number in (1, 2):
        members = [file("own", bulk(number, 100_000))]
        import_image(where, f"oci:{layout(tmp_path / str(number), [archive(members)])}", f"v:{number}", tmp_path)
    return where


def test_two_runs_delete_what_no_name_needs(store: Path) -> None:
    assert "0 objects, 0 B, are needed by nothing" in run(gc, store)
    run(untag, store, "v:1")
    assert "0 objects" in run(gc, store), "v:1@{1} is kept"
    said = run(gc, store, "--keep", "0s")
    assert "0 objects, 0 B, are needed by nothing" in said
    assert "younger than the grace" in said
    age(store, 40 * 86400)
    before = sorted(path.name for path in store.rglob("*"))
    found = json.loads(run(gc, store, "--dry-run", "--json"))
    assert found["garbage_objects"] > 5
    assert sorted(path.name for path in store.rglob("*")) == before
    said = run(gc, store)
    assert "condemned: `blockmap gc` deletes it, from 24 hours on" in said
    assert "packs" in said
    assert f"{found['garbage_objects']} objects are condemned" in run(gc, store)
    age(store, 86400 + 10)
    assert json.loads(run(gc, store, "--json"))["deleted_objects"] == found["garbage_objects"]
    assert "0 objects, 0 B, are needed by nothing" in run(gc, store)
    assert "all as their digests say" in run(verify, store, "v:2")
    assert len(run(log, store, "v:2").splitlines()) == 2, "fences are not shown"


def test_what_killed_writers_left_is_removed(store: Path) -> None:
    old, new = store / "packs" / ".tmp-old", store / "packs" / ".tmp-new"
    old.write_bytes(b"x")
    new.write_bytes(b"x")
    os.utime(old, (time.time() - 90_000,) * 2)
    assert json.loads(run(gc, store, "--json"))["leftovers"] == 1
    assert (old.exists(), new.exists()) == (False, True)


def test_mistakes_are_explained(store: Path) -> None:
    for text in ("1", "1w", "-1s", "soon"):
        result = CliRunner().invoke(gc, ["--store", str(store), "--grace", text])
        assert result.exit_code == 2
        assert "for example 24h" in result.output
