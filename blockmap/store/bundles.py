"""Finds the bundles of a version."""

import logging
import struct

from blockmap.errors import BlockmapError
from blockmap.format import bundle, keys
from blockmap.format.digest import Digest
from blockmap.format.hint import BundleRef
from blockmap.store.base import Reader
from blockmap.store.log import newest_of

_log = logging.getLogger(__name__)


def newest_bundles(store: Reader, version: Digest) -> tuple[BundleRef, ...]:
    """Returns the newest bundle of each label, by label; CannotList, StoreUnavailable."""
    newest = newest_of(store.list(keys.bundles(version)), keys.parse_bundle)
    found = (_measured(store, label, keys.bundle(version, label, n)) for label, n in sorted(newest.items()))
    return tuple(each for each in found if each is not None)


def _measured(store: Reader, label: str, key: str) -> BundleRef | None:
    try:
        length, table = bundle.measure(lambda start, end: store.get_range(key, start, end))
    except (BlockmapError, struct.error) as error:
        _log.warning("%s in %s is left out of hints: %s", key, store.url, error)
        return None
    return BundleRef(label, key, length, table)
