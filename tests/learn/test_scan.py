"""What is a scan of an image, and what a start that reads as much."""

import random
from collections.abc import Callable

import pytest

from blockmap.format.extent import Extent
from blockmap.format.filemap import File
from blockmap.format.profile import ProfileItem
from blockmap.learn.block_index import BlockIndex
from blockmap.learn.first_touches import first_touches
from blockmap.learn.scan import is_scan
from tests.learn.volumes import block_index, blocks, digest, trace_of

Order = Callable[[list[File]], list[File]]

DIRECTORIES = [f"{top}/{middle}/{low}" for top in ("usr", "opt") for middle in range(5) for low in range(4)]
PLACES = [(f"{each}/{number}", 1 + number % 7) for each in DIRECTORIES for number in range(10)]


def image(seed: int = 0) -> BlockIndex:
    """Returns 400 files, which lie in the volume in an order that is not that of their directories, as after several layers."""
    files, extents, at = [], [], 100
    for path, size in random.Random(seed).sample(PLACES, len(PLACES)):
        files.append(File(path.encode(), size * 4096, [(at, size)]))
        extents.append(Extent(at, size, digest(path), size, 0))
        at += size
    return block_index(extents, files)


def touches(index: BlockIndex, files: list[File]) -> list[ProfileItem]:
    reads = [blocks(start, length, 1000 * at) for at, file in enumerate(files) for start, length in file.runs]
    return first_touches(trace_of(reads), index)


def walk(files: list[File]) -> list[File]:
    """Goes through directories as `tar` does: their entries come in the order of their hashes."""

    def hashed(file: File) -> list[str]:
        return [str(digest(part)) for part in file.path.split(b"/")]

    return sorted(files, key=hashed)


def together(files: list[File]) -> list[File]:
    """Walks with four readers, each of which takes twenty files at a time."""
    rows = [walk(files)[at : at + 20] for at in range(0, len(files), 20)]
    return [file for at in range(0, len(rows), 4) for group in zip(*rows[at : at + 4], strict=True) for file in group]


def in_place(files: list[File]) -> list[File]:
    """Reads the device from its beginning, or files by the numbers of their inodes."""
    return sorted(files, key=lambda file: file.runs)


def shuffled(files: list[File]) -> list[File]:
    return random.Random(5).sample(files, len(files))


def by_package(files: list[File]) -> list[File]:
    """Reads as a program does that loads parts, each with files in two or three directories."""
    chosen, left = random.Random(6), walk(files)
    found = []
    while left:
        at = [chosen.randrange(len(left)) for _ in range(3)]
        found += [left.pop(min(each, len(left) - 1)) for each in at for _ in range(2) if left]
    return found


@pytest.mark.parametrize("order", [walk, sorted, together, in_place])
@pytest.mark.parametrize("share", [0.6, 1.0])
def test_a_scan(order: Order, share: float) -> None:
    index = image()
    files = order(list(index.files))
    assert is_scan(touches(index, files[: int(share * len(files))]), index)
    assert not is_scan(touches(index, files[: len(files) // 3]), index), "it is not most of the image"


@pytest.mark.parametrize("order", [shuffled, by_package])
def test_a_start_that_reads_most_in_an_order_of_its_own(order: Order) -> None:
    index = image()
    files = order(list(index.files))
    for share in (0.7, 1.0):
        assert not is_scan(touches(index, files[: int(share * len(files))]), index)


def test_an_image_of_a_few_large_files_is_read_as_it_lies() -> None:
    extents = [Extent(start, 64, digest(start), 64, 0) for start in range(0, 64 * 20, 64)]
    index = block_index(extents, [File(b"%d" % each.start, 64 * 4096, [(each.start, 64)]) for each in extents])
    assert not is_scan(touches(index, list(index.files)), index)
    assert not is_scan(touches(index, []), index)


def test_one_large_file_beside_many_small_ones() -> None:
    index = image()
    model = Extent(100_000, 64, digest("model"), 64, 0)
    large = [model, *(Extent(100_000 + 64 * n, 64, digest(n), 64, 0) for n in range(1, 50))]
    index = block_index([*index.extents, *large], [*index.files, File(b"model", 3200 * 4096, [(100_000, 3200)])])
    files = [*shuffled(list(index.files))[:150], index.by_path[b"model"]]
    assert not is_scan(touches(index, files), index)


def test_a_volume_whose_files_are_not_known() -> None:
    known = image()
    index = block_index(known.extents, [])
    assert is_scan(touches(index, in_place(list(known.files))), index)
    assert not is_scan(touches(index, shuffled(list(known.files))), index)
