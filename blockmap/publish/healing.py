"""What is stored again, because a pack lost it, becomes known to all trees that refer to that pack."""

from collections.abc import Callable, Mapping

from blockmap.format.digest import Digest
from blockmap.format.placement import Placement
from blockmap.publish.pack_health import PackHealth
from blockmap.store.base import Writer
from blockmap.store.concurrent import each
from blockmap.store.pack_logs import record_damage, record_moved


def heal(
    store: Writer,
    health: PackHealth,
    nodes: Mapping[Digest, Placement],
    place: Callable[[Digest], Placement | None],
) -> bool:
    """Records damage that was found, and where what was lost is now; returns True if anything was.

    `nodes` has the placements of nodes that were stored, `place` gives those of chunks and other leaves. Where a node of a pack
    was lost, all of `nodes` count as lost from it: nobody can read what was below that node.
    """
    each(lambda found: record_damage(store, *found), health.found_damaged.items())
    moved: dict[Digest, dict[Digest, Placement]] = {}
    for pack, names in health.lost.items():
        found = {name: nodes.get(name) or place(name) for name in names}
        own = {name: at for name, at in found.items() if at is not None and health.moved(name, pack) is None}
        if own.keys() & nodes.keys():
            own = {**nodes, **own}
        if own:
            moved[pack] = own
    each(lambda found: record_moved(store, *found), moved.items())
    return bool(moved)
