"""Blobs of layers as the store has them: kept byte for byte in parts, or as recipes.

Blobs that were kept are verified by who reads them, against the SHA-256 that names them.
"""

from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from hashlib import sha256

from blockmap.errors import Corrupt, NotFound
from blockmap.format import keys, recipe
from blockmap.format.recipe import BlobRecipe
from blockmap.store.base import Reader
from blockmap.store.numbered import newest_right, read_numbers

PART_BYTES = 16 << 20
"""Bytes of each part of a blob but the last, as of a pack."""


def find_recipe(store: Reader, blob: bytes) -> BlobRecipe | None:
    """Returns what says how a blob is made, None where nothing does that is sound. Raises StoreUnavailable."""
    key = partial(keys.recipe, blob)
    with suppress(NotFound, Corrupt):
        return newest_right(store, key, recipe.MAX_BYTES, recipe.decode, read_numbers(store, key, recipe.MAX_BYTES))
    return None


def kept_blob(store: Reader, blob: bytes) -> Iterator[bytes] | None:
    """Returns the parts of a blob, not verified, None where it was not kept. Raises Corrupt, StoreUnavailable."""
    if not store.exists(keys.blob_part(blob, 1)):
        return None
    return _parts(store, blob)


def check_kept(store: Reader, blob: bytes) -> bool:
    """Returns True if a blob was kept, False if it was not. Raises Corrupt where it is damaged, StoreUnavailable."""
    state = sha256()
    try:
        parts = kept_blob(store, blob)
        if parts is None:
            return False
        for part in parts:
            state.update(part)
    except (NotFound, Corrupt) as error:
        raise Corrupt(f"the blob that was kept in {keys.blob_parts(blob)} is damaged: {error}") from error
    if state.digest() != blob:
        raise Corrupt(f"the blob that was kept in {keys.blob_parts(blob)} is damaged: it has another digest")
    return True


def _parts(store: Reader, blob: bytes) -> Iterator[bytes]:
    number, part = 1, store.get(keys.blob_part(blob, 1), PART_BYTES)
    yield part
    while len(part) == PART_BYTES:
        number += 1
        part = store.get(keys.blob_part(blob, number), PART_BYTES)
        yield part
