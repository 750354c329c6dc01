"""What a server and its publisher tell each other, pickled: both are of one release, and one has started the other."""

from collections.abc import Mapping
from dataclasses import dataclass, field

Frames = Mapping[bytes, bytes]
"""Nodes, as the cache has them: frames by the keys of `store.plan.node_at`."""

HANDED_BYTES = 64 << 20
"""The most bytes of nodes that go to the publisher, or come back from it: those of 4,000 leaves, or 64 GiB of a volume."""


@dataclass(frozen=True, slots=True)
class PublishTask:
    """Asks for a capture to be made a version."""

    capture: int
    """Its number."""
    is_first: bool = False
    """True if nobody can have tried it before, so that no entry with its nonce is looked for."""
    base: bytes = b""
    """The record of the version below the clone, as stored; empty where it is to be read."""
    nodes: Frames = field(default_factory=dict)
    """Nodes of that version; what else is needed is read from the store."""


@dataclass(frozen=True, slots=True)
class PublishedCapture:
    """Says what a capture has become."""

    export: str
    """The version's export name by digest."""
    entry: int
    """The number of the name's entry."""
    nodes: Frames = field(default_factory=dict)
    """Nodes of the version that were stored for it."""


@dataclass(frozen=True, slots=True)
class PublishFailure:
    """Says why a capture has become nothing."""

    why: str
    is_final: bool
    """True if trying again would not help, so that a person must decide."""
