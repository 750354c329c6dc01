"""Content by construction: what a digest stands for follows from its number, so that every byte read can be judged."""

import os
import struct
from functools import lru_cache
from hashlib import sha256
from pathlib import Path

from blockmap.cache import slot as slots
from blockmap.cache.cache import Cache
from blockmap.format import BLOCK


@lru_cache
def name(number: int) -> bytes:
    return sha256(b"content %d" % number).digest()


def block(number: int, index: int) -> bytes:
    """Never zeros, and different from every other block."""
    return struct.pack("<IIII", 0xB10C0000, number, index, ~number & 0xFFFFFFFF) * (BLOCK // 16)


@lru_cache(4096)
def content(number: int, length: int) -> bytes:
    blocks = slots.blocks_of(length)
    return b"".join(block(number, index) for index in range(blocks))[:length]


def with_holes(data: bytes, mask: int) -> bytes:
    """`data` with rubbish in place of the blocks that `mask` has not: nobody may look at them."""
    pieces = [data[at : at + BLOCK] for at in range(0, len(data), BLOCK)]
    return b"".join(piece if mask >> i & 1 else b"\xee" * len(piece) for i, piece in enumerate(pieces))


def allocated(length: int, mask: int) -> int:
    """Bytes that a slot takes in the data file."""
    return slots.header_bytes(length) + slots.present(length, mask) * BLOCK


def read_present(cache: Cache, number: int, length: int) -> int | None:
    """Reads a slot as a volume does, judges its bytes, and returns the mask; None for a miss."""
    slot = cache.lookup(name(number))
    if slot < 0 or not cache.check(slot, name(number)):
        return None
    mask, position = cache.mask(slot), cache.data_position(slot)
    assert cache.length(slot) == length
    data = content(number, length)
    for index in range(slots.blocks_of(length)):
        if slots.has(mask, index):
            expected = data[index * BLOCK : (index + 1) * BLOCK]
            buffer = bytearray(len(expected))
            assert os.preadv(cache.fd, [buffer], position + index * BLOCK) == len(expected)
            if cache.dead[slot]:
                return None
            assert buffer == expected, f"content {number}, block {index}"
    cache.used[slot] = 1
    return mask


def nameless(pid: int, directory: Path) -> list[str]:
    """Files that were deleted in a directory while a process has them open, which take space until it closes them."""
    found = []
    for fd in os.listdir(f"/proc/{pid}/fd"):
        try:
            found.append(os.readlink(f"/proc/{pid}/fd/{fd}"))
        except FileNotFoundError:
            continue
    return [path for path in found if path.startswith(f"{directory}/") and path.endswith("(deleted)")]
