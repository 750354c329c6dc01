"""Version records: canonical JSON whose first line defines a version and names it.

    line  content
    1     the version; its digest (kind 3, count: bytes of the line) is the version's name, HEX
    2     placements of the root and of the extra root, and the run of nodes that an open should read: advice
    -     if the version is signed, its signature, made over the first line (format/signature)
    last  SHA-256 of the lines before

The first line's keys: `author`, `config` and `manifest` (OCI documents in base64, null where there is none), `created`
(taken from the image's configuration, so that an import has one name everywhere), `extra` (root of the contents that upper
layers hide, at the same offsets), `format`, `layout` (the writer that laid the volume out, and its threshold for cuts at the
edges of files), `message`, `parents`, `root`, `size` (blocks).
"""

import base64
import binascii
from dataclasses import dataclass
from typing import Any

from blockmap.errors import FormatError
from blockmap.format import record, signature
from blockmap.format.digest import ABSENT, Digest, DigestKind, digest, from_hex
from blockmap.format.placement import Placement
from blockmap.format.signature import Signature
from blockmap.format.tree import MAX_BLOCKS, Root

FORMAT = 1
MAX_RUN_BYTES = 1 << 20
"""The limit on a run; writers make 256 KiB at most, and a longer one is refused as damage."""


@dataclass(frozen=True, slots=True)
class WriterLayout:
    """The layout that an import gave its volume; another layout may give another root for the same image."""

    writer: int
    """Number of the writer's rules; 0 for bytes that came as a disk image."""
    threshold: int
    """Size in blocks from which on a file's edges are cut points; 0 for none."""


@dataclass(frozen=True, slots=True)
class NodeRun:
    """Bytes of a pack of nodes that an open should read in one go: root, inner nodes, first leaves."""

    pack: Digest
    start: int
    end: int

    def has(self, place: Placement) -> bool:
        """Returns True if the run holds all that is stored at `place`."""
        return place.pack == self.pack and self.start <= place.offset <= self.end - place.stored


@dataclass(frozen=True, slots=True)
class Version:
    root: Root
    extra: Root
    layout: WriterLayout
    manifest: bytes | None = None
    """OCI manifest, byte for byte."""
    config: bytes | None = None
    """OCI image configuration, byte for byte."""
    parents: tuple[Digest, ...] = ()
    author: str = ""
    message: str = ""
    created: str = ""
    """The date in the image's configuration; empty if it has none."""
    run: NodeRun | None = None
    """The nodes that an open should read; like placements, it is not part of the name."""
    signature: Signature | None = None
    """The signature of the line that defines the version; `decode` does not check it, and it is not part of the name."""

    @property
    def name(self) -> Digest:
        line = self.line()
        return digest(DigestKind.VERSION, len(line), line)

    def line(self) -> bytes:
        return record.encode(
            {
                "author": self.author,
                "config": _encode(self.config),
                "created": self.created,
                "extra": self.extra.digest.hex(),
                "format": FORMAT,
                "layout": {"threshold": self.layout.threshold, "writer": self.layout.writer},
                "manifest": _encode(self.manifest),
                "message": self.message,
                "parents": [parent.hex() for parent in self.parents],
                "root": self.root.digest.hex(),
                "size": self.root.size,
            }
        )


def encode(version: Version) -> bytes:
    """Returns the object as stored."""
    places = {
        "extra": encode_placement(version.extra.placement),
        "root": encode_placement(version.root.placement),
    }
    if version.run is not None:
        places["run"] = encode_run(version.run)
    signed = [] if version.signature is None else [signature.encode(version.signature)]
    return record.seal([version.line(), record.encode(places), *signed])


def decode(data: bytes, expected: Digest) -> Version:
    """Parses a stored version record. Raises FormatError for anything but the version named `expected`."""
    lines = record.unseal(data)
    if len(lines) not in (2, 3):
        raise FormatError(
            f"a version record has {len(lines)} lines where 2 are expected, and another with its signature"
        )
    if digest(DigestKind.VERSION, len(lines[0]), lines[0]) != expected:
        raise FormatError(f"the version record is not the one named {expected.hex()}")
    value, places = record.decode(lines[0]), record.decode(lines[1])
    try:
        if value["format"] != FORMAT:
            raise FormatError(
                f"version format {value['format']!r} is not known to this release of blockmap: upgrade it"
            )
        size = value["size"]
        if type(size) is not int or not 0 < size <= MAX_BLOCKS:
            raise FormatError(f"a volume of {size!r} blocks is out of range")
        layout = [value["layout"][key] for key in ("writer", "threshold")]
        texts = [value[key] for key in ("author", "message", "created")]
        if any(type(number) is not int for number in layout) or any(type(text) is not str for text in texts):
            raise FormatError("a field of the version record has the wrong type")
        return Version(
            root=_root(value["root"], size, places["root"]),
            extra=_root(value["extra"], size, places["extra"]),
            layout=WriterLayout(*layout),
            manifest=_decode(value["manifest"]),
            config=_decode(value["config"]),
            parents=tuple(from_hex(parent) for parent in value["parents"]),
            author=texts[0],
            message=texts[1],
            created=texts[2],
            run=decode_run(places.get("run")),
            signature=signature.decode(lines[2]) if len(lines) > 2 else None,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FormatError(f"the version record lacks a field, or one has the wrong type: {error}") from error


def encode_placement(place: Placement | None) -> dict[str, Any] | None:
    """Returns a placement as a JSON object."""
    if place is None:
        return None
    return {
        "codec": place.codec,
        "offset": place.offset,
        "pack": place.pack.hex(),
        "raw": place.raw,
        "stored": place.stored,
    }


def decode_placement(value: Any) -> Placement | None:
    """Parses a placement. Raises FormatError."""
    if value is None:
        return None
    try:
        numbers = [value[key] for key in ("codec", "offset", "stored", "raw")]
        if any(type(number) is not int or not 0 <= number < 1 << 32 for number in numbers) or len(value) != 5:
            raise FormatError("a placement has a number out of range")
        return Placement(from_hex(value["pack"]), *numbers)
    except (KeyError, TypeError, AttributeError) as error:
        raise FormatError(f"a placement lacks a field, or one has the wrong type: {error}") from error


def encode_run(run: NodeRun | None) -> dict[str, Any] | None:
    """Returns a run as a JSON object."""
    return None if run is None else {"end": run.end, "pack": run.pack.hex(), "start": run.start}


def decode_run(value: Any) -> NodeRun | None:
    """Parses a run. Raises FormatError."""
    if value is None:
        return None
    try:
        run = NodeRun(from_hex(value["pack"]), value["start"], value["end"])
    except (KeyError, TypeError) as error:
        raise FormatError(f"a run lacks a field, or is none: {error}") from error
    numbers_are_good = type(run.start) is int and type(run.end) is int and 0 <= run.start < run.end < 1 << 33
    if not numbers_are_good or run.end - run.start > MAX_RUN_BYTES:
        raise FormatError(f"the run [{run.start!r}, {run.end!r}) makes no sense")
    return run


def _root(name: str, size: int, place: Any) -> Root:
    root = from_hex(name)
    return Root(root, size, None if root == ABSENT else decode_placement(place))


def _encode(document: bytes | None) -> str | None:
    return None if document is None else base64.b64encode(document).decode()


def _decode(text: str | None) -> bytes | None:
    try:
        return None if text is None else base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise FormatError(f"a document of the version record is not base64: {error}") from error
