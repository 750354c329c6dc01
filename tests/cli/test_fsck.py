"""`blockmap fsck`: what it finds, what it mends, and its exit status."""

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from blockmap.cli.main import program
from blockmap.errors import Corrupt, StoreReadOnly
from blockmap.format import keys
from blockmap.store.directory import DirectoryStore
from tests.image.builder import bulk, import_image
from tests.image.layouts import archive, file, layout


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A store with a:1, and the image that it was made of."""
    where = tmp_path_factory.mktemp("fsck")
    source = f"oci:{layout(where / 'image', [archive([file('own', bulk(1, 300_000))])])}"
    import_image(where / "store", source, "a:1", where)
    return where / "store", source


@pytest.fixture
def store(made: tuple[Path, str], tmp_path: Path) -> Path:
    return shutil.copytree(made[0], tmp_path / "store")


def fsck(store: Path, *arguments: str) -> Result:
    return CliRunner().invoke(program, ["fsck", "--store", str(store), *arguments])


def keys_of(store: Path, kind: str) -> list[str]:
    return DirectoryStore(store).list(f"{kind}/")


def test_a_clean_store_is_said_to_be(store: Path) -> None:
    done = fsck(store)
    assert done.exit_code == 0
    assert "1 names, 1 versions" in done.output
    assert "`--read` reads them" in done.output
    assert "0 objects, 0 B, are needed by nothing" in done.output
    assert "every byte was read" in fsck(store, "--read").output


def test_what_is_lost_is_said_by_name_and_mended_from_the_image(store: Path, made: tuple[Path, str]) -> None:
    for key in keys_of(store, "packs"):
        (store / key).unlink()
    done = fsck(store, "--json")
    assert isinstance(done.exception, Corrupt)
    assert "`blockmap fsck --repair` mends" in str(done.exception)
    found = json.loads(done.stdout)
    assert {problem["what"] for problem in found["problems"]} == {"a:1"}
    assert found["garbage_bytes"] is None
    assert keys_of(store, "damaged"), "so that no import relies on it"
    done = fsck(store, "--repair")
    assert isinstance(done.exception, Corrupt)
    assert "what to do: import the image again, or `blockmap fsck --from SOURCE`" in done.output
    done = fsck(store, "--from", made[1], "--platform", "linux/amd64")
    assert (done.exit_code, done.exception) == (0, None)
    assert "mended: a:1: " in done.output
    assert fsck(store, "--read").exit_code == 0


def test_derived_objects_are_mended_when_that_is_asked_for(store: Path) -> None:
    for kind in ("filemaps", "hooks"):
        for key in keys_of(store, kind):
            (store / key).write_bytes(b"damaged")
    done = fsck(store)
    assert isinstance(done.exception, Corrupt)
    assert keys_of(store, "filemaps")[0] in done.output
    found = json.loads(fsck(store, "--repair", "--json").stdout)
    assert found["problems"] == []
    assert len(found["mended"]) == 2
    assert fsck(store).exit_code == 0


def test_a_store_that_cannot_be_written_is_checked(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (pack,) = (key for key in keys_of(store, "packs") if (store / key).stat().st_size > 200_000)
    (store / pack).unlink()

    def refuse(*_: object) -> None:
        raise StoreReadOnly("not this user's")

    for name in ("create", "replace", "delete"):
        monkeypatch.setattr(DirectoryStore, name, refuse)
    done = fsck(store)
    assert isinstance(done.exception, Corrupt)
    assert "keeps no record of this damage: not this user's" in done.output
    assert isinstance(fsck(store, "--repair").exception, Corrupt)
    assert not list(store.glob(f"{keys.DAMAGED}*"))
