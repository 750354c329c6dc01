"""The block index of a volume in a store."""

import pytest

from blockmap.format import BLOCK, keys
from blockmap.learn.stored_index import index_of
from blockmap.store.memory import MemoryStore
from blockmap.store.repository import Repository
from tests.image.builder import bulk
from tests.volume import building


@pytest.mark.parametrize("stored", [None, b"", b"damaged"])
def test_a_file_map_that_is_missing_or_damaged_costs_the_files_alone(stored: bytes | None) -> None:
    store = MemoryStore()
    root = building.publish(store, [(0, bulk(1, 40 * BLOCK))], 100)
    if stored is not None:
        store.create(keys.filemap(root.digest, 1), [stored])
    index = index_of(Repository(store), root)
    assert not index.files
    assert index.blocks == 40
