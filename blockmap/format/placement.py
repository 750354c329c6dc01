"""Placements: where chunks and nodes are stored, as nodes say of what they refer to.

They are advice: what is read at a place is verified against its digest. Stored, one reference per chunk or child, in order:

    4     u32        number of packs p
    32p   digest     packs in order of first use; all zero stands for the pack that holds the node
    16    -          per reference: pack u16, codec u8, zero u8, offset u32, stored u32, raw u32

Little-endian. In memory they stay such columns: a commit handles tens of thousands, and looks into few.
"""

import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final, NamedTuple, overload

import numpy as np
import numpy.typing as npt

from blockmap.errors import FormatError
from blockmap.format.digest import ABSENT, DIGEST_BYTES, Digest

_ROW = np.dtype(
    [("pack", "<u2"), ("codec", "u1"), ("zero", "u1"), ("offset", "<u4"), ("stored", "<u4"), ("raw", "<u4")]
)
_ROW_STRUCT: Final = struct.Struct("<HBBIII")
"""The same for one reference."""
_WHOLE = np.dtype(f"V{_ROW.itemsize}")
"""The same in one piece: numpy copies it at once, and a row of fields one field after the other."""
_UNKNOWN: Final = 0xFFFF
"""Stands in place of a pack's number where something is not stored yet; no node refers to so many packs."""
_UNKNOWN_ROW: Final = _ROW_STRUCT.pack(_UNKNOWN, 0, 0, 0, 0, 0)


class Placement(NamedTuple):
    """The place where a chunk or node is stored: advice, since the bytes read are verified against its digest."""

    pack: Digest
    codec: int
    offset: int
    """Bytes from the beginning of the pack."""
    stored: int
    """Bytes in the pack."""
    raw: int
    """Bytes after decompression."""


class PlacementTable(Sequence[Placement | None]):
    """Placements of many things, each None while it is not stored; it does not change."""

    __slots__ = ("_ends", "_packs", "_rows")

    def __init__(self, packs: Sequence[Digest], rows: npt.NDArray[Any]) -> None:
        """`rows` refer to packs by their numbers."""
        self._packs = packs
        self._rows = rows
        self._ends: Mapping[Digest, int] | None = None

    @staticmethod
    def of(placements: Iterable[Placement | None]) -> "PlacementTable":
        """Returns the table of some placements, which may be one already."""
        if isinstance(placements, PlacementTable):
            return placements
        packs: dict[Digest, int] = {}
        pack_row = _ROW_STRUCT.pack
        rows = [
            _UNKNOWN_ROW
            if place is None
            else pack_row(packs.setdefault(place[0], len(packs)), place[1], 0, place[2], place[3], place[4])
            for place in placements
        ]
        return PlacementTable(list(packs), np.frombuffer(b"".join(rows), _ROW))

    @staticmethod
    def decode(stored: bytes, at: int, count: int, home: Digest) -> "PlacementTable":
        """Parses `count` placements that begin at byte `at` of a node, which is in the pack `home`, and end it; FormatError."""
        packs = int.from_bytes(stored[at : at + 4], "little")
        at += 4
        names_end = at + DIGEST_BYTES * packs
        if packs > count or len(stored) != names_end + _ROW.itemsize * count:
            raise FormatError(f"the placements of {count} references in {packs} packs do not fit the node's length")
        rows = np.frombuffer(stored, _ROW, count, names_end)
        if rows["zero"].any() or (rows["pack"] >= packs).any():
            raise FormatError("a placement of the node names no pack")
        names = [Digest(stored[start : start + DIGEST_BYTES]) for start in range(at, names_end, DIGEST_BYTES)]
        return PlacementTable([home if name == ABSENT else name for name in names], rows)

    def encode(self) -> bytes:
        """Returns the stored form; FormatError where something is not stored."""
        if (at := self.first_unknown()) is not None:
            raise FormatError(f"reference {at} of the node is not stored")
        packs, numbers = self._used()
        rows = self._rows.view(_WHOLE).copy().view(_ROW)
        rows["pack"] = numbers
        return b"".join((len(packs).to_bytes(4, "little"), *packs, rows.tobytes()))

    def first_unknown(self) -> int | None:
        """Returns the number of the first that is not stored; None if all are."""
        unknown = self._rows["pack"] == _UNKNOWN
        return int(unknown.argmax()) if unknown.any() else None

    def filled(self, names: Sequence[Digest], place: Callable[[Digest], Placement | None]) -> "PlacementTable":
        """Returns a table with the placements that `place` gives for the names of those that are not stored here."""
        numbers = np.arange(len(self._rows))
        unknown = self._rows["pack"] == _UNKNOWN
        more = [place(names[at]) for at in np.flatnonzero(unknown).tolist()]
        numbers[unknown] = np.arange(len(self._rows), len(self._rows) + len(more))
        return self.chosen(numbers, more) if more else self

    def chosen(self, numbers: npt.NDArray[np.intp], more: Sequence[Placement | None]) -> "PlacementTable":
        """Returns a table of the placements with these numbers; numbers from the length on are those of `more`."""
        count, added = len(self._rows), PlacementTable.of(more)
        rows = np.concatenate((self._rows.view(_WHOLE), added._rows.view(_WHOLE)))
        packs = rows.view(_ROW)["pack"][count:]
        packs[packs != _UNKNOWN] += len(self._packs)
        return PlacementTable((*self._packs, *added._packs), rows[numbers].view(_ROW))

    def ends(self) -> Mapping[Digest, int]:
        """Returns by pack how many bytes of it there must be for all that is stored in it."""
        if self._ends is None:
            self._ends = self._find_ends()
        return self._ends

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Placement | None]:
        packs, rows = self._packs, self._rows
        columns = [rows[name].tolist() for name in ("codec", "offset", "stored", "raw")]
        # Not by Placement's own constructor, which is Python's: there are hundreds in a leaf.
        make = partial(tuple.__new__, Placement)
        numbers = rows["pack"].tolist()
        if _UNKNOWN not in numbers:
            return iter(list(map(make, zip(map(packs.__getitem__, numbers), *columns, strict=True))))
        return (
            None if row[0] == _UNKNOWN else make((packs[row[0]], *row[1:]))
            for row in zip(numbers, *columns, strict=True)
        )

    @overload
    def __getitem__(self, at: int) -> Placement | None: ...
    @overload
    def __getitem__(self, at: slice) -> "PlacementTable": ...
    def __getitem__(self, at: int | slice) -> "Placement | PlacementTable | None":
        if isinstance(at, slice):
            return PlacementTable(self._packs, self._rows[at])
        pack, codec, _, offset, stored, raw = self._rows[at].item()
        return None if pack == _UNKNOWN else Placement(self._packs[pack], codec, offset, stored, raw)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    def __repr__(self) -> str:
        return f"PlacementTable({list(self)})"

    __hash__ = None  # type: ignore[assignment]

    def _used(self) -> tuple[list[Digest], npt.NDArray[np.intp]]:
        """Returns the packs in order of first use, each once, and the number of each placement's pack among these."""
        packs: dict[Digest, int] = {}
        numbers = np.zeros(len(self._packs), np.intp)
        for number in dict.fromkeys(self._rows["pack"].tolist()):
            numbers[number] = packs.setdefault(self._packs[number], len(packs))
        return list(packs), numbers[self._rows["pack"]]

    def _find_ends(self) -> dict[Digest, int]:
        rows, numbers = self._rows, self._rows["pack"]
        if (unknown := numbers == _UNKNOWN).any():
            rows = rows[~unknown]
            numbers = rows["pack"]
        ends = np.zeros(len(self._packs), np.int64)
        np.maximum.at(ends, numbers, rows["offset"].astype(np.int64) + rows["stored"])
        found: dict[Digest, int] = {}
        for number in set(numbers.tolist()):
            pack = self._packs[number]
            found[pack] = max(found.get(pack, 0), int(ends[number]))
        return found
