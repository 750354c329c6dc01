"""An open volume reads what its packs have lost from where it was stored again meanwhile."""

from pathlib import Path

import pytest

from blockmap.errors import Corrupt, NotFound
from blockmap.format import BLOCK
from blockmap.format.digest import Digest
from blockmap.format.placement import Placement
from blockmap.format.tree import Root
from blockmap.store.memory import MemoryStore
from blockmap.store.pack_logs import record_moved
from blockmap.store.packs import pack_key
from blockmap.store.repository import Repository
from blockmap.store.walk import nodes
from tests.image.builder import bulk
from tests.volume.building import model, publish
from tests.volume.opened import opened, read

PIECES = [(0, bulk(1, 100 * BLOCK)), (5000, bulk(2, 200 * BLOCK))]
SIZE = 2 * 4096


def places(store: MemoryStore, root: Root) -> dict[Digest, Placement]:
    """Returns where each node and chunk of a volume is."""
    found = {root.digest: root.placement}
    for _, node in nodes(root, Repository(store).packs.nodes):
        found.update(zip(node.references, node.placements, strict=True))
    return {name: place for name, place in found.items() if place is not None}


@pytest.mark.parametrize("damage", [False, True])
@pytest.mark.parametrize("early", [False, True])
def test_what_was_lost_is_read_where_it_is_now(tmp_path: Path, early: bool, damage: bool) -> None:
    store = MemoryStore()
    root = publish(store, PIECES, SIZE)
    lost = places(store, root)
    packs = {place.pack for place in lost.values()}
    assert len(packs) == 2, "one of chunks, one of nodes"
    again = places(store, publish(store, PIECES, SIZE))
    for pack in packs:
        data = store.get(pack_key(pack))
        store.delete(pack_key(pack))
        if damage:
            store.create(pack_key(pack), [bytes(len(data))])
    with opened(store, root, tmp_path / "cache") as view:
        if early:
            with pytest.raises((Corrupt, NotFound)):
                read(view, 0, BLOCK)
        for pack in packs:
            record_moved(store, pack, again)
        assert read(view, 0, SIZE * BLOCK) == bytes(model(PIECES, SIZE))
    for pack in {place.pack for place in again.values()}:
        store.delete(pack_key(pack))
    with opened(store, root, tmp_path / "cache") as view:
        assert read(view, 0, SIZE * BLOCK) == bytes(model(PIECES, SIZE)), "from the cache"
