"""Makes an image with one large file, as a commit meets it after years: all of its blocks in chunks, a few hundred a leaf.

The file system is mke2fs's. The content of the file is a pool of 16 MiB over and over, each leaf from another place of it, so
that the tree is as large as that of a file with no two equal blocks, and the store is not.
"""

import os
import random
import re
from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path

from blockmap.format import BLOCK
from blockmap.format.chunker import SPAN, Parameters
from blockmap.format.digest import ABSENT, Digest
from blockmap.format.extent import Extent
from blockmap.format.node import Leaf, leaf
from blockmap.format.tree import Root, assemble
from blockmap.format.version import Version, WriterLayout
from blockmap.host import tools
from blockmap.publish.chunks import ChunkWriter
from blockmap.publish.nodes import store_nodes
from blockmap.publish.object_writer import ObjectWriter
from blockmap.publish.stages import Stages
from blockmap.store.base import Pruner
from blockmap.store.names import EntryDraft, NameLog, NameTarget

FILE = "data"
"""The large file, at the top of the file system."""
_SPARE_BYTES = 2 << 30
"""Room beside the file."""
_PIECE_BYTES = 1 << 20
_CONFIG = """
[defaults]
    base_features = sparse_super,large_file,filetype,resize_inode,dir_index,ext_attr
    blocksize = 4096
    inode_size = 256
    inode_ratio = 1048576
[fs_types]
    bench = {{
        features = has_journal,extent,huge_file,flex_bg,metadata_csum,64bit,dir_nlink,extra_isize
        make_hugefiles = true
        hugefiles_dir = /
        hugefiles_name = {name}
        hugefiles_digits = 0
        num_hugefiles = 1
        hugefiles_size = {mib}M
        zero_hugefiles = false
    }}
"""
_EXTENT = re.compile(
    r"^\s*(\d+)/\s*(\d+)\s+\d+/\s*\d+\s+(\d+)\s*-\s*(\d+)\s+(\d+)\s*-\s*(\d+)\s+(\d+)(.*)$", re.MULTILINE
)


def make_volume(store: Pruner, target: NameTarget, file_bytes: int, work: Path) -> None:
    """Stores an image whose file has so many bytes; HostError."""
    raw, config = work / "volume.raw", work / "mke2fs.conf"
    config.write_text(_CONFIG.format(name=FILE, mib=file_bytes >> 20))
    size = file_bytes + _SPARE_BYTES
    raw.touch()
    os.truncate(raw, size)
    os.environ["MKE2FS_CONFIG"] = str(config)
    try:
        tools.run("mkfs.ext4", "-q", "-F", "-T", "bench", str(raw))
    finally:
        del os.environ["MKE2FS_CONFIG"]
    ranges = _file_ranges(raw)
    objects = ObjectWriter(store)
    pool_at = size // BLOCK  # behind the volume, so that no leaf of it has the pool itself
    with ChunkWriter(objects.put_pack, lambda names: [None] * len(names), Parameters(), Stages()) as chunks:
        for block, data in _pieces(raw):
            chunks.write(block, data)
        chunks.cut()
        chunks.write(pool_at, random.Random(1).randbytes(SPAN * BLOCK))
        chunks.finish()
    own: dict[int, list[Extent]] = {}
    pool: list[Extent] = []
    for span, extents in chunks.extents.spans(chunks.table):
        for extent in extents:
            (own.setdefault(span, []) if extent.start < pool_at else pool).append(extent)
    raw.unlink()
    draft = assemble(_leaves(own, ranges, pool, size // BLOCK, chunks), size // BLOCK)
    stored = store_nodes([draft], chunks.table.placement, objects.put_pack)
    version = Version(stored.roots[0], Root(ABSENT, size // BLOCK), WriterLayout(0, 0), run=stored.run)
    number = objects.put_version(version, set())
    NameLog(store).set(target, EntryDraft.of(version, number))


def _pieces(raw: Path) -> Iterator[tuple[int, bytes]]:
    """Yields what a sparse file has, a piece at a time, each with the number of its first block."""
    with open(raw, "rb") as file:
        size, at = os.fstat(file.fileno()).st_size, 0
        while at < size:
            try:
                at = os.lseek(file.fileno(), at, os.SEEK_DATA) // BLOCK * BLOCK
            except OSError:
                return
            data = os.pread(file.fileno(), _PIECE_BYTES, at)
            yield at // BLOCK, data
            at += len(data)


def _file_ranges(raw: Path) -> list[tuple[int, int]]:
    """Returns the blocks [start, end) that the file has in its file system, in order."""
    said = tools.run("debugfs", "-R", f"dump_extents -l /{FILE}", str(raw))
    return sorted((int(found[5]), int(found[6]) + 1) for found in _EXTENT.finditer(said))


def _leaves(
    own: dict[int, list[Extent]], ranges: list[tuple[int, int]], pool: list[Extent], size: int, chunks: ChunkWriter
) -> Iterator[tuple[int, Leaf]]:
    ends = list(accumulate(extent.length for extent in pool))
    places = {each.chunk: chunks.table.placement(each.chunk) for each in pool if each.chunk is not None}
    noise = random.Random(2)
    at = 0
    for span in range(-(-size // SPAN)):
        first, last = span * SPAN, min((span + 1) * SPAN, size)
        extents = own.get(span, [])
        while at < len(ranges) and ranges[at][1] <= first:
            at += 1
        for start, end in ranges[at:]:
            if start >= last:
                break
            extents = [*extents, *_filled(max(start, first), min(end, last), pool, ends, noise.randrange(ends[-1]))]
        known: dict[Digest, object] = {}
        for extent in extents:
            if extent.chunk is not None:
                known[extent.chunk] = places.get(extent.chunk) or chunks.table.placement(extent.chunk)
        made = leaf(sorted(extents), first, known)  # type: ignore[arg-type]
        if made is not None:
            yield span, made


def _filled(start: int, end: int, pool: list[Extent], ends: list[int], at: int) -> Iterator[Extent]:
    """Yields extents of the pool from place `at` on, again from its beginning after its end, for the blocks [start, end)."""
    while start < end:
        number = bisect_right(ends, at)
        chunk = pool[number]
        inside = at - (ends[number] - chunk.length)
        length = min(chunk.length - inside, end - start)
        yield Extent(start, length, chunk.chunk, chunk.blocks, chunk.first + inside)
        start += length
        at = (at + length) % ends[-1]
