"""The heads of bundles, as this host keeps them in its cache: what the next start of the same version begins with."""

from contextlib import suppress
from hashlib import sha256

from blockmap.errors import Corrupt, FormatError
from blockmap.fetch.cache import Cache
from blockmap.format import bundle as bundles
from blockmap.format.bundle import Head
from blockmap.format.hint import Bundle


def kept(cache: Cache, about: Bundle) -> Head | None:
    """As this host had it before, unless it is of another bundle with the same name."""
    data = cache.get(_key(about))
    if data is None or len(data) != about.table:
        return None
    with suppress(FormatError):
        head = bundles.decode_head(data)
        return head if head.end == about.length else None
    return None


def take(cache: Cache, about: Bundle, data: memoryview) -> Head:
    """Out of the first bytes of a bundle, and kept; Corrupt."""
    stored = data[: about.table]
    try:
        head = bundles.decode_head(stored)
    except FormatError as error:
        raise Corrupt(f"bundle {about.key} is damaged: {error}") from error
    cache.put(_key(about), stored)
    return head


def _key(about: Bundle) -> bytes:
    """What the cache knows it by."""
    return sha256(b"bundle" + about.key.encode()).digest()
