"""Tells a scan, such as of `tar` or `grep -r`, from the start of a program. It is pure.

A scan reads most of an image, and its files as they lie in the volume, or directory after directory. A start may read as
much, but goes back and forth between directories.
"""

import random
from collections.abc import Sequence

import numpy as np

from blockmap.format.profile import ProfileItem
from blockmap.learn.block_index import BlockIndex, blocks_of

_MOST = 0.5
"""The least share of an image's data that a scan reads."""
_FEW = 32
"""Files, or pieces where files are not known, whose order says nothing: a few large ones may well be read from end to end."""
_IN_PLACE = 0.9
"""The least rank correlation of a scan's order with that in the volume."""
_RETURNS = 0.1
"""The largest share of a scan's files for which it goes back to a directory that it had left: 0 for `tar`, 0.05 for four `cat` at
once, 0.17 for the start of a Flask server."""
_RETURNS_BY_CHANCE = 0.5
"""The least share in an order by chance for directories to tell anything: 0.80 for the image of redis, 0.93 for that of Flask, and
0 where all is in one."""
_AT_ONCE = 4
"""Files since the last one of a directory after which it is left: programs that scan have several readers."""


def is_scan(items: Sequence[ProfileItem], index: BlockIndex, warmed: Sequence[ProfileItem] = ()) -> bool:
    """Returns True if first touches, in their order, are those of a scan of the volume of `index`.

    The kernel was warmed with `warmed`, whose reads say nothing: what counts is the order of the others, and how much of the
    rest of the image they are.
    """
    known = np.unique(blocks_of(warmed)[0])
    blocks, owners = blocks_of(items)
    own = owners[~np.isin(blocks, known)]
    if not len(own) or len(own) < _MOST * (index.blocks - len(known)):
        return False
    items = [items[number] for number in np.unique(own).tolist()]
    first: dict[bytes, int] = {}
    for item in items:
        if item.path is not None:
            first.setdefault(item.path, item.start)
    places = list(first.values()) if index.files else [item.start for item in items]
    if len(places) < _FEW:
        return False
    return _correlation(places) >= _IN_PLACE or _is_walk(list(first))


def _is_walk(paths: Sequence[bytes]) -> bool:
    """Returns True if paths go directory after directory, and that is no accident: in another order they would not."""
    other = random.Random(0).sample(paths, len(paths))
    return _returns(paths) <= _RETURNS * len(paths) and _returns(other) > _RETURNS_BY_CHANCE * len(paths)


def _correlation(places: Sequence[int]) -> float:
    """Returns Spearman's rank correlation of distinct places with their order."""
    return float(np.corrcoef(np.argsort(np.argsort(places)), np.arange(len(places)))[0, 1])


def _returns(paths: Sequence[bytes]) -> int:
    """Returns for how many paths a directory is entered, at any depth, that was left before."""
    last: dict[bytes, int] = {}
    returns = 0
    for number, path in enumerate(paths):
        parts = path.split(b"/")
        above = [b"/".join(parts[:depth]) for depth in range(1, len(parts))]
        returns += any(number - last.get(directory, number) > _AT_ONCE for directory in above)
        last.update(dict.fromkeys(above, number))
    return returns
