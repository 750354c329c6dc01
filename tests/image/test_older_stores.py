"""Stores that older releases made: their volumes read as before, and the same images are imported beside them."""

import zipfile
from pathlib import Path

from blockmap.filesystem.ext4.reader import Ext4Reader
from blockmap.filesystem.ext4.writer import WRITER
from blockmap.format.digest import Digest
from blockmap.store.names import NameReader
from blockmap.store.opening import open_store
from blockmap.store.repository import Repository
from blockmap.store.volume_reader import stored_reader
from tests.image.builder import import_image
from tests.image.layouts import archive, directory, file, layout

STORE = Path(__file__).parent / "stores" / "writer-1.zip"
"""A store of the writer before hashed directories, with the image below as `old:1`."""
MANY = [f"many/{n}" for n in range(1000)]
IMAGE = [directory("many"), *(file(path, b"") for path in MANY), file("etc/one", b"one")]
OLD_ROOT = "dea6263b79bce20ffd51cddc2666d8c9c63e8ddcee64dcf841a82bdfd31fa3a2"


def read(store: Path, version: Digest) -> tuple[set[bytes], bytes]:
    """Returns all paths of a version, and the contents of its file etc/one."""
    repository = Repository(open_store(str(store))[0])
    volume = Ext4Reader(stored_reader(repository, repository.version(version).root))
    entries = {entry.path: entry for entry in volume.walk()}
    return set(entries), b"".join(volume.contents(entries[b"etc/one"]))


def test_a_store_of_an_older_writer_is_read_and_grows(tmp_path: Path) -> None:
    with zipfile.ZipFile(STORE) as packed:
        packed.extractall(tmp_path)
    store = tmp_path / "store"
    old = NameReader(open_store(str(store))[0]).newest("old", "1")
    assert old is not None
    assert old.version is not None
    wanted = {b"", b"lost+found", b"many", b"etc", b"etc/one", *map(str.encode, MANY)}
    assert read(store, old.version) == (wanted, b"one")

    image = layout(tmp_path / "image", [archive(IMAGE)], compress=None)
    warnings: list[str] = []
    new = import_image(store, f"oci:{image}", "old:1", tmp_path, warnings)
    assert not warnings
    assert new.number == 2
    repository = Repository(open_store(str(store))[0])
    assert repository.version(old.version).root.digest.hex() == OLD_ROOT != new.root.hex()
    assert repository.version(old.version).layout.writer == 1
    assert repository.version(new.version).layout.writer == WRITER
    for version in (old.version, new.version):
        assert read(store, version) == (wanted, b"one")
