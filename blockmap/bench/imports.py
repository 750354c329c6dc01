"""`blockmap bench import`: what an import costs, beside the work that no import can do without."""

import io
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any

import click

from blockmap.bench import show
from blockmap.bench.statistics import ratios, spread
from blockmap.errors import HostError, UsageError
from blockmap.filesystem.member import ImageSource
from blockmap.format import BLOCK
from blockmap.format.chunker import Parameters
from blockmap.format.pack import Pack, parse_head
from blockmap.image import compression
from blockmap.image.disk_image import DiskSource
from blockmap.image.layer import BlobLayer
from blockmap.image.sources import open_source
from blockmap.image.volume_writer import THRESHOLD_BLOCKS, write_image
from blockmap.publish.chunks import ChunkWriter
from blockmap.publish.stages import Stages
from blockmap.store.opening import create_store
from blockmap.store.packs import Packs, Sealer
from blockmap.terminal.options import json_option

CAVEATS = [
    "Each import goes into a new store in a directory of its own, in a process of its own; its start-up (imports of modules) "
    "is in the processor seconds.",
    "The floor is igzip of the layers, SHA-256 of the stored layers, of their archives and of the volume's blocks, and zstd of "
    "the new bytes: each measured alone, on one thread, in the same round, and added up.",
    "Stages are processor seconds of their threads; waiting is in none of them.",
    "Layers come from the page cache.",
]


@click.command("import")
@click.argument("source")
@click.option("--rounds", default=5, show_default=True)
@json_option
def import_(source: str, rounds: int, as_json: bool) -> None:
    """Import SOURCE into new stores, beside the floor.

    Shows processor seconds by stage, wall and memory.
    """
    if rounds < 1:
        raise UsageError("--rounds is at least 1")
    runs, floors = [], []
    # A process inherits the peak memory of the one that starts it, so the floor, which keeps all chunks, has its own.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as floor:
        for _ in range(rounds):
            runs.append(_run(source))
            floors.append(floor.submit(_floor, source).result())
    content = floors[0]["content_bytes"]
    rows = []
    for stage in sorted(runs[0]["cpu"]):
        rows.append(_row(f"import: {stage}", [run["cpu"][stage] for run in runs]))
    rows.append(_row("import: whole process, processor", [run["process_cpu"] for run in runs]))
    rows.append(_row("import: whole process, wall", [run["process_wall"] for run in runs]))
    for part in ("igzip", "sha256", "zstd"):
        rows.append(_row(f"floor: {part}", [floor[part] for floor in floors]))
    totals = [floor["igzip"] + floor["sha256"] + floor["zstd"] for floor in floors]
    rows.append(_row("floor: sum", totals))
    ratio = ratios([run["process_cpu"] for run in runs], totals)
    wall = spread([run["process_wall"] for run in runs]).median
    memory = max(run["peak_bytes"] for run in runs)
    summary = [
        f"processor seconds of the import over the floor: {ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})",
        f"{content / 1e6:.0f} MB of layer content at {content / wall / 1e6:.0f} MB/s, peak memory {memory / 1e6:.0f} MB",
    ]
    show(
        {
            "caveats": CAVEATS, "rows": rows, "summary": summary, "content_bytes": content, "peak_bytes": memory,
            "cpu_over_floor": ratio._asdict(), "mb_per_s": content / wall / 1e6,
        },
        as_json,
    )  # fmt: skip


def _row(what: str, seconds: list[float]) -> dict[str, Any]:
    low, middle, high = spread(seconds)
    return {"what": what, "seconds": middle, "lowest": low, "highest": high}


def _run(source: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="blockmap-bench-") as work:
        create_store(f"{work}/store")
        return run_import(source, f"{work}/store", f"{work}/cache")


def run_import(source: str, store: str, cache: str) -> dict[str, Any]:
    """Imports in a process of its own: its summary, its processor seconds, wall and peak memory."""
    command = [
        *(sys.executable, "-m", "blockmap.cli.main", "import", source, "bench:1"),
        *("--store", store, "--cache", cache, "--json"),
    ]
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    out = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.monotonic() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        assert process.stderr is not None
        raise HostError(f"the import failed: {process.stderr.read().decode(errors='replace').strip()}")
    process.communicate()
    result: dict[str, Any] = json.loads(out)
    result["process_cpu"] = usage.ru_utime + usage.ru_stime
    result["process_wall"] = wall
    result["peak_bytes"] = usage.ru_maxrss * 1024
    return result


def _floor(source: str) -> dict[str, float]:
    """Returns the processor seconds of each part alone."""
    with tempfile.TemporaryDirectory(prefix="blockmap-bench-") as work:
        opened = open_source(source, platform=None, work=Path(work))
        if isinstance(opened, DiskSource):
            raise UsageError(f"{source} is a disk image: this benchmark takes container images")
        try:
            blobs = [layer for layer in opened.layers if isinstance(layer, BlobLayer)]
            unpack = digest = 0.0
            content = 0
            for blob in blobs:
                stored = blob.stored()
                began = time.thread_time()
                archive = compression.decompressor(io.BufferedReader(io.BytesIO(stored))).read()
                middle = time.thread_time()
                sha256(stored).digest()
                sha256(archive).digest()
                digest += time.thread_time() - middle
                unpack += middle - began
                content += len(archive)
            collected = _new_chunks(opened)
        finally:
            opened.close()
    began = time.thread_time()
    for chunk in collected:
        for at in range(0, len(chunk), BLOCK):
            sha256(chunk[at : at + BLOCK]).digest()
    middle = time.thread_time()
    sealer = Sealer()
    for chunk in collected:
        sealer.seal(chunk)
    packing = time.thread_time() - middle
    return {"igzip": unpack, "sha256": digest + middle - began, "zstd": packing, "content_bytes": content}


def _new_chunks(source: ImageSource) -> list[bytes]:
    """Returns what an import into an empty store would compress."""
    found: list[bytes] = []

    def put(pack: Pack) -> None:
        head = parse_head(bytes(pack.parts[0]), pack.name)
        for data, (name, place) in zip(pack.parts[1:], head.entries, strict=True):
            found.append(bytes(Packs.open_chunk(name, place, data)))

    with ChunkWriter(put, lambda names: [None] * len(names), Parameters(), Stages()) as chunks:
        write_image(source, chunks, THRESHOLD_BLOCKS)
        chunks.finish()
    return found
