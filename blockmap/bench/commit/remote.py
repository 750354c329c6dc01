"""Commits into an object store behind a link with a delay: how many requests wait for each other, as the far side saw them."""

import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from blockmap.bench.coldstart.engine import Store, to_read, to_write
from blockmap.bench.coldstart.link import Shape, shaped
from blockmap.bench.coldstart.origin import serving
from blockmap.bench.coldstart.origin_log import LoggedRequest, at_client
from blockmap.bench.commit.session import REPO, TAG, TimedCommit, Workload, session
from blockmap.bench.commit.volume import make_volume
from blockmap.format import keys
from blockmap.server.store_log import serial_steps
from blockmap.store.names import NameTarget
from blockmap.store.opening import create_store

_ENGINE = "s3"
_IMAGE = NameTarget("bench", "remote")
_SETTLE_SECONDS = 1.5
"""Seconds after which the server has the nodes above what was written, which it fetches when that is written."""


@dataclass(frozen=True, slots=True)
class RemoteCommit:
    """What the far side saw of one commit."""

    visible: float
    """Seconds from the request until the entry was created."""
    sync: float
    stall: float
    serial: int
    """Requests that waited for each other, up to the entry's."""
    requests: int
    """All requests until then."""


def remote_commits(
    loads: list[Workload], rounds: int, netshape: Path, rtt_ms: float, mbit: float, work: Path
) -> dict[str, list[RemoteCommit]]:
    """Makes commits of each workload over a link; returns them by the workload's name. HostError."""
    with serving(work, _ENGINE) as origin:
        far = f"http://127.0.0.1:{origin.port}"
        near = to_write(_ENGINE, far, origin.files)
        with environment(near.environment):
            make_volume(create_store(near.url)[0], _IMAGE, max(load.file_bytes for load in loads), work)
        mark = origin.mark()
        with shaped(Shape(netshape, mbit), rtt_ms, origin.port, work) as port:
            store: Store = to_read(_ENGINE, f"http://127.0.0.1:{port}")
            made: dict[str, list[TimedCommit]] = {}
            with session(store, str(_IMAGE), work / "remote") as own:
                for _ in range(rounds):
                    for load in loads:
                        own.write(load)
                        own.sync()
                        time.sleep(_SETTLE_SECONDS)
                        made.setdefault(load.name, []).append(own.commit())
        seen = origin.requests_since(mark)
    return {name: [_seen(seen, each, rtt_ms / 1e3) for each in commits] for name, commits in made.items()}


def _seen(requests: list[LoggedRequest], commit: TimedCommit, rtt_s: float) -> RemoteCommit:
    entry = keys.entry(REPO, TAG, commit.entry)
    created = next(each for each in requests if each.method == "PUT" and each.target.partition("?")[0].endswith(entry))
    own = [each for each in requests if commit.asked_at <= each.start_s and each.end_s <= created.end_s]
    visible = created.end_s + rtt_s / 2 - commit.asked_at
    return RemoteCommit(visible, commit.sync, commit.stall, serial_steps(at_client(own, rtt_s)), len(own))


@contextlib.contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Has an object store's settings in this process's environment while the block runs."""
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
