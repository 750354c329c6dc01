"""Signatures of entries and of versions, and the public keys that check them.

A signature is one more line of canonical JSON before the seal of an entry or of a version's record. Its keys: `key` (id of the
key) and `signature` (64 bytes in base64): Ed25519 over `blockmap-entry-1` or `blockmap-version-1`, a newline, and the object's
first line without its newline. The key's id is the first 8 bytes of the SHA-256 of the public key's 32 bytes, in hexadecimal.
It only says which key to try.

A public key is written as `ed25519:` and its 32 bytes in base64.
"""

import base64
import re
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from blockmap.errors import FormatError, UsageError
from blockmap.format import record

ENTRY: Final = b"blockmap-entry-1\n"
VERSION: Final = b"blockmap-version-1\n"
"""What stands before the line that is signed, so that a signature of one kind of object is none of another."""

_KEY_BYTES = 32
_SIGNATURE_BYTES = 64
_PREFIX = "ed25519:"
_ID = re.compile("[0-9a-f]{16}")


@dataclass(frozen=True, slots=True)
class Signature:
    """What an object says about who signed it, not checked yet."""

    key: str
    """The id of the key."""
    value: bytes
    """64 bytes."""


@dataclass(frozen=True, slots=True)
class PublicKey:
    raw: bytes
    """32 bytes."""

    @property
    def id(self) -> str:
        return sha256(self.raw).hexdigest()[:16]

    def __str__(self) -> str:
        return _PREFIX + base64.b64encode(self.raw).decode()


def encode(signature: Signature) -> bytes:
    """Returns a signature's line."""
    return record.encode({"key": signature.key, "signature": base64.b64encode(signature.value).decode()})


def decode(line: bytes) -> Signature:
    """Parses a signature's line. Raises FormatError."""
    value = record.decode(line)
    try:
        key, data = value["key"], _bytes(value["signature"])
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(f"a signature lacks a field, or one is wrong: {error}") from error
    if not isinstance(key, str) or not _ID.fullmatch(key) or len(data) != _SIGNATURE_BYTES:
        raise FormatError("a signature has no key's id of 16 hexadecimal digits, or not 64 bytes")
    return Signature(key, data)


def first_line(stored: bytes) -> bytes:
    """Returns the line of a stored object that its signature is made over, without its newline."""
    return stored.partition(b"\n")[0]


def parse_public_key(text: str) -> PublicKey:
    """Parses a public key. Raises UsageError."""
    try:
        if not text.startswith(_PREFIX):
            raise ValueError
        raw = _bytes(text.removeprefix(_PREFIX))
        if len(raw) != _KEY_BYTES:
            raise ValueError
    except ValueError:
        raise UsageError(
            f"{text[:80]!r} is not a public key: ed25519: and 44 characters are expected, as `blockmap key show` prints them"
        ) from None
    return PublicKey(raw)


def _bytes(text: str) -> bytes:
    """Parses base64 in the one form that `encode` writes; ValueError, TypeError."""
    data = base64.b64decode(text, validate=True)
    if base64.b64encode(data).decode() != text:
        raise ValueError("not the base64 of any bytes")
    return data
