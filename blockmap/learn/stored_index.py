"""Makes the block index of a volume from its tree and its file map in the store."""

from blockmap.errors import NotFound
from blockmap.format.chunker import SPAN
from blockmap.format.filemap import File
from blockmap.format.tree import Root
from blockmap.learn.block_index import BlockIndex
from blockmap.store.repository import Repository
from blockmap.store.walk import leaves


def index_of(repository: Repository, root: Root) -> BlockIndex:
    """Makes the index of a whole volume, with its files if a file map is stored. Raises Corrupt or StoreUnavailable."""
    try:
        files: list[File] = repository.file_map(root.digest)
    except NotFound:
        files = []
    found = leaves(root, repository.packs.nodes)
    return BlockIndex(root.digest, (extent for span, leaf in found for extent in leaf.extents(span * SPAN)), files)
