"""`blockmap verify`: damage is told by name, recorded, and healed from the image."""

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from blockmap.cli.main import program
from blockmap.errors import Corrupt, StoreReadOnly
from blockmap.format import keys
from blockmap.store.directory import DirectoryStore
from blockmap.store.opening import open_store
from blockmap.store.repository import Repository
from blockmap.store.walk import leaves
from tests.image.builder import bulk, docker_archive, import_image
from tests.image.layouts import archive, directory, file, layout

BASE = [directory("usr"), *(file(f"usr/file-{n}", bulk(n, 20_000)) for n in range(20))]


def verify(store: Path, *arguments: str) -> Result:
    return CliRunner().invoke(program, ["verify", "a:1", "--store", str(store), *arguments])


def test_a_version_is_healed_from_its_image_and_from_no_other(tmp_path: Path) -> None:
    store = tmp_path / "store"
    image = f"oci:{layout(tmp_path / 'i', [archive(BASE)])}"
    first = import_image(store, image, "a:1", tmp_path)
    assert verify(store).exit_code == 0
    opened, _ = open_store(str(store))
    version = Repository(opened).version(first.version)
    _, leaf = next(iter(leaves(version.root, Repository(opened).packs.nodes)))
    place = leaf.placements[0]
    assert place is not None
    (store / keys.pack(place.pack)).unlink()
    done = verify(store)
    assert isinstance(done.exception, Corrupt)
    assert "--heal SOURCE" in str(done.exception)
    assert leaf.chunks[0].hex() in done.output or keys.pack(place.pack) in done.output
    assert opened.list("damaged/") == [keys.damaged(place.pack, 1)]
    other = docker_archive(tmp_path / "other.tar", [archive([file("else", bulk(99, 50_000))])])
    done = verify(store, "--heal", f"docker-archive:{other}")
    assert isinstance(done.exception, Corrupt)
    assert "is not the image" in str(done.exception)
    same = docker_archive(tmp_path / "same.tar", [archive(BASE)])  # with the same volume under another digest
    done = verify(store, "--heal", f"docker-archive:{same}")
    assert done.exit_code == 0, done.exception
    assert verify(store).exit_code == 0
    assert len(opened.list("names/")) == 1
    assert len(opened.list("damaged/")) == 1


def test_damage_that_cannot_be_recorded_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = tmp_path / "store"
    import_image(store, f"oci:{layout(tmp_path / 'i', [archive(BASE)])}", "a:1", tmp_path)
    opened, _ = open_store(str(store))
    for key in opened.list("packs/"):
        (store / key).unlink()

    def refuse(*_: object) -> None:
        raise StoreReadOnly("not this user's")

    monkeypatch.setattr(DirectoryStore, "create", refuse)
    done = verify(store)
    assert isinstance(done.exception, Corrupt)
    assert "keeps no record of this damage: not this user's" in done.output
