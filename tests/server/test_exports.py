"""Exports: what names mean while they move, and who holds what open."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from blockmap.errors import Corrupt, NotFound, UsageError
from blockmap.format import BLOCK, keys, oci
from blockmap.server.exports import Exports
from blockmap.store.base import Pruner
from blockmap.store.opening import create_store
from tests.image.builder import bulk, import_image
from tests.image.layouts import archive, file, layout
from tests.volume.building import name, publish


@pytest.fixture
def store(tmp_path: Path) -> Pruner:
    return create_store(str(tmp_path / "store"))[0]


@pytest.fixture
def exports(tmp_path: Path, store: Pruner) -> Iterator[Exports]:
    opened = Exports(str(tmp_path / "store"), tmp_path / "cache", 1 << 28)
    yield opened
    opened.close()


def volume(store: Pruner, seed: int, tag: str = "1") -> bytes:
    """Moves a:TAG to a new volume; its first block."""
    data = bulk(seed, 20 * BLOCK)
    name(store, publish(store, [(0, data)], 100), "a", tag)
    return data[:BLOCK]


def first(exports: Exports, export: str) -> bytes:
    view = exports.open(export)
    buf = bytearray(BLOCK)
    view.read(memoryview(buf), 0)
    view.close()
    return bytes(buf)


def test_a_tag_that_moves_leaves_an_open_view_as_it_is(exports: Exports, store: Pruner) -> None:
    old = volume(store, 1)
    view = exports.open("a:1")
    pinned = exports.resolve("a:1")
    new = volume(store, 2)
    assert first(exports, "a:1") == new
    assert exports.resolve("a:1") != pinned
    buf = bytearray(BLOCK)
    view.read(memoryview(buf), 0)
    assert bytes(buf) == old
    assert view.name == pinned
    assert first(exports, pinned) == old
    view.close()


def test_a_version_is_opened_once_however_many_ask(exports: Exports, store: Pruner) -> None:
    volume(store, 1)
    one, two, three = exports.open("a:1"), exports.open("a:1"), exports.open(exports.resolve("a:1"))
    assert one is two is three
    assert exports.status()["exports"] == [{"export": one.name, "connections": 3, "size": 100 * BLOCK, "waiting": 0}]
    one.close()
    two.close()
    assert exports.open("a:1") is one
    one.close()
    three.close()
    assert exports.status()["exports"] == []
    assert exports.open("a:1") is not one
    assert exports.status()["opened"] == 5


def test_what_does_not_exist(exports: Exports, store: Pruner) -> None:
    volume(store, 1)
    for export in ("b:1", "a:2", "a@sha256:" + "0" * 64):
        with pytest.raises(NotFound):
            exports.open(export)
    for export in ("", "../etc", "a@sha256:12"):
        with pytest.raises(UsageError):
            exports.open(export)
    assert exports.status()["exports"] == []


def test_the_catalogue(exports: Exports, store: Pruner) -> None:
    volume(store, 1)
    assert [found[0] for found in exports.names()] == ["a:1"]


def test_a_damaged_entry_is_left_out_of_the_catalogue(
    exports: Exports, store: Pruner, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    volume(store, 1, "good")
    volume(store, 2, "bad")
    path = tmp_path / "store" / keys.entry("a", "bad", 1)
    os.chmod(path, 0o644)
    path.write_bytes(b"")
    assert [found[0] for found in exports.names()] == ["a:good"]
    assert "a:bad is left out" in caplog.text
    with pytest.raises(Corrupt):
        exports.open("a:bad")


def test_an_image_is_found_by_the_digest_of_its_documents(tmp_path: Path, exports: Exports) -> None:
    image = layout(tmp_path / "image", [archive([file("a", b"1")])])
    summary = import_image(tmp_path / "store", f"oci:{image}", "a:1", tmp_path)
    config = exports.config("a:1")
    for digest in (summary.version.hex(), hashlib.sha256(config).hexdigest()):
        assert exports.resolve(f"a@sha256:{digest}") == f"a@sha256:{summary.version.hex()}"


def test_a_disk_has_no_configuration(exports: Exports, store: Pruner) -> None:
    volume(store, 1)
    with pytest.raises(NotFound, match="disk image"):
        exports.config("a:1")


def test_a_damaged_record_of_a_digest(exports: Exports, store: Pruner) -> None:
    volume(store, 1)
    digest = bytes(range(32))
    store.create(keys.oci(digest), [oci.encode(b"\1" * 32, 1)[:-1]])  # type: ignore[arg-type]
    with pytest.raises(Corrupt, match="the record of digest"):
        exports.open(f"a@sha256:{digest.hex()}")
