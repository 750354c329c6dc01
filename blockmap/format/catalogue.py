"""The catalogue as one object, for engines that cannot list: every name, and the number of its newest entry.

A sealed line of canonical JSON with `format` and `names` (tag -> number, by repository). It is advice, overwritten
by each writer that moves a name: when two do so at once, one move may be missing until the next.
"""

from collections.abc import Mapping

from blockmap.errors import FormatError
from blockmap.format import record
from blockmap.format.entry import MAX_NUMBER

FORMAT = 1


def encode(numbers: Mapping[tuple[str, str], int]) -> bytes:
    """Returns the object as stored."""
    names: dict[str, dict[str, int]] = {}
    for (repo, tag), n in numbers.items():
        names.setdefault(repo, {})[tag] = n
    return record.seal([record.encode({"format": FORMAT, "names": names})])


def decode(data: bytes) -> dict[tuple[str, str], int]:
    """Returns the number of the newest entry of each repository and tag. Raises FormatError."""
    lines = record.unseal(data)
    value = record.decode(lines[0])
    try:
        if len(lines) != 1 or value["format"] != FORMAT:
            raise FormatError("the object is no catalogue in a format known to this release")
        found = {(repo, tag): n for repo, tags in value["names"].items() for tag, n in tags.items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise FormatError(f"the catalogue lacks a field, or one has the wrong type: {error}") from error
    if any(type(n) is not int or not 0 < n <= MAX_NUMBER for n in found.values()):
        raise FormatError(f"a number of the catalogue is out of range: 1 to {MAX_NUMBER} are allowed")
    return found
