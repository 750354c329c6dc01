"""Checks all that is needed, measures, and prints, also what there is by then when it is cut off."""

import contextlib
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import click
import numpy as np

from blockmap.bench import Report, show
from blockmap.bench.blocks import BlockClient
from blockmap.bench.coldstart.engine import Store
from blockmap.bench.coldstart.processes import calm
from blockmap.bench.commit.floor import floor_s
from blockmap.bench.commit.peers import OverlayPeer, PodmanPeer
from blockmap.bench.commit.remote import remote_commits
from blockmap.bench.commit.session import (
    CommitSession,
    SyncWriter,
    TimedCommit,
    Workload,
    session,
    split_syncs,
    syncing,
    visible_s,
)
from blockmap.bench.commit.volume import make_volume
from blockmap.bench.statistics import spread
from blockmap.errors import HostError, UsageError
from blockmap.format import BLOCK
from blockmap.host import tools
from blockmap.store.names import NameTarget
from blockmap.store.opening import create_store
from blockmap.terminal.options import json_option
from blockmap.terminal.output import warn

CAVEATS = [
    "Server, publisher, writer and this benchmark share the machine's processors; figures of different machines do not compare.",
    "The clone is mounted through nbdfuse and a loop device: the kernel's own nbd is faster, and its syncs are shorter.",
    "What is written is noise, which no compression shrinks, and is in the kernel's memory when the commit is asked for: `sync` "
    "is the time to write it to the clone, before anything is frozen, and is part of `visible`.",
    "`stall` is from the freeze to the thaw; `longest sync` is what a writer saw that syncs 4 KiB all the time, in the round that "
    "was worst.",
    "`visible` is from the request to the entry of the name; the clock of the entry's file has a grain of 4 ms.",
    "`floor` is SHA-256 of the bytes and one durable file, one after the other, measured in the same round; compression, xxHash, "
    "the tree and the record are not in it.",
    "The image's file is made of few chunks, each of them many times; its tree is as large as one without equal blocks.",
    "Overlay and podman change no file of 10 GiB, which they would copy first: they get a new file with the bytes.",
    "In the remote store's rows what was written is in the clone for a moment before the commit, so that the server has fetched "
    "the nodes above it; requests that wait for each other are counted from the request to the entry, whoever made them.",
    "podman's commit makes an image of this host, which no other host sees.",
]
_GIB = 1 << 30
LOADS = (
    Workload("256 x 4 KiB in 10 GiB", 10 * _GIB, BLOCK, 256),
    Workload("256 x 4 KiB in 100 GiB", 100 * _GIB, BLOCK, 256),
    Workload("1 MiB", 10 * _GIB, 1 << 20, 1),
    Workload("16 MiB", 10 * _GIB, 16 << 20, 1),
    Workload("256 MiB", 10 * _GIB, 256 << 20, 1),
)
_FEW = Workload("16 x 4 KiB in 10 GiB", 10 * _GIB, BLOCK, 16)
"""What is written between commits in a row."""
_QUIET_SECONDS = 3.0
_READS = 256
_PASSES = 3
"""Reads of the same blocks over and over: the first pass finds nothing in memory."""


@dataclass
class _Figures:
    """What was measured so far."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    summary: list[str] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)


@click.command()
@click.option("--rounds", default=7, show_default=True, help="Commits of each workload.")
@click.option("--in-a-row", default=100, show_default=True, help="Commits one after the other, at the end; 0: none.")
@click.option("--rtt", "rtt_ms", default=20.0, show_default=True, help="Milliseconds of the link to the remote store.")
@click.option("--mbit", default=1000.0, show_default=True, help="Of that link, each way.")
@click.option("--large/--no-large", default=True, show_default=True, help="With the file of 100 GiB.")
@click.option(
    "--shared", envvar="BLOCKMAP_SHARED", default="../shared", show_default=True, metavar="DIR",
    type=click.Path(path_type=Path), help="Holds netshape, for the remote store. [env BLOCKMAP_SHARED]",
)  # fmt: skip
@click.option(
    "--work", default="/var/tmp", show_default=True, metavar="DIR", type=click.Path(path_type=Path, exists=True),
    help="For store, cache and clone, on the disk that is measured.",
)  # fmt: skip
@json_option
def commit(
    rounds: int, in_a_row: int, rtt_ms: float, mbit: float, large: bool, shared: Path, work: Path, as_json: bool
) -> None:
    """Commits of a clone that is mounted and written to.

    Measures what its writers see, and when all hosts do.
    """
    if rounds < 1 or in_a_row < 0:
        raise UsageError("--rounds is at least 1, --in-a-row at least 0")
    tools.need_root("bench commit")
    missing = tools.missing(["nbdkit", "nbdfuse", "fusermount3", "losetup", "mkfs.ext4", "debugfs", "tar"])
    if missing:
        raise HostError(f"programs are missing that this benchmark uses: apt-get install {' '.join(missing)}")
    figures = _Figures()
    try:
        with _interrupted_by_sigterm(), calm() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="blockmap-bench-", dir=work)))
            _local(figures, rounds, in_a_row, large, folder)
            _remote(figures, rounds, shared / "netshape", rtt_ms, mbit, folder)
    except KeyboardInterrupt:
        figures.summary.append("cut off: what is here is what was measured by then")
    finally:
        report: Report = {
            "caveats": CAVEATS, "rows": figures.rows, "summary": figures.summary, "rounds": rounds, **figures.details,
        }  # fmt: skip
        show(report, as_json)


def _local(figures: _Figures, rounds: int, in_a_row: int, large: bool, folder: Path) -> None:
    path = folder / "store"
    store = create_store(str(path))[0]
    sizes = {load.file_bytes for load in LOADS if large or load.file_bytes <= 10 * _GIB}
    for size in sorted(sizes):
        warn(f"making an image with a file of {size >> 30} GiB")
        make_volume(store, NameTarget("bench", str(size >> 30)), size, folder)
    for size in sorted(sizes):
        with session(Store(str(path), os.environ), f"bench:{size >> 30}", folder / f"clone-{size >> 30}") as own:
            with syncing(own.where) as quiet:
                time.sleep(_QUIET_SECONDS)
            for load in (each for each in LOADS if each.file_bytes == size):
                warn(f"{load.name}: {rounds} commits")
                _measure(figures, own, load, rounds, path, quiet)
            if size == 10 * _GIB:
                _row_of_commands(figures, own, rounds)
                if in_a_row:
                    _commits_in_a_row(figures, own, in_a_row, path)
    _peers(figures, rounds, path, folder)


def _measure(
    figures: _Figures, own: CommitSession, load: Workload, rounds: int, store: Path, quiet: SyncWriter
) -> None:
    commits: list[TimedCommit] = []
    floors: list[float] = []
    with syncing(own.where) as writer:
        for number in range(rounds + 1):
            data = memoryview(own.write(load))
            made = own.commit()
            floor = floor_s(data, store)
            if number:  # the first is not counted: it finds nothing in memory
                commits.append(made)
                floors.append(floor)
    during, _ = split_syncs(writer.syncs, commits)
    without = [seconds for _, seconds in quiet.syncs]
    visible = [visible_s(store, each) for each in commits]
    over = [a - b - each.sync for a, b, each in zip(visible, floors, commits, strict=True)]
    figures.rows.append(
        {
            "what": load.name,
            **_spread_ms("stall", [each.stall for each in commits]),
            **_spread_ms("visible", visible),
            "sync ms": _median_ms([each.sync for each in commits]),
            "floor ms": _median_ms(floors),
            "visible - sync - floor ms": _median_ms(over),
            "longest sync ms": max(during, default=0.0) * 1e3,
            "p99 during ms": _p99(during) * 1e3,
            "p99 without ms": _p99(without) * 1e3,
            "serial": "",
        }
    )


def _row_of_commands(figures: _Figures, own: CommitSession, rounds: int) -> None:
    load = LOADS[2]
    seconds = []
    for _ in range(rounds):
        own.write(load)
        seconds.append(own.command_s())
    low, middle, high = spread(seconds)
    figures.summary.append(
        f"`blockmap commit` of {load.name}, from the start of its process to its end: {middle * 1e3:.0f} ms "
        f"({low * 1e3:.0f} to {high * 1e3:.0f})"
    )
    figures.details["command_s"] = seconds


def _commits_in_a_row(figures: _Figures, own: CommitSession, count: int, store: Path) -> None:
    """Commits over and over, and reads the newest version's blocks now and then."""
    warn(f"{count} commits in a row")
    own.write(_FEW)
    own.commit()
    before = [_read_s(own) for _ in range(_PASSES)]
    visible = []
    for _ in range(count):
        own.write(_FEW)
        visible.append(visible_s(store, own.commit()))
    after = [_read_s(own) for _ in range(_PASSES)]
    share = max(count // 10, 1)
    first, last = spread(visible[:share]).median, spread(visible[-share:]).median
    figures.summary.append(
        f"{count} commits of {_FEW.name} in a row: visible after {first * 1e3:.0f} ms for the first tenth, {last * 1e3:.0f} ms "
        f"for the last; {_READS} reads of the newest version {before[0] * 1e3:.0f} ms before, {after[0] * 1e3:.0f} ms after, again "
        f"{before[-1] * 1e3:.0f} and {after[-1] * 1e3:.0f} ms"
    )
    figures.details["in_a_row"] = {"visible_s": visible, "reads_before_s": before, "reads_after_s": after}


def _read_s(own: CommitSession) -> float:
    step = _FEW.file_bytes // _READS // BLOCK * BLOCK
    with BlockClient(own.client.nbd_socket, "bench:committed") as reader:
        began = time.monotonic()
        reader.read([number * step for number in range(_READS)], 16)
        return time.monotonic() - began


def _peers(figures: _Figures, rounds: int, store: Path, folder: Path) -> None:
    peers: list[OverlayPeer | PodmanPeer] = [OverlayPeer(folder, store)]
    if tools.missing(["podman"]):
        figures.summary.append("podman commit: not measured, podman is not installed (apt-get install podman)")
    else:
        peers.append(PodmanPeer(folder))
    noise = np.random.default_rng(4)
    for load in LOADS[2:]:
        for peer in peers:
            warn(f"{peer.name}, {load.name}")
            seconds = []
            for _ in range(rounds):
                with peer.changed(noise.bytes(load.write_bytes)):
                    seconds.append(peer.commit_s())
            figures.rows.append(
                {
                    **dict.fromkeys(figures.rows[0], ""),
                    "what": f"{peer.name}: {load.name}",
                    **_spread_ms("visible", seconds),
                }
            )
    for peer in peers:
        if isinstance(peer, PodmanPeer):
            peer.close()


def _remote(figures: _Figures, rounds: int, netshape: Path, rtt_ms: float, mbit: float, folder: Path) -> None:
    absent = tools.missing(["nginx", "weed"])
    if absent or not netshape.exists():
        lacking = ", ".join([*absent, *([] if netshape.exists() else [str(netshape)])])
        figures.summary.append(f"a remote store: not measured, since this is not there: {lacking}")
        return
    loads = [LOADS[0], LOADS[2]]
    warn(f"a remote store at {rtt_ms:g} ms")
    (work := folder / "far").mkdir()
    found = remote_commits(loads, rounds, netshape, rtt_ms, mbit, work)
    for load in loads:
        commits = found[load.name]
        figures.rows.append(
            {
                **dict.fromkeys(figures.rows[0], ""),
                "what": f"S3 at {rtt_ms:g} ms: {load.name}",
                **_spread_ms("stall", [each.stall for each in commits]),
                **_spread_ms("visible", [each.visible for each in commits]),
                "sync ms": _median_ms([each.sync for each in commits]),
                "serial": "{}-{}".format(*sorted(each.serial for each in commits)[:: max(len(commits) - 1, 1)])
                if len(commits) > 1
                else commits[0].serial,
            }
        )
    figures.details["remote"] = {
        name: [{"serial": each.serial, "requests": each.requests, "visible_s": each.visible} for each in commits]
        for name, commits in found.items()
    }


@contextlib.contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    """Ends the block by SIGTERM as by Ctrl-C."""

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    old = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, old)


def _spread_ms(what: str, seconds: list[float]) -> dict[str, float | str]:
    low, middle, high = (each * 1e3 for each in spread(seconds))
    return {f"{what} ms": middle, f"{what}, lowest-highest": f"{low:.0f}-{high:.0f}"}


def _median_ms(seconds: list[float]) -> float:
    return spread(seconds).median * 1e3


def _p99(seconds: list[float]) -> float:
    return sorted(seconds)[int(len(seconds) * 0.99)] if seconds else 0.0
