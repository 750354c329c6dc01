"""Structures that e2fsck does not check, parsed from the bytes by hand."""

import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from blockmap.filesystem.ext4 import geometry
from blockmap.filesystem.ext4.metadata import crc16
from blockmap.filesystem.ext4.name_hash import SEED
from blockmap.filesystem.ext4.writer import Ext4Volume
from tests.filesystem.ext4.odd import LAYERS
from tests.filesystem.ext4.volumes import BLOCK, UUID, FileSink, Raw, compare, fsck, has_copy, make, reader
from tests.image.model import file, unpacked

JOURNAL_BLOCKS = 4096


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ext4Volume, FileSink]:
    path = tmp_path_factory.mktemp("structures") / "raw"
    return path, *make(path, LAYERS)


@pytest.fixture
def raw(made: tuple[Path, Ext4Volume, FileSink]) -> Iterator[Raw]:
    found = Raw(made[0])
    yield found
    found.close()


def test_the_superblock(raw: Raw) -> None:
    def get(offset: int, kind: str) -> tuple[int, ...]:
        return struct.unpack_from("<" + kind, raw.super, offset)

    assert get(0x38, "HHHH") == (0xEF53, 1, 1, 0)  # magic, clean, go on after errors, minor revision
    assert get(0x2C, "II") == get(0x40, "II") == (0, 0)  # never mounted, written or checked: no clock
    assert get(0x36, "H") == (0xFFFF,)
    assert get(0x4C, "I") == (1,)
    assert get(0x54, "IH") == (11, 256)
    assert get(0x5C, "III") == (0x3C, 0x242, 0x7B)
    assert get(0xE0, "I") == (8,)
    assert raw.super[0x68:0x78] == UUID
    assert raw.super[0xEC:0xFC] == SEED
    assert get(0xFC, "BBH") == (1, 1, 0)  # half-MD4, a copy of the journal's inode, descriptors of 32 bytes
    assert get(0x100, "I") == (0xC,)
    assert get(0x108, "I") == (0,)  # made at
    assert get(0x15C, "HHI") == (32, 32, 1)
    assert get(0x174, "B") == (4,)
    assert get(0xCE, "H") == (64 - 1,)
    journal = raw.inode(8)
    assert raw.super[0x10C : 0x10C + 60] == journal[0x28:0x64]
    assert get(0x10C + 60, "II") == (0, JOURNAL_BLOCKS * BLOCK)
    assert struct.unpack_from("<I", journal, 4) == (JOURNAL_BLOCKS * BLOCK,)


def test_the_copies_differ_in_their_group_alone(raw: Raw) -> None:
    found = 0
    for group in range(1, raw.groups):
        assert geometry.has_copy(group) == has_copy(group)
        if has_copy(group):
            at = group * 32768 * BLOCK
            copy = bytearray(raw.read(at, 1024))
            assert struct.unpack_from("<H", copy, 0x5A) == (group,)
            copy[0x5A:0x5C] = bytes(2)
            assert copy == raw.super
            assert raw.read(at + BLOCK, BLOCK) == raw.block(1)
            found += 1
    assert found == 10  # groups 1, 3, 5, 7, 9, 25, 27, 49, 81, 125


def test_a_copy_of_the_superblock_saves_a_volume_that_lost_its_first(
    made: tuple[Path, Ext4Volume, FileSink], tmp_path: Path
) -> None:
    # Not -n: libext2fs then ignores flags, and finds unwritten bitmaps wrong (those of mke2fs as well).
    path = tmp_path / "raw"
    subprocess.run(["cp", "--sparse=always", made[0], path], check=True)
    with open(path, "r+b") as out:
        out.write(bytes(2 * BLOCK))
    done = subprocess.run(["e2fsck", "-fy", "-b", "32768", "-B", "4096", path], capture_output=True, text=True)
    assert done.returncode == 1, done.stdout
    fsck(path)
    compare(path, unpacked(LAYERS))


def test_the_descriptors(raw: Raw) -> None:
    free_blocks = free_inodes = 0
    for group, fields in enumerate(raw.descriptors):
        blocks, inodes, table, free, free_i, _, flags, _, _, _, unused, checksum = fields
        flex = 65 if group < 16 else group // 16 * 16 * 32768
        assert (blocks, inodes, table) == (flex + group % 16, flex + 16 + group % 16, flex + 32 + group % 16 * 512)
        assert flags & 4, f"the kernel would zero the inode table of group {group} in every clone"
        used = [number for number in range(8192) if raw.inode_used(group * 8192 + number + 1)]
        assert unused == 8192 - (used[-1] + 1 if used else 0)
        assert free_i == 8192 - len(used)
        assert bool(flags & 1) == (not used)
        record = raw.read(BLOCK + group * 32, 30)
        assert checksum == crc16(UUID + struct.pack("<I", group) + record)
        if group == raw.groups - 1 or group % 16 == 0:
            assert not flags & 2
        free_blocks, free_inodes = free_blocks + free, free_inodes + free_i
    assert struct.unpack_from("<II", raw.super, 0xC) == (free_blocks, free_inodes)


def test_crc16() -> None:
    assert crc16(b"123456789") == 0x4B37  # CRC-16/MODBUS, its published check value


def test_the_journal(raw: Raw) -> None:
    inode = raw.inode(8)
    (magic, count, room, depth, _, logical, length, high, start) = struct.unpack_from("<HHHHIIHHI", inode, 0x28)
    assert (magic, count, room, depth, logical, length, high) == (0xF30A, 1, 4, 0, 0, JOURNAL_BLOCKS, 0)
    head = raw.block(start)
    assert struct.unpack_from(">IIIIIIIII", head) == (0xC03B3998, 4, 0, BLOCK, JOURNAL_BLOCKS, 1, 1, 0, 0)
    assert head[36:48] == bytes(12)
    assert struct.unpack_from(">I", head, 64) == (1,)
    assert not raw.read((start + 1) * BLOCK, (JOURNAL_BLOCKS - 1) * BLOCK).strip(b"\0")


def test_every_inode(raw: Raw, made: tuple[Path, Ext4Volume, FileSink]) -> None:
    """All times of an inode are equal, extra fields are declared, flags fit the kind, and extents have their room."""
    for entry in reader(made[0]).walk():
        inode = raw.inode(entry.number)
        assert struct.unpack_from("<H", inode, 0x80) == (32,)
        atime, ctime, mtime, dtime = struct.unpack_from("<IIII", inode, 8)
        crtime = struct.unpack_from("<I", inode, 0x90)[0]
        assert atime == ctime == mtime == crtime
        assert dtime == 0
        assert inode[0x84:0x88] == inode[0x88:0x8C] == inode[0x8C:0x90] == inode[0x94:0x98]
        flags = struct.unpack_from("<I", inode, 0x20)[0]
        owns = entry.kind.value in ("file", "directory") or len(entry.target) >= 60
        hashed = entry.kind.value == "directory" and entry.size > BLOCK and entry.path != b"lost+found"
        assert flags == (0x80000 if owns else 0) | (0x1000 if hashed else 0)
        if owns:
            magic, count, room, depth = struct.unpack_from("<HHHH", inode, 0x28)
            assert (magic, room) == (0xF30A, 4)
            assert count <= 4
            assert depth == 0


def test_types_of_directory_entries(raw: Raw, made: tuple[Path, Ext4Volume, FileSink]) -> None:
    types = {"file": 1, "directory": 2, "character device": 3, "block device": 4, "fifo": 5, "symlink": 7}
    entries = {entry.path: entry for entry in reader(made[0]).walk()}
    seen = 0
    for path, entry in entries.items():
        if entry.kind.value == "directory":
            blocks = [start + at for _, start, length in sorted(entry.runs) for at in range(length)]
            for number, block in enumerate(blocks):
                data, at = raw.block(block), 0
                names = []
                while at < BLOCK:
                    inode, length, name_length, kind = struct.unpack_from("<IHBB", data, at)
                    name = data[at + 8 : at + 8 + name_length]
                    if inode and name not in (b".", b".."):
                        below = entries[path + b"/" + name if path else name]
                        assert (inode, kind) == (below.number, types[below.kind.value])
                        seen += 1
                    elif not inode:
                        assert (name_length, kind) == (0, 0)
                    names.append(name)
                    at += length
                assert (names[:2] == [b".", b".."]) == (number == 0)
    assert seen == len(entries) - 1


def test_hashes_of_attribute_blocks(raw: Raw, made: tuple[Path, Ext4Volume, FileSink]) -> None:
    """Entries and headers have the hashes that the kernel defines (fs/ext4/xattr.c)."""
    blocks = 0
    for entry in reader(made[0]).walk():
        (block,) = struct.unpack_from("<I", raw.inode(entry.number), 0x68)
        if not block:
            continue
        blocks += 1
        data, at, total, order = raw.block(block), 32, 0, []
        magic, references, count, header_hash = struct.unpack_from("<IIII", data)
        assert (magic, references, count) == (0xEA020000, 1, 1)
        while data[at : at + 4] != bytes(4):
            length, index, offset, _, size, stored = struct.unpack_from("<BBHIII", data, at)
            name, value = data[at + 16 : at + 16 + length], data[offset : offset + size]
            assert stored == entry_hash(name, value)
            assert offset % 4 == 0
            total = (total << 16 & 0xFFFFFFFF | total >> 16) ^ stored
            order.append((index, length, name))
            at += 16 + (length + 3) // 4 * 4
        assert header_hash == total
        assert order == sorted(order)
    assert blocks == 2  # both, xattr-grows


def entry_hash(name: bytes, value: bytes) -> int:
    found = 0
    for byte in name:
        found = (found << 5 & 0xFFFFFFFF) ^ (found >> 27) ^ byte
    for (word,) in struct.iter_unpack("<I", value + bytes(-len(value) % 4)):
        found = (found << 16 & 0xFFFFFFFF) ^ (found >> 16) ^ word
    return found


def test_the_resize_inode(raw: Raw) -> None:
    inode = raw.inode(7)
    pointers = struct.unpack("<1024I", raw.block(struct.unpack_from("<I", inode, 0x28 + 13 * 4)[0]))
    assert pointers == (0, *range(2, 65), *[0] * 960)
    copies = [group for group in range(1, raw.groups) if has_copy(group)]
    for at in range(2, 65):
        twins = struct.unpack("<1024I", raw.block(at))
        assert twins == (*(group * 32768 + at for group in copies), *[0] * (1024 - len(copies)))
    size = struct.unpack_from("<I", inode, 4)[0] | struct.unpack_from("<I", inode, 0x6C)[0] << 32
    assert size == 4096 * (12 + 1024 + 1024**2)


def test_what_was_written_is_in_use_or_hidden(raw: Raw, made: tuple[Path, Ext4Volume, FileSink]) -> None:
    _, volume, sink = made
    hidden = {block for start, end in volume.hidden for block in range(start, end)}
    assert hidden
    assert not any(raw.used(block) for block in hidden)
    for start, end, _ in sink.runs:
        for block in range(start, end):
            assert raw.used(block) or block in hidden
    for _, _, runs in volume.files:
        assert all(raw.used(block) for start, length in runs for block in range(start, start + length))


def test_unused_inodes_are_zero(raw: Raw, made: tuple[Path, Ext4Volume, FileSink]) -> None:
    """The inode of a removed file is not written, since a clone's recovery must not find it."""
    used = sum(raw.inode_used(number) for number in range(11, 8192 * 2))
    assert used == made[1].inodes - 1
    for number in range(1, 8192 * 2):
        if not raw.inode_used(number):
            assert not raw.inode(number).strip(b"\0")


def test_lost_and_found_has_room(raw: Raw, made: tuple[Path, Ext4Volume, FileSink]) -> None:
    (found,) = [entry for entry in reader(made[0]).walk() if entry.path == b"lost+found"]
    assert (found.number, found.mode, found.size) == (11, 0o700, 4 * BLOCK)


def test_damage_that_e2fsck_only_prints_is_noticed(tmp_path: Path) -> None:
    """The check that other tests rely on is checked: e2fsck exits with 0 for a wrong descriptor checksum."""
    path = tmp_path / "raw"
    make(path, [[file(b"f", b"1")]])
    with open(path, "r+b") as out:
        out.seek(BLOCK + 30)
        out.write(b"\1\2")
    assert subprocess.run(["e2fsck", "-fn", path], capture_output=True).returncode == 0
    with pytest.raises(AssertionError):
        fsck(path)
