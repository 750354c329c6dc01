"""Layer records hold a layer's tar without its file contents, and name the version whose volume holds these.

    offset  size  type    meaning
    0       4     s       magic `bmly`
    4       1     u8      format, 1
    5       3     -       zero
    8       32    digest  OCI chain ID of the stack up to this layer
    40      32    digest  version
    72      4     u32     number of the version's record
    76      8     u64     bytes before compression
    84      -     -       the bytes, one zstd frame
    end-32  32    -       SHA-256 of all before

Little-endian.
"""

import struct
from collections.abc import Callable
from hashlib import sha256
from typing import NamedTuple

from blockmap.errors import FormatError
from blockmap.format.digest import DIGEST_BYTES, Digest

MAGIC = b"bmly"
FORMAT = 1
_HEAD = struct.Struct("<4sB3s32s32sIQ")
HEAD_BYTES = _HEAD.size


class LayerRecord(NamedTuple):
    chain: bytes
    version: Digest
    number: int
    raw: int
    """Bytes before compression."""
    packed: bytes | bytearray
    """One zstd frame of the archive without its file contents."""

    def headers(self, expand: Callable[[bytes | memoryview, int], bytes], limit_bytes: int = 1 << 30) -> bytes:
        """Returns the archive without its file contents. Raises FormatError."""
        if self.raw > limit_bytes:
            raise FormatError(f"a layer record claims {self.raw} bytes of headers: {limit_bytes} at most are read")
        return expand(memoryview(self.packed), self.raw)


def encode(record: LayerRecord) -> bytes:
    """Returns the object as stored."""
    head = _HEAD.pack(MAGIC, FORMAT, bytes(3), record.chain, record.version, record.number, record.raw)
    digest = sha256(head)
    digest.update(record.packed)
    return b"".join((head, record.packed, digest.digest()))


def decode(data: bytes, chain: bytes) -> LayerRecord:
    """Parses the record of the layer stack `chain`. Raises FormatError."""
    end = len(data) - DIGEST_BYTES
    if end < _HEAD.size or sha256(memoryview(data)[:end]).digest() != data[end:]:
        raise FormatError("the layer record is damaged: its last 32 bytes are not the SHA-256 of the rest")
    magic, version, zero, name, of, number, raw = _HEAD.unpack_from(data)
    if (magic, version, zero, name) != (MAGIC, FORMAT, bytes(3), chain):
        raise FormatError(
            f"the object is not the record of layer stack {chain.hex()} in a format known to this release"
        )
    return LayerRecord(name, Digest(of), number, raw, data[_HEAD.size : end])


def leads_to(head: bytes | memoryview, chain: bytes) -> Digest:
    """Returns the version that the record of the layer stack `chain` names, given its first HEAD_BYTES. Raises FormatError."""
    magic, version, zero, name, of, _, _ = _HEAD.unpack(head)
    if (magic, version, zero, name) != (MAGIC, FORMAT, bytes(3), chain):
        raise FormatError(
            f"the object is not the record of layer stack {chain.hex()} in a format known to this release"
        )
    return Digest(of)
