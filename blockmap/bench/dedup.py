"""`blockmap bench dedup`: how much deduplication saves over several images, by threshold for cuts at file edges.

What a store takes is measured by importing all images into one, and compared with the layers as a registry keeps them.
"""

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import click

from blockmap.bench import Report, show
from blockmap.errors import UsageError
from blockmap.filesystem.member import ImageSource
from blockmap.format import BLOCK
from blockmap.format.chunker import Parameters
from blockmap.format.digest import ABSENT, Digest
from blockmap.format.extent import within
from blockmap.format.placement import Placement
from blockmap.image.disk_image import DiskSource
from blockmap.image.importer import Importer
from blockmap.image.layer import BlobLayer
from blockmap.image.sources import open_source
from blockmap.image.volume_writer import THRESHOLD_BLOCKS, write_image
from blockmap.publish.chunks import ChunkWriter
from blockmap.publish.stages import Stages
from blockmap.store.opening import create_store
from blockmap.terminal.options import json_option
from blockmap.terminal.output import warn

CAVEATS = [
    "Blocks are those that volumes show and that are not zero; contents that upper layers hide are counted apart.",
    "The ratio is of bytes before compression; hidden contents are in neither of its terms.",
    "The order of the images does not matter to the ratio; which images they are decides it.",
    "Bytes stored are those of all files of a store in a directory into which every image was imported: chunks and nodes as "
    "compressed, hidden contents, and what is kept beside them. A registry's are its layers, each once, and its documents.",
]

_ELSEWHERE = Placement(ABSENT, 0, 0, 0, 0)


@click.command()
@click.argument("sources", nargs=-1, required=True)
@click.option("--threshold", "thresholds", multiple=True, type=int, help="Blocks; may be given several times.")
@click.option(
    "--stored", is_flag=True, help="Also import all images, and compare the store with the compressed layers."
)
@json_option
def dedup(sources: tuple[str, ...], thresholds: tuple[int, ...], stored: bool, as_json: bool) -> None:
    """Deduplication over the images SOURCES, for each threshold.

    It is that of cuts at the edges of files; 0 means none.
    """
    rows = []
    for threshold in thresholds or (THRESHOLD_BLOCKS,):
        if threshold < 0:
            raise UsageError(f"--threshold {threshold}: 0 or more blocks are expected")
        rows.append(_measure(sources, threshold))
    report: Report = {"caveats": CAVEATS, "rows": rows, "images": list(sources)}
    if stored:
        report["stored"] = took = _stored(sources)
        report["summary"] = [
            f"stored at a threshold of {THRESHOLD_BLOCKS} blocks: {took['store'] / 1e6:.1f} MB, of them "
            f"{took['chunks'] / 1e6:.1f} of chunks, {took['nodes'] / 1e6:.1f} of nodes, {took['beside'] / 1e6:.1f} beside",
            f"compressed layers, each once: {took['layers'] / 1e6:.1f} MB, and {took['documents'] / 1e6:.2f} MB of documents",
            f"store over layers and documents: {took['store'] / (took['layers'] + took['documents']):.3f}",
        ]
    show(report, as_json)


def _measure(sources: tuple[str, ...], threshold: int) -> dict[str, Any]:
    shown: dict[Digest, int] = {}
    hidden: dict[Digest, int] = {}
    volume_blocks = hidden_blocks = 0
    for text in sources:
        with _opened(text) as source, ChunkWriter(_never, _elsewhere, Parameters(), Stages()) as chunks:
            laid = write_image(source, chunks, threshold)
            chunks.finish()
        for _, extents in chunks.extents.spans(chunks.table):
            outside, inside = within(extents, laid.hidden)
            for part, found in ((outside, shown), (inside, hidden)):
                for extent in part:
                    assert extent.chunk is not None
                    found[extent.chunk] = extent.blocks
            volume_blocks += sum(extent.length for extent in outside)
            hidden_blocks += sum(extent.length for extent in inside)
    unique = sum(shown.values())
    return {
        "threshold, blocks": threshold,
        "volumes, MB": volume_blocks * BLOCK / 1e6,
        "unique, MB": unique * BLOCK / 1e6,
        "ratio": volume_blocks / unique,
        "chunks": len(shown),
        "mean chunk, KiB": unique * BLOCK / 1024 / len(shown),
        "hidden, MB": hidden_blocks * BLOCK / 1e6,
        "hidden unique, MB": sum(blocks for name, blocks in hidden.items() if name not in shown) * BLOCK / 1e6,
    }


def _stored(sources: tuple[str, ...]) -> dict[str, int]:
    """Returns bytes, by kind, of a store that holds all images, and of what a registry holds for them."""
    registry: dict[str, dict[bytes, int]] = {"layers": {}, "documents": {}}
    took = {"chunks": 0, "nodes": 0}
    with tempfile.TemporaryDirectory(prefix="blockmap-bench-") as work:
        store, form = create_store(f"{work}/store")
        for number, text in enumerate(sources):
            with _opened(text) as source:
                _as_kept_by_a_registry(source, registry)
                summary = Importer(store, form, warn).run(source, f"bench-{number}", "1")
            took["chunks"] += summary.counts.stored_bytes
            took["nodes"] += summary.node_bytes
        whole = sum(path.stat().st_size for path in Path(work).rglob("*") if path.is_file())
    took |= {"store": whole, "beside": whole - sum(took.values())}
    return took | {kind: sum(sizes.values()) for kind, sizes in registry.items()}


def _as_kept_by_a_registry(source: ImageSource, into: dict[str, dict[bytes, int]]) -> None:
    """Adds the sizes of an image's blobs by digest."""
    for layer in source.layers:
        if isinstance(layer, BlobLayer):
            blob = layer.stored()
            into["layers"][sha256(blob).digest()] = len(blob)
    for document in (source.manifest, source.config):
        if document is not None:
            into["documents"][sha256(document).digest()] = len(document)


@contextlib.contextmanager
def _opened(text: str) -> Iterator[ImageSource]:
    with tempfile.TemporaryDirectory(prefix="blockmap-bench-") as work:
        source = open_source(text, platform=None, work=Path(work))
        try:
            if isinstance(source, DiskSource):
                raise UsageError(f"{text} is a disk image: this benchmark takes container images")
            yield source
        finally:
            source.close()


def _elsewhere(names: Sequence[Digest]) -> list[Placement | None]:
    return [_ELSEWHERE] * len(names)


def _never(pack: object) -> None:
    raise AssertionError("every chunk is said to be known")
