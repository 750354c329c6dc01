"""A server: what names mean while they move, and who holds what open."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from blockmap.errors import Corrupt, NotFound, UsageError
from blockmap.format import BLOCK, keys, oci
from blockmap.format.digest import Digest
from blockmap.format.oci import DocumentRecord
from blockmap.server.registry import Opened
from blockmap.server.server import Server
from blockmap.store.base import Pruner
from blockmap.store.opening import create_store
from blockmap.store.pack_logs import read_damage
from blockmap.store.repository import Repository
from blockmap.store.walk import leaves
from tests.image.builder import bulk, import_image
from tests.image.layouts import archive, file, layout
from tests.volume.building import name, publish
from tests.waiting import until


@pytest.fixture
def store(tmp_path: Path) -> Pruner:
    return create_store(str(tmp_path / "store"))[0]


@pytest.fixture
def server(tmp_path: Path, store: Pruner) -> Iterator[Server]:
    opened = Server(str(tmp_path / "store"), tmp_path / "cache", 1 << 28)
    yield opened
    opened.close()


def volume(store: Pruner, seed: int, tag: str = "1") -> bytes:
    """Moves a:TAG to a new volume; its first block."""
    data = bulk(seed, 20 * BLOCK)
    name(store, publish(store, [(0, data)], 100), "a", tag)
    return data[:BLOCK]


def first(server: Server, export: str) -> bytes:
    opened = server.open(export)
    found = first_block(opened)
    opened.close()
    return found


def first_block(opened: Opened) -> bytes:
    buf = bytearray(BLOCK)
    opened.volume.reader(opened.start)(memoryview(buf), 0)
    return bytes(buf)


def test_what_a_reader_finds_damaged_is_recorded_in_the_store(server: Server, store: Pruner) -> None:
    root = publish(store, [(0, bulk(1, 20 * BLOCK))], 100)
    name(store, root, "a", "1")
    _, leaf = next(leaves(root, Repository(store).packs.nodes))
    place = leaf.placements[0]
    assert place is not None
    key = keys.pack(place.pack)
    data = store.get(key)
    store.delete(key)
    store.create(key, [data[: place.offset], bytes(place.stored), data[place.offset + place.stored :]])
    with pytest.raises(Corrupt, match="is damaged"):
        first(server, "a:1")
    until(lambda: read_damage(store) == {place.pack: {leaf.chunks[0]}})


def test_a_tag_that_moves_leaves_an_open_volume_as_it_is(server: Server, store: Pruner) -> None:
    old = volume(store, 1)
    view = server.open("a:1")
    pinned = server.resolve("a:1")
    new = volume(store, 2)
    assert first(server, "a:1") == new
    assert server.resolve("a:1") != pinned
    assert first_block(view) == old
    assert view.volume.name == pinned
    assert first(server, pinned) == old
    view.close()


def test_a_version_is_opened_once_however_many_ask(server: Server, store: Pruner) -> None:
    volume(store, 1)
    one, two, three = server.open("a:1"), server.open("a:1"), server.open(server.resolve("a:1"))
    assert one.volume is two.volume is three.volume
    assert server.status()["exports"] == [
        {"export": one.volume.name, "connections": 3, "size": 100 * BLOCK, "waiting": 0}
    ]
    one.close()
    two.close()
    again = server.open("a:1")
    assert again.volume is one.volume
    again.close()
    three.close()
    assert server.status()["exports"] == []
    assert server.open("a:1").volume is not one.volume
    assert server.status()["opens"] == 5


def test_what_does_not_exist(server: Server, store: Pruner) -> None:
    volume(store, 1)
    for export in ("b:1", "a:2", "a@sha256:" + "0" * 64):
        with pytest.raises(NotFound):
            server.open(export)
    for export in ("", "../etc", "a@sha256:12"):
        with pytest.raises(UsageError):
            server.open(export)
    assert server.status()["exports"] == []


def test_the_catalogue(server: Server, store: Pruner) -> None:
    volume(store, 1)
    assert [found[0] for found in server.names()] == ["a:1"]


def test_a_damaged_entry_is_left_out_of_the_catalogue(
    server: Server, store: Pruner, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    volume(store, 1, "good")
    volume(store, 2, "bad")
    path = tmp_path / "store" / keys.entry("a", "bad", 1)
    os.chmod(path, 0o644)
    path.write_bytes(b"")
    assert [found[0] for found in server.names()] == ["a:good"]
    assert "a:bad is left out" in caplog.text
    with pytest.raises(Corrupt):
        server.open("a:bad")


def test_an_image_is_found_by_the_digest_of_its_documents(tmp_path: Path, server: Server) -> None:
    image = layout(tmp_path / "image", [archive([file("a", b"1")])])
    summary = import_image(tmp_path / "store", f"oci:{image}", "a:1", tmp_path)
    config = server.config("a:1")
    for digest in (summary.version.hex(), hashlib.sha256(config).hexdigest()):
        assert server.resolve(f"a@sha256:{digest}") == f"a@sha256:{summary.version.hex()}"


def test_a_disk_has_no_configuration(server: Server, store: Pruner) -> None:
    volume(store, 1)
    with pytest.raises(NotFound, match="disk image"):
        server.config("a:1")


def test_a_damaged_record_of_a_digest(server: Server, store: Pruner) -> None:
    volume(store, 1)
    digest = bytes(range(32))
    store.create(keys.oci(digest, 1), [oci.encode(DocumentRecord(Digest(b"\1" * 32), 1))[:-1]])
    with pytest.raises(Corrupt, match="damaged or wrong"):
        server.open(f"a@sha256:{digest.hex()}")
