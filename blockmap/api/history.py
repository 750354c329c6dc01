"""What names stood for, one after the other, and how the versions came from each other."""

import heapq
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from blockmap.errors import BlockmapError
from blockmap.format.digest import Digest
from blockmap.format.entry import Entry
from blockmap.format.refs import parse_name, parse_reference
from blockmap.format.version import Version
from blockmap.store.base import Reader
from blockmap.store.names import NameReader
from blockmap.store.repository import Repository
from blockmap.store.resolver import no_image
from blockmap.upkeep.differences import compare_trees

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LogEntry:
    """An entry of a name's history: what the name was made to stand for, and by whom."""

    name: str
    number: int
    """NAME@{number} means what this entry made of it."""
    time: int
    """Unix time, by the clock of whoever moved the name."""
    host: str
    digest: str | None
    """The version as sha256:HEX; None where the name was removed."""
    parents: tuple[str, ...]
    """The versions that it was made of, as sha256:HEX; none for an import."""
    author: str
    message: str
    added_bytes: int | None
    """What the version adds to the store beside its parent, or beside what the name stood for before; None if unknown."""
    signed_with: str | None
    """The id of the key that the entry says it is signed with."""


@dataclass(slots=True)
class GraphVersion:
    """A version in a graph of versions."""

    digest: str
    """As sha256:HEX."""
    parents: tuple[str, ...] = ()
    """The versions that it was made of, as sha256:HEX; those that are not in the store any more are among them."""
    time: int = 0
    """Unix time at which a name was made to stand for it first; that of what was made of it, where none was."""
    author: str = ""
    message: str = ""
    names: list[str] = field(default_factory=list)
    """Names that stand for it now."""
    past_names: list[str] = field(default_factory=list)
    """Names that stood for it, as NAME@{N}."""


def log_entries(store: Reader, name: str) -> Iterator[LogEntry]:
    """Yields the history of a name, newest first; what cannot be read of a version is left out, and logged. NotFound, Corrupt,
    StoreUnavailable."""
    repository = Repository(store)
    repo, tag = parse_name(name)
    history = _entries(store, name)
    newer: Entry | None = next(history)
    while newer is not None:
        older = next(history, None)
        version, added = None, None
        try:
            if newer.version is not None:
                version = repository.version(newer.version, newer.number)
                added = _added(repository, version, older)
        except BlockmapError as error:
            _log.warning("entry %d: %s", newer.n, error)
        yield LogEntry(
            name=f"{repo}:{tag}",
            number=newer.n,
            time=newer.time,
            host=newer.host,
            digest=None if newer.version is None else _hex(newer.version),
            parents=() if version is None else tuple(map(_hex, version.parents)),
            author="" if version is None else version.author,
            message=newer.message or ("" if version is None else version.message),
            added_bytes=added,
            signed_with=None if newer.signature is None else newer.signature.key,
        )
        newer = older


def version_graph(store: Reader, names: Sequence[str], count: int) -> list[GraphVersion]:
    """Returns the newest versions that names stand or stood for, and those that they were made of, at most `count`.

    Each comes before all that it was made of, else the newest first. NotFound, Corrupt, StoreUnavailable.
    """
    repository = Repository(store)
    found: dict[Digest, GraphVersion] = {}
    numbers: dict[Digest, int] = {}
    for name in names or _all_names(store):
        newest = True
        for entry in _entries(store, name):
            if entry.version is not None:
                numbers.setdefault(entry.version, entry.number)
                _note_name(found.setdefault(entry.version, GraphVersion(_hex(entry.version))), entry, name, newest)
            newest = False
    parents: dict[Digest, tuple[Digest, ...]] = {}
    left = list(found)
    while left:
        digest = left.pop()
        node = found[digest]
        try:
            version = repository.version(digest, numbers.get(digest, 1))
        except BlockmapError as error:
            _log.warning("version %s: %s", digest.hex()[:12], error)
            continue
        parents[digest] = version.parents
        node.parents = tuple(map(_hex, version.parents))
        node.author, node.message = version.author, node.message or version.message
        for parent in version.parents:
            if parent not in found:
                found[parent] = GraphVersion(_hex(parent), time=node.time)
                left.append(parent)
    return [found[digest] for digest in _ordered(found, parents, count)]


def _note_name(node: GraphVersion, entry: Entry, name: str, newest: bool) -> None:
    repo, tag = parse_name(name)
    if newest:
        node.names.append(f"{repo}:{tag}")
    else:
        node.past_names.append(f"{repo}:{tag}@{{{entry.n}}}")
    if not node.time or entry.time < node.time:
        node.time = entry.time
        node.message = entry.message or node.message


def _ordered(
    found: dict[Digest, GraphVersion], parents: dict[Digest, tuple[Digest, ...]], count: int
) -> Iterable[Digest]:
    """Yields versions, each before its parents, else the newest first."""
    children = dict.fromkeys(found, 0)
    for digest in found:
        for parent in set(parents.get(digest, ())):
            children[parent] += 1
    ready = [(-found[digest].time, digest) for digest, number in children.items() if not number]
    heapq.heapify(ready)
    while ready and count:
        _, digest = heapq.heappop(ready)
        yield digest
        count -= 1
        for parent in set(parents.get(digest, ())):
            children[parent] -= 1
            if not children[parent]:
                heapq.heappush(ready, (-found[parent].time, parent))


def _entries(store: Reader, name: str) -> Iterator[Entry]:
    """Yields the entries of a name, newest first; NotFound where there is none."""
    found = False
    for entry in NameReader(store).history(*parse_name(name)):
        if not entry.is_fence:
            found = True
            yield entry
    if not found:
        raise no_image(parse_reference(name), store)


def _all_names(store: Reader) -> list[str]:
    return [f"{repo}:{tag}" for repo, tag in sorted(NameReader(store).catalogue())]


def _added(repository: Repository, version: Version, before: Entry | None) -> int | None:
    if version.parents:
        base = repository.version(version.parents[0])
    elif before is not None and before.version is not None:
        base = repository.version(before.version, before.number)
    else:
        return None
    return compare_trees(repository, base.root, version.root).added_bytes


def _hex(digest: Digest) -> str:
    return f"sha256:{digest.hex()}"
