"""What starts on one host share: a base that is there already, and one bundle for all that open one version.

Run with -s: prints bytes and seconds.
"""

import struct
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from blockmap.format import BLOCK
from blockmap.format.bundle import BundleHead
from blockmap.format.reading_list import ReadItem
from blockmap.format.refs import parse_reference
from blockmap.store.bundles import newest_bundles
from blockmap.store.names import EntryDraft, NameLog, NameTarget
from blockmap.store.packs import Packs
from blockmap.store.repository import Repository
from blockmap.store.resolver import find_version
from tests.corpus.starts import far, megabytes, record, start_once
from tests.faults.links import need_shared
from tests.host.conftest import Host
from tests.serve.nbd import CMD_READ, Nbd
from tests.store.made import open_or_create

pytestmark = [
    pytest.mark.long,
    pytest.mark.root,
    pytest.mark.filterwarnings("ignore:subprocess .* is still running"),  # nbdfuse, which ends when it is unmounted
]

EXPORTS = 50
MOST_BYTES = 1.1
MOST_SECONDS = 1.5


def head_of(store: Path, name: str) -> tuple[BundleHead, int]:
    """Returns the head of the newest bundle of a name, and the bundle's length."""
    opened, _ = open_or_create(str(store))
    (about,) = newest_bundles(opened, find_version(Repository(opened), parse_reference(name)).name)
    return Packs.open_bundle(opened.get_range(about.key, 0, about.table)), about.length


@pytest.mark.parametrize(("first", "second"), [("redis:1", "nginx:1"), ("redis:1", "postgres:1")])
def test_a_second_image_fetches_what_is_new(
    first: str, second: str, corpus: Path, where: Path, need: Callable[..., None], need_root: None
) -> None:
    need("nginx", "nbdkit", "nbdfuse", "losetup")
    need_shared("corpus/run-startup")
    host = Host(where)
    for name in (first, second):
        host.do("import", "--quiet", f"oci:{corpus}/{name}", name)
        record(where, host.store, name)
    before = {piece.chunk: piece.mask for piece in head_of(host.store, first)[0].pieces}
    head, length = head_of(host.store, second)
    data = sum(piece.mask.bit_count() for piece in head.pieces)
    new = sum((piece.mask & ~before.get(piece.chunk, 0)).bit_count() for piece in head.pieces)
    with far(where / "alone", host.store, "--no-learn") as other:
        alone = start_once(other, second)
    with far(where / "after", host.store, "--no-learn") as other:
        start_once(other, first)
        after = start_once(other, second)
        (replay,) = (each for each in after.replays if each["bytes"] and each is after.replays[-1])
    print(f"\n{second} after {first}: bundle {megabytes(length)}, {new / data:.0%} of its {data} blocks are new")
    print(f"  alone {alone.ready_s:.2f} s, {megabytes(alone.remote_bytes)}, missed_reads {alone.missed_reads}")
    print(
        f"  after {after.ready_s:.2f} s, {megabytes(after.remote_bytes)}, missed_reads {after.missed_reads}, {replay}"
    )
    assert not replay["failed"]
    assert new < 0.9 * data
    # What comes with the head, before it is known what is new; frames come whole; the rest is small gaps between them.
    assert replay["bytes"] < (256 << 10) + 1.25 * length * new / data


def read_all(path: Path, export: str, ranges: Sequence[tuple[int, int]], done: list[float]) -> None:
    """Opens an export and reads what its starts read, some requests at a time as a kernel does."""
    with Nbd(path, export) as nbd:
        for at in range(0, len(ranges), 8):
            batch = ranges[at : at + 8]
            for number, (offset, length) in enumerate(batch):
                nbd.send(CMD_READ, offset, length, number)
            for _ in batch:  # in whichever order
                magic, error, number = struct.unpack(">IIQ", nbd.take(16))
                assert (magic, error) == (0x67446698, 0)
                nbd.take(batch[number][1])
    done.append(time.monotonic())


def joined(readings: Sequence[ReadItem]) -> list[tuple[int, int]]:
    """Offsets and lengths in bytes, what follows each other in one read of up to 128 KiB."""
    found: list[tuple[int, int]] = []
    for own in readings:
        if found and found[-1][0] + found[-1][1] == own.start and found[-1][1] + own.blocks <= 32:
            found[-1] = found[-1][0], found[-1][1] + own.blocks
        else:
            found.append((own.start, own.blocks))
    return [(start * BLOCK, blocks * BLOCK) for start, blocks in found]


def at_once(host: Host, exports: Sequence[str], ranges: Sequence[tuple[int, int]]) -> tuple[float, int]:
    """Seconds until the last was done; bytes over the link."""
    before = host.client.status()["remote"]["bytes"]
    done: list[float] = []
    began = time.monotonic()
    threads = [threading.Thread(target=read_all, args=(host.socket, each, ranges, done)) for each in exports]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == len(exports), host.said()
    return max(done) - began, host.client.status()["remote"]["bytes"] - before


def test_many_exports_of_one_version_cost_one_bundle(
    corpus: Path, where: Path, need: Callable[..., None], need_root: None
) -> None:
    need("nginx", "nbdkit", "nbdfuse", "losetup")
    need_shared("corpus/run-startup")
    host = Host(where)
    image = "python-flask:1"
    host.do("import", "--quiet", f"oci:{corpus}/{image}", image)
    opened, _ = open_or_create(str(host.store))
    log = NameLog(opened)
    entry = log.newest("python-flask", "1")
    assert entry is not None
    draft = EntryDraft(entry.version, entry.number, entry.root, entry.run, entry.oci)
    for number in range(EXPORTS):
        log.set(NameTarget("python-flask", f"copy-{number}"), draft)
    record(where, host.store, image)
    head, length = head_of(host.store, image)
    ranges = joined(head.read_items)
    names = [f"python-flask:copy-{number}" for number in range(EXPORTS)]
    link = ("--rtt-ms", "30", "--mbit", "25")
    with far(where / "alone", host.store, "--no-learn", link=link) as other:
        alone_s, alone_bytes = at_once(other, names[:1], ranges)
        alone_warm_s, _ = at_once(other, names[:1], ranges)
    with far(where / "many", host.store, "--no-learn", link=link) as other:
        many_s, many_bytes = at_once(other, names, ranges)
        many_warm_s, _ = at_once(other, names, ranges)
    print(f"\n{EXPORTS} exports of {image}, {len(ranges)} reads each, {link}, bundle {megabytes(length)}")
    print(f"  one {alone_s:.2f} s, {megabytes(alone_bytes)}; with all at hand {alone_warm_s:.2f} s")
    print(f"  the slowest of all {many_s:.2f} s, {megabytes(many_bytes)}; with all at hand {many_warm_s:.2f} s")
    assert many_bytes <= MOST_BYTES * alone_bytes
    # What they take with all at hand is processor time, of readers and server, which is not the link's.
    assert many_s - many_warm_s <= MOST_SECONDS * alone_s
