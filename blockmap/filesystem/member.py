"""Members of layers, as tar archives list them, and the protocols of layers and images."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol


class MemberKind(Enum):
    FILE = "file"
    DIR = "directory"
    SYMLINK = "symlink"
    HARDLINK = "hard link"
    CHAR = "character device"
    BLOCK = "block device"
    FIFO = "fifo"
    SOCKET = "socket"
    """Only a file system that was written to has one: no archive can."""


@dataclass(frozen=True, slots=True)
class Member:
    """An entry of a layer before layers are merged; a whiteout is an ordinary empty file."""

    path: bytes
    """Path relative to the root, with neither "./" in front nor "/" at either end; b"" is the root itself."""
    kind: MemberKind
    mode: int
    """Permission bits with setuid, setgid and sticky: 0o7777."""
    uid: int = 0
    gid: int = 0
    mtime_s: int = 0
    """Seconds since 1970, negative before."""
    mtime_ns: int = 0
    """Nanoseconds after `mtime_s`, 0 to 999,999,999."""
    size: int = 0
    """Bytes of content; 0 unless `kind` is FILE."""
    target: bytes = b""
    """SYMLINK: the target, unchanged; HARDLINK: the path of the other name, written like `path`."""
    major: int = 0
    minor: int = 0
    xattrs: Mapping[bytes, bytes] = field(default_factory=dict)
    """Extended attributes by full name, such as b"security.capability"."""


Members = Iterator[tuple[Member, Iterator[bytes]]]
"""Members with their contents, in pieces of any size; pieces that are not read are skipped when the next member is."""


class Layer(Protocol):
    """One layer of an image, read once from front to back."""

    chain: bytes
    """OCI chain ID of the stack up to and including this layer: 32 bytes."""
    size: int
    """Bytes as stored, for progress; 0 if they are not known beforehand."""
    progress: Callable[[int], None]
    """Called with the stored bytes read since the last call, from any thread."""
    cpu_seconds: float
    """Processor seconds of the layer's own threads, known after it has been read."""

    def members(self, headers: Callable[[bytes], None]) -> Members:
        """Yields the members in order; `headers` gets every byte of the archive that is not file content, in order.

        Raises ImageError if the layer is damaged, hostile or unsupported, at the end also for a digest that does not match.
        """

    def second_reading(self) -> Members:
        """Yields the members as another reader finds them, which shares as little as possible with `members`."""


class ImageSource(Protocol):
    """An image to import: its documents byte for byte, and its layers from the bottom up."""

    manifest: bytes | None
    index: bytes | None
    config: bytes
    layers: list[Layer]

    def need(self, first: int) -> None:
        """Brings the layers from number `first` on, counted from 0 at the bottom, here, so that they can be read; the others are
        not going to be. Raises ImageError, HostError."""

    def close(self) -> None: ...
