"""An image with every oddity that layers can have, through the whole import, by four witnesses: e2fsck, the kernel, the
comparison's own merge, and umoci."""

import hashlib
import os
import stat
import struct
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from blockmap.filesystem.ext4.reader import Ext4Reader
from blockmap.image.compare import compare
from blockmap.image.importer import Importer
from blockmap.image.sources import open_source
from blockmap.store.opening import create_store
from blockmap.store.repository import Repository
from blockmap.store.volume_reader import stored_reader
from blockmap.store.walk import leaves
from tests.filesystem.ext4.volumes import fsck
from tests.image.layouts import Member as M
from tests.image.layouts import archive, compress_gzip, compress_zstd, directory, file, hardlink, layout, symlink
from tests.image.mounted import compare_with_unpacked, mounted, write_and_grow

LONG_NAME = b"n\xff" * 127 + b"x"


def acl(*entries: tuple[int, int, int]) -> bytes:
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def bulk(seed: int, size: int) -> bytes:
    return hashlib.shake_128(bytes([seed])).digest(size)


NOBODY = 0xFFFFFFFF
ACCESS = acl((1, 6, NOBODY), (2, 4, 1234), (4, 4, NOBODY), (16, 6, NOBODY), (32, 0, NOBODY))

LOWER = [
    directory("."),
    directory("usr"),
    directory("usr/lib", mode=0o2755, gid=50),
    symlink("lib", "usr/lib"),
    symlink("absolute", "/usr/lib"),
    file("lib/through-a-symlink", b"there"),
    file("absolute/through-an-absolute-one", b"there too"),
    file("missing/parents/file", b"x" * 5000),
    file("setuid", b"s", mode=0o4755),
    directory("sticky", mode=0o1777),
    file("owner", b"o", uid=70000, gid=1 << 31),
    file("old", b"1", mtime="-5.5"),
    file("older", b"1", mtime="-2147483648"),
    file("future", b"1", mtime="15032385535.999999999"),
    symlink("fast", "f" * 59),
    symlink("slow", "s" * 60),
    symlink("slower", "t" * 1000),
    M(b"null", tarfile.CHRTYPE, mode=0o666, device=(1, 3)),
    M(b"big-minor", tarfile.BLKTYPE, mode=0o600, device=(259, 70000)),
    M(b"pipe", tarfile.FIFOTYPE, mode=0o620),
    file(LONG_NAME, b"long"),
    file("empty"),
    file("block", bulk(1, 4096)),
    file("zeros", bytes(40960)),
    file("big", bulk(2, 3_000_001)),
    file("inline", b"i", xattrs={"user.a": b"1", "security.capability": struct.pack("<IIIII", 0x2000001, 1, 0, 0, 0)}),
    file("external", b"e", xattrs={f"user.name{n}": bulk(n, 150) for n in range(10)}),
    file("nothing", b"n", xattrs={"user.empty": b""}),
    file("acl", b"a", mode=0o660, xattrs={"system.posix_acl_access": ACCESS}),
    directory("default", xattrs={"system.posix_acl_default": acl((1, 7, NOBODY), (4, 5, NOBODY), (32, 0, NOBODY))}),
    *(file(f"many/entry-{n:05}", str(n).encode()) for n in range(3000)),
    *(directory(f"dirs/{n}") for n in range(300)),
    file("becomes-directory", b"file"),
    directory("becomes-file"),
    file("becomes-file/inside", b"gone"),
    file("replaced", bulk(3, 200_000)),
    file("deleted", bulk(4, 100_000)),
    directory("opaque"),
    file("opaque/below", b"hidden"),
    file("linked", bulk(5, 10_000)),
    hardlink("linked-too", "linked"),
    file("kept-by-a-link", b"still here"),
]  # fmt: skip
MIDDLE = [
    directory("becomes-directory"),
    file("becomes-directory/inside", b"now"),
    file("becomes-file", b"now a file"),
    file("replaced", b"shorter"),
    file(".wh.deleted"),
    file("opaque/above", b"shown"),
    file("opaque/.wh..wh..opq"),
    hardlink("other-name", "kept-by-a-link"),
    hardlink("linked-from-above", "linked-too"),
    file("linked", b"no longer linked"),
    *(file(f"many/.wh.entry-{n:05}") for n in range(0, 3000, 4)),
    *(file(f"many/more-{n:05}", b"m") for n in range(500)),
    directory("usr/lib", mode=0o700, uid=5),
]
UPPER = [
    file("deleted", b"back again"),
    file(".wh.sticky"),
    file(".wh.kept-by-a-link"),
    file("sticky/new", b"in a directory made anew"),
    file("many/entry-00000", b"again"),
    file("setuid", b"plain", mode=0o755),
]


@pytest.fixture(scope="module", params=["gzip", "zstd"])
def image(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    compress = {"gzip": compress_gzip, "zstd": compress_zstd, "plain": None}[request.param]
    layers = [archive(members) for members in (LOWER, MIDDLE, UPPER)]
    return layout(tmp_path_factory.mktemp(request.param), layers, compress)


@pytest.fixture(scope="module")
def volume(image: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Repository, Path]:
    """Imports the image; returns its volume as a sparse file as well."""
    where = tmp_path_factory.mktemp("volume")
    store, form = create_store(str(where / "store"))
    source = open_source(f"oci:{image}:1", platform="linux/amd64", work=where)
    summary = Importer(store, form, pytest.fail).run(source, "odd", "1")
    repository = Repository(store)
    root = repository.version(summary.version).root
    read = stored_reader(repository, root)
    raw = where / "volume.raw"
    with open(raw, "wb") as out:
        out.truncate(summary.volume_bytes)
        for span, _ in leaves(root, repository.packs.nodes):
            out.seek(span << 24)
            out.write(read(span << 24, 1 << 24))
    return repository, raw


def test_e2fsck_finds_nothing(volume: tuple[Repository, Path], need: Callable[..., None]) -> None:
    need("e2fsck")
    fsck(volume[1])


def test_equals_its_source_file_by_file(volume: tuple[Repository, Path], image: Path, tmp_path: Path) -> None:
    with open(volume[1], "rb") as raw:
        reader = Ext4Reader(lambda offset, length: os.pread(raw.fileno(), length, offset))
        source = open_source(f"oci:{image}:1", platform="linux/amd64", work=tmp_path)
        assert [str(difference) for difference in compare(reader, source)] == []


def test_a_changed_byte_is_found_by_the_comparison(
    volume: tuple[Repository, Path], image: Path, tmp_path: Path
) -> None:
    with open(volume[1], "rb") as raw:
        reader = Ext4Reader(lambda offset, length: os.pread(raw.fileno(), length, offset))
        big = next(entry for entry in reader.walk() if entry.path == b"big")
        spot = big.runs[0][1] * 4096 + 5

        def spoiled(offset: int, length: int) -> bytes:
            data = bytearray(os.pread(raw.fileno(), length, offset))
            if offset <= spot < offset + length:
                data[spot - offset] ^= 1
            return bytes(data)

        source = open_source(f"oci:{image}:1", platform="linux/amd64", work=tmp_path)
        assert [difference.path for difference in compare(Ext4Reader(spoiled), source)] == [b"big"]


@pytest.fixture
def top(volume: tuple[Repository, Path], tmp_path: Path, need_root: None) -> Iterator[Path]:
    """Mounts the volume, and yields the mount point."""
    with mounted(volume[1], tmp_path / "mounted") as where:
        yield where


@pytest.mark.root
def test_the_kernel_reads_what_umoci_unpacks(top: Path, image: Path, tmp_path: Path, need: Callable[..., None]) -> None:
    need("umoci")
    if "+zstd" in "".join(blob.read_text("latin-1") for blob in image.glob("blobs/*/*") if blob.stat().st_size < 4096):
        pytest.skip("umoci does not know zstd layers")
    unpacked = tmp_path / "unpacked"
    subprocess.run(["umoci", "raw", "unpack", "--image", f"{image}:1", unpacked], check=True, capture_output=True)
    # umoci sets times that no member describes by the clock, drops empty attributes, and mangles times after 2262.
    undescribed = {b"missing", b"missing/parents", b"many", b"dirs", b"sticky"}
    compare_with_unpacked(top, unpacked, undescribed, odd_times={b"future"}, odd_attributes={b"nothing"})


@pytest.mark.root
def test_the_kernel_sees_what_umoci_cannot(top: Path) -> None:
    assert os.stat(top / "future").st_mtime_ns == 15032385535_999999999
    assert os.getxattr(top / "nothing", "user.empty") == b""
    assert len(os.listdir(top / "many")) == 3000 - 750 + 500 + 1
    assert (top / "sticky" / "new").read_bytes() == b"in a directory made anew"
    assert stat.S_IMODE(os.stat(top / "sticky").st_mode) == 0o755


@pytest.mark.root
def test_a_copy_takes_writes_and_grows(
    volume: tuple[Repository, Path], tmp_path: Path, need: Callable[..., None], need_root: None
) -> None:
    need("e2fsck")
    write_and_grow(volume[1], tmp_path / "copy.raw", tmp_path / "mounted")
