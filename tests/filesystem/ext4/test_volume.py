"""Volumes as wholes, by four witnesses: e2fsck, an independent reader, the kernel, and a model of the merge."""

import copy
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blockmap.errors import ImageError
from blockmap.filesystem.ext4.writer import Ext4Volume
from blockmap.filesystem.member import Member, MemberKind
from tests.filesystem.ext4 import tarfiles
from tests.filesystem.ext4.odd import LAYERS, bulk
from tests.filesystem.ext4.volumes import BLOCK, FileSink, compare, compare_mounted, fsck, huge, make, reader, write
from tests.filesystem.test_merge import layers as random_layers
from tests.image.model import Layer, Model, entry, file, hardlink, members, unpacked
from tests.image.mounted import mounted

GIB = 1 << 30


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ext4Volume, FileSink]:
    path = tmp_path_factory.mktemp("odd") / "odd.raw"
    return path, *make(path, LAYERS)


@pytest.fixture(autouse=True)
def _tools(need: Callable[..., None]) -> None:
    need("e2fsck", "dumpe2fs")


def test_every_oddity(odd: tuple[Path, Ext4Volume, FileSink]) -> None:
    fsck(odd[0])
    compare(odd[0], unpacked(LAYERS))


def test_no_layers_and_empty_layers(tmp_path: Path) -> None:
    stacks: list[list[Layer]] = [[], [[]], [[], []]]
    for stack in stacks:
        volume, _ = make(tmp_path / "raw", stack)
        fsck(tmp_path / "raw")
        compare(tmp_path / "raw", unpacked(stack))
        assert volume.size_blocks * BLOCK == 16 * GIB
        assert (volume.inodes, volume.files, volume.hidden) == (2, [], [])


def test_contents_in_pieces_of_any_size(odd: tuple[Path, Ext4Volume, FileSink], tmp_path: Path) -> None:
    for piece in (511, 4096, 5000, 1 << 24):
        volume, sink = make(tmp_path / "raw", LAYERS, piece)
        assert (volume, sink.runs) == (odd[1], odd[2].runs)


def test_the_volume_says_where_files_are(odd: tuple[Path, Ext4Volume, FileSink]) -> None:
    path, volume, _ = odd
    model = unpacked(LAYERS)
    assert [each for each, _, _ in volume.files] == sorted(
        each for each, thing in model.paths.items() if thing.member.kind is MemberKind.FILE
    )
    with open(path, "rb") as raw:
        for each, size, runs in volume.files:
            data = b"".join(os.pread(raw.fileno(), length * BLOCK, start * BLOCK) for start, length in runs)
            assert size == model.paths[each].member.size
            assert len(data) == -(-size // BLOCK) * BLOCK
            assert sha256(data[:size]).digest() == model.paths[each].content
            assert not data[size:].strip(b"\0")


def test_counts_are_those_of_the_superblock(odd: tuple[Path, Ext4Volume, FileSink]) -> None:
    head = subprocess.run(["dumpe2fs", "-h", odd[0]], capture_output=True, text=True, check=True).stdout
    fields = dict(line.split(":", 1) for line in head.splitlines() if ":" in line)
    number = {name: int(fields[name]) for name in ("Block count", "Free blocks", "Inode count", "Free inodes")}
    assert number["Block count"] - number["Free blocks"] == odd[1].used_blocks
    assert number["Inode count"] - number["Free inodes"] == odd[1].inodes + 9  # 1 to 10, of which the root is one
    assert fields["Filesystem state"].strip() == "clean"
    assert fields["Filesystem UUID"].strip() == "11111111-2222-3333-4444-555566667777"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(random_layers, st.integers(0, 40000))
def test_random_layers(tmp_path: Path, stack: list[list[Member]], size: int) -> None:
    layers: list[Layer] = []
    accepted = Model()
    for layer in stack:
        layers.append([])
        accepted.begin()
        for number, member in enumerate(layer):
            before = copy.deepcopy(accepted)
            try:
                accepted.add(member)
            except ImageError:
                accepted = before
                continue
            data = (
                bulk(number, size // (number + 1))
                if member.kind is MemberKind.FILE and b".wh." not in member.path
                else b""
            )
            layers[-1].append((replace(member, size=len(data)), data))
    model = unpacked(layers)
    make(tmp_path / "raw", layers)
    fsck(tmp_path / "raw")
    compare(tmp_path / "raw", model)


def test_lost_and_found_may_be_anything(tmp_path: Path) -> None:
    for upper in (
        [file(b".wh.lost+found")],
        [file(b".wh..wh..opq")],
        [file(b"lost+found", b"a file")],
        [entry(b"lost+found", uid=5), file(b"lost+found/in", b"it")],
    ):
        stack = [[file(b"f", b"1")], upper, [file(b"g", b"2")]]
        make(tmp_path / "raw", stack)
        fsck(tmp_path / "raw")
        compare(tmp_path / "raw", unpacked(stack))


def test_a_file_beyond_2_gib_has_an_extent_tree_and_makes_the_volume_large(tmp_path: Path) -> None:
    size = 9 * GIB + 12345
    volume, _ = write(tmp_path / "raw", [huge(b"huge", size, bulk(1, 8192)), members([file(b"after", b"next")])])
    fsck(tmp_path / "raw")
    ((_, _, after), (_, found, runs)) = volume.files
    assert found == size
    assert len(runs) > 4
    assert sum(length for _, length in runs) == -(-size // BLOCK)
    assert volume.size_blocks * BLOCK == 19 * GIB  # twice the last block, in whole GiB
    assert after[0][0] > runs[-1][0] + runs[-1][1]
    with open(tmp_path / "raw", "rb") as raw:
        assert os.pread(raw.fileno(), 8192, runs[0][0] * BLOCK) == bulk(1, 8192)
        end = (runs[-1][0] + runs[-1][1]) * BLOCK
        assert os.pread(raw.fileno(), 4096, end - 4096).rstrip(b"\0")[-1:] == b"!"
    found_sizes = {each.path: each.size for each in reader(tmp_path / "raw").walk()}
    assert found_sizes[b"huge"] == size


@pytest.mark.long
def test_the_largest_volume(tmp_path: Path) -> None:
    """Beyond half of 1 TiB the volume is 1 TiB: all 64 descriptor blocks are in use and none is reserved."""
    sizes = [165 * GIB] * 4
    volume, _ = write(tmp_path / "raw", [huge(b"huge%d" % n, size, b"x" * 4096) for n, size in enumerate(sizes)])
    assert volume.size_blocks * BLOCK == 1 << 40
    fsck(tmp_path / "raw")


def test_what_is_too_large_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"'huge'.*pieces"):
        write(tmp_path / "raw", [huge(b"huge", 300 * GIB, b"")])


def test_more_subdirectories_than_links_are_counted_as_one(tmp_path: Path) -> None:
    stack = [[entry(b"d/%d" % n) for n in range(65001)], [file(b"d/.wh.7"), entry(b"few/a")]]
    make(tmp_path / "raw", stack)
    fsck(tmp_path / "raw")
    links = {each.path: each.links for each in reader(tmp_path / "raw").walk() if each.path in (b"d", b"few")}
    assert links == {b"d": 1, b"few": 3}


@pytest.mark.long
def test_more_inodes_than_the_least_volume_has(tmp_path: Path) -> None:
    """The volume grows with its inodes, not with its blocks alone: 16 GiB have a million."""
    volume, _ = write(tmp_path / "raw", [members(file(b"%d/%d" % (n % 999, n)) for n in range((1 << 20) + 1))])
    assert volume.size_blocks * BLOCK > 16 * GIB
    fsck(tmp_path / "raw")


def test_limits_of_what_ext4_holds(tmp_path: Path) -> None:
    for odd_one, named in (
        (file(b"d/late", mtime_s=0x380000000), "d/late.*time"),
        (file(b"d/early", mtime_s=-(1 << 31) - 1), "d/early.*time"),
        (file(b"d/owner", uid=1 << 32), "d/owner.*owner"),
        (file(b"d/owner", gid=-1), "d/owner.*owner"),
        (entry(b"d/dev", MemberKind.CHAR, major=4096), "d/dev.*device"),
        (entry(b"d/dev", MemberKind.BLOCK, minor=1 << 20), "d/dev.*device"),
        (file(b"d/x", xattrs={b"user.a": bytes(4200)}), "d/x.*attributes"),
        (file(b"d/x", xattrs={b"user.%d" % n: bytes(100) for n in range(50)}), "d/x.*attributes"),
        (file(b"d/x", xattrs={b"com.apple.quarantine": b"1"}), "d/x.*com.apple"),
        (file(b"d/x", xattrs={b"system.data": b"1"}), "d/x.*system.data"),
        (file(b"d/x", xattrs={b"user.": b"1"}), "d/x.*user"),
        (file(b"d/x", xattrs={b"user." + b"n" * 256: b"1"}), "d/x.*user"),
        (file(b"d/x", xattrs={b"system.posix_acl_access": b"\1\0\0\0"}), "d/x.*ACL"),
        (file(b"d/x", xattrs={b"system.posix_acl_access": b"\2\0\0\0\3\0\7\0\0\0\0\0"}), "d/x.*ACL"),
    ):
        with pytest.raises(ImageError, match=named):
            make(tmp_path / "raw", [[odd_one]])
    names = [file(b"f"), *(hardlink(b"l%d" % n, b"f") for n in range(65000))]
    with pytest.raises(ImageError, match="65001 names"):
        make(tmp_path / "raw", [names])


@pytest.mark.parametrize("came", [0, 1, 4095, 4096, 9999, 10001, 20480, 100_000])
def test_contents_of_the_wrong_length_are_refused(tmp_path: Path, came: int) -> None:
    wrong = (Member(b"f", MemberKind.FILE, 0o644, size=10000), iter([bytes(came)] if came else []))
    with pytest.raises(ImageError, match="10000"):
        write(tmp_path / "raw", [iter([wrong])])


@pytest.mark.root
def test_the_kernel_shows_every_oddity(odd: tuple[Path, Ext4Volume, FileSink], tmp_path: Path, need_root: None) -> None:
    with mounted(odd[0], tmp_path / "at", "ro,noatime") as top:
        compare_mounted(top, unpacked(LAYERS))


@pytest.mark.root
def test_the_kernel_writes_replays_and_grows_a_copy(
    odd: tuple[Path, Ext4Volume, FileSink], tmp_path: Path, need: Callable[..., None], need_root: None
) -> None:
    need("e2fsck", "losetup")
    raw, torn = tmp_path / "copy.raw", tmp_path / "torn.raw"
    subprocess.run(["cp", "--sparse=always", odd[0], raw], check=True)
    with mounted(raw, tmp_path / "at", "rw") as top:
        shutil.rmtree(top / "dirs")
        for n in range(1000):
            (top / "many" / f"written-{n}").write_bytes(bulk(n, 3000))
        (top / "many" / "entry-00001").unlink()
        (top / "external-copy").write_bytes(bulk(1, 20_000_000))
        os.setxattr(top / "empty-value", "user.c", bulk(1, 500))
        os.rename(top / "large", top / "usr" / "large")
        subprocess.run(["sync", "-f", top], check=True)
        # The journal is not empty while mounted: a host that loses power leaves it so.
        subprocess.run(["cp", "--sparse=always", raw, torn], check=True)
        assert (top / "usr" / "large").read_bytes() == bulk(2, 3_000_001)
    fsck(raw)
    with mounted(torn, tmp_path / "at", "rw") as top:
        assert (top / "usr" / "large").read_bytes() == bulk(2, 3_000_001)
        assert (top / "many" / "written-999").read_bytes() == bulk(999, 3000)
    fsck(torn)
    os.truncate(raw, 24 * GIB)
    subprocess.run(["resize2fs", "-f", raw], check=True, capture_output=True)
    fsck(raw)
    head = subprocess.run(["dumpe2fs", "-h", raw], capture_output=True, text=True, check=True).stdout
    assert "meta_bg" not in head
    assert "Reserved GDT blocks:      62" in head


def corpus() -> list[Path]:
    where = os.environ.get("BLOCKMAP_CORPUS")
    return sorted(Path(where).iterdir()) if where else []


@pytest.mark.long
@pytest.mark.parametrize("image", corpus() or [None], ids=lambda path: path.name if path else "no-corpus")
def test_real_images_by_way_of_tarfile(image: Path | None, tmp_path: Path) -> None:
    """Layers are read by Python's tarfile, so that only merge and writer of the product take part."""
    if image is None:
        pytest.skip("BLOCKMAP_CORPUS names no folder of images")
    model = Model()
    for layer in tarfiles.layers(image):
        model.layer(layer)
    write(tmp_path / "raw", tarfiles.layers(image))
    fsck(tmp_path / "raw")
    compare(tmp_path / "raw", model)
