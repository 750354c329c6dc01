"""Opening alone: an export is opened and its superblock read, at once or after the server had nothing to do for a while."""

import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import quote

from blockmap.cli.bench.coldstart.images import Prepared
from blockmap.cli.bench.coldstart.processes import calm
from blockmap.cli.bench.coldstart.requests import Request
from blockmap.cli.bench.coldstart.rows import Blockmap, Place, calls_of, socket_of
from blockmap.cli.bench.coldstart.runs import Bench, place_for, split, within
from blockmap.errors import HostError
from blockmap.host import tools
from blockmap.store.observed import Call

_SUPERBLOCK = "read 1024 1024"


@dataclass(frozen=True, slots=True)
class Opening:
    """What it took to open one export."""

    image: str
    rtt_ms: float
    seconds: float
    """With the start of the program that opens it, some 20 ms."""
    before: list[Request]
    """What was asked of the far side since the server was started: also to keep connections alive."""
    requests: list[Request]
    calls: list[Call] | None
    """The same by blockmap's own log."""


def openings(bench: Bench, images: Sequence[Prepared], rtts_ms: Sequence[float], idle_s: float) -> list[Opening]:
    """Opens every image over every link, by a server of its own each, with an empty cache and idle for so long."""
    mark = bench.origin.mark()
    timed = []
    with calm() as stack:
        waiting = []
        for image in images:
            for rtt_ms in rtts_ms:
                place = stack.enter_context(place_for(bench, image, rtt_ms))
                Blockmap(resident=True).before(place)
                waiting.append((place, rtt_ms))
        # All of them are idle at once: one after the other would take hours.
        time.sleep(idle_s)
        for place, rtt_ms in waiting:
            wall, began = time.time(), time.monotonic()
            _open(place)
            seconds = time.monotonic() - began
            timed.append((place, rtt_ms, wall, seconds, within(calls_of(place), began, seconds)))
    requests = bench.origin.requests_since(mark)
    found = []
    for place, rtt_ms, wall, seconds, calls in timed:
        own = [request for request in requests if place.url == f"http://{request.host}"]
        found.append(Opening(place.image.name, rtt_ms, seconds, *split(own, wall, wall + seconds), calls))
    return found


def _open(place: Place) -> None:
    uri = f"nbd+unix:///{quote(place.image.name, safe='')}?socket={quote(str(socket_of(place)))}"
    done = subprocess.run(
        [tools.find("qemu-io"), "-r", "-f", "raw", "-c", _SUPERBLOCK, uri], capture_output=True, text=True, check=False
    )
    if done.returncode or "1 KiB" not in done.stdout:
        raise HostError(f"{place.image.name} could not be opened: {done.stderr.strip() or done.stdout.strip()}")
