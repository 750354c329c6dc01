"""Measures what no commit of some bytes can do without: naming them, and making them durable."""

import os
import time
from pathlib import Path

from blockmap import durable
from blockmap.format import BLOCK
from blockmap.format.chunker import MAX_BLOCKS
from blockmap.format.digest import block_digests, chunk_digest


def floor_s(data: memoryview, folder: Path) -> float:
    """Returns the seconds for the SHA-256s of blocks and chunks and for one durable file, one after the other, on one thread."""
    path = folder / "floor"
    began = time.monotonic()
    for at in range(0, len(data), MAX_BLOCKS * BLOCK):
        chunk_digest(block_digests(data[at : at + MAX_BLOCKS * BLOCK]))
    durable.publish(path, [data])
    seconds = time.monotonic() - began
    os.unlink(path)
    return seconds
