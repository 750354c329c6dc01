"""A plain directory as an image: order, links, attributes, its digest, and files that change."""

import errno
import hashlib
import io
import json
import os
import shutil
import socket
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from blockmap.errors import ImageError
from blockmap.filesystem.ext4.inode import MAX_TIME
from blockmap.filesystem.member import Member, MemberKind
from blockmap.image import tar
from blockmap.image.directory import Directory


def fill(where: Path) -> Path:
    where.mkdir(exist_ok=True)
    for name in ("b", "a", "a-b"):
        (where / name).mkdir()
    (where / "a" / "file").write_bytes(b"content" * 1000)
    (where / "a" / "empty").write_bytes(b"")
    os.link(where / "a" / "file", where / "a-b" / "again")
    os.link(where / "a" / "file", where / "b" / "and-again")
    (where / "b" / "link").symlink_to("../nowhere/" + "t" * 200)
    os.link(where / "b" / "link", where / "b" / "linked-link", follow_symlinks=False)
    (where / ("n" * 200)).write_bytes(b"long name")
    with open(os.fsencode(where) + b"/\xff\xfe", "wb") as file:
        file.write(b"bytes")
    os.mkfifo(where / "pipe", 0o620)
    os.chmod(where / "a" / "file", 0o4750)
    for path in sorted(where.rglob("*"), reverse=True):
        os.utime(path, ns=(0, 10**18 + 7), follow_symlinks=False)
    os.utime(where / "a" / "empty", ns=(0, -5_500_000_000))
    os.utime(where, ns=(0, 10**18))
    return where


def read(source: Directory, headers: Callable[[bytes], object] = len) -> list[tuple[Member, bytes]]:
    (layer,) = source.layers
    return [(member, b"".join(contents)) for member, contents in layer.members(lambda data: void(headers(data)))]


def void(value: object) -> None:
    pass


def test_entries_are_sorted_by_the_bytes_of_their_paths(tmp_path: Path) -> None:
    found = read(Directory(fill(tmp_path / "d")))
    paths = [member.path for member, _ in found]
    assert paths == sorted(paths)
    assert paths.index(b"a") < paths.index(b"a-b") < paths.index(b"a-b/again") < paths.index(b"a/empty")
    assert len(paths) == 13


def test_members(tmp_path: Path) -> None:
    where = fill(tmp_path / "d")
    found = {member.path: (member, content) for member, content in read(Directory(where))}
    first, content = found[b"a-b/again"]  # the first name in order is the file
    assert (first.kind, first.mode, first.size, content) == (MemberKind.FILE, 0o4750, 7000, b"content" * 1000)
    assert (first.mtime_s, first.mtime_ns) == (10**9, 7)
    for other in (b"a/file", b"b/and-again"):
        assert (found[other][0].kind, found[other][0].target) == (MemberKind.HARDLINK, b"a-b/again")
    assert found[b"b/link"][0].target == b"../nowhere/" + b"t" * 200
    assert (found[b"b/linked-link"][0].kind, found[b"b/linked-link"][0].target) == (MemberKind.HARDLINK, b"b/link")
    assert (found[b"a/empty"][0].mtime_s, found[b"a/empty"][0].mtime_ns) == (-6, 500_000_000)
    assert found[b"pipe"][0].kind is MemberKind.FIFO
    assert found[b"\xff\xfe"][1] == b"bytes"
    assert found[b""][0].kind is MemberKind.DIR
    assert found[b""][0].uid == os.getuid()


def test_headers_and_contents_are_an_archive(tmp_path: Path) -> None:
    where = fill(tmp_path / "d")
    source = Directory(where)
    (layer,) = source.layers
    whole = io.BytesIO()
    members = []
    for member, contents in layer.members(lambda data: void(whole.write(data))):
        for content in contents:
            whole.write(content)
        members.append(member)
    data = whole.getvalue()
    assert [member for member, _ in tar.members(iter([data]), lambda data: None)] == members
    assert layer.chain == hashlib.sha256(data).digest()
    document = json.loads(source.config)
    assert document["rootfs"] == {"type": "layers", "diff_ids": [f"sha256:{layer.chain.hex()}"]}
    assert document["os"] == "linux"
    assert "created" not in document
    assert (source.manifest, source.index) == (None, None)
    with tarfile.open(fileobj=io.BytesIO(data), encoding="utf-8", errors="surrogateescape") as opened:
        names = [info.name.encode("utf-8", "surrogateescape") for info in opened]
    assert names == [member.path or b"." for member in members]
    unpacked = tmp_path / "unpacked"
    unpacked.mkdir()
    subprocess.run(
        ["tar", "-x", "-p", "--delay-directory-restore", "-C", unpacked],
        input=data,
        check=True,
        stderr=subprocess.DEVNULL,
    )
    assert digest(unpacked) == layer.chain  # GNU tar makes the same archive


def digest(where: Path) -> bytes:
    source = Directory(where)
    read(source)
    return source.layers[0].chain


def test_the_digest_depends_on_everything_and_on_nothing_else(tmp_path: Path) -> None:
    where = fill(tmp_path / "d")
    first = digest(where)
    assert digest(where) == first
    assert digest(fill(tmp_path / "another place")) == first
    seen = {first}
    changes: list[Callable[[], object]] = [
        lambda: (where / "a" / "empty").write_bytes(b"x"),
        lambda: (where / "a" / "empty").chmod(0o600),
        lambda: os.utime(where / "a" / "empty", ns=(0, 1)),
        lambda: (where / "pipe").unlink(),
        lambda: (where / "a" / "empty").rename(where / "a" / "void"),
    ]
    for change in changes:
        change()
        seen.add(digest(where))
    assert len(seen) == len(changes) + 1


def test_the_digest_does_not_depend_on_what_the_caller_reads(tmp_path: Path) -> None:
    where = fill(tmp_path / "d")
    source = Directory(where)
    for _ in source.layers[0].members(lambda data: None):
        pass
    assert source.layers[0].chain == digest(where)


def test_attributes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    try:
        for name in ("user.b", "user.a", "user.with=equals"):
            os.setxattr(tmp_path / "file", name, name.encode())
    except OSError as error:
        pytest.skip(f"the file system has no extended attributes: {error}")
    ((_, _), (member, _)) = read(Directory(tmp_path))
    assert {
        b"user.a": b"user.a",
        b"user.b": b"user.b",
        b"user.with=equals": b"user.with=equals",
    }.items() <= member.xattrs.items()
    real = os.getxattr

    def getxattr(path: bytes, name: bytes, *, follow_symlinks: bool = True) -> bytes:
        if name == b"user.b":
            raise OSError(errno.EPERM, "Operation not permitted")
        return real(path, name, follow_symlinks=follow_symlinks)

    monkeypatch.setattr(os, "getxattr", getxattr)
    assert b"user.b" not in read(Directory(tmp_path))[1][0].xattrs


@pytest.mark.root
def test_attributes_and_devices_of_root(tmp_path: Path, need_root: None) -> None:
    try:
        os.mknod(tmp_path / "null", 0o020666, os.makedev(1, 3))
        (tmp_path / "file").write_bytes(b"")
        os.setxattr(tmp_path / "file", "trusted.t", b"1")
    except OSError as error:
        pytest.skip(f"this root may not: {error}")
    (_, (file, _), (null, _)) = read(Directory(tmp_path))
    assert file.xattrs[b"trusted.t"] == b"1"
    assert (null.kind, null.major, null.minor) == (MemberKind.CHAR, 1, 3)


def sparse(where: Path, size: int, *written: tuple[int, bytes]) -> Path:
    with open(where, "wb") as out:
        out.truncate(size)
        for at, data in written:
            out.seek(at)
            out.write(data)
    if os.stat(where).st_blocks * 512 >= size:
        pytest.skip("the file system has no holes")
    return where


def test_holes_are_neither_read_nor_hashed(tmp_path: Path) -> None:
    size = 50 << 30
    sparse(tmp_path / "disk", size, (5 << 20, b"middle"), (size - 4, b"tail"))
    source = Directory(tmp_path)
    (layer,) = source.layers
    taken: list[int] = []
    layer.progress = taken.append
    members = layer.members(lambda data: None)
    next(members)
    member, contents = next(members)
    assert (member.size, sum(map(len, contents))) == (size, size)
    assert sum(taken) <= 3 * 65536


@pytest.mark.parametrize(
    "written",
    [
        [],
        [(0, b"head")],
        [(3 << 20, b"middle" * 1000)],
        [(0, b"x" * 70_000), (900_000, b"small hole before this"), ((5 << 20) - 1, b"t")],
        [(n << 17, b"x" * 4096) for n in range(40)],
    ],
)
def test_a_file_with_holes_is_a_sparse_member(tmp_path: Path, written: list[tuple[int, bytes]]) -> None:
    where = tmp_path / "d"
    where.mkdir()
    made = sparse(where / ("n" * 150), 5 << 20, *written)
    (where / "z").write_bytes(b"next")
    source = Directory(where)
    whole = bytearray()
    members = []
    content = b""
    for member, contents in source.layers[0].members(whole.extend):
        members.append(member)
        data = b"".join(contents)
        if member.path == made.name.encode():
            content = data
            map_end = len(whole)
        elif member.path == b"z":
            whole += data
    assert content == made.read_bytes()
    # The stored segments are put where the map says, as whoever puts the archive together again does.
    (found,) = [got for got in read_archive(bytes(whole), map_end, content) if got[0].path == made.name.encode()]
    assert found == (members[1], content)
    subprocess.run(["cp", "-a", where, tmp_path / "copy"], check=True)
    assert digest(tmp_path / "copy") == source.layers[0].chain


def read_archive(headers: bytes, at: int, content: bytes) -> list[tuple[Member, bytes]]:
    """Reads an archive of which the content of one sparse member is missing at an offset."""
    block = headers[:at].rfind(b"GNU.sparse.name=")
    if block < 0:
        data = headers[:at] + content + headers[at:]
    else:
        start = headers[:at].rfind(b"ustar", block)
        numbers = [int(line) for line in headers[start + 255 : at].split(b"\n") if line.isdigit()]
        segments = zip(numbers[1::2], numbers[2::2], strict=True)
        data = headers[:at] + b"".join(content[first : first + size] for first, size in segments) + headers[at:]
    return [(member, b"".join(contents)) for member, contents in tar.members(iter([data]), lambda own: None)]


def test_small_holes_and_files_without_holes_are_ordinary_members(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    (tmp_path / "a" / "f").write_bytes(bytes(900_000) + b"tail" * 30_000)
    sparse(tmp_path / "b" / "f", 1_020_000, (900_000, b"tail" * 30_000))
    for path in ("a/f", "b/f", "a", "b"):
        os.utime(tmp_path / path, ns=(0, 10**18))
    assert digest(tmp_path / "a") == digest(tmp_path / "b")


def test_times_that_ext4_cannot_hold_are_said(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"")
    os.utime(tmp_path / "f", ns=(0, 20 * 10**18))
    if os.stat(tmp_path / "f").st_mtime_ns != 20 * 10**18:
        pytest.skip("the file system does not hold the time either")
    said: list[str] = []
    _, (member, _) = read(Directory(tmp_path, said.append))
    assert (member.mtime_s, member.mtime_ns) == (MAX_TIME, 999_999_999)
    assert len(said) == 1


def test_a_socket_is_left_out_and_noted(tmp_path: Path) -> None:
    where = tmp_path / "d"
    where.mkdir()
    (where / "z").write_bytes(b"")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(where / "s"))
        said: list[str] = []
        assert [member.path for member, _ in read(Directory(where, said.append))] == [b"", b"z"]
    assert said == [f"{where}/s is a socket: left out, the program that listens makes it"]


def test_a_file_named_like_a_whiteout_is_refused(tmp_path: Path) -> None:
    (tmp_path / ".wh.gone").write_bytes(b"")
    with pytest.raises(ImageError, match=r"/\.wh\.gone has the name of a whiteout"):
        read(Directory(tmp_path))


def append(path: Path) -> None:
    with open(path, "ab") as file:
        file.write(b"more")


def swap_for(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def swap(path: Path) -> None:
        path.unlink()
        make(path)

    return swap


@pytest.mark.parametrize(
    "change",
    [
        append,
        lambda path: os.truncate(path, 10),
        lambda path: os.utime(path, ns=(0, 5)),
        swap_for(lambda path: path.write_bytes(bytes(3 << 20))),
        swap_for(lambda path: path.symlink_to("/etc/hostname")),
        swap_for(os.mkfifo),
        lambda path: path.unlink(),
    ],
)
def test_a_file_that_changes_while_it_is_read(tmp_path: Path, change: Callable[[Path], object]) -> None:
    (tmp_path / "file").write_bytes(bytes(3 << 20))
    iterator: Iterator[tuple[Member, Iterator[bytes]]] = Directory(tmp_path).layers[0].members(lambda data: None)
    next(iterator)
    _, contents = next(iterator)
    change(tmp_path / "file")
    with pytest.raises(ImageError, match=r"file changed while it was read|cannot read .*file: "):
        list(contents)


def test_a_file_that_changes_in_the_middle(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(3 << 20))
    iterator = Directory(tmp_path).layers[0].members(lambda data: None)
    next(iterator)
    _, contents = next(iterator)
    next(contents)
    append(tmp_path / "file")
    with pytest.raises(ImageError, match="changed while it was read"):
        list(contents)


def test_a_directory_that_vanishes(tmp_path: Path) -> None:
    where = fill(tmp_path / "d")
    iterator = Directory(where).layers[0].members(lambda data: None)
    next(iterator)
    shutil.rmtree(where)
    with pytest.raises(ImageError, match=r"cannot read .*No such file"):
        list(iterator)
