"""Times an open alone: an export is opened and its superblock read, at once or after the server had nothing to do for a while."""

import contextlib
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import quote

from blockmap.bench.coldstart.images import Prepared
from blockmap.bench.coldstart.origin_log import LoggedRequest
from blockmap.bench.coldstart.processes import calm
from blockmap.bench.coldstart.timed_start import Bench, place_for, split, within
from blockmap.bench.coldstart.ways import BenchSite, Blockmap, calls_of, socket_of
from blockmap.errors import HostError
from blockmap.host import tools
from blockmap.store.call import Call

OPENER = "qemu-io"
PARTS = ("alone", "+ superblock")
_COMMANDS = (b"length\n", b"read 1024 1024\n")
"""Commands for qemu-io; each answer has a word that no other line has."""
_ANSWERS = (b"iB", b" ops;")


@dataclass(frozen=True, slots=True)
class Opening:
    """The time and requests of opening one export, or of opening it and reading its superblock."""

    image: str
    rtt_ms: float
    part: str
    seconds: float
    """The time with the start of the program that opens the export, some 20 ms."""
    before: list[LoggedRequest]
    """The requests at the far side since the server was started, those that keep connections alive included."""
    requests: list[LoggedRequest]
    calls: list[Call] | None
    """The calls of the store by blockmap's own log."""


@dataclass(frozen=True, slots=True)
class _Timed:
    place: BenchSite
    rtt_ms: float
    wall_s: float
    began_s: float
    seconds: list[float]
    calls: list[Call]


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
            seconds = [at - began for at in _open(place)]
            timed.append(_Timed(place, rtt_ms, wall, began, seconds, calls_of(place)))
    requests = bench.origin.requests_since(mark)
    return [opening for each in timed for opening in _parts(each, requests)]


def _parts(timed: _Timed, requests: Sequence[LoggedRequest]) -> Iterator[Opening]:
    own = [request for request in requests if timed.place.url == f"http://{request.host}"]
    for part, seconds in zip(PARTS, timed.seconds, strict=True):
        before, counted = split(own, timed.wall_s, timed.wall_s + seconds)
        calls = within(timed.calls, timed.began_s, seconds)
        yield Opening(timed.place.image.name, timed.rtt_ms, part, seconds, before, counted, calls)


def _open(place: BenchSite) -> Iterator[float]:
    """When each answer came, by the monotonic clock: the export is open, the superblock is read."""
    uri = f"nbd+unix:///{quote(place.image.name, safe='')}?socket={quote(str(socket_of(place)))}"
    command = [tools.find(OPENER), "-r", "-f", "raw", uri]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            for order, answer in zip(_COMMANDS, _ANSWERS, strict=True):
                said = b""
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.write(order)
                    process.stdin.flush()
                while answer not in said:
                    line = process.stdout.readline()
                    said += line
                    if not line:
                        raise HostError(
                            f"{place.image.name} could not be opened: {said.decode(errors='replace').strip()}"
                        )
                yield time.monotonic()
        finally:
            process.kill()
