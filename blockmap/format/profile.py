"""Profiles list the blocks that starts of one workload read, merged from many traces, in first-touch order.

A profile belongs to a repository and a label. The profiles of such a pair are a log, numbered from 1 without gaps; the highest
is valid.

    offset  size  type    meaning
    0       4     s       magic `bmpf`
    4       1     u8      format, 1
    5       3     -       zero
    8       4     u32     bytes of the head h
    12      4     u32     bytes of the body before compression
    16      h     -       head, canonical JSON
    ..      -     -       body, one zstd frame
    end-32  32    -       SHA-256 of all before

The head's keys: `repo`, `label`, `n`, `version` and `root` (of the version that `start` refers to), `starts` (number of starts
merged), `items`, `chunks`, `paths` (number of each), `host`, `time` (seconds since 1970), `nonce`.

The body: digests of the chunks, 32 bytes each; per item, an array of each of: start u64 (block of the volume), blocks u32,
first u8 (block in the chunk), chunk u32, path u32 (1 + its index, 0 for blocks of no file), at u32 (block of the file),
time u32 (milliseconds from the open to the first touch, median over starts), touched u16 (number of starts that read it); then
each path as length u16 and bytes. Items are in the order of their times; none crosses an extent or a run of a file.
Little-endian.
"""

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Final, NamedTuple

from blockmap.errors import FormatError
from blockmap.format import columns, record
from blockmap.format.chunker import MAX_BLOCKS
from blockmap.format.digest import DIGEST_BYTES, Digest, from_hex
from blockmap.format.tree import MAX_BLOCKS as MAX_VOLUME_BLOCKS

MAGIC: Final = b"bmpf"
FORMAT: Final = 1
MAX_ITEMS: Final = 1 << 20
_MAX_BODY: Final = 1 << 28

_HEAD = struct.Struct("<4sB3sII")
_COLUMNS = ("<u8", "<u4", "u1", "<u4", "<u4", "<u4", "<u4", "<u2")


class ProfileItem(NamedTuple):
    """Blocks that follow each other in the volume, in one chunk, and in one file or in none."""

    start: int
    """First block in the volume."""
    blocks: int
    chunk: Digest
    first: int
    """First block in the chunk."""
    path: bytes | None
    at: int
    """First block in the file."""
    time_ms: int
    touched: int
    """Number of the starts that read the item."""


@dataclass(frozen=True, slots=True)
class Profile:
    repo: str
    label: str
    n: int
    version: Digest
    """The version to whose volume the items refer."""
    root: Digest
    starts: int
    items: Sequence[ProfileItem]
    host: str = ""
    time: int = 0
    """Seconds since 1970, by the writer's clock."""
    nonce: str = ""


def encode(profile: Profile, compress: Callable[[bytes], bytes]) -> bytes:
    """Returns the object as stored."""
    chunks = {name: at for at, name in enumerate(dict.fromkeys(item.chunk for item in profile.items))}
    paths = {path: at + 1 for at, path in enumerate(dict.fromkeys(i.path for i in profile.items if i.path is not None))}
    rows = [
        (
            i.start,
            i.blocks,
            i.first,
            chunks[i.chunk],
            0 if i.path is None else paths[i.path],
            i.at,
            i.time_ms,
            i.touched,
        )
        for i in profile.items
    ]
    body = b"".join(
        [
            *chunks,
            *columns.encode(rows, _COLUMNS, paths),
        ]
    )
    head = record.encode(
        {
            "chunks": len(chunks),
            "host": profile.host,
            "items": len(rows),
            "label": profile.label,
            "n": profile.n,
            "nonce": profile.nonce,
            "paths": len(paths),
            "repo": profile.repo,
            "root": profile.root.hex(),
            "starts": profile.starts,
            "time": profile.time,
            "version": profile.version.hex(),
        }
    )
    data = _HEAD.pack(MAGIC, FORMAT, bytes(3), len(head), len(body)) + head + compress(body)
    return data + sha256(data).digest()


def decode(data: bytes, repo: str, label: str, n: int, expand: Callable[[memoryview, int], bytes]) -> Profile:
    """Parses profile `n` of a repository and label. Raises FormatError."""
    end = len(data) - DIGEST_BYTES
    if end < _HEAD.size or sha256(memoryview(data)[:end]).digest() != data[end:]:
        raise FormatError("the profile is damaged: its last 32 bytes are not the SHA-256 of the rest")
    magic, version, zero, length, raw = _HEAD.unpack_from(data)
    if (magic, version, zero) != (MAGIC, FORMAT, bytes(3)) or _HEAD.size + length > end or raw > _MAX_BODY:
        raise FormatError("the object is not a profile in a format known to this release")
    head = record.decode(data[_HEAD.size : _HEAD.size + length])
    body = expand(memoryview(data)[_HEAD.size + length : end], raw)
    try:
        if (head["repo"], head["label"], head["n"]) != (repo, label, n):
            raise FormatError(f"the object is not profile {n} of {repo}+{label}")
        items = _items(body, head["items"], head["chunks"], head["paths"], head["starts"])
        return Profile(
            repo, label, n, from_hex(head["version"]), from_hex(head["root"]), head["starts"], items,
            str(head["host"]), int(head["time"]), str(head["nonce"]),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, struct.error) as error:
        raise FormatError(f"the profile lacks a field, or one is wrong: {error}") from error


def _items(body: bytes, count: int, chunks: int, paths: int, starts: int) -> list[ProfileItem]:
    if not 0 <= count <= MAX_ITEMS or not 0 <= chunks <= count or not 0 <= paths <= count:
        raise FormatError(f"a profile of {count} items, {chunks} chunks and {paths} paths does not add up")
    names = [Digest(body[at : at + DIGEST_BYTES]) for at in range(0, DIGEST_BYTES * chunks, DIGEST_BYTES)]
    at = DIGEST_BYTES * chunks
    table, files, at = columns.decode(body, at, _COLUMNS, count, paths)
    if at != len(body):
        raise FormatError("the body of the profile does not end where its items do")
    items = []
    for start, blocks, first, chunk, path, where, time_ms, touched in zip(*table, strict=True):
        if chunk >= chunks or path > paths or not 1 <= touched <= starts:
            raise FormatError("an item of the profile points outside of its tables")
        if blocks < 1 or first + blocks > MAX_BLOCKS or start + blocks > MAX_VOLUME_BLOCKS:
            raise FormatError("an item of the profile reaches past the end of its chunk or volume")
        items.append(ProfileItem(start, blocks, names[chunk], first, files[path], where, time_ms, touched))
    return items
