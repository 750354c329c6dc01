"""A whole version, looked at past any cache."""

import random

from blockmap.format import BLOCK, keys
from blockmap.format.chunker import SPAN
from blockmap.format.tree import Root
from blockmap.format.version import Version, WriterLayout
from blockmap.store.memory import MemoryStore
from blockmap.store.repository import Repository
from blockmap.store.volume_reader import stored_reader
from blockmap.store.walk import leaves
from blockmap.upkeep.verify import check_version, usage
from tests.image.builder import bulk
from tests.volume.building import Watched, model, publish

PIECES = [(3, bulk(1, 100 * BLOCK)), (SPAN - 5, bulk(2, 50 * BLOCK)), (4 * SPAN, bulk(1, 100 * BLOCK))]
SIZE = 5 * SPAN


def test_the_reader_gives_the_bytes_of_the_model() -> None:
    store = MemoryStore()
    root = publish(store, PIECES, SIZE)
    read, expected = stored_reader(Repository(store), root), model(PIECES, SIZE)
    chosen = random.Random(1)
    for _ in range(200):
        block, data = chosen.choice(PIECES)
        offset = max(0, block * BLOCK + chosen.randrange(-50_000, len(data)))
        length = chosen.randrange(0, 100_000)
        assert read(offset, length) == expected[offset : offset + length]
    assert read(0, len(expected)) == expected


def test_usage_counts_data_and_distinct_chunks() -> None:
    store = MemoryStore()
    took = usage(Repository(store), publish(store, PIECES, SIZE))
    assert took.data_bytes == 250 * BLOCK
    assert took.chunk_bytes == 150 * BLOCK
    assert took.stored_bytes == 150 * BLOCK, "they do not compress"
    assert took.packs == 1


def test_a_check_reads_a_version_in_few_ranges() -> None:
    store = Watched(MemoryStore())
    root = publish(store, PIECES, SIZE)
    store.ranges.clear()
    assert list(check_version(Repository(store), version_of(root))) == []
    assert len(store.ranges) == 2 + 3, (
        "two levels, the head of the pack, and its chunks, some of which three leaves have"
    )


def version_of(root: Root) -> Version:
    return Version(root, Root(bytes(32), root.size), WriterLayout(0, 0))  # type: ignore[arg-type]


class Damaged(MemoryStore):
    """Some bytes of some objects are others."""

    def __init__(self) -> None:
        super().__init__()
        self.flips: set[tuple[str, int]] = set()

    def get_range(self, key: str, start: int, end: int) -> bytes:
        data = bytearray(super().get_range(key, start, end))
        for other, at in self.flips:
            if other == key and start <= at < end:
                data[at - start] ^= 1
        return bytes(data)


def test_a_check_names_every_damaged_place_and_goes_on() -> None:
    store = Damaged()
    root = publish(store, PIECES, SIZE)
    repository = Repository(store)
    assert list(check_version(repository, version_of(root))) == []
    found = [
        (chunk, place)
        for _, leaf in leaves(root, repository.packs.nodes)
        for chunk, place in zip(leaf.chunks, leaf.placements, strict=True)
    ]
    expected = set()
    for chunk, place in (found[0], found[3], found[-1]):
        assert place is not None
        store.flips.add((keys.pack(place.pack), place.offset + 100))
        expected.add(chunk.hex())
    faults = list(check_version(repository, version_of(root)))
    assert {fault.message.split()[1] for fault in faults} == expected
    assert len(faults) == len(expected), "a chunk that is used twice is damaged once"
    assert root.placement is not None
    store.flips = {(keys.pack(root.placement.pack), root.placement.offset + 20)}
    (fault,) = check_version(repository, version_of(root))
    assert fault.message.startswith(f"node {root.digest.hex()}")
