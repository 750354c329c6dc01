"""`blockmap bench dedup`: how much deduplication saves over several images, by threshold for cuts at file edges."""

from pathlib import Path
from typing import Any

import click

from blockmap.cli.bench import Report, json_option, show
from blockmap.errors import UsageError
from blockmap.format import BLOCK
from blockmap.format.chunker import Parameters
from blockmap.format.digest import ABSENT, Digest
from blockmap.format.extent import within
from blockmap.format.node import Placement
from blockmap.image.disk import DiskSource
from blockmap.image.importer import THRESHOLD_BLOCKS, lay_image
from blockmap.image.sources import open_source
from blockmap.publish.chunks import ChunkWriter
from blockmap.publish.stages import Stages

CAVEATS = [
    "Blocks are those that volumes show and that are not zero; contents that upper layers hide are counted apart.",
    "The ratio is of bytes before compression; hidden contents are in neither of its terms.",
    "The order of the images does not matter to the ratio; which images they are decides it.",
]

_ELSEWHERE = Placement(ABSENT, 0, 0, 0, 0)


@click.command()
@click.argument("sources", nargs=-1, required=True)
@click.option("--threshold", "thresholds", multiple=True, type=int, help="Blocks; may be given several times.")
@json_option
def dedup(sources: tuple[str, ...], thresholds: tuple[int, ...], as_json: bool) -> None:
    """Deduplication over the images SOURCES, for each threshold of cuts at file edges (0: none)."""
    rows = []
    for threshold in thresholds or (THRESHOLD_BLOCKS,):
        if threshold < 0:
            raise UsageError(f"--threshold {threshold}: 0 or more blocks are expected")
        rows.append(_measure(sources, threshold))
    report: Report = {"caveats": CAVEATS, "rows": rows, "images": list(sources)}
    show(report, as_json)


def _measure(sources: tuple[str, ...], threshold: int) -> dict[str, Any]:
    shown: dict[Digest, int] = {}
    hidden: dict[Digest, int] = {}
    volume_blocks = hidden_blocks = 0
    for text in sources:
        source = open_source(text, platform=None, work=Path("/tmp"))
        if isinstance(source, DiskSource):
            raise UsageError(f"{text} is a disk image: this benchmark takes container images")
        try:
            stages = Stages()
            with ChunkWriter(_never, lambda names: [_ELSEWHERE] * len(names), Parameters(), stages) as chunks:
                laid = lay_image(source, chunks, threshold)
                chunks.finish()
        finally:
            source.close()
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


def _never(pack: object) -> None:
    raise AssertionError("every chunk is said to be known")
