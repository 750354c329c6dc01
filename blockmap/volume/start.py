"""Describes one start of a workload: its label, the bundle that is replayed for it, and what its reads need not fetch."""

from blockmap.format.refs import DEFAULT_LABEL
from blockmap.format.tree import Root
from blockmap.replay.replay import Replay
from blockmap.volume.misses import Misses

Key = tuple[str, str]
"""A version's export name by digest, and a label."""


class Start:
    """One start of a version under one label, shared by all connections that belong to it; safe to share between threads."""

    __slots__ = ("label", "misses", "profile", "replay", "root", "version")

    def __init__(self, version: str, root: Root, label: str = DEFAULT_LABEL, replay: Replay | None = None) -> None:
        self.version = version
        """The version's export name by digest: `repo@sha256:HEX`."""
        self.root = root
        """The root of the version's tree."""
        self.label = label
        self.misses = Misses()
        """The reads that waited for the store."""
        self.replay = replay
        """The bundle that is replayed for it."""
        self.profile = 0
        """The number of the profile that the kernel was warmed with, 0 for none: the kernel does not read these
        blocks again. It is set when somebody asks for that profile."""

    @property
    def key(self) -> Key:
        return self.version, self.label

    def is_under_way(self) -> bool:
        """Returns True while the bundle brings most of what is read, so that a miss is no sign of what is read next."""
        return self.replay is not None and self.replay.is_start()

    def skips_readahead(self) -> bool:
        """Returns True while reading ahead of misses is not worth it."""
        return self.replay is not None and self.replay.skips_readahead()

    def await_nodes(self, seconds: float) -> None:
        """Waits for the nodes of the tree that the bundle brings, no longer than `seconds`."""
        if self.replay is not None:
            self.replay.wait_nodes(seconds)

    def await_blocks(self, chunk: bytes, mask: int, seconds: float) -> bool:
        """Waits for blocks of a chunk that the bundle is about to bring, no longer than `seconds`; returns True if they have
        come."""
        return self.replay is not None and self.replay.wait(chunk, mask, seconds)
