"""Hooks: a sample of a tree's chunks, by which an importer finds leaves that hold chunks of its own.

They are derived from the tree.

    offset  size  type    meaning
    0       4     s       magic `bmhk`
    4       1     u8      format, 1
    5       3     -       zero
    8       32    digest  root of the tree
    40      4     u32     count n
    44      12n   -       per hook: first 8 bytes of the chunk's digest, number of its leaf (span) u32
    end-32  32    -       SHA-256 of all before

Ascending by span, then by the 8 bytes. Little-endian. A leaf's hooks are those of its chunks whose digest ends in six zero
bits, 1 in 64; where it has none, the chunk with the least digest, so that every leaf can be found. A reader must not rely
on either rule, and looks for all hooks that are listed.

The method is sparse indexing (Lillibridge et al., FAST'09).
"""

import struct
from collections.abc import Iterable, Sequence
from hashlib import sha256
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from blockmap.errors import FormatError
from blockmap.format.chunker import SPAN
from blockmap.format.digest import DIGEST_BYTES, Digest
from blockmap.format.tree import MAX_BLOCKS

MAGIC: Final = b"bmhk"
FORMAT: Final = 1

_HEAD = struct.Struct("<4sB3s32sI")
_HOOK_BYTES = 8
_MASK = 63

HOOK = np.dtype([("hook", ">u8"), ("span", "<u4")])
"""A hook as stored; big-endian, so that the prefixes sort as the digests do."""

Hooks = npt.NDArray[np.void]
"""An array of the type HOOK with one dimension."""


def prefixes(chunks: Sequence[Digest]) -> npt.NDArray[np.uint64]:
    """Returns the first 8 bytes of each digest, as the field `hook` holds them, in the machine's byte order."""
    return np.frombuffer(b"".join(chunk[:_HOOK_BYTES] for chunk in chunks), ">u8").astype(np.uint64)


def sample(leaves: Iterable[tuple[int, Sequence[Digest]]]) -> Hooks:
    """Returns the hooks of a tree, given the chunks of each of its leaves by span, in volume order."""
    rows: list[tuple[int, int]] = []
    for span, chunks in leaves:
        chosen = [chunk for chunk in chunks if not chunk[-1] & _MASK] or [min(chunks)]
        rows.extend((hook, span) for hook in sorted({int.from_bytes(chunk[:_HOOK_BYTES], "big") for chunk in chosen}))
    return np.array(rows, HOOK)


def encode(root: Digest, hooks: Hooks) -> bytes:
    """Returns the object as stored."""
    data = _HEAD.pack(MAGIC, FORMAT, bytes(3), root, len(hooks)) + hooks.tobytes()
    return data + sha256(data).digest()


def decode(data: bytes, root: Digest) -> Hooks:
    """Parses the hooks of the tree `root`. Raises FormatError."""
    end = len(data) - DIGEST_BYTES
    if end < _HEAD.size or sha256(memoryview(data)[:end]).digest() != data[end:]:
        raise FormatError("the hooks are damaged: their last 32 bytes are not the SHA-256 of the rest")
    magic, version, zero, name, count = _HEAD.unpack_from(data)
    if (magic, version, zero, name) != (MAGIC, FORMAT, bytes(3), root):
        raise FormatError(f"the object is not the hooks of {root.hex()} in a format known to this release")
    if end != _HEAD.size + HOOK.itemsize * count:
        raise FormatError(f"{count} hooks do not fit in {len(data)} bytes")
    hooks: np.ndarray[Any, Any] = np.frombuffer(data, HOOK, count, _HEAD.size)
    spans, own = hooks["span"], hooks["hook"]
    ascending = (spans[1:] > spans[:-1]) | ((spans[1:] == spans[:-1]) & (own[1:] > own[:-1]))
    if not ascending.all() or (count and spans[-1] >= MAX_BLOCKS // SPAN):
        raise FormatError("the hooks are out of order, or one names a leaf that no volume has")
    return hooks
