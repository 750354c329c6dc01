"""The tar reader, compared with Python's tarfile."""

import hashlib
import io
import os
import struct
import tarfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blockmap.errors import ImageError
from blockmap.filesystem.member import Member, MemberKind
from blockmap.image import pax, tar
from blockmap.image.sources import open_source
from tests.image.layouts import Member as M
from tests.image.layouts import archive, directory, file, hardlink, symlink

TRAILER = bytes(1024)


def pad(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def block(name: bytes = b"f", kind: bytes = b"0", size: int | bytes = 0, **fields: bytes) -> bytes:
    """Returns a header; `fields` are its raw bytes."""
    parts = {
        "name": name, "mode": b"0000644\0", "uid": b"0000000\0", "gid": b"0000000\0",
        "size": size if isinstance(size, bytes) else b"%011o\0" % size,
        "mtime": b"00000000000\0", "sum": b" " * 8, "kind": kind, "link": b"", "magic": b"ustar\x0000", "names": b"",
        "major": b"", "minor": b"", "prefix": b"", **fields,
    }  # fmt: skip
    raw = pax.HEADER.pack(*parts.values())
    return raw[:148] + b"%06o\0 " % sum(raw) + raw[156:]


def record(key: bytes, value: bytes) -> bytes:
    rest = len(key) + len(value) + 3
    length = next(n for n in range(rest, rest + 20) if n == rest + len(str(n)))
    return b"%d %s=%s\n" % (length, key, value)


def extended(kind: bytes = b"x", **records: bytes) -> bytes:
    data = b"".join(record(key.encode().replace(b"__", b"."), value) for key, value in records.items())
    return block(b"pax", kind, len(data)) + pad(data)


def read(data: bytes, piece: int = 1 << 20) -> list[tuple[Member, bytes]]:
    pieces = (data[at : at + piece] for at in range(0, len(data), piece))
    return [(member, b"".join(contents)) for member, contents in tar.members(pieces, lambda data: None)]


def one(data: bytes) -> Member:
    ((member, _),) = read(data + TRAILER)
    return member


EVERYTHING = [
    directory("."),
    directory("etc", mode=0o2755, uid=70000, gid=1 << 31),
    file("etc/passwd", b"root\n" * 1000, mtime="-5.5"),
    file("n" * 255, b"x", mtime="4294967296.123456789"),
    file(b"\xff\xfe", b"bytes"),
    file("empty"),
    file("block", bytes(512)),
    symlink("link", "../anywhere/" + "t" * 300),
    hardlink("second", "./etc//passwd"),
    M(b"null", tarfile.CHRTYPE, device=(1, 3)),
    M(b"disk", tarfile.BLKTYPE, device=(259, 70000)),
    M(b"pipe", tarfile.FIFOTYPE),
    file("xattrs", b"1", xattrs={"user.a": b"b=c\n\0\xff", "user.empty": b"", "security.capability": bytes(range(20))}),
]


@pytest.mark.parametrize("piece", [1, 7, 511, 512, 513, 1 << 20])
def test_members_whatever_the_pieces(piece: int) -> None:
    found = read(archive(EVERYTHING), piece)
    assert [member.path for member, _ in found] == [b"" if m.path == b"." else m.path for m in EVERYTHING]
    assert [content for _, content in found] == [m.data for m in EVERYTHING]
    by_path = {member.path: member for member, _ in found}
    assert by_path[b"etc"] == Member(b"etc", MemberKind.DIR, 0o2755, 70000, 1 << 31, 1_000_000_000)
    assert (by_path[b"etc/passwd"].mtime_s, by_path[b"etc/passwd"].mtime_ns) == (-6, 500_000_000)
    assert (by_path[b"n" * 255].mtime_s, by_path[b"n" * 255].mtime_ns) == (4294967296, 123456789)
    assert by_path[b"link"].target == b"../anywhere/" + b"t" * 300
    assert (by_path[b"second"].kind, by_path[b"second"].target) == (MemberKind.HARDLINK, b"etc/passwd")
    assert (by_path[b"disk"].kind, by_path[b"disk"].major, by_path[b"disk"].minor) == (MemberKind.BLOCK, 259, 70000)
    assert by_path[b"pipe"].kind is MemberKind.FIFO
    assert by_path[b"xattrs"].xattrs == {
        b"user.a": b"b=c\n\0\xff", b"user.empty": b"", b"security.capability": bytes(range(20)),
    }  # fmt: skip


@pytest.mark.parametrize("piece", [100, 1 << 20])
def test_headers_and_contents_are_the_archive(piece: int) -> None:
    data = extended(b"g", comment=b"from somewhere") + archive(EVERYTHING) + b"after the end"
    state = hashlib.sha256()
    pieces = (data[at : at + piece] for at in range(0, len(data), piece))
    for _, contents in tar.members(pieces, state.update):
        for content in contents:
            state.update(content)
    assert state.digest() == hashlib.sha256(data).digest()


def test_headers_are_the_same_whether_contents_are_read_or_not() -> None:
    data = archive(EVERYTHING)
    kept: list[bytes] = []
    for _ in tar.members(iter([data]), kept.append):
        pass
    assert len(b"".join(kept)) == len(data) - sum(len(member.data) for member in EVERYTHING)


def test_a_kept_iterator_does_not_take_the_next_members_content() -> None:
    iterator = tar.members(iter([archive([file("a", b"a" * 1000), file("b", b"b" * 1000)])]), lambda data: None)
    _, first = next(iterator)
    _, second = next(iterator)
    assert b"".join(first) == b""
    assert b"".join(second) == b"b" * 1000


def test_gnu_archives() -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as made:
        info = tarfile.TarInfo("d/" * 100 + "name")
        info.type, info.linkname, info.mtime, info.uid = tarfile.SYMTYPE, "t" * 200, -3, 1 << 30
        made.addfile(info)
    member = one(out.getvalue())
    assert member.path == b"d/" * 100 + b"name"
    assert (member.target, member.mtime_s, member.uid) == (b"t" * 200, -3, 1 << 30)


def test_a_prefix_belongs_to_ustar_only() -> None:
    assert one(block(b"name", prefix=b"above")).path == b"above/name"
    assert one(block(b"name", prefix=b"above", magic=b"ustar  \0")).path == b"name"
    assert one(block(b"name", prefix=b"above", magic=b"")).path == b"name"


def test_types_of_old() -> None:
    assert one(block(b"dir/", b"\0")).kind is MemberKind.DIR
    assert one(block(b"file", b"\0")).kind is MemberKind.FILE
    assert one(block(b"file", b"7")).kind is MemberKind.FILE


def test_only_files_have_content() -> None:
    found = read(block(b"dir", b"5", 3) + block(b"other") + TRAILER)
    assert [(member.path, member.size) for member, _ in found] == [(b"dir", 0), (b"other", 0)]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (b"0000017\0", 15), (b"     17 ", 15), (b"17\0 junk", 15), (b"17      ", 15), (b"\0\0\0\0\0\0\0\0", 0),
        (b"        ", 0), (b"\x80\0\0\0\0\0\1\0", 256), (b"\xff" * 8, -1), (b"\xff" * 7 + b"\0", -256),
        (b"\0\00000017", 15), (b"\xbf" + b"\xff" * 7, (1 << 62) - 1), (b"\xc0" + bytes(7), -(1 << 62)),
    ],
)  # fmt: skip
def test_numbers(field: bytes, value: int) -> None:
    assert pax.number(field, "test") == value
    if value >= 0 and field[0] in b" 01\x80" and b"junk" not in field:  # tarfile does not know the others
        assert tarfile.nti(field) == value


@pytest.mark.parametrize(
    "field", [b"0000019\0", b"-0000017", b"0o17\0\0\0\0", b"1_7\0\0\0\0\0", b"1 7\0\0\0\0\0", b"x" * 8]
)
def test_numbers_that_are_none(field: bytes) -> None:
    with pytest.raises(ImageError, match="not a number"):
        pax.number(field, "test")


@pytest.mark.parametrize(
    ("text", "seconds", "nanoseconds"),
    [
        (b"5", 5, 0), (b"-5", -5, 0), (b"5.5", 5, 500_000_000), (b"-5.5", -6, 500_000_000), (b"-0.1", -1, 900_000_000),
        (b"0.0000000019", 0, 1), (b"5.", 5, 0), (b"-5.0", -5, 0), (b"-1.999999999", -2, 1),
    ],
)  # fmt: skip
def test_times(text: bytes, seconds: int, nanoseconds: int) -> None:
    member = one(extended(mtime=text) + block())
    assert (member.mtime_s, member.mtime_ns) == (seconds, nanoseconds)


@pytest.mark.parametrize("text", [b"", b".5", b"1e9", b"--5", b"+5", b"5.-5", b"5.5.5", b"9" * 101, b"nan"])
def test_times_that_are_none(text: bytes) -> None:
    if not text:
        assert one(extended(mtime=text) + block(mtime=b"00000000007\0")).mtime_s == 7
        return
    with pytest.raises(ImageError, match="pax header has"):
        one(extended(mtime=text) + block())


def test_pax_records_override_and_empty_ones_take_back() -> None:
    member = one(extended(path=b"other", uid=b"7", gid=b"8", hdrcharset=b"BINARY", atime=b"x") + block())
    assert (member.path, member.uid, member.gid) == (b"other", 7, 8)
    everywhere = extended(b"g", uid=b"9", path=b"everywhere")
    assert one(everywhere + block()).uid == 9
    back = one(everywhere + extended(path=b"", uid=b"") + block(uid=b"0000005\0"))
    assert (back.path, back.uid) == (b"f", 5)
    found = read(everywhere + extended(path=b"x") + block() + block() + TRAILER)
    assert [member.path for member, _ in found] == [b"x", b"everywhere"]


def test_a_pax_size_overrides_the_header() -> None:
    ((member, content),) = read(extended(size=b"5") + block() + pad(b"hello") + TRAILER)
    assert (member.size, content) == (5, b"hello")


def test_a_file_of_more_than_eight_gibibytes() -> None:
    size = (8 << 30) + 5
    piece = bytes(1 << 24)

    def pieces() -> Iterator[bytes]:
        yield extended(size=b"%d" % size) + block(b"huge")
        left = size
        while left:
            yield piece[: min(left, len(piece))]
            left -= min(left, len(piece))
        yield bytes(-size % 512) + block(b"after") + TRAILER

    found = [(member.path, member.size, sum(map(len, contents))) for member, contents in tar.members(pieces(), len)]
    assert found == [(b"huge", size, size), (b"after", 0, 0)]


def test_libarchive_attributes() -> None:
    member = one(extended(**{"LIBARCHIVE__xattr__user__a%3Db": b"aGk", "SCHILY__xattr__user__c": b"1"}) + block())
    assert member.xattrs == {b"user.a=b": b"hi", b"user.c": b"1"}


@pytest.mark.parametrize(
    ("path", "normal"),
    [
        (b"/a", b"a"), (b"./a", b"a"), (b"a//b", b"a/b"), (b"a/./b/", b"a/b"), (b"./", b""), (b"/", b""), (b"//.//", b""),
        (b"...", b"..."), (b"a/..b", b"a/..b"),
    ],
)  # fmt: skip
def test_paths(path: bytes, normal: bytes) -> None:
    assert one(block(path, b"5")).path == normal


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (block(b"a/../b"), "'a/../b': the path climbs out"),
        (block(b".."), "climbs out"),
        (block(b"l", b"1", link=b"../etc/passwd"), "climbs out"),
        (block(b"l", b"1"), "'l': is a hard link to nothing"),
        (block(b"l", b"1", link=b"./"), "hard link to nothing"),
        (extended(path=b"a\0b") + block(), "zero byte"),
        (extended(linkpath=b"a\0b") + block(b"l", b"2"), "'l': the target holds a zero byte"),
        (block(b"long", b"L", 4) + pad(b"a\0b\0") + block(), "zero byte"),
        (block(b"long", b"L", 5000) + pad(b"n" * 5000), "path or target of 5000 bytes: 4095 are allowed"),
        (block(b"long", b"K", 1 << 30), "path or target of 1073741824 bytes: 4095 are allowed"),
        (block(b"a") + bytes(512) + block(b"b"), "'a': a lone block of zeros"),
        (block(b"a") + bytes(512) + b"junk", "'a': a lone block of zeros"),
        (block(b"name", b"V"), "'name': the member is of type 'V'"),
        (block(b"name", b"\xff"), "'name': the member is of type 'ÿ'"),
        (extended(LIBARCHIVE__xattr__user__a=b"!") + block(b"name"), "'name': an extended attribute is not base64"),
        (extended(SCHILY__xattr__=b"1") + block(b"name"), "'name': an extended attribute has no name"),
        (block(b"n", size=0, mode=b"zzzzzzz\0"), "mode is b'zzzz"),
        (block(b"n", size=b"\xff" * 12), "'n': its size is negative"),
        (extended(size=b"-1") + block(b"n"), "'n': its size is negative"),
        (block(b"x", b"x", 5) + pad(b"junk\n") + block(), "pax header is damaged"),
        (block(b"x", b"x", 9) + pad(b"99 a=bbb\n") + block(), "pax header is damaged"),
        (block(b"x", b"x", 2 << 20), "1048576 at most"),
        (block(b"f", size=5) + b"hel", "middle of a file"),
        (block()[:100], "middle of a header"),
        (block(b"x", b"x", 9) + b"9 a=", "middle of a header"),
        (extended(path=b"x"), "between the headers of a member"),
        (b"junk" * 128, "checksum"),
        (block()[:-1] + b"\1", "checksum"),
    ],
)
def test_what_is_refused(data: bytes, said: str) -> None:
    with pytest.raises(ImageError) as caught:
        read(data)
    assert said in str(caught.value)


def test_checksums_of_signed_bytes() -> None:
    raw = block(b"caf\xe9")
    signed = sum(struct.unpack("512b", raw[:148] + b" " * 8 + raw[156:]))
    assert one(raw[:148] + b"%06o\0 " % signed + raw[156:]).path == b"caf\xe9"


def test_an_archive_may_end_without_its_trailer() -> None:
    assert [member.path for member, _ in read(block(b"a") + block(b"b"))] == [b"a", b"b"]
    assert read(b"") == []
    assert [content for _, content in read(block(size=5) + b"hello")] == [b"hello"]
    assert [content for _, content in read(block(size=5) + b"hello" + bytes(9))] == [b"hello"]
    assert [member.path for member, _ in read(block(b"a") + bytes(512))] == [b"a"]
    assert [member.path for member, _ in read(block(b"a") + bytes(600))] == [b"a"]


def test_what_stands_behind_the_end_is_ignored_and_said() -> None:
    for behind, said in ((block(b"more"), [b"a"]), (bytes(5000), []), (bytes(70_000) + b"x", [b"a"])):
        odd: list[bytes] = []
        data = block(b"a") + TRAILER + behind
        found = list(tar.members(iter([data[:1600], data[1600:]]), len, lambda path, what, odd=odd: odd.append(path)))  # type: ignore[misc]
        assert [member.path for member, _ in found] == [b"a"]
        assert odd == said


@pytest.mark.parametrize("kind", [b"x", b"g", b"L"])
def test_floods_of_extended_headers_are_bounded(kind: bytes) -> None:
    made = 0

    def flood() -> Iterator[bytes]:
        nonlocal made
        for n in range(1000):
            made += 1
            data = record(b"SCHILY.xattr.user.%d" % n, os.urandom(100_000))
            yield block(b"pax", kind, len(data)) + pad(data)

    tracemalloc.start()
    with pytest.raises(ImageError, match="path or target" if kind == b"L" else "extended headers"):
        list(tar.members(flood(), lambda data: None))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert made < 15
    assert peak < 8 << 20


def test_the_pieces_are_closed_at_an_error() -> None:
    closed = False

    def pieces() -> Iterator[bytes]:
        nonlocal closed
        try:
            yield b"junk" * 128
            yield b"more"
        finally:
            closed = True

    own = pieces()
    with pytest.raises(ImageError) as caught:
        list(tar.members(own, lambda data: None))
    assert closed
    assert caught.value is not None  # its traceback keeps every frame


# --- made by chance


def survive(data: bytes) -> None:
    try:
        total = 0
        for member, contents in tar.members(iter([data]), lambda data: None):
            if member.size <= len(data):  # sparse ones may have any size
                total += sum(map(len, contents))
            assert b".." not in member.path.split(b"/")
            assert not member.path.startswith(b"/")
            assert b"\0" not in member.path + member.target
        assert total <= len(data)
    except ImageError:
        pass


@given(st.binary(max_size=3000))
@settings(max_examples=200, deadline=None)
def test_arbitrary_bytes(data: bytes) -> None:
    survive(data)


FIELDS = ["gid", "link", "major", "minor", "mode", "mtime", "prefix", "uid"]


@given(
    st.lists(
        st.tuples(
            st.binary(max_size=30),
            st.one_of(st.sampled_from([bytes([byte]) for byte in b"\x0001234567xgLKS"]), st.binary(min_size=1, max_size=1)),
            st.dictionaries(st.sampled_from(FIELDS), st.binary(max_size=8), max_size=3),
            st.one_of(
                st.binary(max_size=600),
                st.dictionaries(
                    st.one_of(
                        st.sampled_from([b"path", b"linkpath", b"size", b"mtime", b"uid", b"SCHILY.xattr.user.a",
                                         b"LIBARCHIVE.xattr.user.a", b"GNU.sparse.major"]),
                        st.binary(max_size=5),
                    ),
                    st.one_of(st.binary(max_size=10), st.integers().map(lambda n: b"%d" % n)),
                    max_size=3,
                ).map(lambda records: b"".join(record(key, value) for key, value in records.items())),
            ),
        ),
        max_size=6,
    )
)  # fmt: skip
@settings(max_examples=400, deadline=None)
def test_headers_with_arbitrary_fields(parts: list[tuple[bytes, bytes, dict[str, bytes], bytes]]) -> None:
    data = b"".join(block(name, kind, len(body), **fields) + pad(body) for name, kind, fields, body in parts)
    survive(data + TRAILER)


WHOLE = archive(EVERYTHING)


@given(st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), min_size=1, max_size=4), st.booleans())
@settings(max_examples=300, deadline=None)
def test_mutated_archives(changes: list[tuple[int, int]], mend: bool) -> None:
    data = bytearray(WHOLE)
    for at, byte in changes:
        data[at] = byte
        start = at - at % 512
        if (
            mend and data[start + 257 : start + 262] == b"ustar"
        ):  # a right checksum lets the change through to the parser
            data[start + 148 : start + 156] = b" " * 8
            data[start + 148 : start + 156] = b"%06o\0 " % sum(data[start : start + 512])
    survive(bytes(data))
    survive(bytes(data[: changes[0][0]]))


MEMBERS = st.builds(
    Member,
    path=st.lists(st.binary(min_size=1, max_size=120).filter(lambda part: not set(part) & {0, 47} and part not in (b".", b"..")),
                  min_size=1, max_size=3).map(b"/".join),
    kind=st.sampled_from([MemberKind.FILE, MemberKind.DIR, MemberKind.CHAR, MemberKind.FIFO]),
    mode=st.integers(0, 0o7777),
    uid=st.integers(0, (1 << 32) - 1),
    gid=st.integers(0, (1 << 32) - 1),
    mtime_s=st.integers(-(1 << 40), 1 << 40),
    mtime_ns=st.integers(0, 999_999_999),
    xattrs=st.dictionaries(
        st.binary(min_size=1, max_size=20).filter(lambda name: 0 not in name), st.binary(max_size=300), max_size=3
    ),
)  # fmt: skip


@given(MEMBERS)
@settings(max_examples=300, deadline=None)
def test_headers_written_are_read_back(member: Member) -> None:
    assert one(pax.header(member)) == member


# --- real layers


def corpus_layers() -> list[str]:
    where = os.environ.get("BLOCKMAP_CORPUS")
    return [f"oci:{Path(where) / name}:1" for name in ("busybox", "redis", "python-flask")] if where else []


def test_tarfile_reads_the_same_members(tmp_path: Path) -> None:
    """Both readers find the same members of real layers, with attributes and contents."""
    if not corpus_layers():
        pytest.skip("BLOCKMAP_CORPUS does not name a folder of images")
    kinds = {
        tarfile.REGTYPE: MemberKind.FILE, tarfile.DIRTYPE: MemberKind.DIR, tarfile.SYMTYPE: MemberKind.SYMLINK,
        tarfile.LNKTYPE: MemberKind.HARDLINK, tarfile.CHRTYPE: MemberKind.CHAR, tarfile.FIFOTYPE: MemberKind.FIFO,
    }  # fmt: skip
    compared = 0
    for text in corpus_layers():
        source = open_source(text, platform=None, work=tmp_path)
        for number, layer in enumerate(source.layers):  # type: ignore[union-attr]
            plain = tmp_path / f"{number}.tar"
            ours = []
            with open(plain, "wb") as out:  # headers and contents put together again
                for member, contents in layer.members(out.write):
                    state = hashlib.sha256()
                    for content in contents:
                        out.write(content)
                        state.update(content)
                    ours.append((member, state.digest()))
            with tarfile.open(plain, "r:", encoding="utf-8", errors="surrogateescape") as theirs:
                for (member, digest), info in zip(ours, theirs, strict=True):
                    raw = info.name.encode("utf-8", "surrogateescape").rstrip(b"/")
                    assert member.path == raw.removeprefix(b"./").lstrip(b"/") or raw == b"."
                    assert member.kind is kinds[info.type]
                    assert (member.mode, member.uid, member.gid) == (info.mode & 0o7777, info.uid, info.gid)
                    assert member.mtime_s == int(info.mtime)
                    assert member.size == (info.size if info.isreg() else 0)
                    if info.issym() or info.islnk():
                        assert member.target == info.linkname.encode("utf-8", "surrogateescape")
                    prefix = "SCHILY.xattr."
                    assert member.xattrs == {
                        key.removeprefix(prefix).encode(): value.encode("utf-8", "surrogateescape")
                        for key, value in info.pax_headers.items()
                        if key.startswith(prefix)
                    }
                    if info.isreg():
                        opened = theirs.extractfile(info)
                        assert opened is not None
                        assert hashlib.sha256(opened.read()).digest() == digest
                    compared += 1
        source.close()
    assert compared > 10_000
