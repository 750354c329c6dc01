"""A server with one clone that is mounted, a writer in it that syncs all the time, and commits of it that are timed."""

import contextlib
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from blockmap.bench.coldstart.blockmap_server import BLOCKMAP, served
from blockmap.bench.coldstart.engine import Store
from blockmap.bench.commit import fsync_writer
from blockmap.bench.commit.volume import FILE
from blockmap.control.client import Client
from blockmap.control.clone_messages import AwaitPublished, Capture, MakeClone, PrepareCapture
from blockmap.errors import HostError
from blockmap.format import BLOCK, keys
from blockmap.host.attachments import Attachments
from blockmap.host.devices.nbdfuse import NbdFuse
from blockmap.host.freezing import freezer
from blockmap.terminal.output import warn

CLONE, REPO, TAG = "bench", "bench", "committed"
_PUBLISH_SECONDS = 60.0
_BETWEEN_S = 0.002
"""Seconds between two syncs of the writer: some hundred a second, as of a database that is used."""


@dataclass(frozen=True, slots=True)
class Workload:
    """What is written before each commit."""

    name: str
    file_bytes: int
    """The size of the file that is written to."""
    write_bytes: int
    count: int
    """So many writes of that size, each somewhere in the file; one of them begins where chance has it."""


@dataclass(frozen=True, slots=True)
class TimedCommit:
    """One commit. Times are in seconds, `began` by the monotonic clock."""

    began: float
    asked_at: float
    """When it was asked for, in seconds since 1970."""
    sync: float
    stall: float
    """From the freeze to the thaw."""
    done: float
    """From the request to the answer that it is published."""
    entry: int


class CommitSession:
    """A clone that is mounted."""

    def __init__(self, client: Client, where: Path, store: Store) -> None:
        self.client = client
        self.where = where
        self._store = store
        self._chosen, self._noise = random.Random(3), np.random.default_rng(3)

    def write(self, load: Workload) -> bytes:
        """Writes new bytes, which the kernel still has in memory then; returns them."""
        data = self._noise.bytes(load.count * load.write_bytes)
        places = (
            load.file_bytes // load.write_bytes if load.count > 1 else (load.file_bytes - load.write_bytes) // BLOCK
        )
        unit = load.write_bytes if load.count > 1 else BLOCK
        fd = os.open(self.where / FILE, os.O_WRONLY)
        try:
            for number, place in enumerate(self._chosen.sample(range(places), load.count)):
                part = memoryview(data)[number * load.write_bytes : (number + 1) * load.write_bytes]
                while part:
                    written = os.pwrite(fd, part, place * unit + load.write_bytes - len(part))
                    part = part[written:]
        finally:
            os.close(fd)
        return data

    def sync(self) -> None:
        """Has what was written go to the clone."""
        fd = os.open(self.where / FILE, os.O_WRONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def commit(self) -> TimedCommit:
        """Commits as the command does, but for the start of its process; HostError, NameMoved."""
        asked_at, began = time.time(), time.monotonic()
        with freezer(self.where, lambda: self.client.ask(PrepareCapture(CLONE))) as ready:
            with ready.frozen():
                number = self.client.ask(Capture(CLONE, f"{REPO}:{TAG}")).capture
            sync, stall = ready.sync_seconds, ready.stall
        found = self.client.ask(AwaitPublished(number, _PUBLISH_SECONDS))
        if not found.export:
            raise HostError(f"a commit was not published: {found.failure or 'it took too long'}")
        return TimedCommit(began, asked_at, sync, stall, time.monotonic() - began, found.entry)

    def command_s(self) -> float:
        """Returns how long `blockmap commit` takes, with the start of its process."""
        began = time.monotonic()
        command = [*BLOCKMAP, "commit", CLONE, f"{REPO}:{TAG}", "--socket", str(self.client.nbd_socket)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=self._store.environment)
        if done.returncode:
            raise HostError(f"blockmap commit failed: {done.stderr.strip()}")
        return time.monotonic() - began


def visible_s(store: Path, commit: TimedCommit) -> float:
    """Returns the seconds from the request until the name's entry was there, in a store that is a directory."""
    return os.stat(store / keys.entry(REPO, TAG, commit.entry)).st_ctime - commit.asked_at


class SyncWriter:
    """A process that syncs all the time, and says at its end how long each took."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self.syncs: list[tuple[float, float]] = []
        """When each began, by the monotonic clock, and its seconds; there when the writer has ended."""

    def end(self) -> None:
        said, _ = self._process.communicate()
        self.syncs = [(float(began), float(seconds)) for began, seconds in map(str.split, said.splitlines())]


@contextlib.contextmanager
def syncing(where: Path) -> Iterator[SyncWriter]:
    """Runs a writer in a mounted clone while the block runs."""
    command = [sys.executable, "-I", "-S", fsync_writer.__file__, str(where / "synced"), str(_BETWEEN_S)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    writer = SyncWriter(process)
    try:
        yield writer
    finally:
        writer.end()


def split_syncs(
    syncs: Sequence[tuple[float, float]], commits: Sequence[TimedCommit]
) -> tuple[list[float], list[float]]:
    """Returns the seconds of those syncs that met a commit, and of the others."""
    during: list[float] = []
    without: list[float] = []
    for began, seconds in syncs:
        met = any(began < each.began + each.done and each.began < began + seconds for each in commits)
        (during if met else without).append(seconds)
    return during, without


@contextlib.contextmanager
def session(store: Store, name: str, work: Path) -> Iterator[CommitSession]:
    """Serves a store, makes a clone of an image, and mounts it."""
    work.mkdir()
    with contextlib.ExitStack() as stack:
        own = Store(store.url, {**store.environment, "BLOCKMAP_STATE": str(work / "state")})
        socket = stack.enter_context(served(own, work / "cache", work))
        client = Client(socket)
        client.ask(MakeClone(name, CLONE))
        where = work / "mounted"
        where.mkdir()
        attachments = Attachments(work / "state", NbdFuse(), warn)
        attachments.attach(client, CLONE, CLONE, where, writable=True)
        stack.callback(attachments.detach, where)
        yield CommitSession(client, where, own)
