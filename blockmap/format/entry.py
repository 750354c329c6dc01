"""Entries of a name's log: each says which version the name refers to from then on.

An entry is one line of canonical JSON, and if it is signed a second with its signature (format/signature), sealed. The first
line's keys: `format`, `key` (its own), `n`, `kind` (`set`, `remove`, or `fence`, which repeats what the entry before it says and
takes the number that a writer who has slept would create), `version` and `number` (of the version's record; null for `remove`),
`root` (placement), `run` (pack, start, end: nodes that an open should read), `oci` (SHA-256 of the manifest), `previous` (SHA-256
of entry n - 1, signature and seal included: history is a chain), `nonce`, `time` (seconds since 1970), `host`, `message`.
"""

from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

from blockmap.errors import FormatError
from blockmap.format import record, signature
from blockmap.format.digest import Digest, from_hex
from blockmap.format.placement import Placement
from blockmap.format.signature import Signature
from blockmap.format.tree import Root
from blockmap.format.version import NodeRun, Version, decode_placement, decode_run, encode_placement, encode_run

FORMAT = 1
MAX_BYTES = 1 << 20
MAX_NUMBER = 10**16 - 1
"""The highest number of an entry or of a version's record: keys have 16 decimal digits."""
MAX_TIME = 253402300799
"""Seconds since 1970 at the end of the year 9999, the last that Python's datetime can hold."""


@dataclass(frozen=True, slots=True)
class Entry:
    key: str
    n: int
    version: Digest | None
    """The version that the name refers to; None if the entry removes the name."""
    number: int
    """Number of the version's record."""
    root: Placement | None
    run: NodeRun | None
    oci: bytes | None
    previous: bytes | None
    nonce: str
    time: int
    """Seconds since 1970, by the writer's clock: for people, never for decisions."""
    host: str
    message: str
    is_fence: bool = False
    """True if the entry repeats the one before it."""
    signature: Signature | None = None
    """The signature of the line that has all above; `decode` does not check it."""


def line(entry: Entry) -> bytes:
    """Returns the line that a signature is made over."""
    value = {
        "format": FORMAT,
        "host": entry.host,
        "key": entry.key,
        "kind": "fence" if entry.is_fence else "remove" if entry.version is None else "set",
        "message": entry.message,
        "n": entry.n,
        "nonce": entry.nonce,
        "number": entry.number,
        "oci": None if entry.oci is None else entry.oci.hex(),
        "previous": None if entry.previous is None else entry.previous.hex(),
        "root": encode_placement(entry.root),
        "run": encode_run(entry.run),
        "time": entry.time,
        "version": None if entry.version is None else entry.version.hex(),
    }
    return record.encode(value)


def encode(entry: Entry) -> bytes:
    """Returns the object as stored."""
    signed = [] if entry.signature is None else [signature.encode(entry.signature)]
    return record.seal([line(entry), *signed])


def decode(data: bytes, key: str) -> Entry:
    """Parses the entry stored at `key`. Raises FormatError, also for an entry that belongs elsewhere."""
    lines = record.unseal(data, MAX_BYTES)
    if len(lines) > 2:
        raise FormatError(f"an entry has {len(lines)} lines where 1 is expected, and another with its signature")
    value = record.decode(lines[0])
    try:
        if value["format"] != FORMAT or value["key"] != key:
            raise FormatError(f"the object is not the entry {key} in a format known to this release")
        kind = value["kind"]
        if kind != "fence" and (kind not in ("set", "remove") or (kind == "set") != (value["version"] is not None)):
            raise FormatError("the entry neither sets nor removes a version")
        n = _integer(value["n"], MAX_NUMBER)
        if (
            n == 0
            or not key.endswith(f"/{n:016d}")
            or (n == 1) != (value["previous"] is None)
            or (n == 1 and kind == "fence")
        ):
            raise FormatError(f"the entry {key} says that it is number {n} of its log")
        return Entry(
            key=key,
            n=n,
            version=None if value["version"] is None else from_hex(value["version"]),
            number=_integer(value["number"], MAX_NUMBER),
            root=decode_placement(value["root"]),
            run=decode_run(value["run"]),
            oci=None if value["oci"] is None else from_hex(value["oci"]),
            previous=None if value["previous"] is None else from_hex(value["previous"]),
            nonce=_text(value["nonce"]),
            time=_integer(value["time"], MAX_TIME),
            host=_text(value["host"]),
            message=_text(value["message"]),
            is_fence=kind == "fence",
            signature=signature.decode(lines[1]) if len(lines) > 1 else None,
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise FormatError(f"the entry lacks a field, or one has the wrong type: {error}") from error


def digest(data: bytes) -> bytes:
    """Returns the SHA-256 that the next entry has as `previous`."""
    return sha256(data).digest()


def root_of(entry: Entry, version: Version) -> Root:
    """Returns the root of an entry's version, with the placement that the entry states: in the pack of its run."""
    return replace(version.root, placement=entry.root) if entry.root is not None else version.root


def _integer(value: Any, most: int) -> int:
    if type(value) is not int or not 0 <= value <= most:
        raise FormatError(f"a number of the entry is out of range: 0 to {most} are allowed")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise FormatError(f"a text of the entry is {type(value).__name__}, not a string")
    return value
