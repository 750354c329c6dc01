"""Sparse members in each form that GNU tar writes, and maps that make no sense."""

import hashlib
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blockmap.errors import ImageError
from blockmap.filesystem.member import Member, MemberKind
from blockmap.image import pax, sparse, tar

FORMS = [["--format=gnu"], *(["--format=posix", f"--sparse-version={version}"] for version in ("0.0", "0.1", "1.0"))]


def file_with_holes(where: Path, segments: list[tuple[int, bytes]], size: int) -> Path:
    with open(where, "wb") as out:
        out.truncate(size)
        for at, data in segments:
            out.seek(at)
            out.write(data)
    return where


def read(data: bytes, headers: Callable[[bytes], object] = len) -> list[tuple[Member, bytes]]:
    return [
        (member, b"".join(contents)) for member, contents in tar.members(iter([data]), lambda own: keep(headers(own)))
    ]


def keep(value: object) -> None:
    pass


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 30, 300])
def test_forms_of_gnu_tar(tmp_path: Path, form: list[str], count: int, need: Callable[..., None]) -> None:
    need("tar")
    segments = [(n << 16, os.urandom(4096)) for n in range(1, count + 1)]
    made = file_with_holes(tmp_path / ("name" * 40), segments, (count + 2 << 16) + 5)
    (tmp_path / "next").write_bytes(b"next")
    data = subprocess.run(
        ["tar", "-c", "--sparse", *form, "-C", tmp_path, made.name, "next"], check=True, capture_output=True
    ).stdout
    assert len(data) < made.stat().st_size
    (member, content), (_, behind) = read(data)
    assert (member.path, member.size) == (made.name.encode(), made.stat().st_size)
    assert content == made.read_bytes()
    assert behind == b"next"
    kept: list[bytes] = []
    read(data, kept.append)
    stored = b"".join(segment for _, segment in segments)
    assert len(b"".join(kept)) + len(stored) + len(b"next") == len(data), "the map is among the headers"


def test_what_is_not_read_is_skipped(tmp_path: Path, need: Callable[..., None]) -> None:
    need("tar")
    file_with_holes(tmp_path / "a", [(1 << 20, b"x" * 5000)], 3 << 20)
    (tmp_path / "b").write_bytes(b"next")
    data = subprocess.run(["tar", "-cS", "-C", tmp_path, "a", "b"], check=True, capture_output=True).stdout
    members = tar.members(iter([data]), lambda own: None)
    _, first = next(members)
    next(first)
    _, second = next(members)
    assert b"".join(second) == b"next"
    assert len(b"".join(first)) < 3 << 20


def old(segments: list[tuple[int, int]], size: int, stored: int) -> bytes:
    raw = bytearray(pax.header(Member(b"sp", MemberKind.FILE, 0o644, size=stored)))
    raw[156:157], raw[257:265] = b"S", b"ustar  \0"
    for at, (start, length) in enumerate(segments):
        raw[386 + 24 * at : 410 + 24 * at] = b"%011o\0%011o\0" % (start, length)
    raw[483:495] = b"%011o\0" % size
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw)
    return bytes(raw) + b"x" * stored + bytes(-stored % 512 + 1024)


@pytest.mark.parametrize(
    ("segments", "size", "stored"),
    [
        ([(0, 10)], 5, 10),
        ([(0, 10)], 100, 9),
        ([(0, 10)], 100, 11),
        ([(10, 10), (0, 10)], 100, 20),
        ([(0, 10), (5, 10)], 100, 20),
        ([], 100, 1),
    ],
)
def test_maps_that_do_not_fit(segments: list[tuple[int, int]], size: int, stored: int) -> None:
    with pytest.raises(ImageError, match="'sp': a sparse member's map does not fit its content"):
        read(old(segments, size, stored))


def test_a_map_of_any_length_is_bounded() -> None:
    stream = [pax.header(Member(b"x", MemberKind.FILE, 0, size=1 << 30))]
    stream += [b"99999999\n".ljust(512, b"1")] + [b"1\n" * 256] * 5000
    pairs = {b"GNU.sparse.major": b"1", b"GNU.sparse.minor": b"0", b"GNU.sparse.realsize": b"5"}
    data = b"".join(b"%d %s=%s\n" % (len(key) + len(value) + 5, key, value) for key, value in pairs.items())
    first = bytearray(pax.header(Member(b"pax", MemberKind.FILE, 0, size=len(data))))
    first[156:157] = b"x"
    first[148:156] = b" " * 8
    first[148:156] = b"%06o\0 " % sum(first)
    with pytest.raises(ImageError, match="1048576 at most"):
        list(tar.members(iter([bytes(first), data.ljust(512, b"\0"), *stream]), lambda own: None))


@given(st.lists(st.tuples(st.integers(0, 5000), st.integers(1, 3000)), max_size=5), st.integers(1, 2000))
@settings(max_examples=100, deadline=None)
def test_a_written_map_is_read_back(gaps: list[tuple[int, int]], piece: int) -> None:
    at, segments = 0, []
    for gap, length in gaps:
        segments.append((at + gap, length))
        at += gap + length
    encoded = sparse.encode_map(segments)
    blocks = iter([encoded[n : n + 512] for n in range(0, len(encoded), 512)])
    described = {b"GNU.sparse.major": b"1", b"GNU.sparse.minor": b"0", b"GNU.sparse.realsize": b"%d" % (at + 7)}
    assert sparse.pax_map(described, lambda: next(blocks)) == (at + 7, segments)
    assert next(blocks, None) is None
    stored = hashlib.shake_128(b"x").digest(sum(length for _, length in segments))
    pieces = (stored[n : n + piece] for n in range(0, len(stored), piece))
    whole, used = bytearray(at + 7), 0
    for start, length in segments:
        whole[start : start + length] = stored[used : used + length]
        used += length
    assert b"".join(sparse.expand(pieces, at + 7, segments)) == whole
