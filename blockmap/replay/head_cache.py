"""The heads of bundles, as this host keeps them in its cache: what the next start of the same version begins with."""

from contextlib import suppress
from hashlib import sha256

from blockmap.cache.cache import Cache
from blockmap.errors import Corrupt, FormatError
from blockmap.format.bundle import BundleHead
from blockmap.format.hint import BundleRef
from blockmap.store.packs import Packs


def load(cache: Cache, about: BundleRef) -> BundleHead | None:
    """As this host had it before, unless it is of another bundle with the same name."""
    data = cache.get(_key(about))
    if data is None or len(data) != about.table:
        return None
    with suppress(FormatError):
        head = Packs.open_bundle(data)
        return head if head.end == about.length else None
    return None


def store(cache: Cache, about: BundleRef, data: memoryview) -> BundleHead:
    """Out of the first bytes of a bundle, and kept; Corrupt."""
    stored = data[: about.table]
    try:
        head = Packs.open_bundle(stored)
    except FormatError as error:
        raise Corrupt(f"bundle {about.key} is damaged: {error}") from error
    cache.put(_key(about), stored)
    return head


def _key(about: BundleRef) -> bytes:
    """What the cache knows it by."""
    return sha256(b"bundle" + about.key.encode()).digest()
