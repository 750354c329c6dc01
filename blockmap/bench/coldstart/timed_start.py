"""One start: caches emptied, a link of its own, and a clock that runs from the request to the program's ready condition."""

import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from blockmap.bench.coldstart.engine import to_read
from blockmap.bench.coldstart.images import Prepared
from blockmap.bench.coldstart.link import Shape, shaped
from blockmap.bench.coldstart.origin import Origin
from blockmap.bench.coldstart.origin_log import LoggedRequest
from blockmap.bench.coldstart.overlay import overlay
from blockmap.bench.coldstart.processes import calm, mounted
from blockmap.bench.coldstart.ways import BenchSite, Way
from blockmap.host import tools
from blockmap.store.call import Call


@dataclass(frozen=True, slots=True)
class Bench:
    """The settings and servers that all starts share."""

    work: Path
    origin: Origin
    engine: str
    shape: Shape
    run_startup: Path
    timeout_s: float


@dataclass(frozen=True, slots=True)
class TimedStart:
    """The time and requests of one start."""

    ready_s: float | None
    """None where the program did not get ready."""
    failure: str
    before: list[LoggedRequest]
    """The requests at the far side before the clock started."""
    requests: list[LoggedRequest]
    """The requests from then on until the program was ready."""
    calls: list[Call] | None
    """The calls of the store by blockmap's own log."""


def start(bench: Bench, way: Way, image: Prepared, rtt_ms: float | None) -> TimedStart:
    """Starts an image by a way; HostError where the way does not work, a failed start is a result."""
    mark = bench.origin.mark()
    with place_for(bench, image, rtt_ms) as place:
        scratch = place.stack.enter_context(mounted(place.folder / "scratch", "-t", "tmpfs", "blockmap-bench"))
        empty_caches(way.programs)
        way.before(place)
        wall, began = time.time(), time.monotonic()
        root = place.stack.enter_context(overlay(way.root(place), scratch))
        command = [
            str(bench.run_startup),
            "--since",
            repr(began),
            "--timeout",
            str(bench.timeout_s),
            image.name,
            str(root),
        ]
        # In a session of its own: a signal for the benchmark must not make a start that fails.
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, start_new_session=True
        )
        seconds = time.monotonic() - began
        calls = way.calls(place)
    ready = float(done.stdout) if done.returncode == 0 else None
    seconds = seconds if ready is None else ready
    before, counted = split(bench.origin.requests_since(mark), wall, wall + seconds)
    return TimedStart(ready, done.stderr.strip(), before, counted, within(calls, began, seconds))


def split(
    requests: Sequence[LoggedRequest], began_s: float, until_s: float
) -> tuple[list[LoggedRequest], list[LoggedRequest]]:
    """Requests made before the clock started, and those of the start: begun until the program was ready."""
    before = [request for request in requests if request.start_s < began_s]
    return before, [request for request in requests if began_s <= request.start_s < until_s]


def within(calls: Sequence[Call] | None, began_s: float, seconds: float) -> list[Call] | None:
    """Returns the calls that began within `seconds` of the beginning."""
    return None if calls is None else [call for call in calls if began_s <= call.start_s < began_s + seconds]


@contextmanager
def place_for(bench: Bench, image: Prepared, rtt_ms: float | None) -> Iterator[BenchSite]:
    """Yields a folder, and a link to the far side; removes both at the end, with all that was put on their stack."""
    with calm() as stack:
        folder = Path(tempfile.mkdtemp(prefix="start-", dir=bench.work))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        port = bench.origin.port
        if rtt_ms is not None:
            port = stack.enter_context(shaped(bench.shape, rtt_ms, port, folder))
        url = f"http://127.0.0.1:{port}"
        yield BenchSite(image, folder, url, to_read(bench.engine, url), stack)


def empty_caches(programs: Sequence[Sequence[str]]) -> None:
    """Empties the page cache, then brings back the host's own programs."""
    tools.run("sync")
    Path("/proc/sys/vm/drop_caches").write_text("3")
    for command in programs:
        subprocess.run(
            [tools.find(command[0]), *command[1:]], stdin=subprocess.DEVNULL, capture_output=True, check=False
        )
