"""What finding a path reads."""

from pathlib import Path

import pytest

from blockmap.errors import ImageError
from blockmap.format import BLOCK
from blockmap.image.ext4.lookup import Lookup
from blockmap.store.opening import open_store
from blockmap.store.repository import Repository
from blockmap.volume.content import stored_reader
from tests.image.builder import bulk, docker_archive, import_image
from tests.image.layouts import archive, directory, file


def test_finding_a_path_reads_inodes_and_directories_and_nothing_twice(tmp_path: Path) -> None:
    members = [directory("a"), directory("a/b"), file("a/b/one", bulk(1, 9000)), file("a/b/two", bulk(2, 9000))]
    image = docker_archive(tmp_path / "image.tar", [archive(members)])
    summary = import_image(tmp_path / "store", f"docker-archive:{image}", "image:1", tmp_path)
    repository = Repository(open_store(str(tmp_path / "store"))[0])
    root = repository.version(summary.version).root
    read = stored_reader(repository, root)
    lookup = Lookup(read)
    first = lookup(b"a/b/one")
    assert len(first) == len(set(first)) >= 4  # descriptors, inodes, and the directories /, a, a/b
    contents = {
        block for own in repository.file_map(root.digest) for start, n in own.runs for block in range(start, start + n)
    }
    assert not contents & set(first)
    names = [block for block in first if b"one" in read(block * BLOCK, BLOCK)]
    assert len(names) == 1
    assert lookup(b"a/b/two") == lookup(b"a/b/one") == []
    assert lookup(b"a/none/such") == []
    assert lookup(b"a/b/one/below") == []


def test_what_is_no_file_system_is_refused() -> None:
    with pytest.raises(ImageError):
        Lookup(lambda offset, length: bytes(length))
