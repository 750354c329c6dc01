"""What a layer holds: members, as a tar archive lists them."""

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


@dataclass(frozen=True, slots=True)
class Member:
    """One entry of a layer, before layers are merged: a whiteout is an ordinary empty file."""

    path: bytes
    """Relative to the root, with neither "./" in front nor "/" at either end; b"" is the root itself."""
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
    """SYMLINK: where it points, as is; HARDLINK: the path of the other name, written like `path`."""
    major: int = 0
    minor: int = 0
    xattrs: Mapping[bytes, bytes] = field(default_factory=dict)
    """By full name, such as b"security.capability"."""


Members = Iterator[tuple[Member, Iterator[bytes]]]
"""Members with their contents: pieces of any size that add up to `Member.size`; skipped when the next is asked for."""


class Layer(Protocol):
    """One layer of an image, read once from front to back."""

    chain: bytes
    """OCI chain ID of the stack up to and including this layer: 32 bytes."""
    size: int
    """Bytes as stored, for progress; 0 where they are not known beforehand."""
    progress: Callable[[int], None]
    """Called with the stored bytes read since the last call, from any thread."""
    cpu_seconds: float
    """Processor seconds of threads of its own, once it has been read."""

    def members(self, headers: Callable[[bytes], None]) -> Members:
        """The members in order; `headers` gets every byte of the archive that is not file content, in order.

        Raises ImageError for what is damaged, hostile or unsupported, at the end also for a digest that does not match.
        """


class ImageSource(Protocol):
    """An image as found: its documents byte for byte, and its layers from the bottom up."""

    manifest: bytes | None
    index: bytes | None
    config: bytes
    layers: list[Layer]

    def close(self) -> None: ...
