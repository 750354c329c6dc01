"""What of a layer is left out or changed with a warning, and what an image may unpack to."""

import io
from hashlib import sha256
from pathlib import Path

import pytest

from blockmap.errors import ImageError
from blockmap.filesystem.ext4.inode import MAX_TIME, MIN_TIME
from blockmap.filesystem.member import Member, Members
from blockmap.image.disk_image import DiskSource
from blockmap.image.layer import BlobLayer
from blockmap.image.pax import BLOCK
from blockmap.image.sources import open_source
from blockmap.image.tolerance import UnpackPolicy
from tests.image.builder import docker_archive
from tests.image.layouts import archive, compress_gzip, directory, file, layout
from tests.image.test_tar import TRAILER, block, extended

ACL = b"\2\0\0\0\1\0\7\0\xff\xff\xff\xff"


def layer(data: bytes, policy: UnpackPolicy) -> BlobLayer:
    return BlobLayer("L", lambda: io.BytesIO(data), len(data), None, sha256(data).digest(), b"", policy)


def both_readings(data: bytes) -> tuple[dict[bytes, Member], list[str]]:
    """Returns the members by path, which both readers must find, and the warnings of the first."""
    said: list[str] = []
    found = by_path(layer(data, UnpackPolicy(said.append)).members(lambda own: None))
    assert by_path(layer(data, UnpackPolicy()).second_reading()) == found
    return found, said


def by_path(members: Members) -> dict[bytes, Member]:
    return {member.path: member for member, _ in members}


def test_attributes_of_other_systems_are_left_out_and_said_once() -> None:
    apple = {
        "SCHILY__xattr__com__apple__provenance": b"\1\2\0",
        "LIBARCHIVE__xattr__com__apple__quarantine": b"no base64!",
    }
    data = b"".join(
        extended(**apple, SCHILY__xattr__user__mine=b"1") + block(name) for name in (b"app", b"other", b"third")
    )
    found, said = both_readings(data + extended(SCHILY__xattr__system__nfs4_acl=b"1") + block(b"nfs") + TRAILER)
    assert all(member.xattrs == ({} if path == b"nfs" else {b"user.mine": b"1"}) for path, member in found.items())
    assert said == [
        "layer L: 'app' loses attributes that Linux does not know, such as 'com.apple.provenance' "
        "(3 more members of the layer as well)",
    ]


def test_acls_as_text_are_left_out_and_said() -> None:
    text = {"SCHILY__acl__access": b"user::rwx\n", "SCHILY__acl__default": b"user::rwx\n"}
    both = extended(**text, SCHILY__xattr__system__posix_acl_access=ACL) + block(b"both")
    found, said = both_readings(both + extended(**text) + block(b"text") + TRAILER)
    assert found[b"both"].xattrs == {b"system.posix_acl_access": ACL}
    assert found[b"text"].xattrs == {}
    (one,) = said
    assert "'both' has an ACL as text: left out" in one


@pytest.mark.parametrize(
    ("records", "field", "nearest"),
    [
        ({"mtime": b"-62135596800"}, b"", (MIN_TIME, 0)),
        ({"mtime": b"99999999999"}, b"", (MAX_TIME, 999_999_999)),
        ({"mtime": b"1" + b"0" * 60}, b"", (MAX_TIME, 999_999_999)),
        ({}, b"\xff\xff\xff\xff\x80" + bytes(7), (MIN_TIME, 0)),
        ({"mtime": b"-2147483648.5"}, b"", (MIN_TIME, 0)),
    ],
)
def test_times_out_of_range_are_the_nearest(records: dict[str, bytes], field: bytes, nearest: tuple[int, int]) -> None:
    data = (extended(**records) if records else b"") + block(b"f", mtime=field or b"00000000000\0") + TRAILER
    found, said = both_readings(data)
    assert (found[b"f"].mtime_s, found[b"f"].mtime_ns) == nearest
    assert said == ["layer L: 'f' has a time that ext4 cannot hold (1901 to 2446): the nearest is taken"]


def test_ordinary_layers_are_silent() -> None:
    found, said = both_readings(
        archive([directory("d"), file("d/f", b"1", mtime="15032385535.5", xattrs={"user.a": b"1"})])
    )
    assert said == []
    assert found[b"d/f"].xattrs == {b"user.a": b"1"}


def test_attributes_that_no_inode_has_room_for_are_refused_as_they_are_read() -> None:
    def flood() -> Members:
        data = b"".join(extended(**{f"SCHILY__xattr__user__a{n}": bytes(9000)}) + block(b"f%d" % n) for n in range(99))
        return layer(data, UnpackPolicy()).members(lambda own: None)

    with pytest.raises(ImageError, match="'f0': its extended attributes take 9007 bytes, more than ext4 has"):
        next(flood())


# --- the limit


def unpack(source: str, work: Path, most: int) -> int:
    opened = open_source(source, platform="linux/amd64", work=work, most=most)
    assert not isinstance(opened, DiskSource)
    try:
        return sum(
            len(piece) for own in opened.layers for _, contents in own.members(lambda data: None) for piece in contents
        )
    finally:
        opened.close()


LIMIT = 1 << 20
OVER = "unpacks to more than 0.000976562 GiB: raise the limit by --max-size"


def test_the_layers_together_have_a_limit(tmp_path: Path) -> None:
    half = archive([file("a", bytes(LIMIT // 2 - 8 * BLOCK))])
    half += bytes(-len(half) % 10240)
    assert unpack(f"oci:{layout(tmp_path / 'one', [half])}", tmp_path, LIMIT) > LIMIT // 3
    with pytest.raises(ImageError, match=OVER):
        unpack(f"oci:{layout(tmp_path / 'three', [half] * 3)}", tmp_path, LIMIT)


def test_a_sparse_file_counts_with_its_size(tmp_path: Path) -> None:
    raw = bytearray(block(b"sp", b"S", magic=b"ustar  \0"))
    raw[483:495] = b"%011o\0" % (LIMIT + 1)
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw)
    with pytest.raises(ImageError, match=OVER):
        unpack(f"oci:{layout(tmp_path, [bytes(raw) + TRAILER])}", tmp_path, LIMIT)


@pytest.mark.parametrize("form", ["docker-archive", "oci-archive"])
def test_a_compressed_archive_has_the_limit_before_it_fills_the_disk(tmp_path: Path, form: str) -> None:
    saved = docker_archive(tmp_path / "saved.tar", [archive([file("a", bytes(2 * LIMIT))])])
    if form == "oci-archive":
        saved.write_bytes(archive([file("blobs/sha256/" + "0" * 64, bytes(2 * LIMIT))]))
    saved.write_bytes(compress_gzip(saved.read_bytes()))
    work = tmp_path / "work"
    work.mkdir()
    with pytest.raises(ImageError, match=OVER):
        unpack(f"{form}:{saved}", work, LIMIT)
    assert list(work.iterdir()) == []
