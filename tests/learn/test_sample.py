"""What is left out of the kernel's warming, and what comes of it: a profile that was spoiled gets well again."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest

from blockmap.format.extent import Extent
from blockmap.format.filemap import File
from blockmap.format.profile import ProfileItem
from blockmap.learn.block_index import BlockIndex, Numbers, blocks_of
from blockmap.learn.merge import Sample, merge, outside, shows_unread
from blockmap.learn.sample import PROVEN_STARTS, left_out
from tests.learn.volumes import block_index, digest

FILES = 4000
STARTS = 40
WELL = 1.1
_FILES_AT = 1000
"""Block before which no file is."""


@dataclass(frozen=True)
class Image:
    """An image of some 24,000 blocks in files and 1,000 others; starts read a tenth: some files whole, of others every second
    block."""

    index: BlockIndex
    wanted: Numbers

    @property
    def everything(self) -> Numbers:
        return self.index.unpack(np.arange(self.index.blocks))

    def items(self, blocks: Numbers, touched: int) -> list[ProfileItem]:
        each = np.asarray(blocks, np.int64)
        return self.index.items(each, np.zeros_like(each), np.full(len(each), touched))

    def start(self, items: Sequence[ProfileItem], left: Numbers, wanted: Numbers) -> Sample:
        """Returns an ordinary start, for which a profile is replayed: the server sees what is not in it, and what was left out.

        To warm files that nobody needs, the kernel reads the file system's blocks, which say where they are.
        """
        known = blocks_of(items)[0]
        in_vain = np.setdiff1d(known[known >= _FILES_AT], np.union1d(left, self.wanted))
        seen = np.union1d(wanted, known[known < _FILES_AT]) if len(in_vain) else wanted
        return Sample(self.items(seen[~np.isin(seen, known) | np.isin(seen, left)], 1), True, items, left)


@pytest.fixture(scope="module")
def image() -> Image:
    chosen = random.Random(1)
    files, extents, wanted, at = (
        [],
        [Extent(n, 50, digest(-n), 50, 0) for n in range(0, 1000, 50)],
        [*range(100)],
        _FILES_AT,
    )
    for number in range(FILES):
        size = chosen.randrange(1, 12)
        files.append(File(b"usr/%d" % number, size * 4096, [(at, size)]))
        extents.append(Extent(at, size, digest(number), size, 0))
        if number < FILES // 3 and number % 4 == 0:
            wanted += range(at, at + size, 1 + number % 8 // 4)
        at += size
    return Image(block_index(extents, files), np.array(wanted))


def size(items: Sequence[ProfileItem]) -> int:
    return sum(item.blocks for item in items)


def after_many_starts(
    image: Image, items: list[ProfileItem], starts: int, odd: float
) -> tuple[list[ProfileItem], int, int]:
    """Returns what is left of a profile after STARTS starts, how many others that took, and the most that one start read of
    what was left out.

    A start does not read a share `odd` of what starts read.
    """
    n, most = 1, 0
    for number in range(STARTS):
        wanted = image.wanted[np.random.default_rng(number).random(len(image.wanted)) >= odd]
        left = left_out(items, starts, n, image.index)
        most = max(most, int(np.isin(left, wanted).sum()))
        start = image.start(items, left, wanted)
        if shows_unread(start, items, starts):
            merged = merge(image.index, items, starts, [start])
            items, starts, n = merged.items, merged.starts, n + 1
    return items, n - 1, most


@pytest.mark.parametrize("starts", [1, 2, 20])
@pytest.mark.parametrize("times", [1.3, 2, 13])
@pytest.mark.parametrize("odd", [0, 1 / 100])
def test_a_spoiled_profile_is_well_after_forty_starts(image: Image, starts: int, times: float, odd: float) -> None:
    others = np.setdiff1d(image.everything, image.wanted)
    further = others[np.random.default_rng(2).permutation(len(others))[: int((times - 1) * len(image.wanted))]]
    spoiled = image.items(np.union1d(image.wanted, further), starts)
    items, profiles, most = after_many_starts(image, spoiled, starts, odd)
    blocks = blocks_of(items)[0]
    assert len(blocks) <= WELL * len(image.wanted)
    assert np.isin(image.wanted, blocks).sum() >= 0.99 * len(image.wanted), "what starts read stays"
    assert profiles <= STARTS
    assert most <= 0.1 * len(image.wanted), "no start pays for it"


@pytest.mark.parametrize("starts", [1, 2, 20])
@pytest.mark.parametrize("odd", [0, 1 / 100])
def test_a_good_profile_stays_as_it_is(image: Image, starts: int, odd: float) -> None:
    good = image.items(image.wanted, starts)
    items, profiles, most = after_many_starts(image, good, starts, odd)
    assert (items, profiles) == (good, 0)
    assert most <= 32


def test_what_is_left_out_is_spread_and_changes_with_the_number(image: Image) -> None:
    items = image.items(image.everything, 5)
    first, second = (left_out(items, 5, n, image.index) for n in (1, 2))
    assert len(first) == len(second) == 32
    assert len(np.intersect1d(first, second)) < 3
    assert np.diff(first).max() < 0.25 * image.everything[-1]
    assert list(left_out(items, 5, 1, image.index)) == list(first), "every host knows which"
    few = image.items(image.everything[:40], 5)
    assert len(left_out(few, 5, 1, image.index)) == 5
    assert len(left_out([], 0, 1, image.index)) == 0


def test_what_a_profile_is_not_sure_of_is_left_out_part_by_part(image: Image) -> None:
    unsure = image.items(image.everything, 1)
    parts = [left_out(unsure, 2, n, image.index) for n in range(20)]
    found = np.concatenate(parts)
    assert len(np.unique(found)) == len(found)
    assert np.array_equal(np.sort(found), image.everything[image.everything >= _FILES_AT]), "files first"
    others = image.items(image.everything[image.everything < _FILES_AT], 1)
    parts = [left_out(others, 2, n, image.index) for n in range(6)]
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(_FILES_AT))
    sure = [item._replace(touched=2 if item.start % 40 else 1) for item in image.items(image.everything, 1)]
    little = sum(item.blocks for item in sure if item.touched == 1)
    assert little < size(sure) / 16
    assert len(left_out(sure, 2, 1, image.index)) == 32, "a little does no harm"


def test_what_was_not_read_is_left_out_until_it_is_read_or_gone(image: Image) -> None:
    good, junk = image.wanted[0], image.everything[-1]
    items = image.items(image.everything, PROVEN_STARTS // 2)
    doubted = image.items(np.array([good, junk]), PROVEN_STARTS // 2 - 2)
    items = [*image.index.without(items, np.array([good, junk])), *doubted]
    starts, n = PROVEN_STARTS, 1
    for number in range(5):
        left = left_out(items, starts, n, image.index)
        assert np.isin([good, junk], left).tolist() == [number == 0, True]
        merged = merge(image.index, items, starts, [image.start(items, left, image.wanted)])
        items, starts, n = merged.items, merged.starts, n + 1
    assert np.isin([good, junk], blocks_of(items)[0]).tolist() == [True, False]


def test_two_workloads_of_one_label_do_not_drop_each_others_blocks(image: Image) -> None:
    others = np.setdiff1d(image.everything, image.wanted)
    other = np.union1d(image.wanted[::10], np.random.default_rng(3).choice(others, 500, replace=False))
    both, items, starts, n = np.union1d(image.wanted, other), image.items(image.wanted, 2), 2, 1
    for number in range(90):
        left = left_out(items, starts, n, image.index)
        start = image.start(items, left, other if number % 3 == 2 else image.wanted)
        missed = outside(start.items, items)
        assert number == 2 or missed == 0
        if missed or shows_unread(start, items, starts):
            merged = merge(image.index, items, starts, [start])
            items, starts, n = merged.items, merged.starts, n + 1
    assert np.array_equal(np.sort(blocks_of(items)[0]), both)
    assert n < 40, "nothing is published any more"
