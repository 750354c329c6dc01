"""The fixed metadata of a volume: superblock, descriptors, bitmaps, inode tables, journal and resize inode."""

import struct
from collections.abc import Callable, Iterator

import numpy as np

from blockmap.filesystem.ext4.geometry import (
    COPY_BLOCKS,
    DESCRIPTOR_BLOCKS,
    FLEX_GROUPS,
    GROUP_BLOCKS,
    GROUP_INODES,
    INODE_BYTES,
    block_bitmap,
    copies,
    fixed_used,
    has_copy,
    inode_bitmap,
    inode_table,
)
from blockmap.filesystem.ext4.inode import assemble, tree
from blockmap.filesystem.ext4.name_hash import HALF_MD4, SEED
from blockmap.filesystem.sink import BlockSink

JOURNAL_BLOCKS = 4096
FIRST_INODE = 11
_COMPAT = 0x4 | 0x8 | 0x20 | 0x10  # has_journal, ext_attr, dir_index, resize_inode
_INCOMPAT = 0x2 | 0x40 | 0x200  # filetype, extents, flex_bg
_RO_COMPAT = (
    0x1 | 0x2 | 0x8 | 0x10 | 0x20 | 0x40
)  # sparse_super, large_file, huge_file, gdt_csum, dir_nlink, extra_isize
_INODES_UNUSED, _BLOCKS_UNUSED, _TABLE_ZEROED = 1, 2, 4
_PER_BLOCK = 4096 // INODE_BYTES

_CRC16 = []
for _byte in range(256):
    for _ in range(8):
        _byte = _byte >> 1 ^ (0xA001 if _byte & 1 else 0)
    _CRC16.append(_byte)


def crc16(data: bytes) -> int:
    """Returns the CRC-16 (0xA001 reflected, start 0xffff) that group descriptors use."""
    crc = 0xFFFF
    for byte in data:
        crc = crc >> 8 ^ _CRC16[(crc ^ byte) & 0xFF]
    return crc


class Metadata:
    """Writes the fixed metadata of a volume once all its inodes and used blocks are known."""

    def __init__(self, uuid: bytes, groups: int, journal: int, pointers: int) -> None:
        self.uuid = uuid
        self.groups = groups
        self._journal = journal
        self._pointers = pointers
        """The block of the resize inode that points at the reserved descriptor blocks."""
        self._descriptors = -(-groups * 32 // 4096)
        self._used = np.zeros((groups, GROUP_BLOCKS), dtype=bool)
        self._inodes = np.zeros((groups, GROUP_INODES), dtype=bool)
        self._directories = [0] * groups
        for start, length in fixed_used(groups):
            self.use(start, length)

    def use(self, start: int, length: int) -> None:
        """Marks blocks as used."""
        self._used.reshape(-1)[start : start + length] = True

    def used_blocks(self) -> int:
        return int(self._used.sum())

    def use_inode(self, number: int, directory: bool) -> None:
        """Marks an inode as used."""
        group, slot = divmod(number - 1, GROUP_INODES)
        self._inodes[group, slot] = True
        self._directories[group] += directory

    def write(self, sink: BlockSink, inode: Callable[[int], bytes]) -> None:
        """Writes every block that is not zero, in ascending order; each fixed range is cut at its edges.

        `inode` gives the 256 bytes of an inode by its number, or none; one block of them is in memory at a time.
        """
        self._inodes[0, : FIRST_INODE - 1] = True
        reserved = DESCRIPTOR_BLOCKS - self._descriptors
        sectors = (1 + reserved * (1 + len(copies(self.groups)))) * 8
        size = 4096 * (12 + 1024 + 1024**2)
        pointer = (bytes(13 * 4) + struct.pack("<I", self._pointers)).ljust(60, b"\0")
        self.use(self._journal, JOURNAL_BLOCKS)
        self.use(self._pointers, 1)
        own = {
            8: assemble(0o100600, 0, 0, JOURNAL_BLOCKS * 4096, 1, JOURNAL_BLOCKS * 8, 0x80000, self._journal_inode()),
            7: assemble(0o100600, 0, 0, size, 1, sectors, 0, pointer),
        }
        blocks = dict(self._blocks())
        tables = dict(self._table_blocks())
        starts = set()
        for group in range(self.groups):
            starts |= {group * GROUP_BLOCKS, block_bitmap(group), inode_bitmap(group), inode_table(group)}
        starts |= {self._journal, self._pointers}
        for block in sorted([*blocks, *tables]):
            if block in starts:
                sink.cut()
            if block in blocks:
                sink.write(block, blocks[block])
            else:
                numbers = range(tables[block], tables[block] + _PER_BLOCK)
                sink.write(block, b"".join((own.get(n) or inode(n)).ljust(INODE_BYTES, b"\0") for n in numbers))
        sink.cut()

    def _table_blocks(self) -> Iterator[tuple[int, int]]:
        """Yields each block of an inode table that has inodes in use, with the number of its first one."""
        used = self._inodes.reshape(self.groups, -1, _PER_BLOCK).any(axis=2)
        for group, at in np.argwhere(used).tolist():
            yield inode_table(group) + at, group * GROUP_INODES + at * _PER_BLOCK + 1

    def _blocks(self) -> Iterator[tuple[int, bytes | bytearray]]:
        yield self._journal, self._journal_header()
        yield from self._reserved()
        table, free_blocks, free_inodes = self._describe()
        for group in range(self.groups):
            if has_copy(group):
                start = group * GROUP_BLOCKS
                super_block = self._superblock(group, free_blocks, free_inodes)
                yield start, (bytes(1024) + super_block if group == 0 else super_block).ljust(4096, b"\0")
                for at in range(self._descriptors):
                    yield start + 1 + at, table[at * 4096 : (at + 1) * 4096].ljust(4096, b"\0")
        for group in range(self.groups):
            if not self._blocks_unused(group):
                yield block_bitmap(group), np.packbits(self._used[group], bitorder="little").tobytes()
            if self._inodes[group].any():
                bits = np.packbits(self._inodes[group], bitorder="little").tobytes()
                yield inode_bitmap(group), bits.ljust(4096, b"\xff")

    def _blocks_unused(self, group: int) -> bool:
        """Returns True if a group has only copies, so that the kernel can compute its bitmap."""
        if group % FLEX_GROUPS == 0 or group == self.groups - 1:
            return False
        return not self._used[group, COPY_BLOCKS if has_copy(group) else 0 :].any()

    def _describe(self) -> tuple[bytes, int, int]:
        """Returns the descriptors of all groups, the free blocks and the free inodes."""
        table = []
        free_blocks = free_inodes = 0
        for group in range(self.groups):
            free = GROUP_BLOCKS - int(self._used[group].sum())
            used = np.flatnonzero(self._inodes[group])
            unused = GROUP_INODES - (int(used[-1]) + 1 if len(used) else 0)
            flags = (
                _TABLE_ZEROED
                | (0 if len(used) else _INODES_UNUSED)
                | (_BLOCKS_UNUSED if self._blocks_unused(group) else 0)
            )
            record = struct.pack(
                "<IIIHHHHIHHH",
                block_bitmap(group),
                inode_bitmap(group),
                inode_table(group),
                free,
                GROUP_INODES - len(used),
                self._directories[group],
                flags,
                0,
                0,
                0,
                unused,
            )
            table.append(record + struct.pack("<H", crc16(self.uuid + struct.pack("<I", group) + record)))
            free_blocks += free
            free_inodes += GROUP_INODES - len(used)
        return b"".join(table), free_blocks, free_inodes

    def _journal_inode(self) -> bytes:
        return tree([(0, self._journal, JOURNAL_BLOCKS)], [])

    def _superblock(self, group: int, free_blocks: int, free_inodes: int) -> bytes:
        data = bytearray(1024)

        def put(offset: int, kind: str, *values: int) -> None:
            struct.pack_into("<" + kind, data, offset, *values)

        put(0x0, "IIIII", self.groups * GROUP_INODES, self.groups * GROUP_BLOCKS, 0, free_blocks, free_inodes)
        put(0x14, "IIIIII", 0, 2, 2, GROUP_BLOCKS, GROUP_BLOCKS, GROUP_INODES)
        put(0x34, "HHHHHH", 0, 0xFFFF, 0xEF53, 1, 1, 0)
        put(0x48, "II", 0, 1)
        put(0x54, "IHHIII", FIRST_INODE, INODE_BYTES, group, _COMPAT, _INCOMPAT, _RO_COMPAT)
        data[0x68:0x78] = self.uuid
        put(0xCE, "H", DESCRIPTOR_BLOCKS - self._descriptors)
        put(0xE0, "I", 8)
        data[0xEC:0xFC] = SEED
        put(0xFC, "BBH", HALF_MD4, 1, 0)
        put(0x100, "I", 0xC)
        data[0x10C : 0x10C + 60] = self._journal_inode()
        put(0x10C + 60, "II", 0, JOURNAL_BLOCKS * 4096)
        put(0x15C, "HHI", 32, 32, 1)
        put(0x174, "B", FLEX_GROUPS.bit_length() - 1)
        return bytes(data)

    def _journal_header(self) -> bytes:
        head = struct.pack(">IIIIIIIII", 0xC03B3998, 4, 0, 4096, JOURNAL_BLOCKS, 1, 1, 0, 0)
        return (head + bytes(12) + bytes(16) + struct.pack(">I", 1)).ljust(4096, b"\0")

    def _reserved(self) -> Iterator[tuple[int, bytes]]:
        """Yields the block of the resize inode's pointers and the reserved descriptor blocks, each of which lists its copies."""
        pointers = [0] * 1024
        twins = copies(self.groups)
        for at in range(self._descriptors, DESCRIPTOR_BLOCKS):
            pointers[at % 1024] = 1 + at
            listed = [group * GROUP_BLOCKS + 1 + at for group in twins]
            yield 1 + at, struct.pack(f"<{len(listed)}I", *listed).ljust(4096, b"\0")
        yield self._pointers, struct.pack("<1024I", *pointers)
