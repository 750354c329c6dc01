"""Finds the bundles of a version, and checks what is in them."""

import logging
import struct
from functools import partial

from blockmap.errors import BlockmapError, Corrupt, FormatError
from blockmap.format import BLOCK, bundle, keys, node
from blockmap.format.bundle import BundleHead
from blockmap.format.digest import ABSENT, Digest
from blockmap.format.hint import BundleRef
from blockmap.format.tree import Root
from blockmap.store.base import Reader
from blockmap.store.concurrent import each
from blockmap.store.log import LogReader
from blockmap.store.packs import Packs

_log = logging.getLogger(__name__)

_TRIED = 4
"""Bundles of a label that are looked at, the newest first: one that is none hides no other."""


def newest_bundles(store: Reader, version: Digest) -> tuple[BundleRef, ...]:
    """Returns the newest bundle of each label, by label; CannotList, StoreUnavailable."""
    numbers: dict[str, list[tuple[int, int]]] = {}
    for label, profile, number in filter(None, map(keys.parse_bundle, store.list(keys.bundles(version)))):
        numbers.setdefault(label, []).append((profile, number))
    found = (_newest(store, version, *each) for each in sorted(numbers.items()))
    return tuple(each for each in found if each is not None)


def bundle_key(store: Reader, version: Digest, label: str, profile: int) -> str | None:
    """Returns the key of the newest bundle of a profile on a version; None where there is none. StoreUnavailable."""
    key = partial(keys.bundle, version, label, profile)
    newest = key(LogReader(store, key).newest())
    return newest if newest != key(0) or store.exists(newest) else None


def read_head(store: Reader, key: str) -> BundleHead:
    """Returns the head of a bundle; NotFound, Corrupt, StoreUnavailable."""
    try:
        _, length = bundle.measure(lambda start, end: store.get_range(key, start, end))
        return Packs.open_bundle(store.get_range(key, 0, length))
    except (FormatError, struct.error) as error:
        raise Corrupt(f"{key} is damaged: {error}") from error


def check_bundle(store: Reader, key: str, root: Root) -> None:
    """Reads a whole bundle, some frames at a time.

    Raises Corrupt where it is damaged, or not one of the volume `root`; NotFound, StoreUnavailable.
    """
    head = read_head(store, key)
    if all(own.node != root.digest for own in head.nodes) or head.within(root.size) != head:
        raise Corrupt(f"{key} is damaged or wrong: it is a bundle of another volume")
    try:
        each(
            lambda frame: _check_frame(
                head, frame, store.get_range(key, head.frames[frame].offset, head.frames[frame].end)
            ),
            range(len(head.frames)),
        )
    except FormatError as error:
        raise Corrupt(f"{key} is damaged: {error}") from error


def _check_frame(head: BundleHead, number: int, stored: bytes | memoryview) -> None:
    """Raises FormatError for a frame that has not what the head says."""
    content = memoryview(Packs.open_frame(head, number, stored))
    for own in head.nodes:
        if own.frame == number:
            node.decode(bytes(content[own.offset : own.offset + own.length]), ABSENT, own.node)
    for piece in head.pieces:
        if piece.frame == number:
            blocks = content[piece.offset : piece.offset + piece.mask.bit_count() * BLOCK]
            if not bundle.is_good(piece, blocks):
                raise FormatError(f"it has other blocks than chunk {piece.chunk.hex()}")


def _newest(store: Reader, version: Digest, label: str, numbers: list[tuple[int, int]]) -> BundleRef | None:
    tried = (
        _measured(store, label, keys.bundle(version, label, *each)) for each in sorted(numbers, reverse=True)[:_TRIED]
    )
    return next((each for each in tried if each is not None), None)


def _measured(store: Reader, label: str, key: str) -> BundleRef | None:
    try:
        length, table = bundle.measure(lambda start, end: store.get_range(key, start, end))
    except (BlockmapError, struct.error) as error:
        _log.warning("%s in %s is left out of hints: %s", key, store.url, error)
        return None
    return BundleRef(label, key, length, table)
