"""The repository: what it hands out is what its name says, whatever the store holds."""

import struct
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256

import pytest
import zstandard

from blockmap.errors import BlockmapError, Corrupt, NotFound
from blockmap.format import BLOCK, codec, filemap, keys, node, version
from blockmap.format.chunker import SPAN
from blockmap.format.digest import ABSENT, Digest, block_digests, chunk_digest
from blockmap.format.extent import Extent
from blockmap.format.node import Inner, Node
from blockmap.format.pack import Pack, PackedFrame, PackKind, seal
from blockmap.format.placement import Placement
from blockmap.format.tree import Root
from blockmap.format.version import Version, WriterLayout
from blockmap.publish.object_writer import ObjectWriter, put
from blockmap.store.base import Pruner
from blockmap.store.memory import MemoryStore
from blockmap.store.packs import body_stream
from blockmap.store.repository import VERSION_ATTEMPTS, Repository
from tests.image.builder import bulk

CHUNKS = [bulk(1, 3 * BLOCK), b"compresses well " * (4 * BLOCK // 16), bytes(range(256)) * (BLOCK // 256)]
NAMES = [chunk_digest(block_digests(data)) for data in CHUNKS]
RECORD = Version(Root(Digest(b"\2" * 32), 5000), Root(ABSENT, 5000), WriterLayout(1, 32), message="one")
ROOT = Digest(b"\3" * 32)
FILES = [filemap.File(b"a", 5000, [(7, 2)]), filemap.File(b"b", 0, [])]


def chunk_pack(salt: int = 0) -> Pack:
    encoder = codec.Encoder()
    frames = [PackedFrame(name, *encoder.encode(data), len(data)) for name, data in zip(NAMES, CHUNKS, strict=True)]
    return seal(PackKind.CHUNKS, frames, bytes([salt]) * 16)


def node_pack(chunks: Pack) -> tuple[Pack, list[Node]]:
    places = dict(zip(NAMES, chunks.placements, strict=True))
    leaf = node.leaf([Extent(9 * at, 1, name, 1, 0) for at, name in enumerate(NAMES)], 0, places)
    assert leaf is not None
    inner = Inner(1, [3], [leaf.digest], [Placement(ROOT, 0, 1, 2, 3)])
    frames = [
        PackedFrame(made.digest, *codec.Encoder().encode(node.encode(made)), len(node.encode(made)))
        for made in (leaf, inner)
    ]
    return seal(PackKind.NODES, frames, bytes(16)), [leaf, inner]


# --- what is put is got


def test_chunks_come_back(store: Pruner) -> None:
    pack = chunk_pack()
    ObjectWriter(store).put_pack(pack)
    assert {place.codec for place in pack.placements} == {codec.RAW, codec.ZSTD}
    for name, data, place in zip(NAMES, CHUNKS, pack.placements, strict=True):
        assert Repository(store).chunk(name, place) == data
    head = Repository(store).packs.head(pack.name)
    assert (head.kind, head.entries) == (PackKind.CHUNKS, list(zip(NAMES, pack.placements, strict=True)))
    assert head.end == len(store.get(keys.pack(pack.name)))


def test_nodes_come_back(store: Pruner) -> None:
    objects, chunks = ObjectWriter(store), chunk_pack()
    pack, made = node_pack(chunks)
    for each in (chunks, pack):
        objects.put_pack(each)
    for one, place in zip(made, pack.placements, strict=True):
        found = Repository(store).node(one.digest, place)
        found.check()
        assert (found.digest, found.content) == (one.digest, one.content)
        assert list(found.placements) == list(one.placements)
    with pytest.raises(Corrupt, match="nothing says where"):
        Repository(store).node(made[0].digest, None)


def test_file_maps_come_back(store: Pruner) -> None:
    with pytest.raises(NotFound):
        Repository(store).file_map(ROOT)
    assert put(store, keys.filemap(ROOT, 1), [filemap.encode(ROOT, FILES, body_stream)])
    assert Repository(store).file_map(ROOT) == FILES


def test_put_keeps_what_is_there(store: Pruner) -> None:
    assert put(store, "oci/00", [b"on", memoryview(b"e")])
    assert not put(store, "oci/00", [b"two"])
    assert store.get("oci/00") == b"one"


def test_a_pack_is_put_once(store: Pruner) -> None:
    objects = ObjectWriter(store)
    objects.put_pack(chunk_pack())
    objects.put_pack(chunk_pack())  # as after a lost answer: its salt makes it its own
    objects.put_pack(chunk_pack(salt=1))
    assert len(store.list("packs/")) == 2


# --- versions


def test_a_version_is_put_under_its_first_free_number(store: Pruner) -> None:
    assert ObjectWriter(store).put_version(RECORD, set()) == 1
    assert Repository(store).version(RECORD.name) == RECORD
    other = replace(RECORD, message="other")
    assert ObjectWriter(store).put_version(other, set()) == 1, "each version has numbers of its own"
    assert ObjectWriter(store).put_version(RECORD, set()) == 2, "another's record may yet go away"
    assert store.list("versions/") == sorted(
        [keys.version(RECORD.name, 1), keys.version(RECORD.name, 2), keys.version(other.name, 1)]
    )


@pytest.mark.parametrize("number", [1, 2, 5])
def test_a_version_that_a_name_stands_for_is_taken(store: Pruner, number: int) -> None:
    store.create(keys.version(RECORD.name, number), [version.encode(RECORD)])
    before = store.list("")
    assert ObjectWriter(store).put_version(RECORD, {(RECORD.name, number)}) == number
    assert store.list("") == before


def test_versions_have_an_end(store: Pruner) -> None:
    for number in range(1, VERSION_ATTEMPTS + 1):
        assert ObjectWriter(store).put_version(RECORD, set()) == number
    with pytest.raises(Corrupt, match="no name stands for"):
        ObjectWriter(store).put_version(RECORD, set())


def test_a_version_is_found_by_digest_alone(store: Pruner) -> None:
    with pytest.raises(NotFound, match=RECORD.name.hex()):
        Repository(store).version(RECORD.name)
    store.create(keys.version(RECORD.name, 2), [version.encode(RECORD)])
    assert Repository(store).version(RECORD.name) == RECORD
    assert Repository(store).version(RECORD.name, 2) == RECORD


def test_a_damaged_record_gives_way_to_a_sound_one(store: Pruner) -> None:
    damaged = bytearray(version.encode(RECORD))
    damaged[30] ^= 1
    store.create(keys.version(RECORD.name, 1), [bytes(damaged)])
    with pytest.raises(Corrupt, match="damaged"):
        Repository(store).version(RECORD.name)
    store.create(keys.version(RECORD.name, 2), [version.encode(RECORD)])
    assert Repository(store).version(RECORD.name) == RECORD


def test_the_record_of_another_version_is_refused(store: Pruner) -> None:
    store.create(keys.version(RECORD.name, 1), [version.encode(replace(RECORD, message="other"))])
    with pytest.raises(Corrupt):
        Repository(store).version(RECORD.name)


# --- taking back


def test_withdrawing_takes_back_what_no_name_knows(store: Pruner) -> None:
    ObjectWriter(store).put_pack(chunk_pack())
    ObjectWriter(store).put_version(RECORD, set())
    before = store.list("")
    objects = ObjectWriter(store)
    objects.put_pack(chunk_pack(salt=1))
    objects.put_version(RECORD, set())
    objects.put_version(RECORD, {(RECORD.name, 1)})
    objects.withdraw()
    objects.withdraw()
    assert store.list("") == before


# --- damage


def every_object(store: Pruner) -> dict[str, list[Callable[[], object]]]:
    """Keys, and what reads from each."""
    objects, chunks = ObjectWriter(store), chunk_pack()
    nodes, made = node_pack(chunks)
    objects.put_pack(chunks)
    objects.put_pack(nodes)
    objects.put_version(RECORD, set())
    put(store, keys.filemap(ROOT, 1), [filemap.encode(ROOT, FILES, body_stream)])
    read = Repository(store)
    return {
        keys.pack(chunks.name): [
            lambda: read.packs.head(chunks.name),
            *(
                lambda name=name, place=place: read.chunk(name, place)  # type: ignore[misc]
                for name, place in zip(NAMES, chunks.placements, strict=True)
            ),
        ],
        keys.pack(nodes.name): [
            lambda: read.packs.head(nodes.name),
            *(
                lambda name=one.digest, place=place: read.node(name, place).content  # type: ignore[misc]
                for one, place in zip(made, nodes.placements, strict=True)
            ),
        ],
        keys.version(RECORD.name, 1): [lambda: read.version(RECORD.name)],
        keys.filemap(ROOT, 1): [lambda: read.file_map(ROOT)],
    }


def test_a_flipped_byte_never_gets_out() -> None:
    """At any place of any object one reading at least says Corrupt, and none gives anything else than before."""
    store = MemoryStore()
    objects = every_object(store)
    for key, reads in objects.items():
        whole, sound = store.get(key), [read() for read in reads]
        for at in range(0, len(whole), 1 if len(whole) < 2000 else 61):
            damaged = bytearray(whole)
            damaged[at] ^= 1 << at % 8
            store.replace(key, bytes(damaged))
            refused = 0
            for read, expected in zip(reads, sound, strict=True):
                try:
                    assert read() == expected
                except Corrupt:
                    refused += 1
            assert refused or placements_of_a_leaf(key, at, whole, store), f"byte {at} of {key} is not verified"
        store.replace(key, whole)
        assert [read() for read in reads] == sound


def placements_of_a_leaf(key: str, at: int, whole: bytes, store: Pruner) -> bool:
    """Whether the byte is part of a placement, which is advice: no digest covers it."""
    if not key.startswith("packs/"):
        return False
    head = Repository(store).packs.head(Digest(sha256(whole[: 32 + 60 * whole[8]]).digest()))
    return head.kind is PackKind.NODES and at >= head.length


@pytest.mark.parametrize("lost", [1, 33, 100, 1 << 30])
def test_what_ends_early_is_corrupt(store: Pruner, lost: int) -> None:
    objects = every_object(store)
    for key, reads in objects.items():
        store.replace(key, store.get(key)[:-lost])
        refused = 0
        for read in reads:
            try:
                read()
            except Corrupt:
                refused += 1
        assert refused, f"{key} is not missed"


def test_what_is_gone_is_not_found(store: Pruner) -> None:
    objects = every_object(store)
    for key, reads in objects.items():
        store.delete(key)
        for read in reads:
            with pytest.raises(NotFound):
                read()


def test_a_placement_is_advice(store: Pruner) -> None:
    """A wrong one is found out, and nothing but the content asked for is handed out."""
    pack = chunk_pack()
    ObjectWriter(store).put_pack(pack)
    place, raw = pack.placements[0], len(CHUNKS[0])
    for wrong in (
        pack.placements[1],
        place._replace(offset=place.offset + 1),
        place._replace(stored=place.stored - 1),
        place._replace(stored=raw - BLOCK, raw=raw - BLOCK),
        place._replace(raw=raw + 1),
        place._replace(codec=codec.ZSTD),
        place._replace(codec=77),
        place._replace(offset=1 << 31),
        place._replace(stored=0, raw=0),
        place._replace(pack=ROOT),
    ):
        with pytest.raises(BlockmapError) as caught:
            Repository(store).chunk(NAMES[0], wrong)
        assert isinstance(caught.value, Corrupt | NotFound)
    with pytest.raises(Corrupt, match="another digest"):
        Repository(store).chunk(NAMES[0], pack.placements[1])


def test_a_chunk_is_no_node_and_a_node_no_chunk(store: Pruner) -> None:
    objects, chunks = ObjectWriter(store), chunk_pack()
    nodes, made = node_pack(chunks)
    objects.put_pack(chunks)
    objects.put_pack(nodes)
    with pytest.raises(Corrupt):
        Repository(store).chunk(made[0].digest, nodes.placements[0])
    with pytest.raises(Corrupt):
        Repository(store).node(NAMES[0], chunks.placements[0])
    with pytest.raises(Corrupt):
        Repository(store).node(made[0].digest, nodes.placements[1])


@pytest.mark.parametrize("claim", [1 << 18, (1 << 18) + 1, 1 << 20, (1 << 20) + 1, (1 << 32) - 1])
def test_bombs_take_no_memory(claim: int) -> None:
    """A frame of 2 KiB that holds 64 MiB, whatever the placement says of it."""
    store, bomb = MemoryStore(), zstandard.ZstdCompressor(level=3).compress(bytes(1 << 26))
    at = 5 if bomb[4] >> 5 & 1 else 6
    frames = [bomb, bomb[:at] + struct.pack("<I", claim) + bomb[at + 4 :]]
    pack = seal(PackKind.CHUNKS, [PackedFrame(ROOT, codec.ZSTD, frame, claim) for frame in frames], bytes(16))
    ObjectWriter(store).put_pack(pack)
    tracemalloc.start()
    try:
        for place in pack.placements:
            with pytest.raises(Corrupt, match="damaged"):
                Repository(store).chunk(ROOT, place)
            with pytest.raises(Corrupt, match="damaged"):
                Repository(store).node(ROOT, place)
        assert tracemalloc.get_traced_memory()[1] < 2 << 20
    finally:
        tracemalloc.stop()


def test_a_pack_that_is_something_else_is_corrupt(store: Pruner) -> None:
    store.create(keys.pack(ROOT), [b"hello " * SPAN])
    with pytest.raises(Corrupt, match="not a pack"):
        Repository(store).packs.head(ROOT)
    pack = chunk_pack()
    store.replace(keys.pack(ROOT), b"".join(pack.parts))
    with pytest.raises(Corrupt, match="does not match its name"):
        Repository(store).packs.head(ROOT)
