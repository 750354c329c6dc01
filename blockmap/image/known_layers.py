"""Takes layers over that the store has already: a layer's headers are replayed, and its contents stay where a version has them.

The blocks of a layer's contents, and where they are cut, depend on the layers up to it alone (`filesystem.ext4.writer`). So a
version with the same lowest layers has the same chunks at the same blocks: those that upper layers hide there in `extra`, the
others in the volume. What is taken over is checked as far as that goes: headers and version by their seals, the version by the
layers that its configuration lists, contents by the blocks that the headers say they take. Anything else is a full import.
A seal tells damage, not forgery: who can write the store could seal other headers, so an import that signs takes nothing over.
"""

import heapq
from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from operator import itemgetter

from blockmap.errors import BlockmapError, Corrupt, NotFound
from blockmap.filesystem.ext4.geometry import as_ranges
from blockmap.filesystem.ext4.writer import Ext4Writer
from blockmap.format import keys, layer
from blockmap.format.chunker import SPAN
from blockmap.format.digest import Digest
from blockmap.format.extent import Extent, coalesce
from blockmap.format.layer import LayerRecord
from blockmap.format.node import Leaf
from blockmap.format.placement import Placement
from blockmap.format.tree import Root
from blockmap.format.version import Version, WriterLayout
from blockmap.image.headers import LayerHeaders
from blockmap.image.layer import BlobLayer, config_chains
from blockmap.publish.catalogue import Catalogue
from blockmap.publish.chunks import ChunkWriter
from blockmap.publish.dedup_index import DedupIndex
from blockmap.publish.local import Numbered
from blockmap.store import limits
from blockmap.store.base import Reader
from blockmap.store.concurrent import each
from blockmap.store.names import NameTarget
from blockmap.store.numbered import newest_right, read_numbers
from blockmap.store.packs import expand_stream
from blockmap.store.repository import Repository
from blockmap.store.walk import above

_MOST_VERSIONS = 16
"""Versions of the repository that are looked at, beside those that the headers name: their records come in one round trip."""


class UnusableLayers(Corrupt):
    """What the store has of layers turned out to be damaged or lost, so that they have to be read."""


@dataclass(frozen=True, slots=True)
class KnownLayers:
    """The lowest layers of an image, as the store has them."""

    layers: Sequence[BlobLayer]
    """The layers, from the bottom up."""
    records: Sequence[LayerRecord]
    """Their headers."""
    roots: tuple[Root, Root]
    """Root and extra root of a version whose lowest layers they are."""

    def headers(self) -> list[LayerHeaders]:
        """Returns the headers as an import keeps them."""
        return [LayerHeaders(record.raw, bytearray(record.packed)) for record in self.records]


def find_known_layers(
    repository: Repository, catalogue: Catalogue, layers: Sequence[BlobLayer], target: NameTarget, layout: WriterLayout
) -> KnownLayers | None:
    """Returns as many of an image's lowest layers as a version has that a name stands for; None where there is none.

    The image is imported under the name `target`. StoreUnavailable.
    The version is one that the headers name, or a newer one of the repository: a name moves on, and headers stay as they are.
    """
    chains = [own.chain for own in layers]
    records: list[LayerRecord] = []
    for found in each(partial(_record, repository.store), chains):
        if found is None:
            break
        records.append(found)
    if not records:
        return None
    named = {record.version for record in records}
    tags = catalogue.tags.get(target.repo, {})
    near = [tags[tag] for tag in sorted(tags, key=lambda tag: (tag == target.tag, tag), reverse=True)]
    candidates = list(dict.fromkeys([*(at for at in catalogue.versions if at[0] in named), *near[:_MOST_VERSIONS]]))

    def count(at: Numbered) -> int:
        with suppress(NotFound, Corrupt):
            return _shared(repository.version(*at), chains[: len(records)], layout)
        return 0

    most, best = max(zip(each(count, candidates), candidates, strict=True), default=(0, None))
    return KnownLayers(layers[:most], records[:most], catalogue.versions[best]) if best is not None and most else None


def take_over(known: KnownLayers, writer: Ext4Writer, index: DedupIndex, chunks: ChunkWriter) -> None:
    """Brings known layers to a writer that has no layer yet, and their chunks to `chunks`. Raises UnusableLayers, after
    which writer and chunks are of no use."""
    contents: list[tuple[int, int]] = []
    try:
        for record, own in zip(known.records, known.layers, strict=True):
            members = own.replay(record.headers(expand_stream))
            contents += as_ranges([run for runs in writer.locate(members) for run in runs])
        for start, name, place in _chunks(known.roots, index, contents):
            chunks.add_known(start, name, place)
    except BlockmapError as error:
        raise UnusableLayers(str(error)) from error
    for own in known.layers:
        own.progress(own.size)


def _record(store: Reader, chain: bytes) -> LayerRecord | None:
    """Returns the headers of a stack of layers; None where there are none, or none that are right."""
    key = partial(keys.layer, chain)
    with suppress(NotFound, Corrupt):
        return newest_right(
            store, key, limits.LAYER, lambda data: layer.decode(data, chain), read_numbers(store, key, limits.LAYER)
        )
    return None


def _shared(version: Version, chains: Sequence[bytes], layout: WriterLayout) -> int:
    """Returns how many of an image's lowest layers are those of a version, laid out as they would be now."""
    if version.parents or version.layout != layout:
        return 0
    own = config_chains(version.config)
    return next((n for n in range(min(len(own), len(chains)), 0, -1) if own[n - 1] == chains[n - 1]), 0)


def _chunks(
    roots: Iterable[Root], index: DedupIndex, contents: Sequence[tuple[int, int]]
) -> Iterator[tuple[int, Digest, Placement]]:
    """Yields the chunks in some ascending ranges of blocks, which lie in one of several trees, or in parts in both."""
    spans = above({span for start, end in contents for span in range(start // SPAN, (end - 1) // SPAN + 1)})
    starts = [start for start, _ in contents]
    found = heapq.merge(*(index.leaves(root, spans) for root in roots), key=itemgetter(0))
    for span, leaves in groupby(found, key=itemgetter(0)):
        here = [leaf for _, leaf in leaves]
        places = {name: place for leaf in here for name, place in zip(leaf.chunks, leaf.placements, strict=True)}
        for extent in coalesce(sorted(_extents(here, span))):
            at = bisect_right(starts, extent.start) - 1
            if at < 0 or extent.start >= contents[at][1]:
                continue  # what is not the contents of a file is made for each version
            if extent.end > contents[at][1] or extent.length != extent.blocks or extent.chunk is None:
                raise Corrupt(f"block {extent.start} of a known layer begins no chunk of its contents")
            place = places[extent.chunk]
            if place is None:
                raise Corrupt(f"chunk {extent.chunk.hex()} is lost")
            yield extent.start, extent.chunk, place


def _extents(leaves: Collection[Leaf], span: int) -> Iterator[Extent]:
    for leaf in leaves:
        yield from leaf.extents(span * SPAN)
