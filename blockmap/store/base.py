"""The interface of an object store, in steps of power: code that only reads gets a Reader.

Keys are paths with "/" between components. Every object is create-only but hints, which are advice. All methods may be
called from any thread.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from blockmap.errors import Corrupt
from blockmap.store import limits

Buffer = bytes | bytearray | memoryview


class Listed(NamedTuple):
    """What a listing says of an object."""

    size: int
    """Bytes."""
    modified: float
    """When it was written, in seconds since 1970 by the store's clock."""


def too_long(url: str, key: str, size: int, most: int) -> Corrupt:
    """What is wrong with an object that has more bytes than its reader takes."""
    return Corrupt(f"{url}/{key} has {size:,} bytes where at most {most:,} are expected: it is not read")


class Reader(Protocol):
    url: str
    """Where the store is, for messages; holds no secrets."""
    local: bool
    """True if the store is on this host or looks so: it has no connections to keep."""

    def get(self, key: str, most: int = limits.RECORD) -> bytes:
        """The whole object; NotFound, or Corrupt where it has more bytes than `most`, which are not read then."""

    def get_range(self, key: str, start: int, end: int) -> bytes | memoryview:
        """Returns exactly the bytes [start, end); NotFound, or Corrupt where the object ends before `end`."""

    def list(self, prefix: str) -> list[str]:
        """Returns the keys below `prefix`, which is empty or ends in "/", sorted."""

    def exists(self, key: str) -> bool: ...

    def size(self, key: str) -> int:
        """Returns the length of an object in bytes; NotFound."""


@runtime_checkable
class Writer(Reader, Protocol):
    def create(self, key: str, parts: Sequence[Buffer]) -> None:
        """Stores the concatenation of `parts`, durable when this returns; AlreadyExists."""

    def replace(self, key: str, data: bytes) -> None:
        """Overwrites a hint in one step."""


@runtime_checkable
class Pruner(Writer, Protocol):
    def delete(self, key: str) -> None:
        """Removes an object; an absent one is no error."""

    def listing(self, prefix: str) -> dict[str, Listed]:
        """Returns the keys below `prefix`, as `list` does, with what a listing says of the objects."""

    def modified(self, key: str) -> float:
        """Returns when an object was written, in seconds since 1970 by the store's clock; NotFound."""
