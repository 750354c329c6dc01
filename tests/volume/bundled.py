"""Volumes with bundles of some of their blocks."""

from collections.abc import Callable, Sequence

from blockmap.errors import BlockmapError
from blockmap.format import BLOCK
from blockmap.format import bundle as bundles
from blockmap.format.chunker import SPAN
from blockmap.format.digest import Digest
from blockmap.format.extent import Extent
from blockmap.format.hint import BundleRef
from blockmap.format.node import Node
from blockmap.format.node import encode as encode_node
from blockmap.format.reading_list import ReadItem
from blockmap.format.tree import Root
from blockmap.store.base import Pruner
from blockmap.store.packs import NodeRef, Sealer, compress
from blockmap.store.repository import Repository
from blockmap.store.walk import leaves
from tests.image.builder import bulk
from tests.volume.building import Watched

KEY = "bundles/" + "0" * 64 + "/default/0000000000000003"
BLOCKS = 900
SIZE = 2 * SPAN
DATA = bulk(1, BLOCKS * BLOCK)
FAR = bulk(2, 30 * BLOCK)
WHOLE = DATA.ljust(SPAN * BLOCK, b"\0") + FAR


WANTED = [5, 6, 7, 300, 301, 899, 40, SPAN + 3]


def bundled(
    store: Pruner,
    root: Root,
    wanted: Sequence[int],
    key: str = KEY,
    ported: bool = False,
    besides: Sequence[int] = (),
    change: Callable[[Node], Node] = lambda node: node,
) -> BundleRef:
    """Stores the bundle of some blocks of a volume, and others in its last frames, with its nodes as `change` returns them."""
    repository = Repository(store)
    extents: list[Extent] = []
    places = {}
    nodes: list[tuple[Digest, bytes]] = []

    def load(refs: Sequence[NodeRef]) -> list[Node | BlockmapError]:
        found = repository.packs.nodes(refs)
        nodes.extend((node.digest, encode_node(change(node))) for node in found if not isinstance(node, BlockmapError))
        return found

    for span, leaf in leaves(root, load):
        extents += leaf.extents(span * SPAN)
        places |= dict(zip(leaf.chunks, leaf.placements, strict=True))
    chunks = []
    for part in (wanted, besides):
        masks: dict[bytes, int] = {}
        for block in part:
            own = next(each for each in extents if each.start <= block < each.end)
            assert own.chunk is not None
            masks[own.chunk] = masks.get(own.chunk, 0) | 1 << (own.first + block - own.start)
        for name, mask in masks.items():
            place = places[name]  # type: ignore[index]
            assert place is not None
            chunks.append((name, mask, bytes(repository.chunk(name, place))))  # type: ignore[arg-type]
    readings = [ReadItem(block, 1, None, 0) for block in wanted]
    parts, table = bundles.encode(nodes, chunks, readings, BLOCKS + 30, bytes(16), Sealer().seal, compress, (), ported)  # type: ignore[arg-type]
    store.create(key, parts)
    return BundleRef("default", key, sum(map(len, parts)), table)


def expected(block: int, blocks: int = 1) -> bytes:
    return WHOLE[block * BLOCK : (block + blocks) * BLOCK].ljust(blocks * BLOCK, b"\0")


def asked(store: Watched) -> list[str]:
    return [key.partition("/")[0] for key, _, _ in store.ranges]
