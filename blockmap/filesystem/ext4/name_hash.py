"""Hashes names as the kernel does to find them in hashed directories: half-MD4 of signed bytes (fs/ext4/hash.c)."""

from collections.abc import Sequence

import numpy as np

HALF_MD4 = 1
"""Number of the hash in superblocks and in the roots of indexes."""
SEED = bytes.fromhex("b8a1b6c95d3f4e0f9a7c2e1d64805317")
"""The seed in each superblock. It is the same for all images, so that equal layers have equal directories."""

_PIECE = 32
_BATCH = 1 << 14
"""Names that are hashed at once: some 20 MB, however long they are."""
_LAST = np.uint32(0xFFFFFFFC)
"""The highest hash; the next one marks the end when a directory is listed."""
_F_ORDER = (0, 1, 2, 3, 4, 5, 6, 7)
_G_ORDER = (1, 3, 5, 7, 0, 2, 4, 6)
_H_ORDER = (3, 7, 2, 6, 1, 5, 0, 4)

_Bytes = np.ndarray[tuple[int, int], np.dtype[np.int8]]
_Words = np.ndarray[tuple[int], np.dtype[np.uint32]]


def hashes(names: Sequence[bytes]) -> _Words:
    """Returns the hash of each name, which is even: the lowest bit has another meaning in indexes."""
    batches = [_batch(names[at : at + _BATCH]) for at in range(0, len(names), _BATCH)]
    return np.concatenate(batches) if batches else np.zeros(0, dtype=np.uint32)


def _batch(names: Sequence[bytes]) -> _Words:
    lengths = np.fromiter(map(len, names), dtype=np.uint32, count=len(names))
    found = np.zeros(len(names), dtype=np.uint32)
    pieces = (lengths + np.uint32(_PIECE - 1)) // np.uint32(_PIECE)
    for count in sorted(set(pieces.tolist())):  # np.unique would import numpy.ma, which takes longer than the hashes
        at = np.flatnonzero(pieces == count)
        width = count * _PIECE
        data = np.frombuffer(b"".join(names[n].ljust(width, b"\0") for n in at.tolist()), dtype=np.int8)
        found[at] = _hash(data.reshape(len(at), width), lengths[at])
    found &= ~np.uint32(1)
    return np.minimum(found, _LAST)


def _hash(data: _Bytes, lengths: _Words) -> _Words:
    """Hashes names of as many pieces of 32 bytes each, a row a name."""
    state = [np.full(len(data), word, dtype=np.uint32) for word in np.frombuffer(SEED, dtype="<u4").tolist()]
    for begin in range(0, data.shape[1], _PIECE):
        _mix(state, _words(data[:, begin : begin + _PIECE], lengths - np.uint32(begin)))
    return state[1]


def _words(piece: _Bytes, left: _Words) -> list[_Words]:
    """Returns the eight words of a piece: signed bytes are added up, and the number of bytes left fills what is short."""
    pad = left | left << np.uint32(8)
    pad |= pad << np.uint32(16)
    signed = piece.astype(np.int32).view(np.uint32)
    words = []
    for first in range(0, _PIECE, 4):
        word = pad
        for at in range(first, first + 4):
            word = np.where(left > at, signed[:, at] + (word << np.uint32(8)), word)
        words.append(word)
    return words


def _mix(state: list[_Words], words: list[_Words]) -> None:
    a, b, c, d = state

    def turn(value: _Words, by: int) -> _Words:
        return value << np.uint32(by) | value >> np.uint32(32 - by)

    for step, at in enumerate(_F_ORDER):
        a = turn(a + (d ^ b & (c ^ d)) + words[at], (3, 7, 11, 19)[step % 4])
        a, b, c, d = d, a, b, c
    for step, at in enumerate(_G_ORDER):
        a = turn(a + (b & c) + ((b ^ c) & d) + words[at] + np.uint32(0x5A827999), (3, 5, 9, 13)[step % 4])
        a, b, c, d = d, a, b, c
    for step, at in enumerate(_H_ORDER):
        a = turn(a + (b ^ c ^ d) + words[at] + np.uint32(0x6ED9EBA1), (3, 9, 11, 15)[step % 4])
        a, b, c, d = d, a, b, c
    for n, value in enumerate((a, b, c, d)):
        state[n] = state[n] + value
