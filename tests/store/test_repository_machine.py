"""Chunks and versions put, damaged, lost and read in any order; a dict of contents is the model."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from blockmap.errors import Corrupt, NotFound
from blockmap.format import BLOCK, hooks, keys
from blockmap.format.chunker import Parameters
from blockmap.format.digest import ABSENT, Digest
from blockmap.format.placement import Placement
from blockmap.format.tree import Root
from blockmap.format.version import Version, WriterLayout
from blockmap.publish.chunks import ChunkWriter
from blockmap.publish.dedup_index import DedupIndex, StoredTree
from blockmap.publish.object_writer import ObjectWriter
from blockmap.publish.stages import Stages
from blockmap.publish.trees import draft_whole, store_trees
from blockmap.store.memory import MemoryStore
from blockmap.store.repository import Repository
from blockmap.store.volume_reader import stored_reader
from tests.image.builder import bulk

SIZE = 200
contents = st.lists(st.tuples(st.integers(1, 2), st.integers(1, 6) | st.just(30)), min_size=1, max_size=3)
"""Contents of a volume: seeds and blocks, with a zero block between."""
picks = st.integers(0, 1 << 30)


class Stored(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.store = MemoryStore()
        self.repository = Repository(self.store)
        self.sound: dict[str, bytes] = {}
        """Every object as it was put."""
        self.chunks: dict[Digest, tuple[Placement, bytes]] = {}
        self.hooks: dict[Digest, hooks.Hooks] = {}
        self.volumes: dict[Digest, tuple[Version, int, bytes]] = {}
        """By version: its record, the record's number, the bytes of the volume."""

    def note(self) -> set[str]:
        """Keys that are new."""
        new = {key for key in self.store.list("") if key not in self.sound}
        self.sound |= {key: self.store.get(key) for key in new}
        return new

    @rule(pieces=contents)
    def publish(self, pieces: list[tuple[int, int]]) -> None:
        """An image that is known is not put again; what is new is put once."""
        if self.damaged():
            return
        objects, at = ObjectWriter(self.store), 0
        stored = [StoredTree([record.root], self.hooks[record.root.digest]) for record, _, _ in self.volumes.values()]
        known = DedupIndex(self.repository, stored, print)
        whole = bytearray(SIZE * BLOCK)
        with ChunkWriter(objects.put_pack, known.lookup, Parameters(), Stages()) as chunks:
            for seed, blocks in pieces:
                data = bulk(seed, blocks * BLOCK)
                chunks.write(at, data)
                whole[at * BLOCK : (at + blocks) * BLOCK] = data
                at += blocks + 1
            chunks.finish()
            trees = store_trees(draft_whole(chunks, SIZE, []), chunks.table.placement, known, objects.put_pack)
        if trees.known:
            objects.withdraw()
        self.hooks |= {root: hooks.decode(data, root) for root, data in trees.hooks}
        record = Version(trees.root, trees.extra, WriterLayout(0, 0))
        before = self.volumes.get(record.name)
        number = objects.put_version(record, {(name, n) for name, (_, n, _) in self.volumes.items()})
        new = self.note()
        fresh = [
            (name, place)
            for key in new
            if key.startswith("packs/")
            for head in [self.repository.packs.head(Digest(bytes.fromhex(key[-64:])))]
            if head.kind == 1
            for name, place in head.entries
        ]
        assert len({name for name, _ in fresh}) == len(fresh), "a chunk was put twice"
        for name, place in fresh:
            self.chunks[name] = (place, self.repository.chunk(name, place))
        if before is not None:
            assert not new, "an image that is there already costs nothing"
            assert number == before[1]
        self.volumes[record.name] = (record, number, bytes(whole))

    @rule(pieces=contents)
    def give_up(self, pieces: list[tuple[int, int]]) -> None:
        """A publication that fails takes back what it put."""
        before = self.store.list("")
        objects = ObjectWriter(self.store)
        with ChunkWriter(objects.put_pack, lambda names: [None] * len(names), Parameters(), Stages()) as chunks:
            for at, (seed, blocks) in enumerate(pieces):
                chunks.write(40 * at, bulk(seed, blocks * BLOCK))
            chunks.finish()
        objects.put_version(Version(Root(ABSENT, 1 + len(pieces)), Root(ABSENT, 1), WriterLayout(0, 0)), set())
        objects.withdraw()
        assert self.store.list("") == before

    def damaged(self) -> set[str]:
        there = set(self.store.list(""))
        return {key for key, data in self.sound.items() if key not in there or self.store.get(key) != data}

    @precondition(lambda self: self.sound)
    @rule(which=picks, at=picks, bit=st.integers(0, 7))
    def flip(self, which: int, at: int, bit: int) -> None:
        key = sorted(self.sound)[which % len(self.sound)]
        data = bytearray(self.sound[key])
        data[at % len(data)] ^= 1 << bit
        self.store.replace(key, bytes(data))

    @precondition(lambda self: self.sound)
    @rule(which=picks, at=picks)
    def cut(self, which: int, at: int) -> None:
        key = sorted(self.sound)[which % len(self.sound)]
        self.store.replace(key, self.sound[key][: at % len(self.sound[key])])

    @precondition(lambda self: self.sound)
    @rule(which=picks)
    def lose(self, which: int) -> None:
        self.store.delete(sorted(self.sound)[which % len(self.sound)])

    @rule()
    def restore(self) -> None:
        for key in self.damaged():
            self.store.replace(key, self.sound[key])

    @precondition(lambda self: self.chunks)
    @rule(which=picks, other=picks, stretch=st.sampled_from([0, 0, 0, -1, 1, BLOCK]))
    def read_chunk(self, which: int, other: int, stretch: int) -> None:
        """Right bytes or an error, also where a placement is wrong."""
        names = sorted(self.chunks)
        name, elsewhere = names[which % len(names)], names[other % len(names)]
        right, data = self.chunks[name]
        for place in (right, right._replace(raw=right.raw + stretch), self.chunks[elsewhere][0]):
            try:
                found = self.repository.chunk(name, place)
            except (Corrupt, NotFound):
                assert self.damaged() or place != right
                continue
            assert found == data

    @precondition(lambda self: self.volumes)
    @rule(which=picks)
    def read_volume(self, which: int) -> None:
        name = sorted(self.volumes)[which % len(self.volumes)]
        record, number, whole = self.volumes[name]
        try:
            found = self.repository.version(name, number)
            assert found == record
            data = stored_reader(self.repository, found.root)(0, SIZE * BLOCK)
        except (Corrupt, NotFound):
            assert self.damaged(), "nothing is wrong with the store"
            return
        assert data == whole

    @invariant()
    def sound_objects_are_read(self) -> None:
        damaged = self.damaged()
        for name, (place, data) in self.chunks.items():
            if keys.pack(place.pack) not in damaged:
                assert self.repository.chunk(name, place) == data


TestStored = Stored.TestCase
TestStored.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
