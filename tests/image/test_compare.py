"""The comparison's own merge and reader, which must find what the importer's find."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings

from blockmap.errors import ImageError
from blockmap.filesystem.member import Member
from blockmap.image import tar
from blockmap.image.compare import unpacked
from blockmap.image.tarfile_reader import tarfile_members
from tests.filesystem.test_merge import layers
from tests.image.layouts import archive, directory, file, symlink
from tests.image.model import Model
from tests.image.test_tar import EVERYTHING, TRAILER, block, extended


class Stack:
    """Members as a layer."""

    def __init__(self, members: list[Member]) -> None:
        self._members = members

    def second_reading(self) -> Iterator[tuple[Member, Iterator[bytes]]]:
        return ((member, iter(())) for member in self._members)


@settings(max_examples=500, deadline=None)
@given(layers)
def test_the_merge_equals_the_model(stack: list[list[Member]]) -> None:
    model = Model()
    source = SimpleNamespace(layers=[Stack(members) for members in stack])
    try:
        for members in stack:
            model.begin()
            for member in members:
                model.add(member)
    except ImageError:
        with pytest.raises(ImageError):
            unpacked(source)  # type: ignore[arg-type]
        return
    found = unpacked(source)  # type: ignore[arg-type]
    assert {path: thing.member for path, thing in found.items()} == {
        path: thing.member for path, thing in model.paths.items()
    }
    groups: dict[int, set[bytes]] = {}
    for path, thing in found.items():
        groups.setdefault(id(thing), set()).add(path)
    assert {frozenset(paths) for paths in groups.values()} == model.groups()


def by(
    reader: Callable[..., Iterator[tuple[Member, Iterator[bytes]]]], data: bytes, *more: object
) -> list[tuple[Member, bytes]]:
    pieces = (data[at : at + 10_000] for at in range(0, len(data), 10_000))
    return [(member, b"".join(contents)) for member, contents in reader(pieces, *more)]


@pytest.mark.parametrize(
    "data",
    [
        archive(EVERYTHING),
        extended(b"g", comment=b"x" * 2000) + archive([file("a", b"1")]),
        block(b"a", size=5) + b"hello",  # umoci leaves out the padding of the last file
        block(b"dir/", b"\0") + block(b"f", b"7") + block(b"sized", b"5", 3) + block(b"next"),
        block(b"name", prefix=b"above") + TRAILER,
        block(b"name", prefix=b"14325371706\x0014325371706\0", magic=b"ustar  \0") + block(b"d/", b"\0", magic=b"", prefix=b"x"),
        b"".join(extended(mtime=time) + block(b"t" + time) for time in (b"5", b"-5.5", b"0.0000000019", b"-0.1", b"1" + b"0" * 30)),
        extended(**{"LIBARCHIVE__xattr__user__a%3Db": b"aGk", "SCHILY__xattr__user__c": b"1\n2=\0\xff"}) + block(),
        block(b"neg", mtime=b"\xff" * 11 + b"\xfb") + block(b"big", uid=b"\x80\0\0\0\xff\xff\xff\xfe"),
        block(b"a") + TRAILER + b"behind the end",
        archive([directory("/"), file("./b//c", b"1"), symlink("l", "/b/../x")]),
    ],
)  # fmt: skip
def test_both_readers_find_the_same(data: bytes) -> None:
    assert by(tarfile_members, data) == by(tar.members, data, len)


@pytest.mark.parametrize(
    "form", ["gnu", "posix --sparse-version=0.0", "posix --sparse-version=0.1", "posix --sparse-version=1.0"]
)
def test_both_readers_find_the_same_in_sparse_members(tmp_path: Path, form: str, need: Callable[..., None]) -> None:
    need("tar")
    with open(tmp_path / "sparse", "wb") as out:
        for at in range(1, 40):
            out.seek(at * 100_000)
            out.write(os.urandom(4096))
        out.truncate(5_000_000)
    (tmp_path / "z").write_bytes(b"next")
    command = ["tar", "-c", "--sparse", *f"--format={form}".split(), "-C", tmp_path, "sparse", "z"]
    data = subprocess.run(command, check=True, capture_output=True).stdout
    found = by(tarfile_members, data)
    assert found == by(tar.members, data, len)
    assert found[0][1] == (tmp_path / "sparse").read_bytes()


def test_headers_without_bound_are_refused() -> None:
    data = block(b"x", b"x", 1 << 30) + bytes(5 << 20)
    with pytest.raises(ImageError, match="a header of 1073741824 bytes"):
        by(tarfile_members, data)
    with pytest.raises(ImageError, match="tarfile cannot read"):
        by(tarfile_members, extended(path=b"x") * 2000 + block())


def test_the_pieces_are_closed() -> None:
    closed = []

    def pieces() -> Iterator[bytes]:
        try:
            yield archive([file("a", b"1" * 50_000)])
        finally:
            closed.append(True)

    members = tarfile_members(pieces())
    next(members)
    members.close()  # type: ignore[attr-defined]
    assert closed
