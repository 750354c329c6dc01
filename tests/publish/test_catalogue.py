"""What an import reads of a store's catalogue: each thing once on a host, and nothing that is damaged stops it."""

import os
import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from blockmap.errors import StoreReadOnly
from blockmap.format import BLOCK, hooks, keys
from blockmap.format.chunker import SPAN
from blockmap.format.tree import Root
from blockmap.publish.catalogue import Catalogue, read_catalogue
from blockmap.publish.local import LocalCatalogue
from blockmap.store.base import Buffer
from blockmap.store.memory import MemoryStore
from blockmap.store.names import EntryDraft, NameLog, NameTarget
from blockmap.store.repository import Repository
from blockmap.store.walk import leaves
from tests.image.builder import bulk
from tests.volume.building import name, publish


class Asked(MemoryStore):
    """Counts the kinds of keys that are read; may refuse to write."""

    def __init__(self) -> None:
        super().__init__()
        self.read: Counter[str] = Counter()
        self.read_only = False

    def get(self, key: str, *most: int) -> bytes:
        self.read[key.partition("/")[0]] += 1
        return super().get(key, *most)

    def create(self, key: str, parts: list[Buffer]) -> None:  # type: ignore[override]
        if self.read_only:
            raise StoreReadOnly(f"{key} is not written")
        super().create(key, parts)


def filled(count: int) -> tuple[Asked, list[Root]]:
    store, roots = Asked(), []
    for at in range(count):
        roots.append(publish(store, [(0, bulk(at + 1, 300 * BLOCK))], SPAN))
        name(store, roots[-1], "a", str(at))
    store.read.clear()
    return store, roots


def read(store: MemoryStore, local: Path | None, warnings: list[str] | None = None) -> Catalogue:
    warn = pytest.fail if warnings is None else warnings.append
    return read_catalogue(store, NameLog(store), LocalCatalogue(local), warn)


def check(store: MemoryStore, catalogue: Catalogue, roots: list[Root]) -> None:
    """All chunks of all trees are found where they are."""
    assert {root.digest for root, _ in catalogue.versions.values()} == {root.digest for root in roots}
    for root in roots:
        for _, leaf in leaves(root, Repository(store).packs.nodes):
            assert catalogue.known.lookup(leaf.chunks) == list(leaf.placements)
        assert catalogue.known.tree(root.digest) == root


def test_hooks_that_are_missing_are_made_once_and_stored() -> None:
    store, roots = filled(3)
    check(store, read(store, None), roots)
    assert store.list("hooks/") == sorted(keys.hooks(root.digest, 1) for root in roots)
    store.read.clear()
    check(store, read(store, None), roots)
    assert store.read["hooks"] == 3


def test_what_a_host_read_once_it_does_not_read_again(tmp_path: Path) -> None:
    store, roots = filled(20)
    local = tmp_path / "new" / "hooks.db"
    check(store, read(store, local), roots)
    store.read.clear()
    check(store, read(store, local), roots)
    assert not store.read["names"] + store.read["versions"] + store.read["hooks"]
    roots.append(publish(store, [(0, bulk(99, 300 * BLOCK))], SPAN))
    name(store, roots[-1], "b", "1")
    store.read.clear()
    check(store, read(store, local), roots)
    assert (store.read["names"], store.read["versions"]) == (1, 1)
    assert store.read["hooks"] == 4, "two keys are tried before hooks are made, and before they are stored"


def test_what_no_name_stands_for_is_forgotten(tmp_path: Path) -> None:
    store, roots = filled(2)
    local = tmp_path / "hooks.db"
    check(store, read(store, local), roots)
    log = NameLog(store)
    log.append(NameTarget("a", "0"), log.newest("a", "0"), EntryDraft(None, 0))
    catalogue = read(store, local)
    check(store, catalogue, roots[1:])
    assert catalogue.known.tree(roots[0].digest) is None
    with closing(sqlite3.connect(local)) as database:
        assert database.execute("SELECT root FROM hooks").fetchall() == [(roots[1].digest,)]
        assert len(database.execute("SELECT * FROM versions").fetchall()) == 1


def test_a_local_file_of_earlier_releases_is_kept(tmp_path: Path) -> None:
    store, roots = filled(3)
    local, old = tmp_path / "hooks.db", tmp_path / "old.db"
    check(store, read(store, local), roots)
    with closing(sqlite3.connect(old)) as database, database:
        database.executescript(
            f"""
            PRAGMA user_version = 1;
            CREATE TABLE entries (key TEXT PRIMARY KEY, version BLOB, number INTEGER NOT NULL);
            CREATE TABLE versions (
                version BLOB NOT NULL, number INTEGER NOT NULL, size INTEGER NOT NULL,
                root BLOB NOT NULL, root_at TEXT NOT NULL, extra BLOB NOT NULL, extra_at TEXT NOT NULL,
                PRIMARY KEY (version, number)
            );
            CREATE TABLE hooks (root BLOB PRIMARY KEY, object BLOB NOT NULL);
            ATTACH '{local}' AS new;
            INSERT INTO entries SELECT * FROM new.entries;
            INSERT INTO versions SELECT * FROM new.versions;
            INSERT INTO hooks SELECT * FROM new.hooks;
            """
        )
    store.read.clear()
    check(store, read(store, old), roots)
    assert not store.read["names"] + store.read["versions"] + store.read["hooks"]


@pytest.mark.parametrize("how", ["garbage", "empty", "another release", "hooks", "folder"])
def test_a_local_file_that_is_damaged_costs_requests_and_nothing_else(tmp_path: Path, how: str) -> None:
    store, roots = filled(3)
    local = tmp_path / "hooks.db"
    check(store, read(store, local), roots)
    if how in ("garbage", "empty"):
        local.write_bytes(os.urandom(10_000) if how == "garbage" else b"")
    elif how == "folder":
        local.unlink()
        (local / "file").mkdir(parents=True)
    else:
        with closing(sqlite3.connect(local)) as database, database:
            database.execute(
                "PRAGMA user_version = 99" if how == "another release" else "UPDATE hooks SET object = x'00'"
            )
    store.read.clear()
    warnings: list[str] = []
    check(store, read(store, local, warnings), roots)
    assert store.read["hooks"] == 3
    assert len(warnings) == (3 if how == "hooks" else 0)
    store.read.clear()
    check(store, read(store, local), roots)
    assert bool(store.read["hooks"]) == (how == "folder"), "it is whole again, where that is possible"


def test_hooks_that_are_damaged_are_said_and_made_again(tmp_path: Path) -> None:
    store, roots = filled(2)
    read(store, None)
    key = keys.hooks(roots[0].digest, 1)
    whole = store.get(key)
    replace(store, key, whole[:50] + bytes([whole[50] ^ 1]) + whole[51:])
    warnings: list[str] = []
    check(store, read(store, tmp_path / "hooks.db", warnings), roots)
    assert len(warnings) == 1
    assert key in warnings[0]
    assert store.get(keys.hooks(roots[0].digest, 2)) == whole
    check(store, read(store, tmp_path / "hooks.db"), roots)
    check(store, read(store, None), roots)


@pytest.mark.parametrize("leaf", ["its own", "one that the tree lacks"])
def test_hooks_that_are_those_of_no_tree_are_found_when_they_are_used(tmp_path: Path, leaf: str) -> None:
    store, roots = filled(2)
    read(store, None)
    key = keys.hooks(roots[0].digest, 1)
    whole = store.get(key)
    own = hooks.decode(whole, roots[0].digest)
    rows = own[[*range(len(own)), -1]]
    if leaf == "its own":
        rows["hook"][-1] += 1
    else:
        rows["span"][-1] += 1
    replace(store, key, hooks.encode(roots[0].digest, rows))
    read(store, tmp_path / "hooks.db")
    warnings: list[str] = []
    catalogue = read(store, tmp_path / "hooks.db", warnings)
    for _, tree in leaves(roots[0], Repository(store).packs.nodes):
        catalogue.known.lookup(tree.chunks)
    assert any(roots[0].digest.hex() in text and "wrong" in text for text in warnings)
    assert store.get(keys.hooks(roots[0].digest, 2)) == whole
    check(store, read(store, tmp_path / "hooks.db"), roots)
    check(store, read(store, None), roots)
    assert len(store.list("hooks/")) == 3


def test_hooks_of_older_stores_are_read() -> None:
    store, roots = filled(2)
    read(store, None)
    for root in roots:
        store.create(keys.hooks(root.digest, 0), [store.get(keys.hooks(root.digest, 1))])
        store.delete(keys.hooks(root.digest, 1))
    check(store, read(store, None), roots)
    assert store.list("hooks/") == sorted(keys.hooks(root.digest, 0) for root in roots)


def replace(store: MemoryStore, key: str, data: bytes) -> None:
    store.delete(key)
    store.create(key, [data])


def test_a_store_that_cannot_be_written_is_read() -> None:
    store, roots = filled(2)
    store.read_only = True
    check(store, read(store, None), roots)
    assert not store.list("hooks/")


def test_versions_and_trees_that_cannot_be_read_are_left_out_and_said() -> None:
    store, roots = filled(4)
    version = store.list("versions/")[0]
    store.delete(version)
    entry = NameLog(store).newest("a", "3")
    assert entry is not None
    assert roots[3].placement is not None
    if version.split("/")[1] == (entry.version or b"").hex():
        expected = roots[2]
    else:
        expected = roots[3]
    assert expected.placement is not None
    store.delete(keys.pack(expected.placement.pack))
    warnings: list[str] = []
    catalogue = read(store, None, warnings)
    assert len(warnings) == 2
    assert all("not deduplicating against" in warning for warning in warnings)
    assert catalogue.known.tree(expected.digest) is None
    whole = [root for root, _ in catalogue.versions.values() if root.digest != expected.digest]
    assert len(whole) == 2
    for root in whole:
        for _, leaf in leaves(root, Repository(store).packs.nodes):
            assert catalogue.known.lookup(leaf.chunks) == list(leaf.placements)
