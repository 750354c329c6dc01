"""Makes the block index of a volume from its tree and its file map in the store."""

import logging

from blockmap.errors import Corrupt, NotFound
from blockmap.format.chunker import SPAN
from blockmap.format.filemap import File
from blockmap.format.tree import Root
from blockmap.learn.block_index import BlockIndex
from blockmap.store.repository import Repository
from blockmap.store.walk import leaves

_log = logging.getLogger(__name__)


def index_of(repository: Repository, root: Root) -> BlockIndex:
    """Makes the index of a whole volume, with its files if a file map is stored that is not damaged.

    Raises Corrupt where the tree is damaged, StoreUnavailable.
    """
    try:
        files: list[File] = repository.file_map(root.digest)
    except (NotFound, Corrupt) as error:
        _log.info("files are not known, only blocks: %s", error)
        files = []
    found = leaves(root, repository.packs.nodes)
    return BlockIndex(root.digest, (extent for span, leaf in found for extent in leaf.extents(span * SPAN)), files)
