"""Keeps the heads of bundles in this host's cache, so that the next start of a version begins without asking for one."""

from contextlib import suppress
from hashlib import sha256

from blockmap.cache.cache import Cache
from blockmap.errors import Corrupt, FormatError
from blockmap.format.bundle import BundleHead
from blockmap.format.hint import BundleRef
from blockmap.store.packs import Packs


def load(cache: Cache, ref: BundleRef) -> BundleHead | None:
    """Returns the head that the cache holds; None where there is none, or it is of another bundle with the same name."""
    data = cache.get(_key(ref))
    if data is None or len(data) != ref.table:
        return None
    with suppress(FormatError):
        head = Packs.open_bundle(data)
        return head if head.end == ref.length else None
    return None


def store(cache: Cache, ref: BundleRef, data: memoryview) -> BundleHead:
    """Decodes the head from the first bytes of a bundle, and caches it. Raises Corrupt."""
    stored = data[: ref.table]
    try:
        head = Packs.open_bundle(stored)
    except FormatError as error:
        raise Corrupt(f"bundle {ref.key} is damaged: {error}") from error
    cache.put(_key(ref), stored)
    return head


def _key(ref: BundleRef) -> bytes:
    """Returns the digest under which the cache holds the head."""
    return sha256(b"bundle" + ref.key.encode()).digest()
