"""Disk images: raw and qcow2, holes, and images that would read other files."""

import os
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from blockmap.errors import HostError, ImageError, UsageError
from blockmap.image.disk_image import DiskSource

SIZE = (64 << 20) + 512


@pytest.fixture
def qemu_img(need: Callable[..., None]) -> Callable[..., None]:
    need("qemu-img")

    def run(*arguments: object) -> None:
        subprocess.run(["qemu-img", *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)

    return run


@pytest.fixture
def work(tmp_path: Path) -> Path:
    made = tmp_path / "work"
    made.mkdir()
    return made


def raw(where: Path) -> bytes:
    """Returns a sparse disk with data at both ends and in the middle."""
    with open(where, "wb") as file:
        file.truncate(SIZE)
        for offset, length in ((0, 5000), (10 << 20, 3 << 20), (SIZE - 512, 512)):
            file.seek(offset)
            file.write(os.urandom(length))
    return where.read_bytes()


def assembled(source: DiskSource) -> tuple[bytes, int]:
    data, total, end = bytearray(source.size), 0, 0
    for offset, piece in source.extents():
        assert offset >= end
        end = offset + len(piece)
        data[offset:end] = piece
        total += len(piece)
    return bytes(data), total


def test_a_raw_disk(tmp_path: Path, work: Path, qemu_img: Callable[..., None]) -> None:
    data = raw(tmp_path / "disk")
    source = DiskSource(tmp_path / "disk", work)
    found, total = assembled(source)
    assert found == data
    assert total < 5 << 20  # holes are left out
    source.close()
    assert (tmp_path / "disk").exists()
    assert list(work.iterdir()) == []


@pytest.mark.parametrize("kind", ["qcow2", "vdi", "vpc", "vhdx"])
def test_other_formats(tmp_path: Path, work: Path, qemu_img: Callable[..., None], kind: str) -> None:
    data = raw(tmp_path / "disk")
    qemu_img("convert", "-O", kind, tmp_path / "disk", tmp_path / "converted")
    sources = [DiskSource(tmp_path / "converted", work) for _ in range(2)]
    for source in sources:
        found, total = assembled(source)
        assert found[:SIZE] == data
        assert not any(found[SIZE:])  # some formats round up
        assert total < 6 << 20
        source.close()
    assert list(work.iterdir()) == []


def test_old_and_compressed_qcow2(tmp_path: Path, work: Path, qemu_img: Callable[..., None]) -> None:
    data = raw(tmp_path / "disk")
    qemu_img("convert", "-c", "-O", "qcow2", "-o", "compat=0.10", tmp_path / "disk", tmp_path / "old")
    assert assembled(DiskSource(tmp_path / "old", work))[0] == data


def test_an_all_zero_disk_and_an_empty_one(tmp_path: Path, work: Path, qemu_img: Callable[..., None]) -> None:
    with open(tmp_path / "zeros", "wb") as file:
        file.truncate(1 << 30)
    source = DiskSource(tmp_path / "zeros", work)
    assert (source.size, list(source.extents())) == (1 << 30, [])
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(ImageError, match="empty"):
        DiskSource(tmp_path / "empty", work)


@pytest.mark.parametrize("compat", ["0.10", "1.1"])
def test_a_backing_file_is_refused(tmp_path: Path, work: Path, qemu_img: Callable[..., None], compat: str) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret" * 1000)
    qemu_img("create", "-f", "qcow2", "-o", f"compat={compat}", "-b", secret, "-F", "raw", tmp_path / "disk")
    with pytest.raises(ImageError, match=r"disk is a qcow2 image that refers to other files.*qemu-img convert"):
        DiskSource(tmp_path / "disk", work)


def test_an_external_data_file_is_refused(tmp_path: Path, work: Path, qemu_img: Callable[..., None]) -> None:
    qemu_img("create", "-f", "qcow2", "-o", f"data_file={tmp_path / 'data'},data_file_raw=on", tmp_path / "disk", "1M")
    with pytest.raises(ImageError, match="disk is a qcow2 image that refers to other files"):
        DiskSource(tmp_path / "disk", work)


def test_headers_are_judged_before_qemu_img_sees_them(
    tmp_path: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(work))  # where qemu-img is not found
    plain = b"QFI\xfb" + struct.pack(">IQ", 3, 0) + bytes(496)
    backing = b"QFI\xfb" + struct.pack(">IQ", 3, 512) + bytes(496)
    external = plain[:72] + struct.pack(">Q", 4) + plain[80:]
    for head in (backing, external):
        (tmp_path / "disk").write_bytes(head)
        with pytest.raises(ImageError, match="refers to other files"):
            DiskSource(tmp_path / "disk", work)
    (tmp_path / "disk").write_bytes(plain)
    with pytest.raises(HostError, match="apt-get install qemu-utils"):
        DiskSource(tmp_path / "disk", work)
    (tmp_path / "disk").write_bytes(plain[:50])
    with pytest.raises(ImageError, match="truncated"):
        DiskSource(tmp_path / "disk", work)


def test_vmdk_is_refused_before_its_parts_are_opened(
    tmp_path: Path, work: Path, qemu_img: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    raw(tmp_path / "raw")
    qemu_img("convert", "-O", "vmdk", tmp_path / "raw", tmp_path / "sparse")
    qemu_img("convert", "-O", "vmdk", "-o", "subformat=monolithicFlat", tmp_path / "raw", tmp_path / "flat")
    text = (tmp_path / "flat").read_bytes()
    (tmp_path / "spaced").write_bytes(b"# any comment\n  \r\n\n" + text[text.index(b"version=") :])
    monkeypatch.setenv("PATH", str(work))
    for name in ("sparse", "flat", "spaced"):
        with pytest.raises(ImageError, match="is a vmdk image that refers to other files"):
            DiskSource(tmp_path / name, work)


@pytest.mark.parametrize("name", ["nbd:localhost:1", "-disk", 'json:{"driver":"null-co"}', "ssh:x"])
def test_a_file_name_is_no_protocol(
    tmp_path: Path, work: Path, monkeypatch: pytest.MonkeyPatch, qemu_img: Callable[..., None], name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    data = raw(Path(name))
    assert assembled(DiskSource(Path(name), work))[0] == data
    qemu_img("convert", "-f", "raw", "-O", "qcow2", f"./{name}", "./converted")
    os.rename("converted", name)
    assert assembled(DiskSource(Path(name), work))[0] == data


@pytest.mark.parametrize(
    "head", [b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"\xfd7zXZ\0", b"BZh", b"PK\3\4", bytes(257) + b"ustar"]
)
def test_an_archive_is_no_disk(tmp_path: Path, work: Path, head: bytes) -> None:
    (tmp_path / "file").write_bytes(head.ljust(10_000, b"\0"))
    with pytest.raises(UsageError, match="is an archive, not a disk image: say docker-archive:"):
        DiskSource(tmp_path / "file", work)


@pytest.mark.parametrize("kind", ["qcow2", "vdi", "vhdx", "vpc"])
def test_a_truncated_image(tmp_path: Path, work: Path, qemu_img: Callable[..., None], kind: str) -> None:
    """`qemu-img convert` fills most of these up with zeros, and exits with 0."""
    raw(tmp_path / "disk")
    qemu_img("convert", "-O", kind, tmp_path / "disk", tmp_path / "converted")
    whole = (tmp_path / "converted").read_bytes()
    for length in (300, len(whole) // 2):
        (tmp_path / "converted").write_bytes(whole[:length])
        with pytest.raises(ImageError, match=r"truncated: get it again|qemu-img (info|check) failed"):
            DiskSource(tmp_path / "converted", work).close()
    assert list(work.iterdir()) == []


def test_a_damaged_qcow2(tmp_path: Path, work: Path, qemu_img: Callable[..., None]) -> None:
    raw(tmp_path / "disk")
    qemu_img("convert", "-O", "qcow2", tmp_path / "disk", tmp_path / "whole")
    whole = (tmp_path / "whole").read_bytes()
    for damaged in (whole[:4] + b"\0\0\0\x09" + whole[8:], whole[:30] + b"\xff" * 20 + whole[50:]):
        (tmp_path / "whole").write_bytes(damaged)
        with pytest.raises(ImageError, match=r"qemu-img (info|check) failed"):
            DiskSource(tmp_path / "whole", work)
    assert list(work.iterdir()) == []


@pytest.mark.parametrize("size", [SIZE - 4096, SIZE + 4096, 100])
def test_a_disk_that_changes_its_size(tmp_path: Path, work: Path, qemu_img: Callable[..., None], size: int) -> None:
    raw(tmp_path / "disk")
    extents = DiskSource(tmp_path / "disk", work).extents()
    next(extents)
    os.truncate(tmp_path / "disk", size)
    with pytest.raises(ImageError, match="changed its size"):
        list(extents)
