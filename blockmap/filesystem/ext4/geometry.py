"""The places of ext4's fixed parts, and the cursor that allocates the blocks between them.

Groups of 32768 blocks with 8192 inodes each, flex groups of 16. Block 0 has the superblock, 64 blocks for descriptors
follow, used or reserved; groups 1 and the powers of 3, 5 and 7 begin with copies of both. Each flex group begins (the
first one after the descriptors) with its 16 block bitmaps, 16 inode bitmaps and 16 inode tables. None of this depends on
the size of the volume, so a larger one has the same layout.
"""

from collections.abc import Iterator

GROUP_BLOCKS = 32768
GROUP_INODES = 8192
INODE_BYTES = 256
TABLE_BLOCKS = GROUP_INODES * INODE_BYTES // 4096
FLEX_GROUPS = 16
DESCRIPTOR_BLOCKS = 64
DESCRIPTORS_PER_BLOCK = 128
MAX_GROUPS = DESCRIPTOR_BLOCKS * DESCRIPTORS_PER_BLOCK
"""Groups that the descriptor blocks can describe: 1 TiB."""
COPY_BLOCKS = 1 + DESCRIPTOR_BLOCKS
FLEX_BLOCKS = FLEX_GROUPS * (2 + TABLE_BLOCKS)

Runs = list[tuple[int, int]]
"""Runs of blocks, each with its start and length."""


def has_copy(group: int) -> bool:
    """Returns True if a group begins with superblock and descriptors."""
    if group <= 1:
        return True
    for base in (3, 5, 7):
        power = base
        while power < group:
            power *= base
        if power == group:
            return True
    return False


def copies(groups: int) -> list[int]:
    """Returns the groups with copies, except the first."""
    return [group for group in range(1, groups) if has_copy(group)]


def flex_base(group: int) -> int:
    """Returns the block at which the bitmaps and tables of a group's flex group begin."""
    first = group - group % FLEX_GROUPS
    return COPY_BLOCKS if first == 0 else first * GROUP_BLOCKS


def block_bitmap(group: int) -> int:
    return flex_base(group) + group % FLEX_GROUPS


def inode_bitmap(group: int) -> int:
    return flex_base(group) + FLEX_GROUPS + group % FLEX_GROUPS


def inode_table(group: int) -> int:
    return flex_base(group) + 2 * FLEX_GROUPS + group % FLEX_GROUPS * TABLE_BLOCKS


def fixed_end(group: int) -> int:
    """Returns the end of the fixed blocks at the beginning of a group."""
    start = group * GROUP_BLOCKS
    if group % FLEX_GROUPS == 0:
        return flex_base(group) + FLEX_BLOCKS
    return start + COPY_BLOCKS if has_copy(group) else start


def fixed_used(groups: int) -> Iterator[tuple[int, int]]:
    """Yields start and length of each fixed range in a volume of `groups` groups."""
    for group in range(groups):
        if has_copy(group):
            yield group * GROUP_BLOCKS, COPY_BLOCKS
        yield block_bitmap(group), 1
        yield inode_bitmap(group), 1
        yield inode_table(group), TABLE_BLOCKS


def as_ranges(runs: Runs) -> list[tuple[int, int]]:
    """Returns `runs` as half-open ranges, ascending, with neighbours joined."""
    joined: list[tuple[int, int]] = []
    for start, length in sorted(runs):
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], start + length)
        else:
            joined.append((start, start + length))
    return joined


class Cursor:
    """Allocates blocks in ascending order, and skips fixed ranges."""

    def __init__(self) -> None:
        self.block = fixed_end(0)

    def take(self, count: int) -> Runs:
        """Allocates the next `count` blocks."""
        runs: Runs = []
        while count:
            group = self.block // GROUP_BLOCKS
            if self.block % GROUP_BLOCKS == 0:
                self.block = fixed_end(group)
            end = (group + 1) * GROUP_BLOCKS
            while end - self.block < count and fixed_end(end // GROUP_BLOCKS) == end:
                end += GROUP_BLOCKS
            length = min(count, end - self.block)
            runs.append((self.block, length))
            self.block += length
            count -= length
        return runs
