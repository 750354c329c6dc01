"""What a check of a store has found."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TypeVar

from blockmap.errors import BlockmapError, StoreError
from blockmap.publish.parallel import gather
from blockmap.upkeep.needed import Garbage
from blockmap.upkeep.reach import Fault

_T = TypeVar("_T")
_R = TypeVar("_R")


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is damaged or lost."""

    what: str
    """A name, a pin, or the key of an object."""
    message: str
    action: str
    """What a person can do."""
    mend: Callable[[], object] | None = field(default=None, compare=False)
    """Mends it from what the store has, where that may succeed."""


@dataclass(slots=True)
class Report:
    """What a check has found."""

    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What is odd, and harms nobody."""
    faults: list[Fault] = field(default_factory=list)
    """Chunks and nodes that cannot be read."""
    names: int = 0
    versions: int = 0
    packs: int = 0
    bytes: int = 0
    """Bytes of packs that something needs."""
    garbage: Garbage | None = None
    """None where it is not known, since something that leads to more is lost."""


def read_each(read: Callable[[_T], _R], items: Iterable[_T]) -> list[_R | BlockmapError]:
    """Returns what `read` gives for each item, in order, or why it is damaged; StoreError, which says nothing of damage."""
    found = gather(read, items)
    for each in found:
        if isinstance(each, StoreError):
            raise each
    return found
