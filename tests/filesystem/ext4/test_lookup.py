"""Lookups of paths: the blocks that they read."""

import struct
from pathlib import Path

import pytest

from blockmap.errors import ImageError
from blockmap.filesystem.ext4.lookup import Lookup
from blockmap.filesystem.ext4.reader import Ext4Reader
from blockmap.filesystem.member import MemberKind
from blockmap.format import BLOCK
from blockmap.store.opening import open_store
from blockmap.store.repository import Repository
from blockmap.store.volume_reader import stored_reader
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


def test_looking_in_vain_reads_the_directories_one_further_than_where_files_are_found(tmp_path: Path) -> None:
    members = [
        directory("a"), file("a/one", bulk(1, 9000)), directory("a/b"), file("a/b/two", bulk(2, 9000)), directory("a/b/c"),
        directory("d"), file("d/three", bulk(3, 9000)), directory("d/e"), directory("empty"),
    ]  # fmt: skip
    image = docker_archive(tmp_path / "image.tar", [archive(members)])
    summary = import_image(tmp_path / "store", f"docker-archive:{image}", "image:1", tmp_path)
    repository = Repository(open_store(str(tmp_path / "store"))[0])
    read = stored_reader(repository, repository.version(summary.version).root)
    of = {
        entry.path: {start for _, start, _ in entry.runs}
        for entry in Ext4Reader(read).walk()
        if entry.kind is MemberKind.DIR
    }

    def reached(lookup: Lookup, *paths: bytes) -> set[bytes]:
        blocks = set(lookup.further(paths))
        return {path for path, own in of.items() if own & blocks} - {b"lost+found"}

    assert reached(Lookup(read)) == {b"", b"a", b"d", b"empty"}
    assert reached(Lookup(read), b"a/one") == {b"", b"a", b"a/b", b"d", b"empty"}
    assert reached(Lookup(read), b"a/b/two", b"d/three") == of.keys() - {b"lost+found"}
    lookup = Lookup(read)
    lookup(b"a/one")
    assert reached(lookup, b"a/one", b"none/such") == {b"a/b", b"d", b"empty"}, "what was given before is left out"


def test_an_inode_comes_with_those_that_the_kernel_reads_with_it(tmp_path: Path) -> None:
    members = [file(f"{number:04}", b"") for number in range(1500)]
    image = docker_archive(tmp_path / "image.tar", [archive(members)])
    summary = import_image(tmp_path / "store", f"docker-archive:{image}", "image:1", tmp_path)
    repository = Repository(open_store(str(tmp_path / "store"))[0])
    read = stored_reader(repository, repository.version(summary.version).root)
    (table,) = struct.unpack_from("<I", read(BLOCK, 64), 8)
    (unused,) = struct.unpack_from("<H", read(BLOCK, 64), 0x1C)
    (inodes,) = struct.unpack_from("<I", read(1024, 1024), 0x28)
    end = table + -(-(inodes - unused) * 256 // BLOCK)
    windows = [range(max(start, table), min(start + 32, end)) for start in range(table // 32 * 32, end, 32)]
    assert len(windows) > 2

    def of_the_table(*paths: bytes) -> set[int]:
        lookup = Lookup(read)
        return {block for path in paths for block in lookup(path) if table <= block < end}

    assert of_the_table() == set()
    assert of_the_table(b"") == set(windows[0]), "the root directory"
    for number in range(0, 1500, 100):
        found = of_the_table(b"%04d" % number) - set(windows[0])
        assert found in [set(), *map(set, windows[1:])]
    assert of_the_table(b"0000", b"1499") == set(windows[0]) | set(windows[-1])


def test_what_is_no_file_system_is_refused() -> None:
    with pytest.raises(ImageError):
        Lookup(lambda offset, length: bytes(length))
