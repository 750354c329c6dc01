"""References from OCI documents to versions: `oci/HEX`, for the SHA-256 of an index, manifest or configuration.

A sealed line of canonical JSON with `format`, `number` (of the version's record) and `version`.
"""

from blockmap.errors import FormatError
from blockmap.format import record
from blockmap.format.digest import Digest, from_hex

FORMAT = 1


def encode(version: Digest, number: int) -> bytes:
    """Returns the object as stored."""
    return record.seal([record.encode({"format": FORMAT, "number": number, "version": version.hex()})])


def decode(data: bytes) -> tuple[Digest, int]:
    """Returns the version's name and the number of its record. Raises FormatError."""
    lines = record.unseal(data)
    if len(lines) != 1:
        raise FormatError(f"the record of an OCI document has {len(lines)} lines where 1 is expected")
    value = record.decode(lines[0])
    try:
        if value["format"] != FORMAT or type(value["number"]) is not int or value["number"] < 1:
            raise FormatError("the object says nothing about a version in a format known to this release")
        return from_hex(value["version"]), value["number"]
    except (KeyError, TypeError, AttributeError) as error:
        raise FormatError(f"the object lacks a field, or one has the wrong type: {error}") from error
