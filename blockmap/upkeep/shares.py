"""Adds up what versions take in a store, alone and with others; remembers on this host which chunks a tree has.

A tree never changes, so it is read once. A chunk counts by 8 bytes of its name: two of ten million are taken for one in one store
of a million.
"""

import logging
import sqlite3
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from blockmap.errors import BlockmapError
from blockmap.format import BLOCK
from blockmap.format.digest import ABSENT, Digest
from blockmap.format.tree import Root
from blockmap.local import database
from blockmap.store.concurrent import each
from blockmap.store.repository import Repository
from blockmap.store.walk import leaves

_log = logging.getLogger(__name__)

_SCHEMA = database.Schema(
    version=1,
    tables="CREATE TABLE trees (root BLOB PRIMARY KEY, data INTEGER NOT NULL, chunks BLOB NOT NULL);",
)
_CHUNK = np.dtype([("name", "<u8"), ("stored", "<u4")])
_AT_ONCE = 4
"""Trees that are read at the same time: each asks for many nodes at once."""

Chunks = npt.NDArray[np.void]


@dataclass(frozen=True, slots=True)
class Share:
    """What a version takes."""

    data_bytes: int
    """Bytes of the volume, holes left out."""
    stored_bytes: int
    """Bytes that its chunks take in packs, those that upper layers hide among them."""
    unique_bytes: int
    """Bytes of these that no other version refers to: what goes when its names do, and what they stood for is collected."""


@dataclass(frozen=True, slots=True)
class _Tree:
    data_bytes: int
    chunks: Chunks
    """Its distinct chunks, by name."""


def shares(
    repository: Repository, versions: Mapping[Digest, tuple[Root, Root]], memory: Path | None
) -> dict[Digest, Share | BlockmapError]:
    """Returns what each version takes, given its root and extra root, or why its trees cannot be read; reads the trees that the
    file `memory` does not know, and leaves it with just these."""
    roots = {root.digest: root for pair in versions.values() for root in pair if root.digest != ABSENT}
    known = _load(memory)
    missing = [root for name, root in roots.items() if name not in known]
    trees: dict[Digest, _Tree | BlockmapError] = {name: known[name] for name in roots if name in known}
    read = each(lambda root: _read(repository, root), missing, _AT_ONCE)
    trees.update(zip((root.digest for root in missing), read, strict=True))
    trees[ABSENT] = _Tree(0, np.zeros(0, _CHUNK))
    _save(memory, known, {name: tree for name, tree in trees.items() if isinstance(tree, _Tree) and name != ABSENT})

    found: dict[Digest, Share | BlockmapError] = {}
    chunks: dict[Digest, Chunks] = {}
    for name, pair in versions.items():
        own = [trees[root.digest] for root in pair]
        failed = next((tree for tree in own if isinstance(tree, BlockmapError)), None)
        if failed is not None:
            found[name] = failed
        else:
            chunks[name] = _distinct(np.concatenate([tree.chunks for tree in own if isinstance(tree, _Tree)]))
    alone = _alone(chunks.values())
    for name, own_chunks in chunks.items():
        volume = trees[versions[name][0].digest]
        assert isinstance(volume, _Tree)
        places = np.searchsorted(alone, own_chunks["name"])
        is_alone = np.append(alone, np.uint64(0))[places] == own_chunks["name"]
        stored = own_chunks["stored"].astype(np.int64)
        found[name] = Share(volume.data_bytes, int(stored.sum()), int(stored[is_alone].sum()))
    return found


def _read(repository: Repository, root: Root) -> _Tree | BlockmapError:
    data = 0
    parts = [np.zeros(0, _CHUNK)]
    try:
        for _, leaf in leaves(root, repository.packs.nodes):
            data += int(leaf.lengths.sum())
            part = np.empty(len(leaf.chunks), _CHUNK)
            part["name"] = np.frombuffer(b"".join(name[:8] for name in leaf.chunks), "<u8")
            part["stored"] = [0 if place is None else place.stored for place in leaf.placements]
            parts.append(part)
    except BlockmapError as error:
        return error
    return _Tree(data * BLOCK, _distinct(np.concatenate(parts)))


def _distinct(chunks: Chunks) -> Chunks:
    """Returns each chunk once, by name."""
    return chunks[np.unique(chunks["name"], return_index=True)[1]]


def _alone(versions: Iterable[Chunks]) -> npt.NDArray[np.uint64]:
    """Returns the names of the chunks that one version alone has."""
    names = [own["name"] for own in versions]
    found, counts = np.unique(np.concatenate(names or [np.zeros(0, np.uint64)]), return_counts=True)
    alone: npt.NDArray[np.uint64] = found[counts == 1]
    return alone


def _load(memory: Path | None) -> dict[Digest, _Tree]:
    if memory is None or not memory.exists():
        return {}
    try:
        connection, found = database.open_or_forget(memory, _SCHEMA, _rows, lambda error: None)
        connection.close()
    except (OSError, sqlite3.Error):
        return {}
    return found


def _rows(connection: sqlite3.Connection) -> dict[Digest, _Tree]:
    return {
        Digest(root): _Tree(data, np.frombuffer(chunks, _CHUNK))
        for root, data, chunks in connection.execute("SELECT * FROM trees")
    }


def _save(memory: Path | None, before: Mapping[Digest, _Tree], now: Mapping[Digest, _Tree]) -> None:
    if memory is None or before.keys() == now.keys():
        return
    try:
        memory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with closing(database.open_database(memory, _SCHEMA)) as connection, database.transaction(connection):
            connection.executemany("DELETE FROM trees WHERE root = ?", [(name,) for name in before.keys() - now.keys()])
            connection.executemany(
                "INSERT OR REPLACE INTO trees VALUES (?, ?, ?)",
                [(name, now[name].data_bytes, now[name].chunks.tobytes()) for name in now.keys() - before.keys()],
            )
    except (sqlite3.Error, OSError) as error:
        _log.warning("%s cannot be written, so trees are read again the next time: %s", memory, error)
