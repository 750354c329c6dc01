"""Traces record the reads of one start, with their times, while it happens. A trace stays on its host.

    offset  size  type  meaning
    0       4     s     magic `bmtr`
    4       1     u8    format, 1
    5       1     u8    flags: 1 the device was new to the host, 2 exact: the kernel did no read-ahead, 4 declared: somebody
                        said that a program starts
    6       1     u8    why it ended: 0 not yet, or with the server; see End
    7       1     -     zero
    8       8     u64   when the export was opened, microseconds since 1970
    16      8     u64   bytes of the volume
    24      4     u32   milliseconds from the open until the program was ready; 0 if that was not reported
    28      4     u32   number of the profile that the kernel was warmed with; 0 for none
    32      32    -     digest of the version
    64      32    -     digest of the volume's root
    96      64    s     label, filled up with zeros
    160     256   s     repository, filled up with zeros
    512     16n   -     per read, in the order in which they began: microseconds since the open u32, bytes u32, offset u64
    ..      16    -     where the trace has ended: count of waits w u32, zero u32, magic `bmwaits` and a zero byte
    ..      24w   -     per read that waited: when it began, microseconds since the open u32, microseconds that it took u32,
                        offset u64, bytes u32, what for u8 (1 the store; 2 what was on its way unasked), zero 3

Little-endian. The reads end with the file, or before the first record with a length of 0, which a loss of power may leave. A
server that is killed loses the reads of the last tenth of a second, and all waits. Reads that the cache did not answer at once
have their exact time; those in between are spread evenly.
"""

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from blockmap.errors import FormatError
from blockmap.format.digest import Digest

MAGIC: Final = b"bmtr"
FORMAT: Final = 1
HEAD_BYTES: Final = 512
NEW: Final = 1
EXACT: Final = 2
DECLARED: Final = 4

READ = np.dtype([("time_us", "<u4"), ("length", "<u4"), ("offset", "<u8")])
Reads = npt.NDArray[np.void]
"""An array of the type READ with one dimension."""

FOR_STORE: Final = 1
"""The read asked the store itself, and waited for the answer."""
FOR_PREFETCH: Final = 2
"""The read waited for what a bundle or another prefetch was bringing."""
WAIT = np.dtype(
    [("time_us", "<u4"), ("took_us", "<u4"), ("offset", "<u8"), ("length", "<u4"), ("reason", "u1"), ("zero", "V3")]
)
Waits = npt.NDArray[np.void]
"""An array of the type WAIT with one dimension."""
_WAITS_MAGIC: Final = int.from_bytes(b"bmwaits\0", "little")

_HEAD = struct.Struct("<4sBBBBQQII32s32s64s256s")


class End(IntEnum):
    """The reason why a trace ended."""

    OPEN = 0
    READY = 1
    """The program was reported ready by its starter."""
    LONG = 2
    QUIET = 3
    """No block was read for the first time for a while."""
    FULL = 4
    CLOSED = 5
    """The last connection closed."""
    FAILED = 6
    """The program failed, or was not ready in time, as its starter said."""


@dataclass(frozen=True, slots=True)
class TraceHead:
    """The head of a trace: the export, the version, and the circumstances of the start."""

    repo: str
    label: str
    version: Digest
    root: Digest
    size: int
    """Size of the volume in bytes."""
    started_us: int
    """Time of the open in microseconds since 1970."""
    flags: int = 0
    end: End = End.OPEN
    ready_ms: int = 0
    profile: int = 0
    """Number of the profile that the kernel was warmed with, whose blocks the start may have read unseen; 0 for none."""

    @property
    def is_new(self) -> bool:
        """True if blocks that the trace lacks were not needed: the device was new, so the kernel had none of them cached."""
        return bool(self.flags & NEW)

    @property
    def is_evidence(self) -> bool:
        """True if hosts learn from the trace unasked: it is of a start that was declared as one, on a new device, and did not
        fail."""
        return self.is_new and bool(self.flags & DECLARED) and self.end != End.FAILED


@dataclass(frozen=True, slots=True)
class Trace:
    head: TraceHead
    reads: Reads
    waits: Waits | None = None
    """The reads that waited; None where that is not known."""


def encode_head(head: TraceHead) -> bytes:
    """Returns the first 512 bytes of a trace."""
    label, repo = head.label.encode(), head.repo.encode()
    if len(label) > 64 or len(repo) > 256:
        raise FormatError(f"{head.repo}+{head.label} is too long for a trace")
    packed = _HEAD.pack(
        MAGIC, FORMAT, head.flags, head.end, 0, head.started_us, head.size, head.ready_ms, head.profile, head.version,
        head.root, label, repo,
    )  # fmt: skip
    return packed.ljust(HEAD_BYTES, b"\0")


def decode_head(data: bytes) -> TraceHead:
    """Parses the first 512 bytes of a trace. Raises FormatError."""
    if len(data) < HEAD_BYTES:
        raise FormatError(f"{len(data)} bytes are too short for a trace")
    magic, version, flags, end, zero, started, size, ready, profile, name, root, label, repo = _HEAD.unpack_from(data)
    if (magic, version, zero) != (MAGIC, FORMAT, 0) or end not in End.__members__.values():
        raise FormatError("the file is not a trace in a format known to this release")
    try:
        texts = repo.rstrip(b"\0").decode(), label.rstrip(b"\0").decode()
    except UnicodeDecodeError as error:
        raise FormatError(f"the trace's name is damaged: {error}") from error
    return TraceHead(*texts, Digest(name), Digest(root), size, started, flags, End(end), ready, profile)


def encode_waits(waits: Waits) -> bytes:
    """Returns what follows the reads of a trace that has ended."""
    before = np.array([(len(waits), 0, _WAITS_MAGIC)], READ)
    return before.tobytes() + waits.tobytes()


def decode(data: bytes) -> Trace:
    """Parses a trace, whole or cut off. Raises FormatError."""
    head = decode_head(data)
    count = (len(data) - HEAD_BYTES) // READ.itemsize
    reads: np.ndarray[Any, Any] = np.frombuffer(data, READ, count, HEAD_BYTES)
    empty = np.flatnonzero(reads["length"] == 0)
    waits = _decode_waits(data, reads, int(empty[0])) if len(empty) else None
    reads = reads[: int(empty[0])] if len(empty) else reads
    if any(len(each) and (each["offset"] >= head.size).any() for each in (reads, waits) if each is not None):
        raise FormatError("a read of the trace lies outside of the volume")
    return Trace(head, reads, waits)


def _decode_waits(data: bytes, reads: Reads, end: int) -> Waits | None:
    """Returns the waits that follow the reads, of which there are `end`; None where they are not all there."""
    count, start = int(reads["time_us"][end]), HEAD_BYTES + (end + 1) * READ.itemsize
    if int(reads["offset"][end]) != _WAITS_MAGIC or len(data) - start < count * WAIT.itemsize:
        return None
    return np.frombuffer(data, WAIT, count, start)
