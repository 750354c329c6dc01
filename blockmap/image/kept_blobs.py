"""Stores beside an image what its layers' blobs are made again from: recipes, or the blobs themselves."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import BinaryIO

from blockmap.errors import Corrupt, NotFound
from blockmap.filesystem.member import Layer
from blockmap.format import keys, recipe
from blockmap.format.recipe import BlobRecipe
from blockmap.image.gzip_tools import ToolFinder
from blockmap.image.layer import BlobLayer
from blockmap.local.scratch import scratch
from blockmap.publish.derived import put_next
from blockmap.publish.object_writer import put
from blockmap.store.base import Pruner, Reader
from blockmap.store.blobs import PART_BYTES, check_kept, find_recipe
from blockmap.store.concurrent import each
from blockmap.store.log import LogReader


def find_recipes(store: Reader, layers: Sequence[Layer]) -> dict[bytes, BlobRecipe]:
    """Returns how the blobs of layers are made from their archives, by digest, where that is not known yet; tries it out.

    Layers are read for that before they are verified: whoever makes a blob checks what comes out.
    """
    found = {}
    with scratch("recipes") as work:
        finder = ToolFinder(work)
        for digest, layer in _blobs(layers):
            known = find_recipe(store, digest)
            if known is not None and known.tool is not None:
                continue
            with suppress(OSError), layer.open_blob() as blob:
                tool, header = finder.find(blob)
                name, level = (None, 0) if tool is None else (tool.name, tool.level)
                made = BlobRecipe(layer.diff_id, layer.size, name, level, header)
                if made != known:
                    found[digest] = made
    return found


def without_recipe(store: Reader, layers: Sequence[Layer]) -> list[int]:
    """Returns the numbers of those layers of whose blobs the store does not say how they are made."""
    digests = [digest for digest, _ in _blobs(layers)]
    unknown = {
        digest for digest, made in zip(digests, each(partial(find_recipe, store), digests), strict=True) if made is None
    }
    return [number for number, own in enumerate(layers) if isinstance(own, BlobLayer) and own.digest in unknown]


def put_recipes(store: Pruner, recipes: Mapping[bytes, BlobRecipe]) -> None:
    """Stores how blobs are made, by digest, over what the store says of them."""
    for digest, made in recipes.items():
        key = partial(keys.recipe, digest)
        put_next(store, key, LogReader(store, key, recipe.MAX_BYTES).newest(), [recipe.encode(made)])


def keep_blobs(store: Pruner, layers: Sequence[Layer]) -> int:
    """Stores the blobs of an image's layers, unless the store has them; returns the bytes that it stored.

    Parts that the store has stay untouched, as another image may need them meanwhile: only damaged ones are written anew.
    """
    stored = 0
    for digest, layer in _blobs(layers):
        with suppress(Corrupt):
            if check_kept(store, digest):
                continue
        with layer.open_blob() as blob:
            for number, part in enumerate(_parts(blob), start=1):
                stored += _put_part(store, keys.blob_part(digest, number), part)
    return stored


def _put_part(store: Pruner, key: str, part: bytes) -> int:
    """Has the store hold a part under its key; returns the bytes that it stored, 0 where they were there."""
    if not put(store, key, [part]):
        with suppress(Corrupt, NotFound):
            if store.get(key, PART_BYTES) == part:
                return 0
        store.delete(key)
        put(store, key, [part])
    return len(part)


def _blobs(layers: Sequence[Layer]) -> Iterator[tuple[bytes, BlobLayer]]:
    """Yields the layers that a manifest names, with the digests of their blobs."""
    for layer in layers:
        if isinstance(layer, BlobLayer) and layer.digest is not None:
            yield layer.digest, layer


def _parts(blob: BinaryIO) -> Iterator[bytes]:
    """Yields a blob in parts; one whose size is a multiple of a part's ends with an empty one."""
    part = blob.read(PART_BYTES)
    yield part
    while len(part) == PART_BYTES:
        part = blob.read(PART_BYTES)
        yield part
