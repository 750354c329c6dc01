"""Canonical JSON, and the seal at the end of objects that are not named by their content.

A value has one encoding: sorted keys, no spaces, ASCII, integers only. A sealed object is lines of such JSON and a last
line with the SHA-256 of all bytes before it, in hexadecimal; every line ends with a newline.
"""

import json
from collections.abc import Sequence
from hashlib import sha256
from typing import Any, NoReturn

from blockmap.errors import FormatError

MAX_BYTES = 24 << 20
"""The limit on a record; a version with a manifest and a configuration of 8 MiB each takes 21 MiB."""


def encode(value: dict[str, Any]) -> bytes:
    """Returns the canonical encoding of a JSON object. Raises FormatError for values that have none."""
    _check(value)
    return _dump(value)


def decode(line: bytes) -> dict[str, Any]:
    """Parses one line. Raises FormatError for any line that `encode` does not write."""
    try:
        value = json.loads(line.decode("ascii"), parse_float=_refuse, parse_constant=_refuse)
        if b"\\ud" in line:  # half a surrogate pair, perhaps; all else that may be wrong JSON cannot express
            _check(value)
        if isinstance(value, dict) and _dump(value) == line:
            return value
    except (ValueError, RecursionError) as error:
        raise FormatError(f"a record is not JSON: {error}") from error
    raise FormatError("a record is not a JSON object in canonical form")


def seal(lines: Sequence[bytes]) -> bytes:
    """Returns the sealed object with these lines."""
    data = b"".join(line + b"\n" for line in lines)
    return data + sha256(data).hexdigest().encode() + b"\n"


def unseal(data: bytes, max_bytes: int = MAX_BYTES) -> list[bytes]:
    """Returns the lines of a sealed object. Raises FormatError if the last line is not the SHA-256 of the others."""
    if len(data) > max_bytes:
        raise FormatError(f"{len(data)} bytes are too long for such a record: {max_bytes} at most are read")
    body, digest = data[:-65], data[-65:]
    if digest != sha256(body).hexdigest().encode() + b"\n" or not body.endswith(b"\n"):
        raise FormatError("the record is damaged: its last line is not the SHA-256 of the rest")
    return body[:-1].split(b"\n")


def _dump(value: dict[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()


def _refuse(number: str) -> NoReturn:
    raise FormatError(f"a value of a record is neither string, integer, list nor object: {number}")


def _check(value: object) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise FormatError(f"a key of a record is not a string: {key!r}")
            _check(key)
            _check(item)
    elif isinstance(value, list):
        for item in value:
            _check(item)
    elif isinstance(value, str):
        # JSON can escape half a surrogate pair, which cannot be written to a terminal or a file.
        if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
            raise FormatError(f"a string of a record is not text: {value[:80]!r}")
    elif not (value is None or isinstance(value, int)):
        raise FormatError(f"a value of a record is neither string, integer, list nor object: {value!r}")
