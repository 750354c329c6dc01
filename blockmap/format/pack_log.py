"""Entries of the logs about one pack: `damaged/PACK/N` and `moved/PACK/N`.

Both are sealed lines of canonical JSON (`record`), one line each:

    key      in       meaning
    format   both     1
    nonce    both     makes the entry unlike any other
    pack     both     the pack that the entry is about
    damaged  damaged  digests of chunks and nodes whose stored form in the pack is damaged or lost; null: all of them
    packs    moved    packs that hold something now that was in this one
    places   moved    [digest, index in `packs`, codec, offset, stored, raw] of each chunk or node, ascending

Digests are in hexadecimal. The numbers of a place are those of a placement in a node: advice, as there.
"""

from collections.abc import Collection, Mapping
from typing import Any

from blockmap.errors import FormatError
from blockmap.format import record
from blockmap.format.digest import Digest, from_hex
from blockmap.format.node import MAX_NODE_BYTES
from blockmap.format.placement import Placement

FORMAT = 1
MAX_PLACES = 50_000
"""The most chunks and nodes that one entry is about: 5 MB, where a pack of chunks holds some 400."""
MAX_BYTES = 16 << 20
"""The limit on an entry."""


def encode_damaged(pack: Digest, names: Collection[Digest] | None, nonce: str) -> bytes:
    """Returns an entry of the log of what is damaged in a pack; None stands for all that is in it."""
    listed = None if names is None else sorted(name.hex() for name in names)
    return _seal(pack, nonce, {"damaged": listed})


def decode_damaged(data: bytes, pack: Digest) -> frozenset[Digest] | None:
    """Returns what is damaged, None for all that is in the pack. Raises FormatError."""
    value = _unseal(data, pack)
    try:
        listed = value["damaged"]
        return None if listed is None else frozenset(map(from_hex, listed))
    except (KeyError, TypeError, AttributeError) as error:
        raise FormatError(f"the entry lists nothing that is damaged: {error}") from error


def encode_moved(pack: Digest, places: Mapping[Digest, Placement], nonce: str) -> bytes:
    """Returns an entry of the log of where things in a pack are now."""
    packs: dict[Digest, int] = {}
    rows = [
        [name.hex(), packs.setdefault(place.pack, len(packs)), place.codec, place.offset, place.stored, place.raw]
        for name, place in sorted(places.items())
    ]
    return _seal(pack, nonce, {"packs": [name.hex() for name in packs], "places": rows})


def decode_moved(data: bytes, pack: Digest) -> dict[Digest, Placement]:
    """Returns the places by digest. Raises FormatError."""
    value = _unseal(data, pack)
    places: dict[Digest, Placement] = {}
    try:
        packs = [from_hex(name) for name in value["packs"]]
        for name, at, *numbers in value["places"]:
            if len(numbers) != 4 or any(type(n) is not int or not 0 <= n < 1 << 32 for n in (at, *numbers)):
                raise FormatError("a place of the entry has a number out of range")
            if max(numbers[2:]) > MAX_NODE_BYTES:
                raise FormatError(f"a chunk or node of {numbers[2:]} bytes is too long")
            places[from_hex(name)] = Placement(packs[at], *numbers)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise FormatError(f"the entry lacks a field, or one has the wrong type: {error}") from error
    return places


def _seal(pack: Digest, nonce: str, value: dict[str, Any]) -> bytes:
    return record.seal([record.encode({"format": FORMAT, "nonce": nonce, "pack": pack.hex(), **value})])


def _unseal(data: bytes, pack: Digest) -> dict[str, Any]:
    lines = record.unseal(data, MAX_BYTES)
    value = record.decode(lines[0])
    if len(lines) != 1 or value.get("format") != FORMAT or value.get("pack") != pack.hex():
        raise FormatError(f"the object is no entry about pack {pack.hex()} in a format known to this release")
    return value
