"""Finds the bundles of a version."""

import logging
import struct

from blockmap.errors import BlockmapError
from blockmap.format import bundle, keys
from blockmap.format.digest import Digest
from blockmap.format.hint import BundleRef
from blockmap.store.base import Reader

_log = logging.getLogger(__name__)

_TRIED = 4
"""Bundles of a label that are looked at, the newest first: one that is none hides no other."""


def newest_bundles(store: Reader, version: Digest) -> tuple[BundleRef, ...]:
    """Returns the newest bundle of each label, by label; CannotList, StoreUnavailable."""
    numbers: dict[str, list[int]] = {}
    for label, n in filter(None, map(keys.parse_bundle, store.list(keys.bundles(version)))):
        numbers.setdefault(label, []).append(n)
    found = (_newest(store, version, *each) for each in sorted(numbers.items()))
    return tuple(each for each in found if each is not None)


def _newest(store: Reader, version: Digest, label: str, numbers: list[int]) -> BundleRef | None:
    tried = (_measured(store, label, keys.bundle(version, label, n)) for n in sorted(numbers, reverse=True)[:_TRIED])
    return next((each for each in tried if each is not None), None)


def _measured(store: Reader, label: str, key: str) -> BundleRef | None:
    try:
        length, table = bundle.measure(lambda start, end: store.get_range(key, start, end))
    except (BlockmapError, struct.error) as error:
        _log.warning("%s in %s is left out of hints: %s", key, store.url, error)
        return None
    return BundleRef(label, key, length, table)
