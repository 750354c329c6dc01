"""`blockmap bench record`: what recording costs a read that the cache answers.

Both halves of a pair read the same blocks of a volume in the same order through one nbdkit, in slices that take turns, so that
what else the machine does meets both. For one a trace runs all the while; for the other it was ended after the first reads,
as when a program says that it is ready.
"""

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np

from blockmap.bench import Report, show
from blockmap.bench.blocks import BlockClient
from blockmap.bench.statistics import ratios, spread
from blockmap.bench.warm import densest_window, served
from blockmap.control.client import Client
from blockmap.control.messages import Ready, Resolve, Traces
from blockmap.errors import HostError, UsageError
from blockmap.format import BLOCK
from blockmap.format.digest import Digest
from blockmap.format.trace import TraceHead, decode
from blockmap.host import tools
from blockmap.terminal.options import json_option, need_store, store_option
from blockmap.trace.recorder import RECORDS, Recorder
from blockmap.volume.reads import LENGTH_BITS

CAVEATS = [
    "Processor time is that of the whole nbdkit process, user and system, by its own clock; the client's is not in it.",
    "Half of the reads of a pair are one trace, half another, as a trace holds 65,536; both begin at new connections.",
    "Halves take turns every 1,024 reads; a half's figure is that of its median turn, so that what else the machine did for a "
    "moment is left out.",
    "Every read is of 4 KiB that the page cache has: with larger reads, or misses, the same cost is a smaller share.",
    "A batch of requests is answered before the next is sent, so depth 16 is at most 16.",
]
DEPTHS = (1, 16)
_TRACES = 2
_SLICE = 1024
"""What is noted is written ten times a second: within a few slices, of either half."""
_APPENDS = 60_000
_SEED = 7


@click.command()
@click.argument("name")
@store_option
@click.option("--pairs", default=20, show_default=True, help="Measurements with recording, each beside one without.")
@click.option("--reads", default=100_000, show_default=True, help="Of each half of a pair.")
@json_option
def record(name: str, store: str | None, pairs: int, reads: int, as_json: bool) -> None:
    """Reads of NAME, while a start is recorded and while none is.

    The cache is warm.
    """
    tools.find("nbdkit")
    if pairs < 1 or not 100 <= reads < RECORDS * _TRACES:
        raise UsageError(f"--pairs is at least 1, and --reads 100 to {RECORDS * _TRACES - 1}")
    show(_measure(need_store(store), name, pairs, reads), as_json)


def _measure(store: str, name: str, pairs: int, reads: int) -> Report:
    with tempfile.TemporaryDirectory(prefix="blockmap-bench-") as work:
        directory = Path(work)
        (start, length), _ = densest_window(store, name)
        offsets = np.random.default_rng(_SEED).integers(0, length // BLOCK, reads // _TRACES) * BLOCK + start
        with served(directory, store) as socket:
            client = Client(socket)
            export = client.ask(Resolve(name)).export
            server = _Server(client, socket, export, [int(each) for each in offsets])
            rows = [_compare(server, depth, pairs) for depth in DEPTHS]
        appends = [_append_us(directory) for _ in range(9)]
    append = spread(appends)
    return {
        "caveats": CAVEATS, "rows": rows, "pairs": pairs, "reads": reads, "append_us": append._asdict(),
        "summary": [f"one append: {append.median:.2f} microseconds, {append.low:.2f} to {append.high:.2f}"],
    }  # fmt: skip


class _Server:
    """One that answers reads of the same blocks over and over."""

    def __init__(self, client: Client, socket: Path, export: str, offsets: Sequence[int]) -> None:
        self._client, self._socket, self._export, self._offsets = client, socket, export, offsets
        self._pid = client.status()["pid"]

    def pair(self, depth: int) -> tuple[float, float]:
        """Microseconds of processor time per read, with recording and without, in the median slice of each."""
        used: tuple[list[float], list[float]] = [], []
        for _ in range(_TRACES):
            exports = [f"{self._export}+{label}" for label in ("with", "without")]
            with BlockClient(self._socket, exports[0]) as recorded, BlockClient(self._socket, exports[1]) as bare:
                readers = recorded, bare
                for each in readers:
                    each.read(self._offsets[:depth], depth)
                running = {each["label"]: Path(each["path"]) for each in self._traces() if each["state"] == "running"}
                self._client.ask(Ready(exports[1]))
                for number, at in enumerate(range(0, len(self._offsets), _SLICE)):
                    slice_ = self._offsets[at : at + _SLICE]
                    for which in (0, 1) if number % 2 else (1, 0):
                        began = _cpu_s(self._pid)
                        readers[which].read(slice_, depth)
                        used[which].append((_cpu_s(self._pid) - began) / len(slice_) * 1e6)
            self._check(running["with"], depth + len(self._offsets))
            self._check(running["without"], depth)
        return median(used[0]), median(used[1])

    def _check(self, trace: Path, reads: int) -> None:
        """Raises HostError where a trace does not hold what it should, so that the run does not count."""
        end = time.monotonic() + 30
        # One that is in no state is being ended: not all that was noted is in its file yet.
        while {each["path"]: each["state"] for each in self._traces()}.get(str(trace), "running") == "running":
            if time.monotonic() > end:
                raise HostError("a trace of a connection that was closed is still running")
            time.sleep(0.01)
        noted = len(decode(trace.read_bytes()).reads)
        if noted != reads:
            raise HostError(
                f"{reads} reads should be in {trace}, and {noted} are: measure on a machine that is less busy"
            )

    def _traces(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._client.ask(Traces()).traces
        return found


def _compare(server: _Server, depth: int, pairs: int) -> dict[str, Any]:
    server.pair(depth)
    figures = [server.pair(depth) for _ in range(pairs)]
    recorded, bare = [each[0] for each in figures], [each[1] for each in figures]
    share = ratios(recorded, bare)
    return {
        "depth": depth,
        "without, us per read": median(bare),
        "with, us per read": median(recorded),
        "difference %": (share.median - 1) * 100,
        "lowest %": (share.low - 1) * 100,
        "highest %": (share.high - 1) * 100,
    }


def _cpu_s(pid: int) -> float:
    """Returns the processor time of a process, with threads that have ended: its clock as of clock_getcpuclockid(3)."""
    return time.clock_gettime(~pid << 3 | 2)


def _append_us(directory: Path) -> float:
    """Returns the processor time of one append, and of writing it to the file, without that of the loop."""
    zero = Digest(bytes(32))
    head = TraceHead("bench", "default", zero, zero, 1 << 40, 0)
    recorder = Recorder(directory, head, time.monotonic_ns())
    note, buf = recorder.note, memoryview(bytearray(BLOCK))
    began = time.thread_time()
    for offset in range(0, _APPENDS * BLOCK, BLOCK):
        note(offset if len(buf) == BLOCK else ~(offset << LENGTH_BITS | len(buf)))
    recorder.drain()
    drained = time.thread_time()
    for _ in range(0, _APPENDS * BLOCK, BLOCK):
        len(buf)
    ended = time.thread_time()
    recorder.end(lambda reads: head)
    recorder.path.unlink()
    return ((drained - began) - (ended - drained)) / _APPENDS * 1e6
