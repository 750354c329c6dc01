"""The hint of a name: everything that an open needs first, in one object that is overwritten freely and never trusted alone.

    lines     content
    1         canonical JSON, below
    2 or 3    the newest entry, as stored
    0, 3, 4   the record of its version, as stored; left out if it is long, or was not at hand
    1         SHA-256 of the lines before

The first line's keys: `bundles` (of that version: a list of `key`, `label`, `length` and `table`, in bytes), `entry` and
`version` (how many lines each has), `format`, `n` (of the entry). A damaged hint is ignored. An intact one may
still be old or wrong: its entry is compared with the one in the log, and the version is verified by its digest.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from blockmap.errors import FormatError
from blockmap.format import entry as entries
from blockmap.format import keys, record
from blockmap.format.entry import Entry

FORMAT = 1
MAX_VERSION_BYTES = 256 << 10
"""Bytes of a version's record that a hint may hold; a longer one would delay the first step of every open."""
MAX_BYTES = 2 << 20
_MAX_BUNDLE_BYTES = 1 << 32
"""Bytes; offsets of frames have 32 bits."""
_MAX_TABLE_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class BundleRef:
    """A reference to the newest bundle of a label."""

    label: str
    key: str
    length: int
    """Length of the bundle in bytes."""
    table: int
    """Length of the bundle's head in bytes."""


@dataclass(frozen=True, slots=True)
class Hint:
    entry: Entry
    stored: bytes
    """The entry as stored."""
    version: bytes | None
    """The record of the entry's version as stored, not verified."""
    bundles: tuple[BundleRef, ...] = ()


def encode(hint: Hint) -> bytes:
    """Returns the object as stored; a version's record longer than MAX_VERSION_BYTES is left out."""
    version = hint.version if hint.version is not None and len(hint.version) <= MAX_VERSION_BYTES else b""
    stored, about = _lines(hint.stored), _lines(version)
    head = {
        "bundles": [_told(each) for each in hint.bundles],
        "entry": len(stored),
        "format": FORMAT,
        "n": hint.entry.n,
        "version": len(about),
    }
    return record.seal([record.encode(head), *stored, *about])


def decode(data: bytes, repo: str, tag: str) -> Hint:
    """Parses the hint of a name. Raises FormatError, also if it holds an entry of another name."""
    lines = record.unseal(data, MAX_BYTES)
    head = record.decode(lines[0])
    try:
        if head["format"] != FORMAT:
            raise FormatError(f"hint format {head['format']!r} is not known to this release")
        end = 1 + _count(head["entry"])
        if end + _count(head["version"]) != len(lines):
            raise FormatError(f"a hint of {len(lines)} lines does not add up")
        stored = _joined(lines[1:end])
        entry = entries.decode(stored, keys.entry(repo, tag, _count(head["n"])))
        bundles = tuple(_bundle(each) for each in head["bundles"])
        return Hint(entry, stored, _joined(lines[end:]) or None, bundles)
    except (KeyError, TypeError, AttributeError) as error:
        raise FormatError(f"the hint lacks a field, or one has the wrong type: {error}") from error


def encode_bundles(bundles: Sequence[BundleRef]) -> bytes:
    """Returns the references to bundles alone, as a host keeps them."""
    return record.seal([record.encode({"bundles": [_told(each) for each in bundles], "format": FORMAT})])


def decode_bundles(data: bytes) -> tuple[BundleRef, ...]:
    """Parses what `encode_bundles` made. Raises FormatError."""
    head = record.decode(record.unseal(data, MAX_BYTES)[0])
    try:
        return tuple(_bundle(each) for each in head["bundles"])
    except (KeyError, TypeError) as error:
        raise FormatError(f"a bundle lacks a field, or one has the wrong type: {error}") from error


def _told(bundle: BundleRef) -> dict[str, Any]:
    return {"key": bundle.key, "label": bundle.label, "length": bundle.length, "table": bundle.table}


def _lines(stored: bytes) -> list[bytes]:
    return stored.split(b"\n")[:-1]


def _joined(lines: list[bytes]) -> bytes:
    return b"".join(line + b"\n" for line in lines)


def _bundle(value: Any) -> BundleRef:
    made = BundleRef(value["label"], value["key"], value["length"], value["table"])
    if type(made.label) is not str or type(made.key) is not str:
        raise FormatError("a bundle of the hint has no label or no key")
    if not 0 <= _count(made.table) <= min(_count(made.length), _MAX_TABLE_BYTES) or made.length > _MAX_BUNDLE_BYTES:
        raise FormatError(f"a bundle of {made.length} bytes with a table of {made.table} makes no sense")
    return made


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= entries.MAX_NUMBER:
        raise FormatError(f"{value!r} is no count: 0 to {entries.MAX_NUMBER} are allowed")
    return value
