"""Keeps the heads of bundles in this host's cache, so that the next start of a version begins without asking for one.

A head is believed where it is that of the bundle referred to, and has the root of the volume; what it lists outside of the
volume is left out.
"""

from collections.abc import Callable
from hashlib import sha256

from blockmap.cache.cache import Cache
from blockmap.errors import Corrupt, FormatError
from blockmap.format.bundle import BundleHead
from blockmap.format.hint import BundleRef
from blockmap.format.tree import Root
from blockmap.store.packs import Packs


def load(cache: Cache, ref: BundleRef, root: Callable[[], Root]) -> BundleHead | None:
    """Returns the head that the cache holds; None where there is none. One that is not believed is dropped."""
    key = _key(ref)
    data = cache.get(key)
    if data is None:
        return None
    try:
        return _open(ref, root(), data)
    except FormatError:
        cache.discard(cache.lookup(key))
        return None


def store(cache: Cache, ref: BundleRef, root: Root, data: memoryview) -> BundleHead:
    """Decodes the head from the first bytes of a bundle, and caches it. Raises Corrupt."""
    stored = data[: ref.table]
    try:
        head = _open(ref, root, stored)
    except FormatError as error:
        raise Corrupt(f"bundle {ref.key} is damaged: {error}") from error
    cache.put(_key(ref), stored)
    return head


def _open(ref: BundleRef, root: Root, data: bytes | memoryview) -> BundleHead:
    head = Packs.open_bundle(data)
    if (head.length, head.end) != (ref.table, ref.length):
        raise FormatError(f"it has {head.end} bytes, where {ref.length} were said")
    if all(own.node != root.digest for own in head.nodes):
        raise FormatError("it is one of another volume")
    return head.within(root.size)


def _key(ref: BundleRef) -> bytes:
    """Returns the digest under which the cache holds the head."""
    return sha256(b"bundle" + ref.key.encode()).digest()
