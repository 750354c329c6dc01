"""Recipes say how a layer's blob is made from its archive: `recipes/HEX/N`, HEX the SHA-256 of the blob.

A sealed line of canonical JSON: `format`, `archive` (SHA-256 of the archive, the diff_id), `size` (bytes of the blob), `tool`
(the program that compressed it; "none" for a blob that is the archive), `level` (as the tool's option; 0 for its default), `header`
(the header of the gzip stream in base64; empty for other blobs). `tool` is null where none of those that were tried makes it.

It is advice: what it makes is checked against HEX.
"""

import base64
from dataclasses import dataclass

from blockmap.errors import FormatError
from blockmap.format import record
from blockmap.format.digest import from_hex

FORMAT = 1
MAX_BYTES = 64 << 10
MAX_HEADER = 16 << 10
"""Bytes of the header of a gzip stream, which may hold a name and a comment."""


@dataclass(frozen=True, slots=True)
class BlobRecipe:
    archive: bytes
    """SHA-256 of the archive."""
    size: int
    """Bytes of the blob."""
    tool: str | None
    """The program that compresses as whoever made the blob did; None if none is known."""
    level: int = 0
    header: bytes = b""
    """The header of the gzip stream."""


def encode(recipe: BlobRecipe) -> bytes:
    """Returns the object as stored."""
    value = {
        "archive": recipe.archive.hex(),
        "format": FORMAT,
        "header": base64.b64encode(recipe.header).decode(),
        "level": recipe.level,
        "size": recipe.size,
        "tool": recipe.tool,
    }
    return record.seal([record.encode(value)])


def decode(data: bytes) -> BlobRecipe:
    """Parses a recipe. Raises FormatError."""
    lines = record.unseal(data, MAX_BYTES)
    if len(lines) != 1:
        raise FormatError(f"a recipe has {len(lines)} lines where 1 is expected")
    value = record.decode(lines[0])
    try:
        if value["format"] != FORMAT:
            raise FormatError("the recipe is in a format that is not known to this release")
        found = BlobRecipe(
            from_hex(value["archive"]),
            value["size"],
            value["tool"],
            value["level"],
            base64.b64decode(value["header"], validate=True),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(f"the recipe lacks a field, or one has the wrong type: {error}") from error
    is_number = type(found.size) is int and type(found.level) is int and found.size >= 0 and 0 <= found.level <= 22
    if not is_number or not (found.tool is None or type(found.tool) is str):
        raise FormatError("a field of the recipe has the wrong type, or is out of range")
    return found
