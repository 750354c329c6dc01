"""Volumes made of bytes, without a file system: what the tests of reading compare with."""

import threading
from collections.abc import Callable, Sequence

from blockmap.errors import StoreUnavailable
from blockmap.format import BLOCK
from blockmap.format.chunker import Parameters
from blockmap.format.tree import Root
from blockmap.format.version import NodeRun, Version, WriterLayout
from blockmap.publish.chunks import ChunkWriter
from blockmap.publish.dedup_index import DedupIndex
from blockmap.publish.object_writer import ObjectWriter
from blockmap.publish.stages import Stages
from blockmap.publish.trees import Trees, draft_whole, store_trees
from blockmap.store.base import Buffer, Pruner
from blockmap.store.names import EntryDraft, NameLog, NameTarget
from blockmap.store.repository import Repository


def publish(store: Pruner, pieces: Sequence[tuple[int, bytes]], size: int) -> Root:
    """Stores a volume of `size` blocks with whole blocks of data at the given blocks."""
    return publish_trees(store, pieces, size).root


def publish_trees(store: Pruner, pieces: Sequence[tuple[int, bytes]], size: int) -> Trees:
    put_pack = ObjectWriter(store).put_pack
    with ChunkWriter(put_pack, lambda names: [None] * len(names), Parameters(), Stages()) as chunks:
        for block, data in pieces:
            chunks.write(block, data)
        chunks.finish()
        return store_trees(
            draft_whole(chunks, size, []), chunks.table.placement, DedupIndex(Repository(store), [], print), put_pack
        )


def name(store: Pruner, root: Root, repo: str, tag: str, message: str = "", run: NodeRun | None = None) -> Version:
    """Makes a name stand for a volume."""
    version = Version(root, Root(bytes(32), root.size), WriterLayout(0, 0), message=message, run=run)  # type: ignore[arg-type]
    number = ObjectWriter(store).put_version(version, set())
    NameLog(store).set(NameTarget(repo, tag), EntryDraft.of(version, number))
    return version


def model(pieces: Sequence[tuple[int, bytes]], size: int) -> bytearray:
    """The bytes that the volume should have."""
    whole = bytearray(size * BLOCK)
    for block, data in pieces:
        whole[block * BLOCK : block * BLOCK + len(data)] = data
    return whole


class Watched:
    """A store that counts the ranges read from it, damages or refuses them, and lets a test hold them up."""

    def __init__(self, inner: Pruner) -> None:
        self.inner, self.url, self.local = inner, inner.url, inner.local
        self.ranges: list[tuple[str, int, int]] = []
        self.damage: Callable[[bytes, int], bytes] = lambda data, start: data
        """What becomes of a range of a pack that begins so many bytes from its beginning."""
        self.down = False
        self.gate = threading.Event()
        """Ranges wait for it."""
        self.gate.set()

    def get_range(self, key: str, start: int, end: int) -> bytes:
        self.ranges.append((key, start, end))
        assert self.gate.wait(30)
        if self.down:
            raise StoreUnavailable("no answer")
        data = self.inner.get_range(key, start, end)
        return self.damage(data, start) if key.startswith("packs/") else data

    def get(self, key: str, *most: int) -> bytes:
        return self.inner.get(key, *most)

    def list(self, prefix: str) -> list[str]:
        return self.inner.list(prefix)

    def exists(self, key: str) -> bool:
        return self.inner.exists(key)

    def size(self, key: str) -> int:
        return self.inner.size(key)

    def create(self, key: str, parts: Sequence[Buffer]) -> None:
        self.inner.create(key, parts)

    def replace(self, key: str, data: bytes) -> None:
        self.inner.replace(key, data)

    def delete(self, key: str) -> None:
        self.inner.delete(key)
