"""`blockmap bench hooks`: deduplication by hooks over many versions, beside an exact index of every chunk."""

import random
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import click

from blockmap.bench import Report, show
from blockmap.bench.imports import run_import
from blockmap.errors import UsageError
from blockmap.format import BLOCK, hooks, keys
from blockmap.format.chunker import SPAN, Parameters
from blockmap.format.digest import ABSENT, Digest
from blockmap.format.extent import Extent
from blockmap.format.node import Leaf, leaf
from blockmap.format.pack import TARGET_BYTES
from blockmap.format.placement import Placement
from blockmap.format.tree import Root, assemble
from blockmap.format.version import Version, WriterLayout
from blockmap.image.disk_image import DiskSource
from blockmap.image.sources import open_source
from blockmap.image.volume_writer import THRESHOLD_BLOCKS, write_image
from blockmap.publish.chunks import LOOKUP_BYTES, LOOKUP_CHUNKS, ChunkWriter
from blockmap.publish.dedup_index import DedupIndex, StoredTree
from blockmap.publish.nodes import store_nodes
from blockmap.publish.object_writer import ObjectWriter, put
from blockmap.publish.stages import Stages
from blockmap.store import limits
from blockmap.store.base import Buffer, Listed, Pruner
from blockmap.store.names import EntryDraft, NameLog, NameTarget
from blockmap.store.opening import create_store
from blockmap.store.repository import Repository
from blockmap.terminal.options import json_option

CAVEATS = [
    "The versions are synthetic: sequences of the chunk names of SOURCES, changed version by version (files replaced, layers "
    "inserted, parts moved, parts of other images taken over). No content is stored; chunks have made-up places.",
    "Leaves, hooks and lookups are real: nodes lie in a store in a directory, and are read, decompressed and verified.",
    "A chunk that comes to lie across the edge of a leaf's span is counted as two new ones, as a cut there makes it.",
    "Bytes imported are those of all blocks of all versions; bytes read are nodes as stored, without hooks and catalogue.",
    "The last row is one import of the first of SOURCES in a process of its own, with all versions in the catalogue.",
]
_STORED_SHARE = 0.45  # what zstd leaves of a chunk, about
_STEPS = (("replace", 70), ("insert", 15), ("move", 8), ("graft", 7))
_ROWS = 8

Chunk = tuple[Digest, int]
"""Name and blocks."""


class Counted:
    """A store that counts the ranges read from it."""

    def __init__(self, inner: Pruner) -> None:
        self.inner, self.url, self.local = inner, inner.url, inner.local
        self.requests = self.bytes = 0

    def get_range(self, key: str, start: int, end: int) -> bytes | memoryview:
        data = self.inner.get_range(key, start, end)
        self.requests += 1  # from several threads: a count may be lost, which no figure shows
        self.bytes += len(data)
        return data

    def get(self, key: str, most: int = limits.RECORD) -> bytes:
        return self.inner.get(key, most)

    def list(self, prefix: str) -> list[str]:
        return self.inner.list(prefix)

    def exists(self, key: str) -> bool:
        return self.inner.exists(key)

    def size(self, key: str) -> int:
        """Returns a length that holds any placement, since those of chunks are made up."""
        return 1 << 33

    def create(self, key: str, parts: Iterable[Buffer]) -> None:
        self.inner.create(key, list(parts))

    def replace(self, key: str, data: bytes) -> None:
        self.inner.replace(key, data)

    def listing(self, prefix: str) -> dict[str, Listed]:
        return self.inner.listing(prefix)

    def modified(self, key: str) -> float:
        return self.inner.modified(key)

    def delete(self, key: str) -> None:
        self.inner.delete(key)


@click.command("hooks")
@click.argument("sources", nargs=-1, required=True)
@click.option("--versions", default=1000, show_default=True, help="Synthetic versions beside SOURCES.")
@click.option("--seed", default=1, show_default=True)
@json_option
def hooks_(sources: tuple[str, ...], versions: int, seed: int, as_json: bool) -> None:
    """Deduplicate versions by hooks, and by an exact index.

    They are synthetic, and derived from the images SOURCES.
    """
    if versions < 1:
        raise UsageError("--versions is at least 1")
    with tempfile.TemporaryDirectory(prefix="blockmap-bench-") as work:
        found = [_chunks_of(text) for text in sources]
        store = Counted(create_store(f"{work}/store")[0])
        run = _Run(store, random.Random(seed))
        rows = []
        every = max(1, -(-(versions + len(found)) // _ROWS))
        for at, version in enumerate(_versions(found, versions, random.Random(seed))):
            run.import_(version)
            if (at + 1) % every == 0 or at + 1 == versions + len(found):
                rows.append(run.row())
        last = run_import(sources[0], f"{work}/store", f"{work}/cache")
    summary = [
        f"ratio {rows[-1]['ratio']:.3f} beside {rows[-1]['exact']:.3f} of an exact index: "
        f"{(1 - rows[-1]['ratio'] / rows[-1]['exact']) * 100:.2f} % less",
        f"bytes of nodes read: {rows[-1]['read, %']:.3f} % of the bytes imported",
        f"import of {sources[0]} beside them: {last['process_wall']:.1f} s, of it {last['cpu']['known']:.2f} s of processor "
        f"for the catalogue and {last['cpu']['deduplicate']:.2f} for lookups; peak memory {last['peak_bytes'] / 1e6:.0f} MB, "
        f"{last['new_bytes'] / 1e6:.1f} of {last['data_bytes'] / 1e6:.0f} MB new",
    ]
    report: Report = {
        "caveats": CAVEATS, "rows": rows, "summary": summary, "images": list(sources), "seed": seed, "import": last,
    }  # fmt: skip
    show(report, as_json)


def _chunks_of(text: str) -> list[Chunk]:
    """Returns the chunks of an image in volume order."""
    source = open_source(text, platform=None, work=Path("/tmp"))
    if isinstance(source, DiskSource):
        raise UsageError(f"{text} is a disk image: this benchmark takes container images")
    elsewhere = Placement(ABSENT, 0, 0, 0, 0)
    try:
        with ChunkWriter(_never, lambda names: [elsewhere] * len(names), Parameters(), Stages()) as chunks:
            write_image(source, chunks, THRESHOLD_BLOCKS)
            chunks.finish()
    finally:
        source.close()
    found: list[Chunk] = []
    for _, extents in chunks.extents.spans(chunks.table):
        found.extend((extent.chunk, extent.blocks) for extent in extents if extent.chunk is not None)
    return found


def _never(pack: object) -> None:
    raise AssertionError("every chunk is said to be known")


def _versions(images: list[list[Chunk]], count: int, chosen: random.Random) -> Iterator[list[Chunk]]:
    """Yields the images, then versions each of which changes the last one of some image."""
    newest = [list(image) for image in images]
    yield from images
    for _ in range(count):
        which = chosen.randrange(len(newest))
        kind = chosen.choices([kind for kind, _ in _STEPS], [weight for _, weight in _STEPS])[0]
        newest[which] = _changed(newest[which], kind, chosen.choice(images), chosen)
        yield newest[which]


def _changed(old: list[Chunk], kind: str, other: list[Chunk], chosen: random.Random) -> list[Chunk]:
    made = list(old)
    if kind == "replace":  # files: 1 to 60 chunks each, together 0.5 to 10 % of the image
        left = int(len(made) * chosen.uniform(0.005, 0.1)) + 1
        while left > 0:
            length = min(1 + int(chosen.expovariate(1 / 8)), 60, left)
            start = chosen.randrange(max(1, len(made) - length))
            made[start : start + length] = _new(chosen, length)
            left -= length
        return made
    start = chosen.randrange(len(made))
    if kind == "insert":
        made[start:start] = _new(chosen, chosen.randrange(20, 600))
    elif kind == "move":
        moved = made[start : start + chosen.randrange(100, 2000)]
        del made[start : start + len(moved)]
        target = chosen.randrange(len(made) + 1)
        made[target:target] = moved
    else:
        begin = chosen.randrange(len(other))
        made[start:start] = other[begin : begin + chosen.randrange(50, 1500)]
    return made


def _new(chosen: random.Random, count: int) -> list[Chunk]:
    return [(Digest(chosen.randbytes(32)), min(64, 4 + int(chosen.expovariate(1 / 13)))) for _ in range(count)]


@dataclass(slots=True)
class _Run:
    store: Counted
    chosen: random.Random
    trees: list[StoredTree] = field(default_factory=list)
    exact: set[Digest] = field(default_factory=set)
    blocks: int = 0
    exact_blocks: int = 0
    sparse_blocks: int = 0
    seconds: float = 0.0
    offset: int = TARGET_BYTES
    pack: Digest = ABSENT

    def import_(self, chunks: list[Chunk]) -> None:
        """Deduplicates one version both ways, and stores its tree, hooks, record and name."""
        laid = list(_lay(chunks))
        distinct = {chunk: blocks for _, chunk, blocks in laid}
        began = time.monotonic()
        known = DedupIndex(Repository(self.store), self.trees, _complain)
        places: dict[Digest, Placement] = {}
        for segment in _segments(distinct):
            for chunk, place in zip(segment, known.lookup(segment), strict=True):
                places[chunk] = place or self._store(distinct[chunk])
                self.sparse_blocks += 0 if place else distinct[chunk]
        self.seconds += time.monotonic() - began
        self.exact_blocks += sum(blocks for chunk, blocks in distinct.items() if chunk not in self.exact)
        self.exact.update(distinct)
        self.blocks += sum(blocks for _, _, blocks in laid)
        self._publish(laid, places, known)

    def _store(self, blocks: int) -> Placement:
        """Returns a place like that of a new chunk."""
        stored = int(blocks * BLOCK * _STORED_SHARE)
        if self.offset + stored > TARGET_BYTES:
            self.offset, self.pack = 0, Digest(self.chosen.randbytes(32))
        self.offset += stored
        return Placement(self.pack, 1, self.offset - stored, stored, blocks * BLOCK)

    def _publish(self, laid: list[tuple[int, Digest, int]], places: dict[Digest, Placement], known: DedupIndex) -> None:
        objects = ObjectWriter(self.store)
        leaves: list[tuple[int, Leaf]] = []
        spans: dict[int, list[Extent]] = {}
        for start, chunk, blocks in laid:
            spans.setdefault(start // SPAN, []).append(Extent(start, blocks, chunk, blocks, 0))
        for span, extents in spans.items():
            made = leaf(extents, span * SPAN, places)
            assert made is not None
            leaves.append((span, made))
        draft = assemble(leaves, (4 << 20) if len(spans) < 1024 else 1 << 28)
        stored = store_nodes([draft], places.get, objects.put_pack, known.leaf)
        root = stored.roots[0]
        sample = hooks.sample((span, own.chunks) for span, own in leaves)
        put(self.store, keys.hooks(root.digest, 1), [hooks.encode(root.digest, sample)])
        version = Version(root, Root(ABSENT, root.size), WriterLayout(0, 0), run=stored.run)
        number = objects.put_version(version, set())
        tag = str(len(self.trees))
        NameLog(self.store).set(NameTarget("synthetic", tag), EntryDraft.of(version, number))
        self.trees.append(StoredTree([root], sample))

    def row(self) -> dict[str, Any]:
        return {
            "versions": len(self.trees),
            "imported, GB": self.blocks * BLOCK / 1e9,
            "exact": self.blocks / self.exact_blocks,
            "ratio": self.blocks / self.sparse_blocks,
            "read, %": self.store.bytes / (self.blocks * BLOCK) * 100,
            "requests per version": self.store.requests / len(self.trees),
            "lookups, s per version": self.seconds / len(self.trees),
            "hooks": sum(len(tree.hooks) for tree in self.trees),
        }


def _lay(chunks: list[Chunk]) -> Iterator[tuple[int, Digest, int]]:
    """Chunks one after the other from block 0: start, name, blocks; those that cross the edge of a span are cut."""
    at = 0
    for name, blocks in chunks:
        room = SPAN - at % SPAN
        if blocks <= room:
            yield at, name, blocks
        else:
            yield at, Digest(sha256(name + bytes([room])).digest()), room
            yield at + room, Digest(sha256(name + bytes([0, room])).digest()), blocks - room
        at += blocks


def _segments(distinct: dict[Digest, int]) -> Iterator[list[Digest]]:
    """Yields the chunks in the segments that an import makes of them."""
    segment: list[Digest] = []
    size = 0
    for chunk, blocks in distinct.items():
        segment.append(chunk)
        size += blocks * BLOCK
        if len(segment) >= LOOKUP_CHUNKS or size >= LOOKUP_BYTES:
            yield segment
            segment, size = [], 0
    if segment:
        yield segment


def _complain(text: str) -> None:
    raise AssertionError(text)
