"""Freezes the file system of a clone for a moment, where the clone is attached."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from blockmap.control.client import Client
from blockmap.control.clone_messages import PrepareCapture
from blockmap.host.attachments import Attachments


@dataclass
class FrozenMoment:
    """A moment of a clone."""

    sync_seconds: float = 0.0
    """How long it took to write what waited, before; writers went on meanwhile."""
    stall: float = 0.0
    """Seconds for which writers waited, once it is over; 0 where nothing was frozen."""


@contextmanager
def moment_of(attachments: Attachments, client: Client, clone: str) -> Iterator[FrozenMoment]:
    """Keeps the file system of a clone frozen while the block runs, if it is mounted here; HostError."""
    moment = FrozenMoment()
    place = attachments.held_place(clone) if os.geteuid() == 0 else nullcontext()
    with place as where:
        if where is None:
            yield moment
            return
        from blockmap.host.freezing import freezer  # imported here: most commits freeze nothing

        with freezer(Path(where), lambda: client.ask(PrepareCapture(clone))) as ready:
            moment.sync_seconds = ready.sync_seconds
            with ready.frozen():
                yield moment
            moment.stall = ready.stall
